"""``cctrace import`` as a user sees it: what it says, where it writes, how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from import_files import CALL, kineto_file, rows
from runs import make_run

from cctrace.cli import import_run
from cctrace.errors import CctraceError
from cctrace.importers import run_writer
from cctrace.importers.api import FORMATS, import_file
from cctrace.store.manifest import read_manifest, start_ticks
from cctrace.store.run import Run

START = [sys.executable, "-c", "from cctrace.cli import main; main()"]
EVENT = {**CALL, "name": "cudaLaunchKernel", "ts": 1, "dur": 2}


def cctrace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [*START, *map(str, arguments)], capture_output=True, check=False, text=True
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of two events, one of them left out."""
    return kineto_file(
        tmp_path / "trace.json", [EVENT, {"ph": "C", "name": "power", "pid": 0, "ts": 1}]
    )


def test_formats_are_those_of_the_importers() -> None:
    assert set(import_run._FORMATS) == set(FORMATS)


def test_import_and_info(trace: Path, tmp_path: Path) -> None:
    # GIVEN a trace; WHEN it is imported
    run = tmp_path / "new" / "run"
    done = cctrace("import", trace, "--from", "kineto", "-o", run)
    # THEN stderr says what became of it, stdout nothing
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"Wrote {run} (1 event, " in done.stderr
    assert "of 2 events in the file: 1 rows, 0 folded into others, 1 left out" in done.stderr
    assert f"next: cctrace info {run}" in done.stderr
    # AND info shows where it came from
    shown = cctrace("info", run).stdout
    assert "imported    trace.json (kineto)" in shown
    assert "2 events in the file: 1 are rows, 0 folded into others, 1 left out" in shown
    assert "left out: 1 - C (category or phase not known)" in shown
    assert "sched           refused: a PyTorch trace has no scheduler events" in shown
    assert "exit code" not in shown
    assert cctrace("import", trace, "--from", "kineto", "-o", run, "--force", "-q").stderr == ""


def test_no_overwrite_without_force_and_only_of_runs(trace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("import", trace, "--from", "kineto", "-o", run)
    make_run(tmp_path, nvtx=[{"ts_ns": 1, "name": "old"}])
    again = cctrace(*arguments)
    assert again.returncode == 1
    assert again.stderr.startswith(f"cctrace: {run} exists\nhint: add --force")
    assert rows(run, "nvtx", "name") == [("old",)]
    assert cctrace(*arguments, "--force").returncode == 0
    assert not (run / "nvtx").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    refused = cctrace(*arguments[:-1], precious, "--force")
    assert refused.returncode == 1
    assert "is not a cctrace run" in refused.stderr
    assert (precious / "file").read_text() == "kept"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cctrace(*arguments[:-1], empty).returncode == 0


def test_run_being_recorded_is_not_replaced(trace: Path, tmp_path: Path) -> None:
    recorder = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    run = make_run(tmp_path)
    manifest = read_manifest(run)
    manifest.ended, manifest.stop = "recording", None
    manifest.recorder.pid = os.getpid()
    manifest.recorder.start_ticks = recorder["start_ticks"] or 0
    manifest.write(run)
    done = cctrace("import", trace, "--from", "kineto", "-o", run, "--force")
    assert done.returncode == 1
    assert "is being recorded right now" in done.stderr


def test_failed_import_leaves_the_old_run(tmp_path: Path) -> None:
    # GIVEN a run, and a trace that is cut off
    make_run(tmp_path, nvtx=[{"ts_ns": 1, "name": "old"}])
    trace = tmp_path / "trace.json"
    trace.write_text('{"traceEvents": [{"ph": "X"')
    before = sorted(tmp_path.rglob("*"))
    # WHEN the one is to replace the other
    run = tmp_path / "run"
    done = cctrace("import", trace, "--from", "kineto", "-o", run, "--force")
    # THEN it fails with the place, and all is as before
    assert done.returncode == 4
    assert done.stderr.startswith(f"cctrace: {trace}: byte 2")
    assert "cut off" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_event_can_be_skipped(tmp_path: Path) -> None:
    trace = kineto_file(tmp_path / "t.json", [EVENT, {**EVENT, "dur": -1}])
    run = tmp_path / "run"
    done = cctrace("import", trace, "--from", "kineto", "-o", run)
    assert done.returncode == 4
    assert "hint: --skip-bad" in done.stderr
    done = cctrace("import", trace, "--from", "kineto", "-o", run, "--skip-bad", "-q")
    assert (done.returncode, done.stderr) == (
        0, "WARNING: left out 1 event that made no sense\n")  # fmt: skip
    assert Run(run).losses.lost == {"bad_event": 1}


@pytest.mark.parametrize("arguments", [(), ("--from", "nsys"), ("--from", "etw", "-o", "r")])
def test_wrong_usage(trace: Path, arguments: tuple[str, ...]) -> None:
    assert cctrace("import", trace, *arguments).returncode == 2


def test_file_that_is_not_there(tmp_path: Path) -> None:
    for kind in FORMATS:
        done = cctrace("import", tmp_path / "no", "--from", kind, "-o", tmp_path / "run")
        assert done.returncode == 4
        assert "No such file" in done.stderr


def test_full_disk_is_told(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a disk that is full when the parts are written
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_writer, "_write_table", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CctraceError) as caught:
        import_file(trace, "kineto", tmp_path / "run")
    # THEN the error says so, with its own status, and nothing is left
    assert caught.value.exit_code == 1
    assert caught.value.message == (
        f"cannot write a run to {tmp_path / 'run'}: No space left on device"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_same_file_twice_is_the_same_run(trace: Path, tmp_path: Path) -> None:
    # GIVEN / WHEN a file imported twice THEN all parts are the same, byte by byte
    parts = []
    for name in ("a", "b"):
        import_file(trace, "kineto", tmp_path / name)
        found = sorted((tmp_path / name).rglob("*.parquet"))
        parts.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in found])
    assert parts[0] == parts[1]
    assert parts[0]
