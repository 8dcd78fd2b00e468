"""Stacks of waits off the CPU, against what the programs themselves say."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from bpf_here import require_bpf
from python_versions import interpreter
from recording import CCTRACE, environment, rows
from test_stacks import (
    LIMIT_S,
    TARGETS,
    Frames,
    compiled,
    python_frames,
    stacks_detail,
)

OPTIONS = ("--sources", "sched,processes", "--stacks", "all")


@pytest.fixture(autouse=True)
def _bpf() -> None:
    require_bpf()


def waits(run: Path, tid: int, before_ns: int, after_ns: int) -> list[Frames]:
    """Stacks of a thread's waits that began between two times."""
    stacks = {row["stack_id"]: row["frames"] for row in rows(run, "stacks")}
    return [
        stacks[row["stack_id"]]
        for row in rows(run, "sched")
        if row["tid"] == tid and row["state"] == "blocked" and before_ns <= row["ts_ns"] <= after_ns
    ]


def is_sleep(frames: Frames) -> bool:
    """Whether the kernel's part is first of all, and one of a sleep."""
    kernel = [frame for frame in frames if frame["kind"] == "kernel"]
    assert frames[: len(kernel)] == kernel
    assert {frame["module"] for frame in kernel} == {"[kernel]"}
    return any("nanosleep" in frame["function"] for frame in kernel)


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_waits_of_python_are_where_it_slept(tmp_path: Path, version: str) -> None:
    run = tmp_path / "run"
    target = [interpreter(version), TARGETS / "wait_calls.py"]
    command = [*CCTRACE, "record", "-q", "-o", str(run), *OPTIONS, "--", *map(str, target)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as recorder:
        # GIVEN a program that the recorder has found to be Python
        while not (run / "run.json").exists() or not stacks_detail(run, "sched").get("python"):
            assert recorder.poll() is None
            os.sched_yield()
        said, _ = recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0
    slept = json.loads(said)
    assert len(slept) == 11
    # THEN each sleep is there with exactly the frames that it was in
    for tid, noted, before_ns, _, after_ns in slept:
        [frames] = filter(is_sleep, waits(run, tid, before_ns, after_ns))
        assert python_frames(frames) == [tuple(frame) for frame in noted]
    # AND who was put off the CPU did not wait, and has no stack
    intervals = rows(run, "sched")
    ends = {(r["tid"], r["ts_ns"] + r["dur_ns"]) for r in intervals if r["state"] != "runnable"}
    preempted = [r for r in intervals if (r["tid"], r["ts_ns"]) not in ends]
    assert {r["stack_id"] for r in preempted if r["state"] == "runnable"} <= {None}


def test_waits_of_a_native_program_are_where_it_slept(tmp_path: Path) -> None:
    run, program = tmp_path / "run", compiled(tmp_path, "c")
    command = [*CCTRACE, "record", "-q", "-o", str(run), *OPTIONS, "--", str(program), "sleep"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as recorder:
        assert recorder.stdout is not None
        lines = [recorder.stdout.readline().rstrip("\n").split("\t") for _ in range(4)]
        while stacks_detail(run, "sched")["distinct"] < len(lines):
            assert recorder.poll() is None
            os.sched_yield()
        recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0
    [row] = [r for r in rows(run, "processes") if r["exe"] == str(program)]
    for before_ns, after_ns, *places in lines:
        [frames] = filter(is_sleep, waits(run, row["pid"], int(before_ns), int(after_ns)))
        own = [f for f in frames if f["module"] == str(program)]
        assert [f"{f['function']}:{f['line']}" for f in own] == places
