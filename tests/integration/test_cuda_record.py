"""`cctrace record` on programs of the simulated device, by its own log of what it did.

What is checked here is the way from the command line to the tables: that libraries are
found in time, by whichever way, and that what is not known is not guessed. The calls
themselves, each with its arguments, are in test_cuda_exact.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bpf_here import require_bpf
from recording import CCTRACE, environment, losses, record, rows
from simcuda_build import ROOT, SOURCE, simcuda_library_dir

from cctrace.record.bpf.cuda.symbols import api_name, symbol_table
from cctrace.store.manifest import read_manifest

sys.path.append(str(SOURCE))  # it is no package

import truth as truth_log

LIMIT_S = 120
STEPS = 31
TARGETS = ROOT / "tests" / "targets"
# Copies to the device by position; waits for a line before them and after them.
COPIES, COPY_BYTES = 101, 4099
LOADED = f"""
import ctypes, sys
cuda = ctypes.CDLL("libcudart.so.13")
device, host = ctypes.c_void_p(), ctypes.create_string_buffer({COPY_BYTES})
assert cuda.cudaMalloc(ctypes.byref(device), ctypes.c_size_t({COPY_BYTES})) == 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range({COPIES}):
    assert cuda.cudaMemcpy(device, host, ctypes.c_size_t({COPY_BYTES}), 1) == 0
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _bpf() -> None:
    require_bpf()


def device_environment(log: Path, **extra: str) -> dict[str, str]:
    """The tests' environment, with the simulated device's log."""
    log.mkdir()
    kept = {k: v for k, v in environment().items() if not k.startswith("SIMCUDA_")}
    return kept | {"SIMCUDA_TRUTH": str(log)} | extra


def probed_calls(log: Path) -> Iterator[tuple[int, str, str]]:
    """Process, layer and name as shown of each probed call that the device logged."""
    symbols = symbol_table().by_name(None, 13)
    for process in truth_log.read(log):
        assert process.dropped == 0
        for number in process.api["api"]:
            layer, name = process.names[int(number)]
            if name in symbols:
                yield process.pid, layer, api_name(name)


