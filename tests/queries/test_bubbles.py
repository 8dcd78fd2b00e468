"""When a device was idle: proven by returns, bounded by waits, seen by gpu_activity.

The bridge model of these few rows is the published one of a B300 without CC: a launch
takes 7,400 ns and starts 2,980 ns after it returned, a wait with nothing to wait for takes
1,620 ns. Work has ended up to 20,000 ns before a return that tells of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from query_rows import Row, lines, span, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

MAIN, SIDE = 7, 8  # streams
NOT_READY = 600
STEPS = [span(ts_ns, 1_900_000, "step") for ts_ns in (1_000_000, 3_000_000)]
IDLE = (
    "SELECT step_id, pid, device, idle_lower_ns, idle_ns, idle_upper_ns, pinned, "
    "observed_idle_ns FROM device_idle ORDER BY step_id, pid, device"
)
BUBBLES = (
    "SELECT pid, device, ts_ns, dur_ns, before_api, before_tid, after_api, after_tid, "
    "step_id, source FROM bubbles ORDER BY ts_ns, pid, device"
)


def call(ts_ns: int, dur_ns: int | None, api: str, cls: str, **more: Any) -> Row:
    """One call of the runtime."""
    row = {"ts_ns": ts_ns, "dur_ns": dur_ns, "api": api, "class": cls, "layer": "runtime"}
    return {**row, "result": None if dur_ns is None else 0, "depth": 0, **more}


def launch(ts_ns: int, dur_ns: int | None = 10_000, stream: int = MAIN, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaLaunchKernel", "launch", stream=stream, **more)


def sync(ts_ns: int, end_ns: int, stream: int = MAIN, **more: Any) -> Row:
    return call(ts_ns, end_ns - ts_ns, "cudaStreamSynchronize", "sync", stream=stream, **more)


def copy(
    ts_ns: int, dur_ns: int, kind: str = "d2h", memory: str | None = "pinned", **more: Any
) -> Row:
    api = more.pop("api", "cudaMemcpyAsync")
    row = {"copy_kind": kind, "host_memory": memory, "size_bytes": 64, "stream": MAIN, **more}
    return call(ts_ns, dur_ns, api, "copy", **row)


def event(ts_ns: int, api: str, event: int | None, stream: int | None, **more: Any) -> Row:
    cls = "sync" if stream is None else "event"
    return call(ts_ns, more.pop("dur_ns", 1_000), api, cls, event=event, stream=stream, **more)


def record(ts_ns: int, handle: int | None, stream: int) -> Row:
    return event(ts_ns, "cudaEventRecord", handle, stream)


def starts_of_bubbles(tmp_path: Path, *calls: Row) -> list[int]:
    """When the device of process 100 was proven idle."""
    run = make_run(tmp_path, nvtx=STEPS, cuda_api=list(calls))
    found = table(run, "SELECT ts_ns FROM bubbles ORDER BY ts_ns")
    return [int(line) for line in found.splitlines()]


def test_a_wait_pins_the_device_down(tmp_path: Path) -> None:
    """Busy from the launch to the return at most, and from start to end at least."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[launch(1_010_000), sync(1_030_000, 2_030_000), launch(3_010_000, tid=101)],
    )
    # At least: all but the 1,020,000 ns from the launch's call to the return of the wait.
    # At most: busy from 1,020,000 + 2 * 2,980 until 20,000 before the return.
    # The guess: busy from 1,020,000 + 2,980 until half of 1,620 before it.
    # The second step has no period, and what it launched is never shown to end.
    assert table(run, IDLE) == lines("1,100,,980000,993790,1015960,True,")
    assert table(run, BUBBLES) == lines("""
        100,,2030000,980000,cudaStreamSynchronize,100,cudaLaunchKernel,101,1,inferred
    """)


