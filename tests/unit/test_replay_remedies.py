"""cctrace/analyze/remedies.py: what each remedy makes of a loop whose times are known by hand.

Costs are those of tests/replay_graphs.py: a launch keeps its caller 20 and starts 100
later, a copy is 30 on the host and 70 on the device, a wait returns 10 after.
"""

from __future__ import annotations

import pytest
from replay_graphs import copy, costs, item, itl_ns, launch, loop, wait

from cctrace.analyze.graph import Act, Graph, Item
from cctrace.analyze.readback_remedies import (
    AsyncSchedulingOff,
    AsyncSchedulingOn,
    WorkerReadback,
)
from cctrace.analyze.remedies import (
    BatchCopies,
    CudaGraphs,
    NoWait,
    PageableHostMemory,
    PinnedHostMemory,
    ReuseAllocations,
    apply,
    everywhere,
)

WORK_NS = 90_000.0  # of the device in a step
HOST_NS = 40_000.0  # of the host beside its calls


def readback_loop() -> Graph:
    """Host work, a launch, a copy that waits for it: one after the other."""
    return loop(lambda _: [launch(gap_ns=HOST_NS, device_ns=WORK_NS), copy("d2h")])


def late_loop() -> Graph:
    """The same with the copy on a stream beside, whose end is waited for a step later."""
    done: list[Item] = []

    def step(number: int) -> list[Item]:
        record = item(Act.RECORD, "event", "cudaEventRecord", stream=0)
        beside = item(Act.STREAM_WAIT, "event", "cudaStreamWaitEvent", target=record)
        copied = item(Act.RECORD, "event", "cudaEventRecord")
        read = copy("d2h", Act.ENQUEUE)
        record.stream, beside.stream, read.stream, copied.stream = 0, 1, 1, 1
        done.append(copied)
        taken = wait(Act.WAIT_EVENT, target=done[number - 1] if number else None)
        return [launch(gap_ns=HOST_NS, device_ns=WORK_NS), record, beside, read, copied, taken]

    return loop(step)


def test_the_loop_as_it_is() -> None:
    """40000 + 20 until the launch returns, 100 + 90000 of the device, 70 of the copy."""
    assert itl_ns(readback_loop()) == HOST_NS + 20 + 100 + WORK_NS + 70


@pytest.mark.parametrize(
    "remedy", [WorkerReadback(costs()), everywhere(costs())["worker_readback"]]
)
def test_a_worker_leaves_the_devices_work_alone(remedy: WorkerReadback) -> None:
    """The host's 40000 fit into the 90000 that the device works: one after the other."""
    assert itl_ns(remedy.apply(readback_loop())) == WORK_NS


def test_a_late_copy_that_blocks_gains_nothing() -> None:
    """Under CC the copy itself waits for the event: the same, and some calls more."""
    gained_ns = itl_ns(readback_loop()) - itl_ns(AsyncSchedulingOn(costs()).apply(readback_loop()))
    assert -10_000 < gained_ns <= 0


def test_a_late_copy_that_does_not_block_does() -> None:
    """Outside of CC it returns, and the device is never idle."""
    now = loop(
        lambda _: [launch(gap_ns=HOST_NS, device_ns=WORK_NS), copy("d2h", Act.ENQUEUE), wait()]
    )
    assert itl_ns(now) == HOST_NS + 20 + 100 + WORK_NS + 70 + 10
    outside = costs(mode="async")
    assert itl_ns(AsyncSchedulingOn(outside).apply(now)) == WORK_NS


def test_turning_it_off_waits_at_once() -> None:
    """Late: as long as the device works. At once: one after the other, 3000 to the wait."""
    late = late_loop()
    assert itl_ns(late) == WORK_NS
    at_once = AsyncSchedulingOff(costs()).apply(late)
    assert itl_ns(at_once) == HOST_NS + 20 + 100 + WORK_NS + 70 + 10


def test_a_worker_takes_over_from_a_late_readback() -> None:
    """No copy, no wait is left on the loop's thread, and the device is still never idle."""
    changed = WorkerReadback(costs()).apply(late_loop())
    own, reader = changed.threads
    # The first step waits for a readback from before the stretch.
    calls = {each.call.api for each in own.items if each.call and each.step > 0}
    assert calls == {"cudaLaunchKernel", "cudaEventRecord"}
    assert sum(each.act == Act.ENQUEUE for each in reader.items) == 13
    assert itl_ns(changed) == WORK_NS


def test_a_graph_launches_once() -> None:
    """Twelve launches of 20 + 5 become one of 20 + 5; the device's 12 x 3 stay."""
    now = loop(lambda _: [*[launch(gap_ns=5, device_ns=3) for _ in range(12)], copy("d2h")])
    gained_ns = itl_ns(now) - itl_ns(CudaGraphs(costs(), frozenset(["step"])).apply(now))
    # Before: the last kernel of 3 is at its end 103 after the last return. After: 136.
    assert gained_ns == 11 * 25 - 33
    elsewhere = CudaGraphs(costs(), frozenset(["elsewhere"])).apply(now)
    assert elsewhere.threads[0].items == now.threads[0].items


