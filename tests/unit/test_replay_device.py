"""cctrace/analyze/device_work.py: how long the device worked, told from the host's waits."""

from __future__ import annotations

from typing import Any

import pytest

from cctrace.analyze.costs import Costs
from cctrace.analyze.device_work import DeviceWork, infer, spread
from cctrace.analyze.graph import Call

# Figures that are easy to add: a launch may start 100 after it returned, a wait takes 10,
# a blocking copy 30 + 70.
MODEL: list[dict[str, Any]] = [
    {"class": "launch", "toll_ns": 20.0},
    {"class": "sync", "toll_ns": 10.0},
    {"class": "copy", "copy_kind": "d2h", "host_memory": "pinned", "toll_ns": 100.0}
    | {"mode": "host_synchronous", "gb_per_s": 1e9},
    {"class": "copy", "copy_kind": "h2d", "host_memory": "pinned", "toll_ns": 100.0}
    | {"mode": "host_synchronous", "gb_per_s": 1e9},
]
PUBLISHED: list[dict[str, Any]] = [
    {"class": "launch", "toll_ns": 20.0, "latency_ns": 100.0},
    {"class": "graph", "toll_ns": 20.0, "latency_ns": 100.0},
    {"class": "copy", "copy_kind": "d2h", "host_memory": "pinned", "toll_ns": 30.0},
    {"class": "copy", "copy_kind": "h2d", "host_memory": "pinned", "toll_ns": 30.0}
    | {"mode": "host_synchronous"},
]
EMPTY = {"api": None, "copy_kind": None, "host_memory": None}


def costs() -> Costs:
    return Costs([EMPTY | row for row in MODEL], [EMPTY | row for row in PUBLISHED], 0.0)


def call(ts_ns: int, dur_ns: int, cls: str, api: str, **more: Any) -> Call:
    return Call(1, 1, ts_ns, dur_ns, cls, api, **{"stream": 7, **more})


def launch(ts_ns: int, **more: Any) -> Call:
    return call(ts_ns, 20, "launch", "cudaLaunchKernel", **more)


def sync(ts_ns: int, end_ns: int, **more: Any) -> Call:
    return call(ts_ns, end_ns - ts_ns, "sync", "cudaStreamSynchronize", **more)


def device_sync(ts_ns: int, end_ns: int) -> Call:
    return call(ts_ns, end_ns - ts_ns, "sync", "cudaDeviceSynchronize", stream=0)


def lengths(found: DeviceWork, calls: list[Call]) -> list[float]:
    return [found.lengths[id(each)].likely_ns for each in calls if id(each) in found.lengths]


def test_work_is_what_lies_between_its_start_and_the_waits_end() -> None:
    """Returned at 20, may start at 120; the wait is over at 90010 - 10: 89880 of work."""
    calls = [launch(0), sync(30, 90_010)]
    assert lengths(infer(calls, costs(), {}), calls) == [89_880]


def test_work_of_several_launches_is_spread_evenly() -> None:
    """Three from 120 on until 90120: 30000 each, which those launched later have room for."""
    calls = [launch(0), launch(20), launch(40), sync(70, 90_130)]
    assert lengths(infer(calls, costs(), {}), calls) == [30_000] * 3


def test_a_launch_beside_a_graph_is_short() -> None:
    """The graph has all but the 2000 that a short launch is given."""
    graph = call(0, 20, "graph", "cudaGraphLaunch")
    calls = [graph, launch(20), sync(50, 90_130)]
    assert lengths(infer(calls, costs(), {}), calls) == [88_000, 2_000]


def test_the_second_group_starts_where_the_first_ended() -> None:
    """The first is done at 50000. What was queued before that starts then, not before."""
    event = call(25, 1, "event", "cudaEventRecord", event=5)
    first = [launch(0), event, launch(30)]
    waits = [
        call(60, 49_950, "sync", "cudaEventSynchronize", event=5),  # until 50010
        sync(50_020, 80_010),
    ]
    calls = [*first, *waits]
    assert lengths(infer(calls, costs(), {}), calls) == [50_000 - 120, 30_000]