def test_bounds_of_work_that_nobody_waited_for(tmp_path: Path) -> None:
    """A wait of no length says that the work was done, and nothing of when."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[launch(1_010_000), sync(2_028_000, 2_030_000), launch(3_010_000)],
    )
    # The guess is half of what it can have been: from 1,022,980 until the wait's own
    # 1,620 ns before its return.
    guess = 2_000_000 - (2_030_000 - 1_620 - 1_022_980) // 2
    assert table(run, IDLE) == lines(f"1,100,,980000,{guess},2000000,False,")


def test_idle_takes_the_parts_of_a_step_alone(tmp_path: Path) -> None:
    """Work over the border of two steps counts in each for its part."""
    steps = [span(ts_ns, 1_000, "step") for ts_ns in (1_000_000, 2_000_000, 3_000_000)]
    run = make_run(
        tmp_path,
        nvtx=steps,
        cuda_api=[launch(1_500_000), sync(1_600_000, 2_250_000), launch(5_000_000)],
    )
    assert table(run, "SELECT step_id, idle_lower_ns FROM device_idle ORDER BY 1") == lines("""
        1,500000
        2,750000
    """)


@pytest.mark.parametrize(
    ("last", "starts"),
    [
        pytest.param([sync(1_300_000, 1_900_000)], [1_900_000], id="the stream"),
        pytest.param([sync(1_300_000, 1_900_000, SIDE)], [], id="another stream"),
        pytest.param(
            [call(1_300_000, 600_000, "cudaDeviceSynchronize", "sync")], [1_900_000], id="device"
        ),
        pytest.param(
            [
                record(1_250_000, 55, MAIN),
                event(1_300_000, "cudaEventSynchronize", 55, None, dur_ns=600_000),
            ],
            [1_900_000],
            id="an event",
        ),
        pytest.param(
            [
                record(1_250_000, None, MAIN),
                event(1_300_000, "cudaEventSynchronize", None, None, dur_ns=600_000),
            ],
            [],
            id="an event without a handle",
        ),
        pytest.param(
            [
                record(1_250_000, 55, MAIN),
                launch(1_260_000),
                event(1_300_000, "cudaEventSynchronize", 55, None, dur_ns=600_000),
            ],
            [],
            id="an event before the last launch",
        ),
        pytest.param(
            [
                record(1_250_000, 55, MAIN),
                event(1_260_000, "cudaStreamWaitEvent", 55, SIDE),
                copy(1_270_000, 3_000, stream=SIDE),
                record(1_280_000, 66, SIDE),
                event(1_300_000, "cudaEventSynchronize", 66, None, dur_ns=600_000),
            ],
            [1_900_000],
            id="an event of a stream that waited for one",
        ),
        pytest.param(
            [copy(1_270_000, 3_000, stream=SIDE), sync(1_300_000, 1_900_000, SIDE)],
            [],
            id="a stream that waited for nothing",
        ),
        pytest.param(
            [
                record(1_250_000, 55, MAIN),
                event(1_300_000, "cudaEventQuery", 55, None, result=NOT_READY),
                event(1_700_000, "cudaEventQuery", 55, None),
            ],
            [1_701_000],
            id="a query",
        ),
        pytest.param([sync(1_300_000, 1_900_000, result=700)], [], id="a wait that failed"),
        pytest.param([sync(1_300_000, 1_900_000, 1)], [], id="the legacy stream by its other name"),
        pytest.param([sync(1_205_000, 1_900_000, tid=101)], [], id="begun before the launch"),
    ],
)
def test_what_proves_the_device_idle(tmp_path: Path, last: list[Row], starts: list[int]) -> None:
    """A launch returns at 1,210,000; a bubble begins when its end is certain."""
    calls = [launch(1_200_000), *last, launch(3_010_000)]
    assert starts_of_bubbles(tmp_path, *calls) == starts


@pytest.mark.parametrize(
    ("gpu", "starts"),
    [
        ({}, []),
        ({"cc_state": "on", "devices": [{"name": "NVIDIA H200"}]}, [1_430_000]),
    ],
    ids=["launches look like it", "the GPU is known"],
)
def test_a_mode_that_is_guessed_proves_nothing(
    tmp_path: Path, gpu: dict[str, Any], starts: list[int]
) -> None:
    """Launches of 15 us look like CC, in which pinned copies block."""
    launches = [launch(1_010_000 + 20_000 * i, 15_000) for i in range(20)]
    calls = [*launches, copy(1_420_000, 10_000), launch(1_500_000, 15_000)]
    run = make_run(tmp_path, manifest={"host": {"gpu": gpu}}, nvtx=STEPS, cuda_api=calls)
    modes = "SELECT mode, mode_source FROM bridge_model WHERE class = 'copy' AND calls > 0"
    assert table(run, modes) == lines("host_synchronous,profile")
    found = table(run, "SELECT ts_ns FROM bubbles ORDER BY ts_ns")
    assert [int(line) for line in found.splitlines()] == starts
    # It is the best guess all the same: a copy is on the device until it returns, not after.
    calls = [
        *launches,
        sync(1_410_000, 1_418_000),
        copy(1_420_000, 80_000),
        sync(1_501_000, 1_504_000),
    ]
    done = make_run(tmp_path, "done", manifest={"host": {"gpu": gpu}}, nvtx=STEPS, cuda_api=calls)
    likely = "SELECT max(end_ns) FROM _device_spans WHERE kind = 'likely'"
    assert table(done, likely) == "1500000\n"


@pytest.mark.parametrize(
    ("kind", "api", "memory", "starts"),
    [
        ("d2h", "cudaMemcpy", "pinned", [1_900_000]),
        ("h2d", "cudaMemcpy", "pageable", [1_900_000]),
        ("d2h", "cudaMemcpyAsync", "pageable", [1_900_000]),
        ("d2h", "cudaMemcpyAsync", "pinned", []),
        ("h2d", "cudaMemcpyAsync", "pageable", []),
        ("d2d", "cudaMemcpy", None, []),
    ],
)
def test_copies_that_return_when_they_are_done(
    tmp_path: Path, kind: str, api: str, memory: str, starts: list[int]
) -> None:
    """They prove what stands before them on the stream done, others do not."""
    last = copy(1_300_000, 600_000, kind, memory, api=api)
    calls = [launch(1_200_000), last, launch(3_010_000)]
    assert starts_of_bubbles(tmp_path, *calls) == starts


def test_streams_of_a_process_are_one_device(tmp_path: Path) -> None:
    """Idle is when none of them has work; processes are apart."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[
            launch(1_100_000),
            launch(1_110_000, stream=SIDE),
            sync(1_120_000, 1_300_000),
            sync(1_310_000, 1_500_000, SIDE),
            launch(1_600_000),
            sync(1_610_000, 1_700_000),
            launch(2_000_000, pid=200),
            sync(2_010_000, 2_400_000, pid=200),
            launch(2_500_000),
            launch(2_600_000, pid=200),
        ],
    )
    query = "SELECT pid, ts_ns, dur_ns FROM bubbles ORDER BY pid, ts_ns"
    assert table(run, query) == lines("""
        100,1500000,100000
        100,1700000,800000
        200,2400000,200000
    """)
    # Process 100: busy at most 400,000 and 100,000 ns, and from 2,500,000 on.
    query = "SELECT pid, idle_lower_ns FROM device_idle WHERE step_id = 1 ORDER BY pid"
    assert table(run, query) == lines("""
        100,1000000
        200,1200000
    """)


