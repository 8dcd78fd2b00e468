"""Where a long run is cut: each step in one core, with its neighbours around it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cctrace.analyze.chunks import (
    BEGIN,
    END,
    MARGIN_STEPS,
    Chunk,
    Density,
    Loop,
    cut,
    longest_inside,
    loops,
    sample,
)
from cctrace.store.excerpt import Group, Window

PART = Path("part")


def even(first_ns: int, end_ns: int, events: int) -> Group:
    """Events spread evenly."""
    return Group(PART, first_ns, end_ns - 1, events)


def loop(*starts_ns: int, end_ns: int) -> Loop:
    """Steps that follow each other."""
    starts = np.array(starts_ns, np.int64)
    return Loop(starts, np.append(starts[1:], end_ns))


class TestDensity:
    def test_counts_between_groups_and_within(self) -> None:
        # GIVEN 100 events in [1000, 1100) and 50 in [1050, 1150), far from 0
        far = 10**18
        density = Density([even(far + 1000, far + 1100, 100), even(far + 1050, far + 1150, 50)])
        # WHEN / THEN
        asked = np.array([0, 1000, 1050, 1100, 1125, 1150, 9999]) + far
        assert density.before(asked).tolist() == [0, 0, 50, 125, 137.5, 150, 150]
        assert density.total == 150
        assert density.moment(50) == far + 1050
        assert density.moment(125) == far + 1100

    def test_a_moment_with_many_events_is_no_trouble(self) -> None:
        density = Density([even(5, 6, 1000), even(7, 8, 3)])
        assert density.before(np.array([5, 6, 7, 8])).tolist() == [0, 1000, 1000, 1003]

    def test_no_events(self) -> None:
        density = Density([])
        assert density.total == 0
        assert density.before(np.array([1, 2])).tolist() == [0, 0]

    def test_a_group_of_unknown_times_is_left_out(self) -> None:
        assert Density([Group(PART, BEGIN, END, 9), even(0, 10, 7)]).total == 7


def test_steps_are_told_apart_by_thread() -> None:
    # GIVEN steps of two threads, and one whose length only its range tells, one open
    table = pa.table(
        {
            "pid": [1, 2, 1, 2],
            "tid": [1, 7, 1, 7],
            "ts_ns": [10, 15, 20, 25],
            "dur_ns": [5, 5, 5, None],
            "period_ns": [10, 10, None, None],
        }
    )
    # WHEN / THEN
    found = loops(table)
    assert [(x.starts_ns.tolist(), x.ends_ns.tolist()) for x in found] == [
        ([10, 20], [20, 25]),
        ([15, 25], [25, 25]),
    ]
    assert loops(table.slice(0, 0)) == []


def test_chunks_begin_at_steps_and_have_so_many_events() -> None:
    # GIVEN 100 steps of 10 ns with an event a nanosecond
    steps = loop(*range(0, 1000, 10), end_ns=1000)
    density = Density([even(0, 1000, 1000)])
    # WHEN cut into chunks of some 250 events
    chunks = cut([steps], density, 250)
    # THEN
    assert [c.core for c in chunks] == [
        Window(0, 250),
        Window(250, 500),
        Window(500, 750),
        Window(750, 991),
    ]
    # and each has eight steps more on both sides, or all there is
    assert [c.window for c in chunks] == [
        Window(BEGIN, 330),
        Window(170, 580),
        Window(420, 830),
        Window(670, END),
    ]
    assert longest_inside(chunks) == 40


def test_a_run_that_fits_is_one_chunk() -> None:
    steps = loop(*range(0, 1000, 10), end_ns=1000)
    [chunk] = cut([steps], Density([even(0, 1000, 1000)]), 10_000)
    assert chunk == Chunk(Window(0, 991), Window(BEGIN, END))
    assert longest_inside([chunk]) == END // 2
    assert cut([], Density([even(0, 1000, 1000)]), 100) == []


def test_what_is_around_the_steps_does_not_fill_memory() -> None:
    # GIVEN a load of 1000 events before the steps, and as many after
    steps = loop(*range(1000, 1100, 10), end_ns=1100)
    density = Density([even(0, 1000, 1000), even(1000, 1100, 100), even(1100, 2100, 1000)])
    # WHEN / THEN the only chunk has as many of them as a chunk has events
    [chunk] = cut([steps], density, 200)
    assert chunk.core == Window(1000, 1091)
    assert chunk.window == Window(800, 1100 + (200 - 9))


def test_each_thread_has_its_own_margin() -> None:
    # GIVEN a fast loop and a slow one
    fast = loop(*range(0, 1000, 10), end_ns=1000)
    slow = loop(*range(5, 1000, 100), end_ns=1005)
    chunks = cut([fast, slow], Density([even(0, 1000, 1000)]), 500)
    assert [c.core for c in chunks] == [Window(0, 500), Window(500, 991)]
    # eight slow steps reach beyond both ends
    assert chunks[0].window == Window(BEGIN, END)
    assert chunks[1].window == Window(BEGIN, END)


_LOOPS = st.lists(
    st.lists(st.integers(1, 50), min_size=1, max_size=60).map(
        lambda gaps: np.cumsum(np.array(gaps, np.int64))
    ),
    min_size=1,
    max_size=3,
)


@given(_LOOPS, st.integers(1, 400))
def test_each_step_counts_once_and_sees_its_neighbours(
    starts: list[np.ndarray[tuple[int], np.dtype[np.int64]]], chunk_events: int
) -> None:
    # GIVEN some loops with steps of any length
    found = [Loop(s, np.append(s[1:], s[-1] + 7)) for s in starts]
    end = max(int(s[-1]) for s in starts) + 1
    density = Density([even(0, end, 2 * end)])
    # WHEN cut
    chunks = cut(found, density, chunk_events)
    # THEN cores touch each other and hold every step
    assert all(a.core.end_ns == b.core.first_ns for a, b in pairwise(chunks))
    everything = np.concatenate(starts)
    assert chunks[0].core.first_ns == everything.min()
    assert chunks[-1].core.end_ns == everything.max() + 1
    for chunk in chunks:
        core, window = chunk.core, chunk.window
        assert window.first_ns <= core.first_ns < core.end_ns <= window.end_ns
        for one in found:
            inside = (one.starts_ns >= core.first_ns) & (one.starts_ns < core.end_ns)
            where = np.flatnonzero(inside)
            if not len(where):
                continue
            # The steps that count are there to their ends.
            assert one.ends_ns[where].max() <= window.end_ns
            low = max(int(where[0]) - MARGIN_STEPS, 0)
            if density.before(np.array([core.first_ns]))[0] <= chunk_events:
                assert one.starts_ns[low] >= window.first_ns


class TestSample:
    STEPS = loop(*range(0, 10_000, 10), end_ns=10_000)
    DENSITY = Density([even(0, 10_000, 100_000)])

    def test_a_short_run_is_its_own_sample(self) -> None:
        assert sample([self.STEPS], self.DENSITY, 100_000, 4) is None

    def test_slices_are_spread_and_begin_at_steps(self) -> None:
        chosen = sample([self.STEPS], self.DENSITY, 8_000, 4)
        assert chosen is not None
        assert [c.core for c in chosen] == [
            Window(0, 200),
            Window(3270, 3470),
            Window(6530, 6730),
            Window(9790, 9990),
        ]
        assert chosen[1].window == Window(3190, 3550)
        assert all(a.window.end_ns <= b.window.first_ns for a, b in pairwise(chosen))

    def test_without_steps_it_is_of_the_whole_run(self) -> None:
        chosen = sample([], self.DENSITY, 10_000, 2)
        assert chosen is not None
        assert [c.core for c in chosen] == [Window(0, 500), Window(9500, 10_000)]

    def test_few_steps_in_a_long_run_are_one_slice(self) -> None:
        few = loop(*range(5_000, 5_100, 10), end_ns=5_100)
        chosen = sample([few], self.DENSITY, 8_000, 4)
        assert chosen is not None
        assert [c.core for c in chosen] == [Window(5_000, 5_090)]
