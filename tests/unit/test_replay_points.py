"""cctrace/analyze/points.py: runs written by hand, whose best remedy can be worked out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from runs import make_run

import cctrace
from cctrace.analyze.points import find_points
from cctrace.analyze.recording import Step, choose, unbroken

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.analyze.points import ReplaySummary, SerializationPoint

Row = dict[str, Any]

STEPS = 61
STREAM = 7
CC = {"host": {"gpu": {"cc_state": "on", "devices": [{"name": "NVIDIA B300"}]}}}
NO_CC = {"host": {"gpu": {"cc_state": "off", "devices": [{"name": "NVIDIA B300"}]}}}


def call(ts_ns: int, dur_ns: int, cls: str, api: str, **more: Any) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "class": cls, "api": api, "layer": "runtime"} | {
        "stream": STREAM,
        "result": 0,
        "depth": 0,
        **more,
    }


def span(ts_ns: int, dur_ns: int, name: str, **more: Any) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "name": name, "domain": "loop", **more}


def confidential_loop(work_ns: int, host_ns: int) -> dict[str, list[Row]]:
    """Steps of host work, a graph, and a copy to the host that waits for it.

    Under CC a launch keeps its caller 26000 and starts 25330 later; a small copy takes
    the host 3450, which go by while the device works, and the device 6550.
    """
    calls: list[Row] = []
    ranges: list[Row] = []
    now_ns = 0
    for _ in range(STEPS):
        start_ns = now_ns
        now_ns += host_ns
        calls.append(call(now_ns, 26_000, "graph", "cudaGraphLaunch"))
        now_ns += 26_000
        copied_ns = 25_330 + work_ns + 6_550
        calls.append(
            call(now_ns, copied_ns, "copy", "cudaMemcpyAsync", size_bytes=4)
            | {"copy_kind": "d2h", "host_memory": "pinned"}
        )
        ranges.append(span(now_ns - 1, copied_ns + 1, "readback", depth=1))
        now_ns += copied_ns
        ranges.append(span(start_ns, now_ns - start_ns, "step", category="decode"))
    return {"cuda_api": calls, "nvtx": ranges}


def points_of(
    folder: Path, rows: dict[str, list[Row]], manifest: dict[str, Any]
) -> tuple[list[SerializationPoint], ReplaySummary]:
    run = make_run(folder, "run", manifest=manifest, **rows)
    with cctrace.open(run) as session:
        return find_points(session, session.runs[0].label)


def test_the_readback_is_first_and_a_worker_the_remedy(tmp_path: Path) -> None:
    """One step: 400 us of host, 26 + 25.33 + 1000 + 6.55 of launch, work and copy.

    With a worker the device goes from one step's work to the next: 1000 us.
    """
    found, summary = points_of(tmp_path, confidential_loop(1_000_000, 400_000), CC)
    assert summary.recorded_itl_ns == 1_457_880
    assert summary.steps == STEPS - 1 - 3  # the last has no period, three warm up
    assert summary.replayed_itl_ns == pytest.approx(1_457_880, abs=2)
    assert abs(summary.error_ratio or 0) < 1e-5
    first = found[0]
    assert (first.rank, first.role, first.path) == (1, "driver", "step/readback")
    assert (first.api, first.copy_kind, first.size_class) == ("cudaMemcpyAsync", "d2h", "<=64 B")
    assert first.count_per_step == 1
    assert first.held_ns_per_step == 1_031_880
    assert first.remedy is not None
    assert first.remedy.code == "worker_readback"
    assert first.expected_itl_ns == pytest.approx(1_000_000, abs=1_000)
    assert first.recoverable_ns == pytest.approx(457_880, abs=1_000)
    assert [gain.code for gain in first.alternatives] == ["async_scheduling_on"]
    assert first.alternatives[0].recoverable_ns <= 0  # it would block all the same
    assert first.confidence == "high"
    # The copy ends when the next step's host work begins: idle for that and the launch.
    assert first.bubble_ns_per_step == pytest.approx(400_000 + 26_000 + 25_330, abs=1_000)
    assert first.next_launch_delay_ns == 1_031_880 + 400_000
    step_id, offset_ns = divmod(first.example_ts_ns, 1_457_880)
    assert first.example_step_id == step_id + 1
    assert offset_ns == 426_000
    assert first.example_dur_ns == 1_031_880


def test_calls_from_several_lines_are_one_point_with_the_stack_of_most(tmp_path: Path) -> None:
    """Every third readback comes from another line: remedies are for all of them."""
    rows = confidential_loop(1_000_000, 400_000)
    copies = [each for each in rows["cuda_api"] if each["class"] == "copy"]
    for number, each in enumerate(copies):
        each["stack_id"] = -5 if number % 3 else 9
    found, _ = points_of(tmp_path, rows, CC)
    first = found[0]
    assert (first.count_per_step, first.held_ns_per_step) == (1, 1_031_880)
    assert first.stack_id == -5
    assert first.stack_share == pytest.approx(2 / 3, abs=0.02)
    assert [(p.stack_id, p.stack_share) for p in found if p.cls == "graph"] == [(None, None)]


def test_what_the_device_does_not_leave_time_for_is_not_recoverable(tmp_path: Path) -> None:
    """Of 50 us of host and 26 of launch the worker's hand-over leaves less than all."""
    found, _ = points_of(tmp_path, confidential_loop(1_000_000, 50_000), CC)
    assert found[0].expected_itl_ns == pytest.approx(1_000_000, abs=1_000)
    assert found[0].recoverable_ns == pytest.approx(107_880, abs=1_000)