def test_a_wait_without_a_cpu_is_no_proof_of_work(tmp_path: Path) -> None:
    """What the thread spent waiting for a CPU it did not spend waiting for the device."""
    calls = [launch(1_010_000), sync(1_030_000, 2_030_000), launch(3_010_000)]
    upper = "SELECT idle_upper_ns FROM device_idle"
    queued = {"ts_ns": 1_040_000, "dur_ns": 980_000, "state": "runnable"}
    run = make_run(tmp_path, nvtx=STEPS, cuda_api=calls, sched=[queued])
    assert table(run, upper) == "2000000\n"
    # Without a CPU for the last 100,000 ns: the work may have ended before them.
    queued = {"ts_ns": 1_920_000, "dur_ns": 100_000, "state": "runnable"}
    run = make_run(tmp_path, "late", nvtx=STEPS, cuda_api=calls, sched=[queued])
    assert table(run, upper) == f"{1_015_960 + 100_000}\n"


def test_queries_that_find_work_prove_it(tmp_path: Path) -> None:
    """Busy for sure until the last query that found it unfinished."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[
            launch(1_010_000),
            record(1_030_000, 55, MAIN),
            event(1_500_000, "cudaEventQuery", 55, None, result=NOT_READY),
            event(1_800_000, "cudaEventQuery", 55, None, result=NOT_READY),
            event(2_200_000, "cudaEventQuery", 55, None),
            launch(3_010_000),
        ],
    )
    # Ready for sure at 1,025,960, found unfinished at 1,800,000, done at 2,201,000.
    query = "SELECT idle_lower_ns, idle_upper_ns FROM device_idle"
    lower, upper = 2_000_000 - (2_201_000 - 1_010_000), 2_000_000 - (1_800_000 - 1_025_960)
    assert table(run, query) == f"{lower},{upper}\n"


def test_lost_calls_leave_nothing_certain(tmp_path: Path) -> None:
    """A call that is missing may have given the device work, or proven it done."""
    calls = [launch(1_010_000), sync(1_030_000, 2_030_000), launch(3_010_000)]
    loss = {"source": "cuda", "reason": "bpf_ring_full", "first_ns": 2_500_000}
    for name, lost, idle, bubbles in (
        ("lost", loss | {"last_ns": 2_600_000}, "1,0,993790,2000000,False\n", "0\n"),
        ("later", loss | {"first_ns": 4_500_000}, "1,980000,993790,1015960,True\n", "1\n"),
        ("whole", loss | {"reason": "ranges_full"}, "1,980000,993790,1015960,True\n", "1\n"),
        ("other", loss | {"pid": 200}, "1,980000,993790,1015960,True\n", "1\n"),
    ):
        run = make_run(tmp_path, name, nvtx=STEPS, cuda_api=calls, losses=[lost])
        query = "SELECT step_id, idle_lower_ns, idle_ns, idle_upper_ns, pinned FROM device_idle"
        assert table(run, query) == idle, name
        assert table(run, "SELECT count(*) FROM bubbles") == bubbles, name


def test_launches_counted_in_the_kernel(tmp_path: Path) -> None:
    """They may have been made at any time of their window; no guess is made."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_launches=[
            {"ts_ns": 1_400_000, "window_ns": 400_000, "api": "cudaLaunchKernel", "stream": MAIN}
            | {"calls": 31, "total_ns": 230_000, "max_ns": 9_000, "histogram": []}
        ],
        cuda_api=[
            launch(1_010_000),
            sync(1_030_000, 1_330_000),
            sync(1_500_000, 1_700_000),
            sync(1_900_000, 1_901_000),
            launch(3_010_000),
        ],
    )
    # Idle for certain: 10,000 before the launch, from its end to the window, and from
    # the first wait after the window on. Busy for certain: in the first wait as above,
    # in the one within the window from 60,000 ns after its begin.
    query = "SELECT idle_lower_ns, idle_ns, idle_upper_ns, pinned FROM device_idle"
    sure = (1_310_000 - 1_025_960) + (1_680_000 - 1_560_000)
    lower = 10_000 + 70_000 + (3_000_000 - 1_901_000)
    assert table(run, query) == f"{lower},,{2_000_000 - sure},False\n"
    assert table(run, "SELECT ts_ns, dur_ns, after_api FROM bubbles ORDER BY 1") == lines("""
        1330000,70000,
        1901000,1109000,cudaLaunchKernel
    """)


