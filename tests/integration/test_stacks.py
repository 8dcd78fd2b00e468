"""Stacks of CUDA calls, against what the programs themselves say they were in.

A copy's size tells which one it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bpf_here import require_bpf
from python_versions import VERSIONS, interpreter
from recording import CCTRACE, environment, losses, rows
from simcuda_build import ROOT, simcuda_library_dir

from cctrace.store.manifest import read_manifest

LIMIT_S = 120
TARGETS = ROOT / "tests" / "targets"
CUT = 127  # frames that are kept
Frames = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _bpf() -> None:
    require_bpf()


@dataclass
class Recorded:
    """A recording."""

    run: Path

    def frames(self) -> dict[int, Frames]:
        """Frames of each copy that the program made itself, by its size."""
        stacks = {row["stack_id"]: row["frames"] for row in rows(self.run, "stacks")}
        return {
            row["size_bytes"]: stacks[row["stack_id"]]
            for row in rows(self.run, "cuda_api")
            if row["api"] == "cudaMemcpy" and row["depth"] == 0
        }

    def detail(self) -> dict[str, Any]:
        """What the manifest says of stacks."""
        return stacks_detail(self.run, "cuda")


def stacks_detail(run: Path, source: str) -> dict[str, Any]:
    """What the manifest says of stacks in a source's part."""
    (entry,) = (entry for entry in read_manifest(run).sources if entry.name == source)
    assert entry.state == "attached", entry
    found: dict[str, Any] = entry.detail["stacks"]
    return found


def compiled(folder: Path, language: str) -> Path:
    """The native program, as C or C++, with the simulated device."""
    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip(f"no compiler of {language}: apt-get install g++")
    program = folder / "stack_calls"
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread"]
    flags += [f"-Wl,-rpath,{simcuda_library_dir()}"]
    library = simcuda_library_dir() / "libcudart.so.13"
    source = ["-x", language, str(TARGETS / "stack_calls.c"), "-x", "none", str(library)]
    subprocess.run([compiler, *flags, *source, "-o", str(program)], check=True)
    return program


def record_command(run: Path, *command: str | Path, mode: str = "crossings") -> list[str]:
    """The command line that records a program, every launch of it."""
    options = ("--sources", "cuda,sched,processes", "--launches", "full", "--stacks", mode)
    return [*CCTRACE, "record", "-q", "-o", str(run), *options, "--", *map(str, command)]


def device_environment() -> dict[str, str]:
    """The tests' environment, with the simulated device."""
    return environment(LD_LIBRARY_PATH=str(simcuda_library_dir()), SIMCUDA_PROFILE="b300")


def python_frames(frames: Frames) -> list[tuple[str, str, int]]:
    return [(f["function"], f["file"], f["line"]) for f in frames if f["kind"] == "python"]


