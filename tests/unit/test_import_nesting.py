"""Nesting and correlation of imported intervals, against the plain way to say them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from cctrace.importers.correlate import join
from cctrace.importers.nesting import depths
from cctrace.importers.staging import HINTS, Staging


def _depths(*intervals: tuple[int, int, int]) -> list[int]:
    """Depths of (group, start, length)."""
    columns = np.array(intervals, np.int64).reshape(-1, 3)
    return list(depths(columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2]).tolist())


def test_nesting_siblings_and_threads() -> None:
    # GIVEN a call of 10 with two inside it, one of those with one inside; and another thread
    found = _depths((1, 0, 10), (1, 1, 3), (1, 2, 1), (1, 5, 5), (2, 2, 4))
    # WHEN / THEN the order they are given in does not matter
    assert found == [0, 1, 2, 1, 0]
    assert _depths((2, 2, 4), (1, 5, 5), (1, 2, 1), (1, 1, 3), (1, 0, 10)) == [0, 1, 2, 1, 0]


def test_equal_times() -> None:
    # GIVEN intervals that touch, that start together, that are equal, and that have no length
    assert _depths((1, 0, 5), (1, 5, 5)) == [0, 0]
    assert _depths((1, 0, 2), (1, 0, 5)) == [1, 0]
    assert _depths((1, 0, 5), (1, 0, 5)) == [0, 1]
    assert _depths((1, 0, 0), (1, 0, 0), (1, 0, 5)) == [1, 1, 0]
    assert _depths((1, 0, 5), (1, 5, 0), (1, 5, 2)) == [0, 1, 0]


def test_open_and_overlapping() -> None:
    # GIVEN an interval that never ended, and two that cross
    assert _depths((1, 0, -1), (1, 100, 5), (1, 2**61, 7)) == [0, 1, 1]
    assert _depths((1, 0, 10), (1, 5, 10), (1, 12, 1)) == [0, 1, 1]
    assert _depths() == []


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(-1, 8)),
        max_size=23,
    )
)
def test_depth_is_the_number_open_at_the_start(intervals: list[tuple[int, int, int]]) -> None:
    # GIVEN any intervals; WHEN / THEN each is as deep as others are open where it starts: begun
    # before it (or with it, and longer, or given first) and ending after its start
    expected = []
    for i, (group, start, length) in enumerate(intervals):
        reach = float("inf") if length < 0 else start + length
        depth = 0
        for j, (other, begin, span) in enumerate(intervals):
            end = float("inf") if span < 0 else begin + span
            earlier = (begin, -end, j) < (start, -reach, i)
            depth += other == group and i != j and earlier and end > start and end > begin
        expected.append(depth)
    assert _depths(*intervals) == expected


def _staged(folder: Path, calls: list[dict[str, Any]], activities: list[dict[str, Any]]) -> Staging:
    staging = Staging(folder)
    for i, call in enumerate(calls):
        fixed = {"ts_ns": [100 * i], "pid": [1], "tid": [2], "dur_ns": [50], "api": "f"}
        told = {name: value if name == "class" else [value] for name, value in call.items()}
        staging.add("cuda_api", 1, {**fixed, "layer": "runtime", "class": "launch", **told})
    for i, activity in enumerate(activities):
        told = {
            name: value if isinstance(value, str) else [value] for name, value in activity.items()
        }
        staging.add("gpu_activity", 1, {"ts_ns": [100 * i], "dur_ns": [9], **told})
    return staging


def _column(column: Any) -> list[Any]:
    values = column.values.tolist()
    return [
        None if null else column.texts[value] if column.texts else value
        for value, null in zip(values, column.null.tolist(), strict=True)
    ]


COPY = {"class": "copy", "copy_kind": "h2d", "host_memory": "pinned"}


def test_a_copy_learns_from_its_activities(tmp_path: Path) -> None:
    # GIVEN a copy of one activity, one of two that agree, one of two that differ, one of none
    calls: list[dict[str, Any]] = [{"class": "copy", "correlation_id": i} for i in (11, 13, 17, 19)]
    activities = [
        {**COPY, "pid": 1, "correlation_id": 11, "size_bytes": 101, "stream": 7},
        {**COPY, "pid": 1, "correlation_id": 13, "size_bytes": 103, "stream": 7},
        {**COPY, "pid": 1, "correlation_id": 13, "size_bytes": 107, "stream": 7},
        {**COPY, "pid": 1, "correlation_id": 17, "size_bytes": 109, "stream": 7},
        {**COPY, "copy_kind": "d2h", "pid": 1, "correlation_id": 17, "stream": 13},
    ]
    # WHEN they are joined
    joined = join(_staged(tmp_path, calls, activities), by_pid=True)
    # THEN sizes add up, and what is not agreed on is unknown
    assert _column(joined.calls["size_bytes"]) == [101, 210, None, None]
    assert _column(joined.calls["stream"]) == [7, 7, None, None]
    assert _column(joined.calls["copy_kind"]) == ["h2d", "h2d", "unknown", "unknown"]
    assert _column(joined.calls["host_memory"]) == ["pinned", "pinned", "pinned", "unknown"]
    assert _column(joined.activities["tid"]) == [2] * 5
    assert joined.unmatched == 0


def test_a_copy_between_devices_has_no_host_memory(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"class": "copy", "correlation_id": 11}]
    activities = [{"class": "copy", "copy_kind": "d2d", "pid": 1, "correlation_id": 11}]
    joined = join(_staged(tmp_path, calls, activities), by_pid=True)
    assert _column(joined.calls["copy_kind"]) == ["d2d"]
    assert _column(joined.calls["host_memory"]) == [None]


def test_ids_are_of_a_process_where_the_format_says_so(tmp_path: Path) -> None:
    # GIVEN the same id in two processes
    calls: list[dict[str, Any]] = [
        {"correlation_id": 11},
        {"correlation_id": 11, "pid": 5, "tid": 6},
    ]
    activities = [
        {"class": "kernel", "pid": 5, "correlation_id": 11, "stream": 3},
        {"class": "kernel", "pid": 8, "correlation_id": 11, "stream": 4},
    ]
    joined = join(_staged(tmp_path, calls, activities), by_pid=True)
    # THEN an activity belongs to the call of its own process, and one of a third to none
    assert _column(joined.calls["stream"]) == [None, 3]
    assert _column(joined.activities["tid"]) == [6, None]
    assert joined.unmatched == 1


def test_calls_that_share_an_id(tmp_path: Path) -> None:
    # GIVEN a call within another one, both with the id of a kernel
    calls: list[dict[str, Any]] = [
        {"correlation_id": 11, "ts_ns": 100, "dur_ns": 50, "tid": 2},
        {"correlation_id": 11, "ts_ns": 110, "dur_ns": 10, "tid": 2},
        {"correlation_id": 11, "ts_ns": 50, "dur_ns": None, "tid": 9},
    ]
    activities = [{"class": "kernel", "correlation_id": 11, "stream": 3}]
    joined = join(_staged(tmp_path, calls, activities), by_pid=False)
    # THEN both learn the stream; the kernel belongs to the outermost, of these the first
    assert _column(joined.calls["depth"]) == [0, 1, 0]
    assert _column(joined.calls["stream"]) == [3, 3, 3]
    assert _column(joined.activities["tid"]) == [9]
    assert joined.shared_ids == 3


def test_a_synchronisation_tells_stream_and_event(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"correlation_id": 11}, {"correlation_id": None}]
    staging = _staged(tmp_path, calls, [])
    staging.add(HINTS, 1, {"pid": [1], "correlation_id": [11], "stream": [22], "event": [33]})
    joined = join(staging, by_pid=True)
    assert _column(joined.calls["stream"]) == [22, None]
    assert _column(joined.calls["event"]) == [33, None]


def test_sizes_that_do_not_add_up_to_a_bigint(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"class": "copy", "correlation_id": 11}]
    activities = [
        {**COPY, "pid": 1, "correlation_id": 11, "size_bytes": 2**62 - 1} for _ in range(3)
    ]
    joined = join(_staged(tmp_path, calls, activities), by_pid=True)
    assert _column(joined.calls["size_bytes"]) == [None]
