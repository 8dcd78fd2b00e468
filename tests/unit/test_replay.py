"""cctrace/analyze/replay.py: threads, streams and waits on graphs small enough to do by hand."""

from __future__ import annotations

import pytest

from cctrace.analyze.graph import Act, Graph, Item, Thread
from cctrace.analyze.replay import replay

STEPS = 5


def graph(
    *threads: list[Item], streams: tuple[int, ...] = (0, 0), at_once: int = 2, wake_ns: float = 0
) -> Graph:
    """A graph of threads that all start at 0, with two streams of one device."""
    return Graph(
        tuple(Thread(1, number + 1, 0, items) for number, items in enumerate(threads)),
        streams,
        (at_once,),
        0,
        STEPS,
        wake_ns,
    )


def mark(step: int, gap_ns: float = 0) -> Item:
    return Item(Act.MARK, gap_ns, step=step)


def starts(*threads: list[Item], **more: int) -> list[float]:
    """When each step starts."""
    return [at_ns for _, at_ns in replay(graph(*threads, **more)).starts_ns]  # type: ignore[arg-type] # by name


def launch(device_ns: float, gap_ns: float = 0, **more: float) -> Item:
    return Item(Act.ENQUEUE, gap_ns, 10, stream=0, device_ns=device_ns, **more)  # type: ignore[arg-type] # by name


def test_host_work_and_calls_add_up() -> None:
    """3 of work and 10 of a launch, which does not wait for its 500 on the device."""
    assert starts([mark(0), launch(500, gap_ns=3), mark(1, gap_ns=7)]) == [0, 20]


def test_a_blocking_copy_waits_for_the_stream_before_it() -> None:
    """Launch until 10, device busy until 10 + 5 + 500; the copy's 40 come after, then 2."""
    copy = Item(Act.BLOCKING, 1, 4, after_ns=2, stream=0, device_ns=40)
    assert starts([mark(0), launch(500, latency_ns=5), copy, mark(1)]) == [0, 557]


def test_a_blocking_copy_on_another_stream_does_not() -> None:
    """Submitted at 10 + 1 + 4, done 40 later."""
    copy = Item(Act.BLOCKING, 1, 4, after_ns=2, stream=1, device_ns=40)
    assert starts([mark(0), launch(500), copy, mark(1)]) == [0, 57]


def test_a_wait_that_comes_late_costs_its_return_alone() -> None:
    """The device is through at 30; the wait is entered at 110 and takes 3."""
    wait = Item(Act.WAIT_STREAM, 100, after_ns=3, stream=0)
    assert starts([mark(0), launch(20), wait, mark(1)]) == [0, 113]


def test_a_wait_for_the_device_is_for_all_its_streams() -> None:
    """Stream 0 is through at 30, stream 1 at 20 + 70."""
    other = Item(Act.ENQUEUE, 0, 10, stream=1, device_ns=70)
    wait = Item(Act.WAIT_DEVICE, 0, after_ns=3, stream=0)
    assert starts([mark(0), launch(20), other, wait, mark(1)]) == [0, 93]


def test_a_stream_waits_for_an_event_of_another() -> None:
    """The copy of 40 on stream 1 starts when stream 0 is at the event: at 510."""
    record = Item(Act.RECORD, 0, 1, stream=0)
    waiting = Item(Act.STREAM_WAIT, 0, 1, stream=1, target=record)
    copy = Item(Act.BLOCKING, 0, 4, stream=1, device_ns=40)
    later = launch(5000)  # after the event: of no meaning to it
    items = [mark(0), launch(500), record, later, waiting, copy, mark(1)]
    assert starts(items) == [0, 550]


def test_a_thread_waits_for_what_another_has_done() -> None:
    """The second thread passes its anchor at 80; the first sleeps until then, and wakes 6 later."""
    anchor = Item(Act.ANCHOR, 80)
    wait = Item(Act.WAIT_ANCHOR, 20, target=anchor, wake_ns=6)
    assert starts([mark(0), wait, mark(1, gap_ns=1)], [anchor]) == [0, 87]
    late = wait.but(gap_ns=90.0)
    assert starts([mark(0), late, mark(1, gap_ns=1)], [anchor]) == [0, 91]


