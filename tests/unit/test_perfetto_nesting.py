"""Which tracks of a thread nest, compared with looking at every pair of slices."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cctrace.exporters.perfetto.groups import group
from cctrace.exporters.perfetto.lanes import OPEN_NS
from cctrace.exporters.perfetto.nesting import CUDA, Placed, place

if TYPE_CHECKING:
    from collections.abc import Iterator

Row = tuple[int, str, int, int | None]  # thread, track, start, length
ROWS = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.sampled_from([CUDA, "NVTX", "NVTX a"]),
        st.integers(0, 19),
        st.one_of(st.integers(1, 15), st.none()),
    ),
    max_size=9,
)


def crosses(rows: list[Row]) -> bool:
    """Whether two of them overlap, neither within the other."""
    spans = [(start, OPEN_NS if length is None else start + length) for *_, start, length in rows]
    return any(a[0] < b[0] < a[1] < b[1] for a, b in itertools.permutations(spans, 2))


@settings(deadline=None)  # other work on the machine
@given(ROWS, st.integers(1, 21))
def test_placement_is_that_of_all_pairs(rows: list[Row], window_ns: int) -> None:
    # GIVEN slices of two threads, read in windows of some length
    def read() -> Iterator[tuple[Any, int]]:
        for from_ns in range(0, 21, window_ns):
            here = [row for row in rows if from_ns <= row[2] < from_ns + window_ns]
            columns = {
                "pid": pa.array([7 for _ in here], pa.int32()),
                "tid": pa.array([row[0] for row in here], pa.int32()),
                "track": pa.array([row[1] for row in here], pa.string()),
                "ts_ns": pa.array([row[2] for row in here], pa.int64()),
                "dur_ns": pa.array([row[3] for row in here], pa.int64()),
            }
            is_last = from_ns + window_ns >= 21
            yield pa.table(columns), OPEN_NS if is_last else from_ns + window_ns

    # WHEN they are placed
    placed = place(read)
    # THEN threads on which no two cross are left out, and of the others each track is
    # placed by whether it, and all ranges together, cross
    expected = {}
    for tid in (1, 2):
        own = [row for row in rows if row[0] == tid]
        ranges = [row for row in own if row[1] != CUDA]
        for track in {row[1] for row in own if crosses(own)}:
            is_own = track == CUDA or crosses(ranges)
            alone = crosses([row for row in own if row[1] == track])
            expected[7, tid, track] = Placed(is_own, alone)
    assert placed == expected


def test_groups_are_in_order_of_their_first_rows() -> None:
    table = pa.table({"a": [2, None, 2, 1, None], "b": ["x", "y", "x", None, "y"]})
    number, found = group(table, ["a", "b"])
    assert number.tolist() == [0, 1, 0, 2, 1]
    assert found == [{"a": 2, "b": "x"}, {"a": None, "b": "y"}, {"a": 1, "b": None}]
    number, found = group(table.slice(0, 0), ["a"])
    assert (number.tolist(), found) == ([], [])