@pytest.mark.parametrize("version", VERSIONS)
def test_python_frames_are_those_the_program_was_in(tmp_path: Path, version: str) -> None:
    """Of every thread, through generators, comprehensions, coroutines and callbacks from C."""
    # GIVEN a program that ends at once when it is through
    command = record_command(tmp_path / "run", interpreter(version), TARGETS / "stack_calls.py")
    done = subprocess.run(
        command,
        env=device_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    found = Recorded(tmp_path / "run")
    said = json.loads(done.stdout)
    noted = {int(size): [tuple(frame) for frame in f] for size, f in said.items()}
    assert len(noted) > 40
    taken = found.frames()
    # THEN each copy has a stack, of exactly the frames the program saw, and its own
    assert taken.keys() == noted.keys()
    for size, frames in noted.items():
        assert python_frames(taken[size]) == frames[:CUT], size
        is_cut = len(frames) > CUT
        assert (taken[size][-1]["function"] == "[truncated]") == is_cut
        # AND above them is what calls from Python into C, and nothing of the interpreter
        native = [f for f in taken[size] if f["kind"] == "native"]
        assert not [f for f in native if "libpython" in (f["module"] or "")]
    assert losses(found.run) == {"stack_truncated": 1}
    # AND the run says which Python it walked
    assert {p["version"] for p in found.detail()["python"]} == {version}
    assert found.detail()["not_walked"] == {}


@pytest.mark.parametrize("version", ["3.10", "3.11"])
def test_threads_are_found_in_another_process_namespace(tmp_path: Path, version: str) -> None:
    """Where they know themselves by numbers that are not the machine's."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    target = [str(interpreter(version)), str(TARGETS / "stack_calls.py")]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: apt-get install util-linux")
    done = subprocess.run(
        record_command(tmp_path / "run", *unshare, *target),
        env=device_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    noted, taken = json.loads(done.stdout), Recorded(tmp_path / "run").frames()
    assert {size: python_frames(frames) for size, frames in taken.items()} == {
        int(size): [tuple(frame) for frame in frames[:CUT]] for size, frames in noted.items()
    }


@pytest.mark.parametrize("language", ["c", "c++"])
def test_native_frames_are_those_the_program_was_in(tmp_path: Path, language: str) -> None:
    """With the line of each call, for every thread, and cut where there are too many."""
    program = compiled(tmp_path, language)
    copies = 8 if language == "c" else 10
    found = Recorded(tmp_path / "run")
    with subprocess.Popen(
        record_command(found.run, program),
        env=device_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as recorder:
        assert recorder.stdout is not None
        lines = [recorder.stdout.readline().rstrip("\n").split("\t") for _ in range(copies)]
        # It ends when its mappings have been looked at, those of its last stack too.
        distinct = {tuple(places) for _, *places in lines}
        while found.detail()["distinct"] <= len(distinct):  # and that of the allocation
            assert recorder.poll() is None
            os.sched_yield()
        recorder.communicate(timeout=LIMIT_S)
    assert recorder.returncode == 0
    taken = found.frames()
    expected = {int(size): places for size, *places in lines}
    assert len(expected) == copies
    assert taken.keys() == expected.keys()
    for size, places in expected.items():
        own = [f for f in taken[size] if f["module"] == str(program)]
        assert [f"{f['function']}:{f['line']}" for f in own] == places[:CUT], size
        assert {f["file"] for f in own} == {str(TARGETS / "stack_calls.c")}
        # Beyond its own there are the C library's, or the cut.
        beyond = [f for f in taken[size] if f["module"] != str(program)]
        assert taken[size] == [*own, *beyond]
        assert [f["function"] for f in beyond if f["module"] is None] == (
            ["[truncated]"] if len(places) > CUT else []
        )
    assert losses(found.run) == {"stack_truncated": 1}


def test_none_are_taken_where_none_are_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--sources", "cuda,processes", "--stacks", "none")
    text = "import ctypes; ctypes.CDLL('libcudart.so.13').cudaDeviceSynchronize()"
    subprocess.run(
        [*CCTRACE, "record", "-q", "-o", str(run), *options, "--", interpreter("3.11"), "-c", text],
        env=device_environment(),
        check=True,
        timeout=LIMIT_S,
    )
    assert [row["api"] for row in rows(run, "cuda_api") if row["depth"] == 0] == [
        "cudaDeviceSynchronize"
    ]
    assert {row["stack_id"] for row in rows(run, "cuda_api")} == {None}
    assert rows(run, "stacks") == []


# Completes each entry as if its program had begun a moment before the one that runs.
STALE = """
import sys
from cctrace.record.bpf.stacks.kernel_maps import ProcessTable
put = ProcessTable.put
def late(self, pid, entry):
    entry["image"] -= 1
    put(self, pid, entry)
ProcessTable.put = late
from cctrace.cli import main
sys.exit(main())
"""


def test_what_is_known_of_a_program_that_was_replaced_is_not_used(tmp_path: Path) -> None:
    """Not even where the recorder tells the kernel only after the exec."""
    command = record_command(tmp_path / "run", interpreter("3.11"), TARGETS / "stack_calls.py")
    command[1 : len(CCTRACE)] = ["-c", STALE]
    subprocess.run(
        command,
        env=device_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=True,
    )
    found = Recorded(tmp_path / "run")
    taken = found.frames()
    assert len(taken) > 40
    assert {p["version"] for p in found.detail()["python"]} == {"3.11"}
    # THEN no frame was looked for where that program would have had it
    assert not [frames for frames in taken.values() if python_frames(frames)]


# Whoever names addresses stops before the first of them.
STOPPED = """
import os, pathlib, signal, sys
from cctrace.record.target import block_signals
block_signals()  # before there are any other threads
from cctrace.record.symbols.child import Child
ask = Child._ask
def stopped(self, *arguments):
    pathlib.Path(os.environ["NOTE"]).write_text(str(self._process.pid))
    os.killpg(self._process.pid, signal.SIGSTOP)
    return ask(self, *arguments)
Child._ask = stopped
from cctrace.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_naming_can_be_ended(tmp_path: Path, signum: signal.Signals) -> None:
    """By a signal to the recorder, the command having ended; whatever it is, the run is whole."""
    run, note = tmp_path / "run", tmp_path / "note"
    command = record_command(run, compiled(tmp_path, "c"))
    command[1 : len(CCTRACE)] = ["-c", STOPPED]
    with subprocess.Popen(
        command,
        env={**device_environment(), "NOTE": str(note)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as recorder:
        while not note.exists() or not note.read_text():
            assert recorder.poll() is None
            os.sched_yield()
        # THEN the run says how the command ended before there are any names
        assert read_manifest(run).ended == "clean"
        assert rows(run, "stacks") == []
        recorder.send_signal(signum)
        recorder.wait(LIMIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(note.read_text()), signal.SIGKILL)
    manifest = read_manifest(run)
    assert (manifest.ended, manifest.exit_code) == ("clean", 0)
    copies = [row for row in rows(run, "cuda_api") if row["api"] == "cudaMemcpy"]
    assert len([row for row in copies if row["depth"] == 0]) == 8
    functions = {f["function"] for row in rows(run, "stacks") for f in row["frames"]}
    if signum is signal.SIGKILL:
        assert recorder.returncode == -signum
        assert functions == set()
        return
    # AND addresses are what they are
    assert recorder.returncode == 0
    assert functions
    assert all(name.startswith(("0x", "file+0x", "[truncated]")) for name in functions)
