"""The report as a user sees it, on runs that can say much, little and nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import MS, POINT, REPLAY, STEP_NS, attribution, crossing_rows, step_rows
from rich.cells import cell_len
from runs import Row, make_run

from cctrace.analyze.attribution import Attribution
from cctrace.analyze.sentences import duration, gain, point, size
from cctrace.cli.report import as_json, as_text
from cctrace.store.manifest import Source

EVIL = "\x1b[31m\x07red\u202e[bold]|<b>\n"
WIDTH, LINES = 80, 45


def sources(*attached: str, **refused: str) -> list[Source]:
    return [Source(name, "attached") for name in attached] + [
        Source(name, "refused", reason, "ask an expert") for name, reason in refused.items()
    ]


def text(run: Path, made: Attribution | None = None) -> str:
    """The report, checked to fit the screen and to hold nothing a terminal would obey."""
    shown = as_text(made or attribution(run), run)
    # but for commands, which must not be broken
    lines = [line for line in shown.splitlines() if not line.startswith("  cctrace query ")]
    assert [line for line in lines if cell_len(line) > WIDTH] == []
    assert len(shown.splitlines()) <= LINES
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    return shown


def codes(made: Attribution) -> list[str]:
    return [unknown.code for unknown in made.cannot_say]


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """Thirty-one steps with launches and a readback each."""
    return make_run(
        tmp_path,
        manifest={
            "sources": sources("nvtx", "cuda", sched="no permission"),
            "host": {
                "kernel": "6.8.0",
                "tee": {"kind": "tdx"},
                "gpu": {"cc_state": "on", "driver_version": "580.1",
                        "devices": [{"name": "NVIDIA B300"}]},
            },
        },
        nvtx=step_rows(31),
        cuda_api=crossing_rows(31),
        losses=[{"source": "cuda", "reason": "bpf_ring_full", "count": 13}],
        processes=[{"ts_ns": 0}],
    )  # fmt: skip


def test_a_run_with_steps_and_calls_is_told_on_one_screen(busy: Path) -> None:
    made = attribution(busy)
    shown = text(busy, made)
    # what ran, on what
    assert re.search(r"^ran +python serve.py$", shown, re.MULTILINE)
    assert "GPU CC on, TEE tdx, NVIDIA B300, driver 580.1, Linux 6.8.0" in shown
    # its steps, by hand: all are 10 ms
    [steps] = made.steps
    assert (steps.periods, steps.mean_ns, steps.p50_ns, steps.p99_ns) == (30, *3 * (STEP_NS,))
    assert re.search(r"default decode +31 +10\.0 ms +10\.0 ms +10\.0 ms +10\.0 ms", shown)
    # where their time goes: the parts are all of it
    assert sum(part.total_ns for part in made.parts) == 30 * STEP_NS
    by_part = {part.part: part for part in made.parts}
    blocked = [by_part[p].total_ns for p in ("queue_wait", "bridge_toll", "bridge_transfer")]
    assert sum(blocked) == 30 * 6 * MS
    assert by_part["launch"].total_ns == 30 * 3 * 30_000
    # what was lost and refused, and what that means
    assert re.search(r"^Lost +bpf_ring_full 13$", shown, re.MULTILINE)
    assert re.search(r"^Refused +sched ", shown, re.MULTILINE)
    assert {"losses", "no_sched", "no_device_activity", "one_process"} <= set(codes(made))
    assert "the 13 lost of" in shown
    assert f"cctrace query {busy} --name step_breakdown" in shown.replace("\n", " ")


def test_a_run_with_no_cuda_calls_says_so(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        manifest={"sources": sources("nvtx", cuda="BPF needs root")},
        nvtx=step_rows(11),
    )
    made = attribution(run)
    assert made.steps[0].mean_ns == STEP_NS
    assert (made.points, made.bridge[0].samples if made.bridge else 0) == ((), 0)
    assert codes(made)[0] == "no_cuda_calls"
    shown = text(run, made)
    assert "no CUDA calls were recorded (BPF needs root)" in " ".join(shown.split())


def test_a_run_with_no_steps_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=crossing_rows(1), nvtx=step_rows(5, "work"))
    made = attribution(run)
    assert (made.steps, made.parts, made.device_idle, made.replay) == ((), (), (), None)
    assert "no_steps" in codes(made)
    assert "none of its NVTX ranges is a step" in " ".join(text(run, made).split())


def test_a_single_step_has_no_length(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=crossing_rows(1), nvtx=step_rows(1))
    made = attribution(run)
    assert [(s.steps, s.periods, s.mean_ns) for s in made.steps] == [(1, 0, None)]
    assert "no_step_lengths" in codes(made)
    assert "one step was found, and no next one" in " ".join(text(run, made).split())


def test_an_empty_run_says_what_it_cannot(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    made = attribution(run)
    assert codes(made) == ["no_cuda_calls", "no_steps", "no_sched"]
    assert "it has no NVTX ranges" in " ".join(text(run, made).split())


def test_an_imported_run_says_from_what(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        manifest={"command": [], "exit_code": None, "options": {"imported_from": "kineto"}},
        cuda_api=crossing_rows(5),
        nvtx=step_rows(5),
    )
    made = attribution(run)
    assert made.run.imported_from == "kineto"
    shown = text(run, made)
    assert "(imported from kineto)" in shown
    assert "imported" in codes(made)
    assert "no_sched" not in codes(made)


def test_a_killed_recorder_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest={"ended": "recording", "stop": None}, nvtx=step_rows(3))
    made = attribution(run)
    assert made.run.length_ns is None
    assert "not_over" in codes(made)
    assert "recorder killed" in text(run, made)


def test_launches_counted_in_the_kernel_are_an_estimate(tmp_path: Path) -> None:
    windows: list[Row] = [
        {"ts_ns": 0, "window_ns": 10 * STEP_NS, "api": "cuLaunchKernel", "stream": 7,
         "calls": 1009, "total_ns": 9 * MS, "max_ns": 30_000, "histogram": [0, 1009]}
    ]  # fmt: skip
    run = make_run(tmp_path, nvtx=step_rows(11), cuda_launches=windows)
    made = attribution(run)
    assert made.run.launches_counted == 1009
    assert "launches_counted" in codes(made)
    launch = {part.part: part for part in made.parts}["launch"]
    assert launch.is_estimate
    assert launch.total_ns == pytest.approx(9 * MS, rel=0.01)
    assert re.search(r"launch +\S+ +~", text(run, made))


def test_steps_without_ranges_are_marked(tmp_path: Path) -> None:
    """Thirty-one steps told from their launches and readbacks alone."""
    run = make_run(tmp_path, cuda_api=crossing_rows(31))
    made = attribution(run)
    assert {step.found_by for step in made.steps} == {"pattern"}
    shown = text(run, made)
    assert "* told from launches and readbacks that repeat: no range is a step" in shown
    assert re.search(r"^  [^*]+\* +3[01] +10\.0 ms", shown, re.MULTILINE)


def test_recorded_activity_of_the_device_is_set_beside_the_inferred(tmp_path: Path) -> None:
    # GIVEN a device that works for 7 of each 10 ms, from the first launch on
    activity: list[Row] = [
        {"ts_ns": i * STEP_NS + MS, "dur_ns": 7 * MS, "class": "kernel", "name": "k",
         "stream": 7, "device": 0, "pid": 100}
        for i in range(31)
    ]  # fmt: skip
    run = make_run(tmp_path, nvtx=step_rows(31), cuda_api=crossing_rows(31), gpu_activity=activity)
    made = attribution(run)
    [idle] = made.device_idle
    assert (idle.device, idle.observed_steps) == (0, 30)
    assert (idle.observed_idle_ns, idle.observed_share) == (30 * 3 * MS, 0.3)
    assert not {"no_device_activity", "driver_without_calls"} & set(codes(made))
    assert "observed 3.00 ms, 30.0%" in " ".join(text(run, made).split())


def test_a_driver_that_leaves_calls_to_others_is_told(tmp_path: Path) -> None:
    calls = [{**row, "pid": 200, "tid": 200} for row in crossing_rows(31)]
    run = make_run(tmp_path, nvtx=step_rows(31), cuda_api=calls)
    assert "driver_without_calls" in codes(attribution(run))


def test_hostile_names_are_written_out(tmp_path: Path) -> None:
    """The traced program names its command, its domain, its phase and its exit."""
    rows = [{**row, "domain": EVIL, "category": EVIL} for row in step_rows(5)]
    run = make_run(
        tmp_path,
        manifest={
            "command": ["x", EVIL],
            "ended": EVIL,
            "host": {"kernel": EVIL, "gpu": {"cc_state": EVIL, "devices": [{"name": EVIL}]}},
            "sources": [Source(EVIL, "refused", EVIL, EVIL)],
        },
        nvtx=rows,
    )
    shown = text(run)
    assert "\\x1b[31m" in shown
    # and JSON has them as they are, in ASCII
    data = as_json(attribution(run))
    assert data.isascii()
    assert json.loads(data)["steps"][0]["engine"] == EVIL


class TestSentences:
    def test_a_readback_that_blocks(self) -> None:
        assert point(POINT) == (
            "step 41's 32-byte D2H readback on thread 8067 (readback) blocks 10.9 ms "
            "and delays the next launch by 1.80 ms"
        )

    def test_one_that_opens_no_bubble(self) -> None:
        other = replace(POINT, bubble_ns_per_step=999, example_step_id=None, size_bytes=None)
        assert point(other) == "a step's D2H readback on thread 8067 (readback) blocks 10.9 ms"

    def test_a_bubble_is_of_each_call(self) -> None:
        assert point(replace(POINT, count_per_step=3.0)).endswith("by 600 us")

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (
                {"cls": "launch", "api": "cudaLaunchKernel", "count_per_step": 36.2},
                "a step's 36 cudaLaunchKernel calls on thread 8067 (driver) take 936 us",
            ),
            (
                {"cls": "alloc", "api": "cudaMalloc", "count_per_step": 1.0},
                "step 41's cudaMalloc on thread 8067 (driver) takes 26.0 us",
            ),
            (
                {"copy_kind": "h2d", "size_bytes": 65_536, "count_per_step": 3.0},
                "a step's 3 64 KiB H2D copies on thread 8067 (driver) take 936 us",
            ),
        ],
    )
    def test_what_costs_by_being_there(self, changes: dict[str, Any], sentence: str) -> None:
        own = {"role": "driver", "blocked_ns_per_step": 0, "held_ns_per_step": 936_000}
        assert point(replace(POINT, **{**own, "example_dur_ns": 26_000, **changes})) == sentence

    def test_what_a_remedy_brings(self) -> None:
        assert POINT.remedy is not None
        assert gain(POINT.remedy, 12_300_000) == "ITL 12.3 -> 8.10 ms, -34%"
        slow = replace(POINT.remedy, expected_itl_ns=500_000)
        assert gain(slow, 1_000_000) == "ITL 1.00 ms -> 500 us, -50%"

    @pytest.mark.parametrize(
        ("value_ns", "shown"),
        [
            (0, "0 ns"), (999, "999 ns"), (999.6, "1.00 us"), (1_000, "1.00 us"),
            (999_499, "999 us"), (999_949, "1.00 ms"), (12_345_678, "12.3 ms"),
            (-1_500, "-1.50 us"), (3_600 * 10**9, "3600 s"),
        ],
    )  # fmt: skip
    def test_lengths_have_three_digits(self, value_ns: float, shown: str) -> None:
        assert duration(value_ns) == shown

    def test_sizes_are_adjectives(self) -> None:
        assert [size(n) for n in (0, 28, 1023, 1024, 1536, 5 << 20)] == [
            "0-byte", "28-byte", "1023-byte", "1 KiB", "1.5 KiB", "5 MiB",
        ]  # fmt: skip


def test_points_are_told_with_their_remedy(busy: Path) -> None:
    made = replace(
        attribution(busy),
        points=(replace(POINT, sentence=point(POINT)), *(replace(POINT, rank=n) for n in (2, 3))),
        replay=REPLAY,
    )
    shown = " ".join(text(busy, made).split())
    assert "1. step 41's 32-byte D2H readback on thread 8067 (readback) blocks 10.9 ms" in shown
    assert (
        "-> Drain readback on a worker thread: ITL 12.3 -> 8.10 ms, -34% "
        "(estimate, high confidence, replay error 0.6%)" in shown
    )


def test_a_point_without_a_remedy_is_told_as_such(busy: Path) -> None:
    helpless = replace(POINT, remedy=None, expected_itl_ns=None, recoverable_ns=0)
    shown = text(busy, replace(attribution(busy), points=(helpless,), replay=REPLAY))
    assert "no remedy known to help" in shown
    assert "4.50 ms shorter if it took no time" in " ".join(shown.split())
    idle = replace(helpless, recoverable_bound_ns=0)
    shown = text(busy, replace(attribution(busy), points=(idle,), replay=REPLAY))
    assert "no remedy known to help (estimate" in " ".join(shown.split())


def cctrace_report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cctrace", "report", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_writes_text_and_json(busy: Path, tmp_path: Path) -> None:
    # GIVEN a run that lost something
    shown = cctrace_report(busy)
    # WHEN / THEN stdout is the report, which tells the losses itself
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == text(busy)
    # JSON goes to a file, and the losses to whoever is there
    file = tmp_path / "report.json"
    written = cctrace_report(busy, "--format", "json", "-o", file)
    assert written.returncode == 0
    assert written.stderr.splitlines() == [
        f"WARNING: 13 of 168 events lost (bpf_ring_full) in {busy}",
        f"Wrote {file}",
    ]
    assert json.loads(file.read_text())["run"]["lost"] == 13
    # which is not overwritten unless asked
    again = cctrace_report(busy, "--format", "json", "-o", file)
    assert again.returncode == 2
    assert "exists" in again.stderr


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = cctrace_report(tmp_path)
    assert done.returncode == 4
    assert f"no run at {tmp_path}" in done.stderr
    assert cctrace_report(tmp_path, "--format", "pdf").returncode == 2