def activity(ts_ns: int, dur_ns: int, correlation: int, **more: Any) -> Row:
    row = {"ts_ns": ts_ns, "dur_ns": dur_ns, "class": "kernel", "device": 0, "stream": MAIN}
    return {**row, "correlation_id": correlation, **more}


def test_what_was_seen_stands_beside_what_was_inferred(tmp_path: Path) -> None:
    """Gaps of the device for which the host was late, and the calls around them."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[
            launch(1_010_000, correlation_id=1),
            launch(1_025_000, correlation_id=2),
            sync(1_040_000, 2_030_000, tid=101),
            launch(2_100_000, correlation_id=3),
            sync(2_120_000, 2_425_000),
            launch(3_010_000, correlation_id=4),
        ],
        gpu_activity=[
            activity(1_030_000, 400_000, 1),
            # Given before the first one ended: the gap is the device's own.
            activity(1_440_000, 560_000, 2),
            # A second stream, within and across.
            activity(1_900_000, 110_000, 2, stream=SIDE),
            activity(2_120_000, 300_000, 3),
            activity(3_030_000, 100_000, 4),
        ],
    )
    # Seen: 400,000 + (1,440,000 to 2,010,000) + 300,000.
    seen = 2_000_000 - 400_000 - 570_000 - 300_000
    query = (
        "SELECT step_id, device, idle_lower_ns <= observed_idle_ns, "
        "observed_idle_ns <= idle_upper_ns, observed_idle_ns FROM device_idle"
    )
    assert table(run, query) == f"1,0,True,True,{seen}\n"
    assert table(run, BUBBLES) == lines("""
        100,0,2010000,110000,cudaStreamSynchronize,101,cudaLaunchKernel,100,1,observed
        100,0,2420000,610000,cudaStreamSynchronize,100,cudaLaunchKernel,100,1,observed
    """)


def test_devices_of_one_process_are_seen_apart(tmp_path: Path) -> None:
    """What is inferred is of all of them together, and stands in a row of its own."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[launch(1_010_000, correlation_id=1), sync(1_030_000, 2_030_000)],
        gpu_activity=[activity(1_020_000, 500_000, 1), activity(1_500_000, 530_000, 9, device=1)],
    )
    query = (
        "SELECT device, idle_lower_ns, observed_idle_ns FROM device_idle "
        "WHERE step_id = 1 ORDER BY device NULLS FIRST"
    )
    assert table(run, query) == lines("""
        ,980000,
        0,,1500000
        1,,1470000
    """)