def test_a_blocking_copy_shows_the_end_of_what_was_before_it() -> None:
    """It returns at 60100, after 70 of its own on the device: the kernel ended at 60030."""
    copy = call(30, 60_070, "copy", "cudaMemcpyAsync", copy_kind="d2h", host_memory="pinned")
    calls = [launch(0), copy]
    found = infer(calls, costs(), {})
    assert lengths(found, calls) == [59_910, 70]
    assert found.waited == {id(copy)}


def test_an_event_leads_back_to_the_stream_it_was_recorded_on() -> None:
    """Stream 8 waits for stream 7's event and copies 70; its end at 60000 tells 7's: 59930."""
    record = call(21, 1, "event", "cudaEventRecord", event=5)
    waiting = call(23, 1, "event", "cudaStreamWaitEvent", stream=8, event=5)
    copy = call(25, 60_000 - 25, "copy", "cudaMemcpyAsync", stream=8)
    copy = Call(**{**vars(copy), "copy_kind": "d2h", "host_memory": "pinned"})
    calls = [launch(0), record, waiting, copy]
    assert lengths(infer(calls, costs(), {}), calls) == [59_930 - 120, 70]


def test_a_wait_for_the_device_tells_of_its_one_stream_with_work() -> None:
    """Stream 8 copies nothing, after what stream 7 did until 90000."""
    record = call(21, 1, "event", "cudaEventRecord", event=5)
    waiting = call(23, 1, "event", "cudaStreamWaitEvent", stream=8, event=5)
    copy = call(25, 4, "copy", "cudaMemcpyAsync", stream=8, copy_kind="d2h", host_memory="managed")
    calls = [launch(0), record, waiting, copy, device_sync(30, 90_010)]
    assert lengths(infer(calls, costs(), {}), calls) == [90_000 - 120, 0]


def test_a_copy_that_waits_for_part_of_the_work_alone_is_not_last() -> None:
    """The event lies before the second launch, or was waited for already: stream 7 was last."""
    record = call(21, 1, "event", "cudaEventRecord", event=5)
    waiting = call(53, 1, "event", "cudaStreamWaitEvent", stream=8, event=5)
    copy = call(55, 4, "copy", "cudaMemcpyAsync", stream=8, copy_kind="d2h", host_memory="managed")
    calls = [launch(0), record, launch(30), waiting, copy, device_sync(60, 90_010)]
    assert lengths(infer(calls, costs(), {}), calls) == [44_940, 44_940, 0]
    calls[2:2] = [sync(25, 1_010)]
    calls[3] = launch(1_060)
    assert lengths(infer(calls, costs(), {}), calls)[1] == 90_000 - 1_180


def test_a_copy_that_may_have_taken_until_then_explains_the_wait() -> None:
    """4 MB at 1 GB/s: what the launch on the other stream took, nothing tells."""
    to_host = {"copy_kind": "d2h", "host_memory": "managed"}
    model = [{**row, "mode": None} for row in MODEL]
    model += [{"class": "copy", **to_host, "mode": "async", "toll_ns": 10.0, "gb_per_s": 1.0}]
    slow = Costs([EMPTY | row for row in model], [EMPTY | row for row in PUBLISHED], 0.0)
    copy = call(25, 4, "copy", "cudaMemcpyAsync", stream=8, size_bytes=4_000_000, **to_host)
    calls = [launch(0), copy, device_sync(60, 4_000_300)]
    found = infer(calls, slow, {})
    assert found.hidden == {id(calls[0])}
    assert found.lengths[id(copy)].likely_ns == 4_000_000


def test_of_two_streams_with_work_a_wait_for_the_device_does_not_tell() -> None:
    """Either may have been done at any time: half of the room is as good a guess as any."""
    calls = [launch(0), launch(20, stream=8), device_sync(50, 90_010)]
    found = infer(calls, costs(), {})
    assert found.hidden == {id(each) for each in calls[:2]}
    assert lengths(found, calls) == [(90_000 - 120) / 2, (90_000 - 140) / 2]


