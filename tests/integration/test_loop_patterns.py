"""Steps told from CUDA calls alone, against those that the same loop marked itself."""

from __future__ import annotations

import shutil
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bpf_here import require_bpf
from recording import environment, losses, record
from simcuda_build import ROOT, simcuda_library_dir

import cctrace

STEPS = 61
LOOP = ROOT / "examples" / "decode_loop.py"
# Workers get a step's inputs through a pipe, which takes its time.
TOLERANCE, WORKERS_TOLERANCE = 0.02, 0.1


@pytest.fixture(autouse=True)
def _bpf() -> None:
    require_bpf()


def periods(run: Path, query: str) -> dict[int, list[dict[str, Any]]]:
    """Steps by process, in order."""
    found: dict[int, list[dict[str, Any]]] = {}
    with cctrace.open(run) as session:
        for row in session.sql(query).arrow().to_pylist():
            found.setdefault(row["pid"], []).append(row)
    return found


@pytest.mark.parametrize(
    "switches",
    [
        (),
        ("--async-scheduling",),
        ("--readback", "worker"),
        ("--async-scheduling", "--readback", "worker"),
        ("--launches", "eager", "--kernels", "37"),
        ("--launches", "eager", "--readback", "worker", "--crossings", "103"),
        ("--host-memory", "pageable"),
        ("--alloc-per-step",),
        ("--speculative", "3"),
        ("--speculative", "3", "--readback", "worker"),
        ("--workers", "2"),
    ],
    ids=lambda switches: " ".join(switches) or "inline",
)
def test_the_pattern_tells_the_steps_that_were_marked(
    tmp_path: Path, switches: tuple[str, ...]
) -> None:
    """As many, as long, and of the same phases: in each process that has the device."""
    marked, run = tmp_path / "marked", tmp_path / "run"
    command: list[str | Path] = [
        sys.executable,
        LOOP,
        "--sim-dir",
        simcuda_library_dir(),
        "--profile",
        "b300-cc",
    ]
    kept = {k: v for k, v in environment().items() if not k.startswith("SIMCUDA_")}
    options = ("--sources", "nvtx,processes,cuda")
    # GIVEN a recording, and the same one without any range
    done = record(marked, *command, "--steps", str(STEPS), *switches, options=options, env=kept)
    assert done.returncode == 0, done.stderr
    assert losses(marked) == {}
    shutil.copytree(marked, run)
    shutil.rmtree(run / "nvtx")
    # WHEN both are asked for their steps
    query = "SELECT pid, ts_ns, period_ns, phase, found_by FROM steps ORDER BY step_id"
    [own] = periods(marked, query).values()
    told = periods(run, query)
    # THEN each step that was told starts in the one that was marked
    assert len(own) == STEPS
    assert len(told) == (2 if "--workers" in switches else 1)
    ends = [step["ts_ns"] for step in own[1:]] + [sys.maxsize]
    for steps in told.values():
        assert {step["found_by"] for step in steps} == {"pattern"}
        assert len(steps) == STEPS
        assert [step["phase"] for step in steps] == ["prefill"] + ["decode"] * (STEPS - 1)
        assert all(
            mine["ts_ns"] <= step["ts_ns"] < end_ns
            for mine, step, end_ns in zip(own, steps, ends, strict=True)
        )
        # and most are as long: what lies between mark and submission is host's work, which
        # a busy machine stretches here and there
        late = [step["ts_ns"] - mine["ts_ns"] for mine, step in zip(own, steps, strict=True)]
        moved_ns = statistics.median(abs(after - before) for before, after in pairwise(late[1:]))
        tolerance = WORKERS_TOLERANCE if "--workers" in switches else TOLERANCE
        assert moved_ns <= tolerance * statistics.median(mine["period_ns"] for mine in own[1:-1])
    if "--workers" in switches:
        workers = periods(marked, "SELECT pid, step_id FROM worker_steps ORDER BY ts_ns")
        assert sorted(workers) == sorted(told)
        for steps in workers.values():
            assert [step["step_id"] for step in steps] == list(range(1, STEPS + 1))