def test_an_event_is_waited_for_from_when_it_is_recorded() -> None:
    """The waiting thread is first: it gets what the other records at 61, done at 60 + 100."""
    work = Item(Act.ENQUEUE, 50, 10, stream=0, device_ns=100)
    record = Item(Act.RECORD, 0, 1, stream=0)
    wait = Item(Act.WAIT_EVENT, 5, after_ns=2, target=record)
    assert starts([mark(0), wait, mark(1)], [work, record]) == [0, 162]


def test_copies_share_the_bridge() -> None:
    """Two copies of 40 submitted at 4 and 8: one after the other, or side by side."""
    first = Item(Act.ENQUEUE, 0, 4, stream=0, device_ns=40, bridge=True)
    second = Item(Act.BLOCKING, 0, 4, stream=1, device_ns=40, bridge=True)
    assert starts([mark(0), first, second, mark(1)], at_once=1) == [0, 84]
    assert starts([mark(0), first, second, mark(1)], at_once=2) == [0, 48]


def test_a_copy_goes_before_one_that_waits_for_its_stream() -> None:
    """The first copy waits for work until 510; the bridge is free for the second at 18."""
    first = Item(Act.ENQUEUE, 0, 4, stream=0, device_ns=40, bridge=True)
    second = Item(Act.BLOCKING, 0, 4, stream=1, device_ns=40, bridge=True)
    assert starts([mark(0), launch(500), first, second, mark(1)], at_once=1) == [0, 58]


def test_waits_and_idle_devices_are_put_to_the_call() -> None:
    """Step 1: waits 500 - 5 for the launch; the device then idles for 3 + 20 + 10 until 543."""
    wait = Item(Act.WAIT_STREAM, 5, after_ns=3, stream=0, site=7, step=1)
    again = launch(1, gap_ns=20)
    again.step = 1
    found = replay(graph([mark(1), launch(500), wait, again, mark(2)]))
    assert dict(found.blocked_ns) == {7: 495}
    assert dict(found.bubble_ns) == {7: 33, -1: 0} or dict(found.bubble_ns) == {7: 33}
    assert found.periods_ns(1, 1) == {1: 543}


def test_a_lost_partner_does_not_stop_the_replay() -> None:
    """Nobody passes the anchor: the wait is let go, and told."""
    wait = Item(Act.WAIT_ANCHOR, 20, target=Item(Act.ANCHOR))
    found = replay(graph([mark(0), wait, mark(1, gap_ns=1)]))
    assert found.starts_ns == [(0, 0), (1, 21)]
    assert found.stuck == 1


def test_the_interpreters_lock_is_held_outside_of_calls() -> None:
    """The loop works from 0 to 100 and calls for 10; the other's 30 of work come in the call.

    The other thread has it at 100 + 5, and until 135. The loop is back at 110, and gets
    it at 135 + 5.
    """
    loop = [mark(0), Item(Act.RUN, 100, 10), mark(1, gap_ns=1)]
    other = [Item(Act.RUN, 0, 50), Item(Act.RUN, 30)]
    shared = Graph(
        (Thread(1, 1, 0, loop, lock=1), Thread(1, 2, 0, other, lock=1)), (0,), (1,), 0, 9, 5
    )
    assert replay(shared).starts_ns == [(0, 0), (1, 141)]
    apart = Graph((Thread(1, 1, 0, loop), Thread(1, 2, 0, other)), (0,), (1,), 0, 9, 5)
    assert replay(apart).starts_ns == [(0, 0), (1, 111)]


@pytest.mark.parametrize("count", [1, 17])
def test_a_replay_leaves_the_graph_as_it_was(count: int) -> None:
    """Replayed again, it gives the same."""
    copy = Item(Act.BLOCKING, 1, 4, after_ns=2, stream=0, device_ns=40, bridge=True)
    items = [mark(0), *[launch(20) for _ in range(count)], copy, mark(1)]
    whole = graph(items)
    assert replay(whole).starts_ns == replay(whole).starts_ns
