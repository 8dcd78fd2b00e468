"""`cctrace record --pid`: a process that runs already is recorded and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bpf_here import require_bpf
from recording import CCTRACE, DEADLINE_S, environment, losses, rows

from cctrace.store.manifest import read_manifest

# Sleeps a prime number of times in a thread made after the recording has begun: it
# starts when told to, and says when it is done.
TARGET = """
import sys, threading, time
print("ready", flush=True)
sys.stdin.readline()
def work():
    for _ in range(211):
        time.sleep(0.001)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("done", flush=True)
sys.stdin.readline()
sys.exit(7)
"""


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", TARGET],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def recorder(run: Path, pid: int, sources: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CCTRACE, "record", "-o", str(run), "--sources", sources, *options, "--pid", str(pid)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_recording(run: Path, process: subprocess.Popen[str]) -> None:
    """The first flush is on disk: everything has been attached for a while."""
    while not list((run / "processes").glob("part-*.parquet")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        os.sched_yield()


def test_running_process_is_recorded_until_it_ends(tmp_path: Path) -> None:
    """A thread it makes later too; its end ends the recording, which returns 0."""
    require_bpf()
    run = tmp_path / "run"
    with start() as process, recorder(run, process.pid, "processes,sched") as cctrace:
        wait_until_recording(run, cctrace)
        tell(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        tell(process)
        assert process.wait(DEADLINE_S) == 7
        assert cctrace.wait(DEADLINE_S) == 0
        sleeps = [
            r for r in rows(run, "sched") if r["state"] == "blocked" and r["dur_ns"] >= 1_000_000
        ]
        by_tid: dict[int, int] = {}
        for row in sleeps:
            assert row["pid"] == process.pid
            by_tid[row["tid"]] = by_tid.get(row["tid"], 0) + 1
        worker = max((tid for tid in by_tid if tid != process.pid), key=lambda tid: by_tid[tid])
        # What the kernel keeps from the probes on a busy machine is counted.
        kept_back = sum(losses(run, with_sched=True).values())
        assert 211 - kept_back <= by_tid[worker] <= 211
        assert worker in {row["tid"] for row in rows(run, "threads")}
        assert read_manifest(run).ended == "clean"


def test_signal_ends_the_recording_and_not_the_process(tmp_path: Path) -> None:
    """Ctrl-C is the recorder's own here."""
    run = tmp_path / "run"
    with start() as process, recorder(run, process.pid, "processes") as cctrace:
        wait_until_recording(run, cctrace)
        cctrace.send_signal(signal.SIGINT)
        assert cctrace.wait(DEADLINE_S) == 0
        assert process.poll() is None
        manifest = read_manifest(run)
        assert (manifest.ended, manifest.exit_code) == ("stopped", None)
        assert manifest.command[0] == sys.executable
        tell(process)
        tell(process)
        assert process.wait(DEADLINE_S) == 7


def test_nvtx_of_a_running_process_is_refused_with_the_reason(tmp_path: Path) -> None:
    """It cannot be switched on from outside."""
    run = tmp_path / "run"
    with (
        start() as process,
        recorder(run, process.pid, "nvtx,processes", "--duration", "0.2") as cctrace,
    ):
        assert cctrace.wait(DEADLINE_S) == 0
        assert cctrace.stderr is not None
        said = cctrace.stderr.read()
        assert "nvtx was not recorded: NVTX cannot be switched on" in said
        assert "hint: start the engine with: cctrace record -- COMMAND" in said
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--pid", "4194300"], 1, "cannot record process 4194300"),
        (["--pid", "1", "true"], 2, "either --pid or a command"),
        (["--pid", "0"], 2, "0"),
        ([], 2, "name a command to run, or a process with --pid"),
    ],
)
def test_bad_calls(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    """Each says what is wrong, and leaves nothing behind."""
    done = subprocess.run(
        [*CCTRACE, "record", "-o", str(tmp_path / "run"), *arguments],
        env=environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
