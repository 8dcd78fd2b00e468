"""cctrace/analyze/handovers.py: what a loop and its reading thread wait for, told from calls."""

from __future__ import annotations

import pytest
from replay_graphs import FIRST, STEPS, itl_ns

from cctrace.analyze.graph import Act, Call, Graph, Item, Thread
from cctrace.analyze.handovers import launches, share_lock, takes_at_once
from cctrace.analyze.replay import replay

PERIOD_NS = 1_000_000
WORK_NS = 900_000.0
HOST_NS = 80_000.0


def call(ts_ns: int, api: str, cls: str) -> Call:
    return Call(1, 1, ts_ns, 10_000, cls, api)


def recorded(*, is_late: bool) -> Graph:
    """A loop that launches, records an event, and has another thread wait for it.

    The reading thread is through 950000 into the step; the loop sleeps until 20000 after
    that, or, late, for as long as the lock is taken: until 150000 into the step.
    """
    own: list[Item] = []
    reader: list[Item] = []
    for number in range(STEPS + 1):
        start_ns = number * PERIOD_NS
        own.append(Item(Act.MARK, step=number))
        if number == STEPS:
            break
        launch = Item(Act.ENQUEUE, HOST_NS, 10_000, stream=0, device_ns=WORK_NS, step=number)
        launch.call = call(start_ns + 80_000, "cudaGraphLaunch", "graph")
        record = Item(Act.RECORD, 0, 5_000, stream=0, step=number, site=1)
        record.call = call(start_ns + 95_000, "cudaEventRecord", "event")
        woken = Item(Act.ANCHOR, step=number)
        slept = Item(Act.WAIT_ANCHOR, 1_000, target=woken, step=number)
        slept.end_ns = start_ns + (150_000 if is_late else 970_000)
        slept.recorded_ns = slept.end_ns - start_ns - 110_000
        own += [launch, record, slept]
        waiting = Item(Act.WAIT_EVENT, 100, after_ns=10_000, target=record, step=number)
        waiting.call = call(start_ns + 940_000, "cudaEventSynchronize", "sync")
        reader += [waiting, woken]
    threads = (Thread(1, 1, 0, own), Thread(1, 2, 0, reader))
    return Graph(threads, (0,), (1,), FIRST, STEPS - 1, 5_000)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_turn_whose_result_is_taken_is_told(is_late: bool) -> None:
    """At once: host, then device. Late: the device is never idle."""
    graph = share_lock(recorded(is_late=is_late), [1])
    assert takes_at_once(graph) is not is_late
    # Host 80000 + 10000, work, return 10000, result 10000, and the woken loop 5000 later.
    expected_ns = WORK_NS if is_late else HOST_NS + 10_000 + WORK_NS + 25_000
    assert itl_ns(graph) == pytest.approx(expected_ns, abs=1_500)


def test_both_threads_share_the_lock_and_lose_the_recorded_waits() -> None:
    """One wait a step for the turn's end is what is left of them."""
    before = recorded(is_late=False)
    graph = share_lock(before, [1])
    own, reader = graph.threads
    assert (own.lock, reader.lock) == (1, 1)
    ends = {item.uid for item in reader.items if item.act == Act.ANCHOR}
    waits = [item for item in own.items if item.act == Act.WAIT_ANCHOR]
    assert len(waits) == STEPS
    assert all(item.target is not None and item.target.uid in ends for item in waits)
    assert replay(graph).stuck == 0


def test_other_programs_keep_what_was_recorded() -> None:
    """A process that runs no Python is left as it is."""
    graph = recorded(is_late=True)
    assert share_lock(graph, []) is graph
    assert share_lock(graph, [2]) is graph


def test_threads_that_launch_are_told_from_others() -> None:
    """By recorded launches, and by work of launches that were only counted."""
    own, reader = recorded(is_late=True).threads
    assert launches(own)
    assert not launches(reader)
    assert launches(Thread(1, 3, 0, [Item(Act.ENQUEUE, stream=0, device_ns=5)]))