def device_libraries(run: Path) -> list[dict[str, Any]]:
    """Libraries of the simulated device that were attached to, and when."""
    (source,) = (entry for entry in read_manifest(run).sources if entry.name == "cuda")
    assert source.state == "attached", source
    # NVIDIA's own may be found in this environment as well.
    ours = str(simcuda_library_dir())
    return [library for library in source.detail["loaded"] if library["path"].startswith(ours)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("memory", ["pinned", "pageable"])
def test_a_decode_loop_is_recorded_call_by_call(tmp_path: Path, memory: str, workers: int) -> None:
    """Each call of each process, before whose first the libraries were attached to."""
    run, log = tmp_path / "run", tmp_path / "truth"
    options = ("--sources", "nvtx,processes,cuda", "--launches", "full")
    loop = [sys.executable, str(ROOT / "examples" / "decode_loop.py")]
    loop += ["--sim-dir", str(simcuda_library_dir()), "--profile", "b300-cc"]
    switches = ("--steps", str(STEPS), "--host-memory", memory, "--workers", str(workers))
    done = subprocess.run(
        [*CCTRACE, "record", "-o", str(run), *options, "--", *loop, *switches],
        env=device_environment(log),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert losses(run) == {}
    found = rows(run, "cuda_api")
    seen = Counter((row["pid"], row["layer"], row["api"]) for row in found)
    assert seen == Counter(
        (pid, "driver" if layer == "driver" else "runtime", name)
        for pid, layer, name in probed_calls(log)
    )
    copies = [row for row in found if row["class"] == "copy"]
    assert {row["host_memory"] for row in copies} == {memory}
    loaded = device_libraries(run)
    assert {"cudart", "cuda"} <= {library["label"] for library in loaded}
    assert {library["how"] for library in loaded} <= {"before_load", "at_load"}
    if workers == 1:
        [own] = json.loads(done.stdout)["processes"]
        query = [*CCTRACE, "query", str(run), "--name", "crossings_per_step"]
        told = subprocess.run([*query, "--format", "json"], capture_output=True, check=True)
        made: Counter[str] = Counter()
        for row in json.loads(told.stdout):
            made[row["class"]] += round(row["calls"])
        assert made == own["step_calls"]["classes"]


def have_it_copy(target: subprocess.Popen[str]) -> None:
    """Let LOADED make its copies and end."""
    assert target.stdout is not None
    assert target.stdin is not None
    print(file=target.stdin, flush=True)
    assert target.stdout.readline() == "done\n"
    target.communicate("\n", timeout=LIMIT_S)


def check_copies_are_not_guessed(run: Path) -> None:
    copies = [row for row in rows(run, "cuda_api") if row["api"] == "cudaMemcpy"]
    assert Counter((row["size_bytes"], row["copy_kind"], row["host_memory"]) for row in copies) == {
        (COPY_BYTES, "h2d", "unknown"): COPIES
    }
    loaded = device_libraries(run)
    assert {library["how"] for library in loaded} == {"late"}
    assert losses(run) == {"late_attach": len(loaded)}


def test_memory_of_a_process_that_ran_before_is_not_guessed(tmp_path: Path) -> None:
    """What it allocated was not seen: no copy is said to be of pageable memory."""
    run, log = tmp_path / "run", tmp_path / "truth"
    target = subprocess.Popen(
        [sys.executable, "-c", LOADED],
        env=device_environment(
            log, LD_LIBRARY_PATH=str(simcuda_library_dir()), SIMCUDA_PROFILE="b300"
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdout is not None
    assert target.stdout.readline() == "ready\n"
    command = [*CCTRACE, "record", "-o", str(run), "--sources", "processes,cuda"]
    with subprocess.Popen(
        [*command, "--pid", str(target.pid)], env=environment(), stderr=subprocess.PIPE, text=True
    ) as recorder:
        while not list((run / "processes").glob("part-*.parquet")):
            assert recorder.poll() is None, recorder.communicate()[1]
            os.sched_yield()
        have_it_copy(target)
        assert recorder.wait(LIMIT_S) == 0
    check_copies_are_not_guessed(run)


def test_memory_is_not_guessed_where_a_library_was_found_late(tmp_path: Path) -> None:
    """A program that was given no environment announces nothing, and has allocated by then."""
    run, log = tmp_path / "run", tmp_path / "truth"
    device = device_environment(log, LD_LIBRARY_PATH=str(simcuda_library_dir()))
    given = [f"{k}={v}" for k, v in device.items() if k.startswith(("LD_", "SIMCUDA_"))]
    command = [*CCTRACE, "record", "-o", str(run), "--sources", "processes,cuda", "--"]
    with subprocess.Popen(
        [*command, "env", "-i", *given, "SIMCUDA_PROFILE=b300", sys.executable, "-c", LOADED],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as recorder:
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == "ready\n"
        while {"cudart", "cuda"} != {library["label"] for library in device_libraries(run)}:
            assert recorder.poll() is None
            os.sched_yield()
        have_it_copy(recorder)
        assert recorder.returncode == 0
    check_copies_are_not_guessed(run)


def compiled(folder: Path, source: str, *flags: str) -> Path:
    program = folder / Path(source).stem
    command = ["cc", "-O1", *flags, str(TARGETS / source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cc cannot build {source} with {' '.join(flags)}: {done.stderr[-200:]}")
    return program


@pytest.mark.parametrize("flags", [("-static", "-lpthread"), ("-lpthread",)])
def test_cuda_linked_into_the_program_is_recorded(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """No loader tells of it, and none needs to: the file is there before the target starts."""
    program = compiled(tmp_path, "cuda_hardships.c", "-fno-omit-frame-pointer", *flags)
    run = tmp_path / "run"
    done = record(run, program, "plain", "17", options=("--sources", "processes,cuda"))
    assert done.returncode == 0, done.stderr
    calls = [(row["api"], row["depth"]) for row in rows(run, "cuda_api")]
    assert calls == [("cuMemcpyHtoD", 0)] * 17
    assert losses(run) == {}
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize(
    ("source", "flags", "status", "said"),
    [
        (
            "exit32.c",
            ("-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
            41,
            "is a 32-bit program: CUDA calls of its own are not recorded; run a 64-bit build",
        ),
        (
            "sched_workload.c",
            ("-static", "-lpthread"),
            2,
            "is linked statically and shows no function of CUDA: if it calls any, they are not",
        ),
    ],
)
def test_a_program_that_cannot_be_probed_is_named(
    tmp_path: Path, source: str, flags: tuple[str, ...], status: int, said: str
) -> None:
    """With what helps, on stderr and in the run; it ends as by itself."""
    program = compiled(tmp_path, source, *flags)
    run = tmp_path / "run"
    done = record(run, program, options=("--sources", "processes,cuda"))
    assert done.returncode == status, done.stderr
    assert f"WARNING: {program} {said}" in done.stderr
    assert [warning for warning in read_manifest(run).warnings if said in warning]
    assert len(rows(run, "processes")) == 1