@pytest.mark.parametrize(
    ("api", "shown"),
    [("cudaFree", True), ("cuMemFree", True), ("cudaFreeAsync", False), ("cuMemUnmap", False)],
)
def test_a_free_that_is_late_has_waited_for_the_device(api: str, shown: bool) -> None:
    """An allocation takes 1000, so 90000 of the 91000 were a wait, unless it need not wait."""
    free = call(30, 90_980, "free", api, stream=0)
    calls = [launch(0), free]
    found = infer(calls, costs(), {})
    assert (found.waited == {id(free)}) is shown
    assert (lengths(found, calls) == [90_010 - 120]) is shown


def test_a_free_that_is_not_late_tells_nothing() -> None:
    calls = [launch(0), call(30, 22_000, "free", "cudaFree", stream=0), sync(90_000, 90_010)]
    found = infer(calls, costs(), {})
    assert found.waited == set()
    assert found.lengths[id(calls[0])].high_ns == 90_000 - 120
    # nor one that had nothing to wait for
    calls = [launch(0), sync(30, 30_010), call(30_020, 50_000, "free", "cudaFree", stream=0)]
    assert infer(calls, costs(), {}).waited == {id(calls[1])}


def test_a_wait_that_did_not_wait_gives_what_is_usual() -> None:
    """The second turn is over when it is looked at; the first took 29880."""
    calls = [launch(0), sync(30, 30_010), launch(40_000), sync(90_000, 90_010)]
    assert lengths(infer(calls, costs(), {}), calls) == [29_880] * 2


def test_what_is_usual_has_to_fit() -> None:
    """Only 9900 went by in the second turn: a guess within that, told as one."""
    calls = [launch(0), sync(30, 30_010), launch(40_000), sync(50_020, 50_030)]
    found = infer(calls, costs(), {})
    span = found.lengths[id(calls[2])]
    assert (span.low_ns, span.likely_ns, span.high_ns) == (0, 4_950, 9_900)
    assert found.hidden == {id(calls[2])}


def test_launches_that_hide_their_kernels_are_told_as_guesses() -> None:
    """Nine, 20000 apart, and 5000 from the last one's start to the end.

    All could be as short as the last, or fill the time: 20000 each but for the last.
    """
    calls = [launch(20_000 * number) for number in range(9)]
    calls.append(sync(160_030, 165_130))
    found = infer(calls, costs(), {})
    assert found.hidden == {id(each) for each in calls[:9]}
    spans = [found.lengths[id(each)] for each in calls[:9]]
    assert [span.low_ns for span in spans] == [5_000] * 9
    assert [span.high_ns for span in spans] == [20_000] * 8 + [5_000]
    assert spans[0].likely_ns == 12_500


def test_activity_of_the_device_goes_before_inference() -> None:
    """What was observed is used as it is."""
    calls = [launch(0, correlation_id=3), sync(30, 90_010)]
    assert lengths(infer(calls, costs(), {3: (150, 777)}), calls) == [777]


def test_counted_launches_leave_work_that_nobody_asked_for() -> None:
    """The copy waits for what was queued since the call before it, which ended at 100."""
    upload = call(0, 100, "copy", "cudaMemcpyAsync", copy_kind="h2d", host_memory="pinned")
    copy = call(500, 60_000, "copy", "cudaMemcpyAsync", copy_kind="d2h", host_memory="pinned")
    found = infer([upload, copy], costs(), {}, is_counted=True)
    assert found.unseen == {id(copy): 60_500 - 70 - 100}
    assert infer([upload, copy], costs(), {}).unseen == {}


@pytest.mark.parametrize(
    ("room", "is_long", "expected"),
    [
        ([90.0, 80.0, 70.0], [True] * 3, [30.0, 30.0, 30.0]),
        ([90.0, 80.0, 10.0], [True] * 3, [40.0, 40.0, 10.0]),
        ([90.0, 20.0, 10.0], [True] * 3, [70.0, 10.0, 10.0]),
        ([9000.0, 8000.0], [True, False], [7000.0, 2000.0]),
        ([9000.0, 500.0], [True, False], [8500.0, 500.0]),
        ([9000.0, 8000.0, 7000.0], [False, True, True], [1000.0, 4000.0, 4000.0]),
    ],
)
def test_spread(room: list[float], is_long: list[bool], expected: list[float]) -> None:
    """Evenly, but for what came too late to have had that long."""
    assert spread(room, is_long) == expected
