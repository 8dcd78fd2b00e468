"""The views behind `cctrace report`: sums over steps, by hand."""

from __future__ import annotations

from pathlib import Path

from query_rows import lines, span, table
from runs import Row, make_run

US = 1_000


def launch(ts_ns: int, dur_ns: int | None, **more: object) -> Row:
    """One launch."""
    own: Row = {"api": "cudaLaunchKernel", "layer": "runtime", "class": "launch", "depth": 0}
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "stream": 1, **own, **more}


def kernel(ts_ns: int, dur_ns: int) -> Row:
    """One interval of work of device 0."""
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "class": "kernel", "name": "k", "device": 0,
            "stream": 1, "pid": 100}  # fmt: skip


def test_lengths_of_steps(tmp_path: Path) -> None:
    # GIVEN periods of 10, 20, 30 and 40 in decode, 5 in prefill, and a last step
    starts = (0, 5, 15, 35, 65, 105)
    phases = ("prefill", "decode", "decode", "decode", "decode", "decode")
    run = make_run(
        tmp_path,
        nvtx=[span(t, 3, "step", category=p) for t, p in zip(starts, phases, strict=True)],
    )
    query = (
        "SELECT engine, phase, found_by, steps, periods, total_ns, mean_ns, p50_ns, p90_ns, "
        "p99_ns, max_ns FROM _step_stats ORDER BY phase"
    )
    assert table(run, query) == lines("""
        default,decode,nvtx,5,4,100,25,20,40,40,40
        default,prefill,nvtx,1,1,5,5,5,5,5,5
    """)


def test_no_steps_no_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[span(0, 9, "work")], cuda_api=[launch(1, 2)])
    for view in ("_step_stats", "_part_stats", "_idle_stats"):
        assert table(run, f"SELECT * FROM {view}") == ""


def test_a_single_step_has_stats_and_no_parts(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[span(0, 9, "step")])
    query = "SELECT steps, periods, total_ns, mean_ns, p50_ns FROM _step_stats"
    assert table(run, query) == "1,0,0,,\n"
    assert table(run, "SELECT * FROM _part_stats") == ""


def test_parts_of_steps(tmp_path: Path) -> None:
    # GIVEN 101 steps of 100 us with a launch of 1, 2, ... 100 us in each but the last
    steps = [span(100 * US * i, 99 * US, "step") for i in range(101)]
    calls = [launch(100 * US * i, (i + 1) * US) for i in range(100)]
    run = make_run(tmp_path, nvtx=steps, cuda_api=calls)
    query = (
        "SELECT part, steps, total_ns, mean_ns, p50_ns, p99_ns, share, is_estimate "
        "FROM _part_stats WHERE total_ns > 0 ORDER BY rank"
    )
    # THEN launches are 1 + 2 + ... + 100 us, and the rest is not known without sched
    assert table(run, query) == lines("""
        launch,100,5050000,50500.0,50000,99000,0.505,False
        unattributed,100,4950000,49500.0,49000,98000,0.495,False
    """)
    ranks = "SELECT string_agg(part, ' ' ORDER BY rank) FROM _part_stats"
    assert table(run, ranks) == (
        "queue_wait bridge_toll bridge_transfer launch alloc sync_wait lock_wait runnable "
        "host_compute unattributed\n"
    )


def test_parts_are_of_each_engine_and_phase(tmp_path: Path) -> None:
    steps = [
        span(10 * i, 9, "step", category="prefill" if i < 3 else None, domain="mine")
        for i in range(8)
    ]
    run = make_run(tmp_path, nvtx=steps)
    query = (
        "SELECT engine, phase, steps, sum(total_ns)::BIGINT, sum(share) FROM _part_stats "
        "GROUP BY ALL ORDER BY phase NULLS LAST"
    )
    assert table(run, query) == lines("""
        mine,prefill,3,30,1.0
        mine,,4,40,1.0
    """)


def test_idle_time_observed_and_inferred(tmp_path: Path) -> None:
    # GIVEN four steps of 100 us; the device works 60, 60, 20 and 20 us of them, seen
    steps = [span(100 * US * i, 99 * US, "step") for i in range(5)]
    calls = [launch(100 * US * i, 5 * US) for i in range(5)]
    work = [kernel(100 * US * i + 10 * US, d * US) for i, d in enumerate((60, 60, 20, 20, 20))]
    run = make_run(tmp_path, nvtx=steps, cuda_api=calls, gpu_activity=work)
    query = (
        "SELECT device, steps, total_ns, observed_steps, observed_idle_ns, observed_total_ns, "
        "scored_steps, within_bounds, bounded_steps FROM _idle_stats"
    )
    # THEN 40 + 40 + 80 + 80 us are idle, and the bounds of each step hold that
    assert table(run, query) == "0,4,400000,4,240000,400000,4,4,4\n"
    # and the sums are those of the rows
    check = (
        "SELECT (SELECT sum(idle_lower_ns) FROM device_idle) - idle_lower_ns, "
        "(SELECT sum(idle_upper_ns) FROM device_idle) - idle_upper_ns, "
        "(SELECT sum(idle_ns) FROM device_idle) - idle_ns, "
        "(SELECT sum(abs(idle_ns - observed_idle_ns)) FROM device_idle) - error_ns, "
        "estimated_steps, error_of_ns FROM _idle_stats"
    )
    assert table(run, check) == "0,0,0,0,4,400000\n"


def test_nothing_observed_is_no_figure(tmp_path: Path) -> None:
    steps = [span(100 * US * i, 99 * US, "step") for i in range(3)]
    run = make_run(tmp_path, nvtx=steps, cuda_api=[launch(100 * US * i, 5) for i in range(3)])
    query = (
        "SELECT device, observed_steps, observed_idle_ns, observed_total_ns, scored_steps, "
        "within_bounds, error_ns, error_of_ns FROM _idle_stats"
    )
    assert table(run, query) == ",0,,,0,0,,\n"