def test_two_remedies_as_good_leave_the_simpler_one(tmp_path: Path) -> None:
    """Outside of CC the copy is asked for, and waited for by a call of its own."""
    rows = confidential_loop(1_000_000, 400_000)
    calls = []
    for each in rows["cuda_api"]:
        if each["class"] == "graph":
            calls.append(each | {"dur_ns": 7_400})
            continue
        ts_ns, end_ns = each["ts_ns"] - 18_600, each["ts_ns"] + each["dur_ns"]
        calls.append(each | {"ts_ns": ts_ns, "dur_ns": 3_450})
        asked_ns = ts_ns + 5_000
        calls.append(call(asked_ns, end_ns - asked_ns, "sync", "cudaStreamSynchronize"))
    ranges = [
        each | {"ts_ns": each["ts_ns"] - 18_600, "dur_ns": each["dur_ns"] + 18_600}
        if each["name"] == "readback"
        else each
        for each in rows["nvtx"]
    ]
    found, _ = points_of(tmp_path, {"cuda_api": calls, "nvtx": ranges}, NO_CC)
    first = found[0]
    assert (first.api, first.path) == ("cudaStreamSynchronize", "step/readback")
    assert first.remedy is not None
    assert first.remedy.code == "async_scheduling_on"
    assert [gain.code for gain in first.alternatives] == ["worker_readback"]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_too_few_steps_are_no_points(tmp_path: Path, steps: int) -> None:
    """Nothing is made up where there is nothing to replay."""
    rows = confidential_loop(1_000_000, 400_000)
    end_ns = steps * 1_457_880
    short = {
        table: [row for row in content if row["ts_ns"] + row["dur_ns"] <= end_ns]
        for table, content in rows.items()
    }
    found, summary = points_of(tmp_path, short, CC)
    assert found == []
    assert summary.steps == 0
    assert summary.error_ratio is None


def test_open_calls_and_failed_ones_are_left_out(tmp_path: Path) -> None:
    """A call that never returned, and one that failed, change nothing."""
    rows = confidential_loop(1_000_000, 400_000)
    odd = [
        call(5_000_000, 10, "launch", "cudaLaunchKernel", result=1),
        call(STEPS * 1_457_880 - 5, 5, "sync", "cudaStreamSynchronize") | {"dur_ns": None},
    ]
    found, _ = points_of(tmp_path, rows | {"cuda_api": rows["cuda_api"] + odd}, CC)
    assert {point.api for point in found} == {"cudaMemcpyAsync", "cudaGraphLaunch"}


def test_steps_that_pause_are_apart() -> None:
    """A step that does not begin where the one before it ended begins another run."""
    steps = [Step(number, 1, 1, 10 * number, 10, None) for number in range(1, 8)]
    steps += [Step(number, 1, 1, 1000 + 10 * number, 10, None) for number in range(8, 10)]
    assert [len(piece) for piece in unbroken(steps)] == [7, 2]


def test_a_long_run_is_sampled_evenly() -> None:
    """10000 steps of 100 events, of which 60000 are to be replayed: six times 100 steps."""
    steps = [Step(number, 1, 1, 10 * number, 10, None) for number in range(10_000)]
    chosen = choose(steps, 100, 60_000)
    assert [len(piece) for piece in chosen] == [100] * 6
    firsts = [piece[0].step_id for piece in chosen]
    assert firsts == [783, 2450, 4116, 5783, 7450, 9116]
    assert choose(steps, 5, 60_000) == [steps]