def test_runs_with_little_in_them(tmp_path: Path) -> None:
    """No calls, no steps, one step, calls that never returned, equal times."""
    empty = make_run(tmp_path, "empty")
    assert table(empty, IDLE) == table(empty, BUBBLES) == ""
    calls = [launch(1_010_000), sync(1_030_000, 2_030_000), launch(3_010_000)]
    stepless = make_run(tmp_path, "stepless", cuda_api=calls)
    assert table(stepless, IDLE) == ""
    assert table(stepless, "SELECT ts_ns, dur_ns, step_id FROM bubbles") == "2030000,980000,\n"
    single = make_run(tmp_path, "single", nvtx=STEPS[:1], cuda_api=calls)
    assert table(single, IDLE) == ""
    # Never returned: the device may have work from its begin on.
    stuck = make_run(tmp_path, "stuck", nvtx=STEPS, cuda_api=[launch(1_500_000, None), *calls[1:]])
    assert table(stuck, "SELECT idle_lower_ns, idle_upper_ns FROM device_idle") == (
        "500000,2000000\n"
    )
    assert table(stuck, BUBBLES) == ""
    # Work of another thread given at the very moment of the return: no time in between.
    twins = make_run(tmp_path, "twins", nvtx=STEPS, cuda_api=[*calls, launch(2_030_000, tid=101)])
    assert table(twins, BUBBLES) == ""


def test_does_the_device_run_dry(tmp_path: Path) -> None:
    """By the bounds: yes, no, or unknown where they are on both sides."""
    busy = [launch(1_000_500), sync(1_011_000, 2_990_000), launch(3_010_000)]
    dry = [launch(1_010_000), launch(1_021_000), sync(1_032_000, 2_030_000), launch(3_010_000)]
    unsure = [launch(1_000_500), sync(2_988_500, 2_990_000), launch(3_010_000)]
    query = "queue_depth"
    found = []
    for name, calls in (("busy", busy), ("dry", dry), ("unsure", unsure)):
        run = make_run(tmp_path, name, nvtx=STEPS, cuda_api=calls)
        found.append(table(run, query).split(",")[:2])
    assert found == [["busy", "no"], ["dry", "yes"], ["unsure", "unknown"]]
    # Busy for 1,020,000 of 2,000,000 ns at most. Of the three launches in the steps the second
    # found one outstanding, the others none.
    [row] = table(tmp_path / "dry", query).splitlines()
    assert (
        "the device was idle for 49.0 to 51.3% of 1 steps; "
        "67% of 3 enqueues found nothing outstanding, 0.3 calls on average"
    ) in row
    assert row.split(",")[-5:] == ["3", "0.6666666666666666", "0.3333333333333333", "0", "1"]
    assert table(make_run(tmp_path, "empty"), query) == (
        "empty,unknown,no step with a period has calls that give a device work around it,"
        ",,0,,,,0,,,,\n"
    )


def test_the_queue_as_it_was_seen(tmp_path: Path) -> None:
    """With gpu_activity: outstanding is what ended after the call began."""
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[launch(1_100_000 + 20_000 * n, correlation_id=n) for n in range(5)],
        # The first three end before the fourth is launched, at 1,160,000.
        gpu_activity=[
            activity(1_110_000, 25_000, 0),
            activity(1_135_000, 10_000, 1),
            activity(1_150_000, 5_000, 2),
            activity(1_175_000, 90_000, 3),
            activity(1_270_000, 5_000, 4),
        ],
    )
    [row] = table(run, "queue_depth").splitlines()
    # Found outstanding: 0, 1 (until 1,135,000), 1 (until 1,145,000), 0, 1.
    assert row.split(",")[-5:] == ["5", "0.4", "0.6", "1", "1"]
    assert "observed" in row
