"""Critical paths of hand-made graphs: each piece by its length, all of them the step's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from replay_graphs import FIRST, copy, launch, loop, wait

from cctrace.analyze.critical_path import Piece, path_of
from cctrace.analyze.graph import Act, Graph, Item, Thread
from cctrace.analyze.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable

Told = list[tuple[str, float]]


def told(graph: Graph, step: int = FIRST) -> Told:
    """Kind and length of each piece, checked to lie end to end and to fill the step."""
    pieces, _ = path_of(graph, step)
    starts = dict(replay(graph).starts_ns)
    at_ns = 0.0
    for piece in pieces:
        assert piece.start_ns == at_ns
        at_ns = piece.end_ns
    assert at_ns == starts[step + 1] - starts[step]
    return [(piece.kind, piece.dur_ns) for piece in pieces]


def threads_of(graph: Graph) -> list[int]:
    return [piece.tid for piece in path_of(graph, FIRST)[0]]


def test_a_readback_waits_for_the_kernel_before_it() -> None:
    graph = loop(lambda _: [launch(device_ns=500, gap_ns=53), copy("d2h", gap_ns=7)])
    # host work, the launch, until it begins, kernel and copy, and the next step begins
    assert told(graph) == [("host", 53), ("call", 20), ("latency", 100), ("device", 570)]
    [*_, device], all_of_it = path_of(graph, FIRST)
    assert isinstance(device, Piece)
    assert device.count == 2
    assert device.call is not None
    assert device.call.api == "cudaLaunchKernel"
    # both are there by themselves too
    assert [(work.start_ns, work.dur_ns) for work in all_of_it] == [(173, 500), (673, 70)]


def test_a_device_that_is_done_early_is_not_on_the_path() -> None:
    graph = loop(lambda _: [launch(device_ns=11), Item(Act.RUN, gap_ns=997), wait()])
    assert told(graph) == [("call", 20), ("host", 997), ("call", 10)]


def test_kernels_queue_on_their_stream() -> None:
    graph = loop(lambda _: [launch(device_ns=400), launch(device_ns=300), wait()])
    # the second launch is not on it: its kernel waited for the first one's
    expected = [("call", 20), ("latency", 100), ("device", 700), ("call", 10)]
    assert told(graph) == expected


def test_a_slow_launch_is_on_the_path_and_the_kernel_before_it_is_not() -> None:
    graph = loop(lambda _: [launch(device_ns=40), launch(host_ns=600, device_ns=30), wait()])
    expected = [("call", 20), ("call", 600), ("latency", 100), ("device", 30), ("call", 10)]
    assert told(graph) == expected


def _event(between: Callable[[Item], list[Item]]) -> Graph:
    """A kernel of 500 on stream 0, and what comes after an event is recorded behind it."""

    def step(_: int) -> list[Item]:
        record = Item(Act.RECORD, host_ns=5, stream=0)
        return [launch(device_ns=500), record, *between(record)]

    made = loop(step)
    return Graph(made.threads, (0, 0), (2,), made.first_step, made.last_step)


def test_a_wait_for_an_event_leads_to_the_work_before_the_event() -> None:
    graph = _event(lambda record: [launch(device_ns=900), wait(Act.WAIT_EVENT, target=record)])
    # the kernel of the step before holds this one's up, so look at a step's share of it
    kinds = [kind for kind, _ in told(graph)]
    assert kinds == ["device", "call"]


def test_a_stream_that_waits_for_another_one() -> None:
    def side(record: Item) -> list[Item]:
        behind = Item(Act.STREAM_WAIT, host_ns=3, stream=1, target=record)
        kernel = launch(device_ns=70)
        kernel.stream = 1
        device = wait(Act.WAIT_STREAM)
        device.stream = 1
        return [behind, kernel, device]

    expected = [("call", 20), ("latency", 100), ("device", 570), ("call", 10)]
    assert [(k, d) for k, d in told(_event(side))] == expected


def test_one_copy_at_a_time_over_the_bridge() -> None:
    def step(_: int) -> list[Item]:
        first = copy("h2d", Act.ENQUEUE)
        second = copy("h2d", Act.BLOCKING)
        second.stream = 1
        return [first, second]

    made = loop(step)
    graph = Graph(made.threads, (0, 0), (1,), made.first_step, made.last_step)
    # the first copy is submitted after 30 and takes 70; the second had to wait for it
    assert told(graph) == [("call", 30), ("device", 140)]
    both = Graph(made.threads, (0, 0), (2,), made.first_step, made.last_step)
    assert told(both) == [("call", 30), ("call", 30), ("device", 70)]


def test_the_longest_stream_is_what_a_wait_for_the_device_waits_for() -> None:
    def step(_: int) -> list[Item]:
        other = launch(device_ns=800)
        other.stream = 1
        return [launch(device_ns=300), other, wait(Act.WAIT_DEVICE)]

    expected = [("call", 40), ("latency", 100), ("device", 800), ("call", 10)]
    found = told(loop(step))
    assert [found[0][1] + found[1][1], *found[2:]] == [40, *expected[1:]]


@pytest.mark.parametrize("work_ns", [1_009, 3])
def test_a_thread_that_is_woken_by_another_one(work_ns: int) -> None:
    """GIVEN a worker of ``work_ns`` a step that wakes the loop, which has 101 of its own."""
    anchors = [Item(Act.ANCHOR, gap_ns=work_ns) for _ in range(14)]
    made = loop(
        lambda number: [
            Item(Act.RUN, gap_ns=101),
            Item(Act.WAIT_ANCHOR, target=anchors[number], wake_ns=17),
        ]
    )
    worker = Thread(1, 2, 0, list(anchors))
    graph = Graph(
        (*made.threads, worker), (0, 0), (2,), made.first_step, made.last_step, wake_ns=17
    )
    if work_ns < 101:  # the worker was always done: no wait
        assert told(graph) == [("host", 101)]
        assert threads_of(graph) == [1]
    else:  # wake-ups overlap with the worker's next piece of work
        assert told(graph) == [("host", 992), ("wake", 17)]
        assert threads_of(graph) == [2, 1]


def test_a_lock_that_another_thread_holds() -> None:
    """GIVEN a loop and a reader that share a lock, the reader woken by the loop's launch."""
    anchors = [Item(Act.ANCHOR) for _ in range(14)]
    made = loop(lambda number: [anchors[number], launch(gap_ns=1, host_ns=100), Item(Act.RUN, 50)])
    reader = [
        item
        for anchor in anchors
        for item in (Item(Act.WAIT_ANCHOR, target=anchor), Item(Act.RUN, gap_ns=300))
    ]
    loops = [Thread(1, 1, 0, made.threads[0].items, lock=1), Thread(1, 2, 0, reader, lock=1)]
    graph = Graph(tuple(loops), (0, 0), (2,), made.first_step, made.last_step, wake_ns=7)
    # the reader is woken as the step begins, and works once the loop's own 1 is over; it
    # still has the lock when the launch is done
    expected = [("host", 1), ("wake", 7), ("host", 300), ("wake", 7), ("host", 50)]
    assert told(graph) == expected
    assert threads_of(graph) == [1, 2, 2, 1, 1]


def test_a_step_that_is_not_there_has_no_path() -> None:
    assert path_of(loop(lambda _: [launch()]), 999) == ((), ())