def test_a_graph_takes_what_is_between_its_launches() -> None:
    """Eight launches of 20 in two ranges with queries of 7 between them become one.

    The last kernel's 3 come 100 after its launch; with the graph all 8 x 3 do.
    """

    def step(_: int) -> list[Item]:
        made = [launch(device_ns=3, path=f"step/{number % 2}") for number in range(8)]
        asked = [item(Act.RUN, "other", "cudaStreamIsCapturing", host_ns=7.0) for _ in made]
        return [*[each for both in zip(made, asked, strict=True) for each in both], copy("d2h")]

    now = loop(step)
    paths = frozenset(["step/0", "step/1"])
    assert itl_ns(now) == 8 * 20 + 7 * 7 + 100 + 3 + 70
    # The query after the last launch is still made, while the device works.
    assert itl_ns(CudaGraphs(costs(), paths).apply(now)) == 20 + 100 + 24 + 70
    assert itl_ns(CudaGraphs(costs()).apply(now)) == itl_ns(now)


def test_few_launches_are_no_graph() -> None:
    """Seven in a row, and eight with a copy between them, are left alone."""
    seven = loop(lambda _: [launch() for _ in range(7)])
    parted = loop(lambda _: [*[launch() for _ in range(4)], copy("h2d"), *[launch()] * 4])
    for now in (seven, parted):
        assert CudaGraphs(costs()).apply(now).threads[0].items == now.threads[0].items


def test_pageable_copies_to_the_device_do_not_wait() -> None:
    """The first copy waits for 90000 of the step before; staged, its 30 are all."""
    now = loop(lambda _: [copy("h2d"), launch(gap_ns=HOST_NS, device_ns=WORK_NS)])
    assert itl_ns(now) == HOST_NS + 20 + 100 + WORK_NS + 70
    changed = PageableHostMemory(costs()).apply(now)
    assert {each.act for each in changed.threads[0].items if each.call} == {Act.ENQUEUE}
    # The host is ahead of the device, and nothing waits: its own time is left.
    assert itl_ns(changed) == HOST_NS + 20 + 30


def test_pinned_copies_do_not_wait_outside_of_cc() -> None:
    """A pageable copy to the host waits; a pinned one is waited for where it was."""
    now = loop(
        lambda _: [
            launch(device_ns=WORK_NS),
            copy("d2h", memory="pageable"),
            Item(Act.RUN, HOST_NS),
            wait(),
        ]
    )
    assert itl_ns(now) == 20 + 100 + WORK_NS + 70 + HOST_NS + 10
    changed = PinnedHostMemory(costs(mode="async")).apply(now)
    # The host's 40000 go by while the device works.
    assert itl_ns(changed) == 20 + 100 + WORK_NS + 70 + 10


def test_reused_memory_is_not_allocated() -> None:
    """Without 50 to allocate, 60 to free and the 5000 of a first copy."""

    def step(_: int) -> list[Item]:
        allocate = item(Act.RUN, "alloc", "cudaMalloc", host_ns=50.0)
        release = item(Act.RUN, "free", "cudaFree", host_ns=60.0)
        return [allocate, copy("h2d", host_ns=5030.0), release]

    now = loop(step)
    assert itl_ns(now) == 50 + 5100 + 60
    assert itl_ns(ReuseAllocations(costs()).apply(now)) == 100


def test_small_copies_are_put_together() -> None:
    """Five copies of 100, with a launch of 20 + 100 + 9 between them, become one of each."""
    now = loop(
        lambda _: [
            each for _ in range(5) for each in (copy("h2d", size_bytes=8), launch(device_ns=9))
        ]
    )
    # Each copy but the first of all waits for the launch before it: 100 + 9 less its own 30.
    assert itl_ns(now) == 5 * (20 + 100 + 9 + 70)
    # One copy; the launch's work is 45 now.
    assert round(itl_ns(BatchCopies(costs(), "step").apply(now)), 3) == 20 + 100 + 45 + 70


def test_copies_of_different_turns_are_not_put_together() -> None:
    """A wait between them says that the later ones have to be later."""
    now = loop(lambda _: [e for _ in range(5) for e in (copy("h2d", size_bytes=8), wait())])
    assert itl_ns(BatchCopies(costs()).apply(now)) == itl_ns(now)


def test_no_wait_is_a_bound() -> None:
    """With the copy's wait gone the host alone is left."""
    now = loop(lambda _: [launch(gap_ns=HOST_NS, device_ns=WORK_NS), copy("d2h", site=3)])
    assert itl_ns(NoWait(frozenset([3])).apply(now)) == HOST_NS + 20 + 30


def test_remedies_together() -> None:
    """A worker alone leaves the upload waiting for the device; both together do not."""
    now = loop(
        lambda _: [
            copy("h2d", gap_ns=HOST_NS),
            launch(device_ns=WORK_NS),
            copy("d2h"),
        ]
    )
    worker, pageable = WorkerReadback(costs()), PageableHostMemory(costs())
    as_it_is = HOST_NS + 100 + 20 + 100 + WORK_NS + 70
    assert itl_ns(now) == as_it_is
    assert itl_ns(pageable.apply(now)) == as_it_is - 70
    # The upload waits until the device is through, and it has nothing until the launch.
    assert itl_ns(worker.apply(now)) == WORK_NS + 70 + 20 + 100
    # Uploads of 70 are queued with the work, and all of it is done back to back.
    assert itl_ns(apply(now, [worker, pageable])) == WORK_NS + 70
    assert itl_ns(apply(now, [pageable, worker])) == WORK_NS + 70
