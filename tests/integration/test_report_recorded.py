"""`cctrace report` on real recordings: against the loop's own figures, and the schema.

What the decode loop prints of itself is one source, the recording another.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bpf_here import require_bpf
from recording import CCTRACE
from test_decode_loop import LIMIT_S, loop_command, sim_environment

import cctrace
from cctrace.analyze import pipeline
from cctrace.analyze.pipeline import Limits
from cctrace.store.excerpt import Excerpt
from cctrace.store.run import Run

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TRACES = {
    "kineto": "kineto_rank0.pt.trace.json.gz",
    "nsys": "nsys_h100_2gpu_1s.sqlite",
    "ingero": "ingero_vllm_rtx4090.db",
}
STEPS = 101


def cctrace_output(*arguments: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [*CCTRACE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def record_loop(run: Path, *switches: str) -> dict[str, Any]:
    """Record the decode loop under CC; what it says of itself."""
    command = [*CCTRACE, "record", "-q", "-o", str(run), "--"]
    done = subprocess.run(
        command + loop_command("--steps", str(STEPS), "--profile", "b300-cc", *switches),
        env=sim_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def checked(text: str) -> dict[str, Any]:
    """A JSON report that is what the schema says."""
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text("utf-8"))
    data: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(data)
    return data


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recording of the loop as it is by default, and what the loop printed."""
    require_bpf()
    run = tmp_path_factory.mktemp("report") / "run"
    return run, record_loop(run)


def test_the_report_has_the_loops_own_figures(recorded: tuple[Path, dict[str, Any]]) -> None:
    run, own = recorded
    data = checked(cctrace_output("report", run, "--format", "json"))
    by_phase = {step["phase"]: step for step in data["steps"]}
    decode = by_phase["decode"]
    assert decode["steps"] == STEPS - 1
    assert by_phase["prefill"]["steps"] == 1
    assert decode["p50_ns"] == pytest.approx(own["itl_p50_ns"], rel=0.02)
    assert decode["mean_ns"] == pytest.approx(own["itl_mean_ns"], rel=0.02)
    # the parts of the steps are all of their time
    for step in data["steps"]:
        parts = [part for part in data["parts"] if part["phase"] == step["phase"]]
        assert sum(part["total_ns"] for part in parts) == step["total_ns"]
    # the first point is the readback that every step waits in
    first = data["points"][0]
    assert (first["cls"], first["copy_kind"], first["size_bytes"]) == ("copy", "d2h", 4 * 7)
    assert first["count_per_step"] == pytest.approx(1, abs=0.05)
    assert first["remedy"] is not None
    assert data["replay"]["error_ratio"] == pytest.approx(0, abs=0.05)
    assert data["run"]["command"][-2:] == ["--profile", "b300-cc"]


def test_the_text_fits_a_screen(recorded: tuple[Path, dict[str, Any]]) -> None:
    run, _ = recorded
    shown = cctrace_output("report", run)
    lines = shown.splitlines()
    assert len(lines) <= 45
    assert [line for line in lines if len(line) > 80 and "cctrace query" not in line] == []
    assert "28-byte D2H readback" in " ".join(shown.split())
    assert "decode_loop decode" in shown


def test_python_gets_what_the_command_prints(recorded: tuple[Path, dict[str, Any]]) -> None:
    run, _ = recorded
    with cctrace.open(run) as session:
        made = session.attribution()
    data = json.loads(cctrace_output("report", run, "--format", "json"))
    assert [step["total_ns"] for step in data["steps"]] == [s.total_ns for s in made.steps]
    assert [part["total_ns"] for part in data["parts"]] == [p.total_ns for p in made.parts]
    assert [point["sentence"] for point in data["points"]] == [p.sentence for p in made.points]


@pytest.mark.parametrize("chunk_events", [397, 1009])
def test_pieces_give_the_rows_of_the_whole(
    recorded: tuple[Path, dict[str, Any]], chunk_events: int
) -> None:
    """Each step's parts and idle time, whatever the run is cut into."""
    run = Run(recorded[0])
    found = []
    for limits in (Limits(), replace(Limits(), chunk_events=chunk_events)):
        with Excerpt(run) as excerpt:
            made = pipeline._Work(run, excerpt, limits).attribution()
            found.append(
                {
                    name: excerpt.sql(f"SELECT * FROM {name} ORDER BY step_id, pid").fetchall()
                    for name in ("step_parts", "device_idle")
                }
            )
    assert made.chunks > 2
    assert len(found[0]["step_parts"]) >= STEPS - 1
    assert found[1] == found[0]


def test_ranks_are_told_apart(tmp_path: Path) -> None:
    """Two workers with a device each: idle time of each, and no claim of one process."""
    require_bpf()
    run = tmp_path / "run"
    own = record_loop(run, "--workers", "2", "--gpu-us", "997")
    data = checked(cctrace_output("report", run, "--format", "json"))
    workers = {process["pid"] for process in own["processes"] if process["rank"] is not None}
    assert {idle["pid"] for idle in data["device_idle"]} == workers
    codes = {unknown["code"] for unknown in data["cannot_say"]}
    assert "one_process" not in codes
    # the process that drives the loop waits for the workers, and makes no call itself
    assert "driver_without_calls" in codes
    assert len(cctrace_output("report", run).splitlines()) <= 45


@pytest.mark.parametrize("kind", TRACES)
def test_imported_traces_are_reported(tmp_path: Path, kind: str) -> None:
    """Real traces of other tools: what they hold, and what they cannot say."""
    trace = SHARED / TRACES[kind]
    if not trace.exists():
        pytest.skip(f"{TRACES[kind]} is not here: it is not part of the project")
    run = tmp_path / "run"
    cctrace_output("import", "--from", kind, trace, "-o", run)
    data = checked(cctrace_output("report", run, "--format", "json"))
    assert data["run"]["imported_from"] == kind
    codes = {unknown["code"] for unknown in data["cannot_say"]}
    assert "imported" in codes
    assert ("no_steps" in codes) == (not data["steps"])
    shown = cctrace_output("report", run)
    assert f"(imported from {kind})" in shown
    assert len(shown.splitlines()) <= 45
