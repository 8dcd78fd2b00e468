"""Every probed call, recorded exactly: against the simulated device's own log of them.

The log is written by the functions themselves, with their real prototypes; the calls are
made by position (tests/targets/cuda_every.c). What cctrace's table of symbols says of
arguments is thus checked by two readings of CUDA's headers that know nothing of it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from bpf_here import require_bpf
from simcuda_build import ROOT, SOURCE, simcuda_environment, simcuda_library_dir

from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.cuda.symbols import Symbol, api_name, symbol_table
from cctrace.record.bpf.probes import Probes
from cctrace.record.bpf.sched import Sched
from cctrace.record.losses import LossLedger

sys.path.insert(0, str(SOURCE))

import truth

TARGETS: Final = ROOT / "tests" / "targets"
LABELS: Final = {"libcuda.so.1": "cuda", "libcudart.so.13": "cudart", "libnccl.so.2": "nccl"}
PROCESSES, THREADS, TIMES = 3, 3, 5
TOLERANCE_NS: Final = 5_000
PROBE_TOLERANCE_NS: Final = 500
RUN_TIMEOUT_S: Final = 120

# Functions that the simulated device lacks; test_cuda_arguments.py has them.
NOT_SIMULATED: Final = re.compile(
    r"cudaMemcpy(2D)?(To|From)Array\w*|cudaMemcpy(2D)?ArrayToArray\w*|cudaMemPrefetchAsync_v2\w*"
    r"|cu(da)?GraphUpload\w*|__cudaLaunchKernel\w*|cuStream(WriteValue\w+|BatchMemOp_v2\w*)"
    r"|nccl(Gather|Scatter|AlltoAll|Bcast|MemAlloc|MemFree)"
    r"|ncclComm(InitRankConfig|Split|Finalize|Abort)"
)
# What a function is, told by its name: the first that matches.
CLASSES: Final = (
    (r"nccl", "collective"),
    (r"Memcpy|Prefetch", "copy"),
    (r"Memset", "memset"),
    (r"Launch(Kernel|Cooperative|HostFunc)", "launch"),
    (r"GraphLaunch", "graph"),
    (r"Free|Unregister|Unmap|Release", "free"),
    (r"[Aa]lloc|Register|cuMemCreate|cuMemMap", "alloc"),
    (r"EventRecord|WaitEvent|WaitValue", "event"),
    (r"Synchronize|Query", "sync"),
)
# Classes whose calls move or take a number of bytes; of a free only the device knows.
SIZED: Final = ("copy", "memset", "alloc")


def class_of(name: str) -> str:
    return next(cls for pattern, cls in CLASSES if re.search(pattern, name))


@dataclass
class Recording:
    """What was recorded and what happened."""

    calls: pa.Table
    sched: pa.Table
    truth: list[Any]
    losses: dict[str, int]
    detail: dict[str, Any]
    said: list[str]  # lines that the processes printed

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """Each call, as logged and as recorded."""
        return list(pairs(self))


def build(source: str, folder: Path) -> Path:
    """Compile a target against CUDA's headers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: apt-get install gcc")
    simcuda_library_dir()  # skips where there are no headers
    script = ROOT / "scripts" / "cuda_include.py"
    include = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    path = folder / Path(source).stem
    headers = ["-isystem", include.stdout.strip(), "-isystem", str(SOURCE / "compat")]
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", *headers]
    subprocess.run(
        [compiler, *flags, str(TARGETS / source), "-o", str(path), "-ldl", "-lpthread"], check=True
    )
    return path


def record(
    command: list[str], folder: Path, count: int = 1, mode: Any = None, launches: Any = "full"
) -> Recording:
    """Run ``command`` several times at once on the simulated device, and record it."""
    require_bpf()
    log = folder / "truth"
    log.mkdir()
    ledger = LossLedger()
    cuda = Cuda(launches, ledger, mode=mode)
    cuda.memory.watch_from_start()
    probes = Probes([cuda, Sched()], 64 << 20, ledger)
    probes.start()
    assert [error.message for _, error in probes.refused()] == []
    try:
        for name, label in LABELS.items():
            cuda.attach_library(simcuda_library_dir() / name, label)
        environment = simcuda_environment(log)
        with probes.spawning():
            running = [
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
        said = [process.communicate(timeout=RUN_TIMEOUT_S)[0] for process in running]
        assert [process.returncode for process in running] == [0] * count
        probes.drain()
        rows = probes.rows()
        detail = cuda.detail()
        probes.detach()
        probes.drain()
        rows += probes.rows() + probes.finish()
    finally:
        probes.close()
    assert not probes.warnings
    return Recording(
        calls=_table(rows, "cuda_api"),
        sched=_table(rows, "sched"),
        truth=truth.read(log),
        losses=_losses(ledger, "cuda"),
        detail=detail,
        said="".join(said).splitlines(),
    )


def _losses(ledger: LossLedger, source: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for row in ledger.table().to_pylist():
        if row["source"] == source:
            found[row["reason"]] += row["count"]
    return dict(found)


def _table(rows: list[tuple[str, pa.Table]], name: str) -> pa.Table:
    return pa.concat_tables([table for table_name, table in rows if table_name == name])


@dataclass
class Pair:
    """One call: as logged and as recorded."""

    name: str
    symbol: Symbol
    layer: str
    logged: Any
    driver: Any  # the copy that the driver made for the runtime; else the call itself
    depth: int
    recorded: dict[str, Any]


def pairs(recording: Recording) -> Iterator[Pair]:
    """Match the two, thread by thread in order of entry; their counts must agree."""
    symbols = symbol_table().by_name(None, 13)
    recorded = recording.calls.to_pylist()
    by_thread: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in sorted(recorded, key=lambda row: row["ts_ns"]):
        by_thread.setdefault((row["pid"], row["tid"]), []).append(row)
    for process in recording.truth:
        assert process.dropped == 0
        for tid in np.unique(process.api["tid"]):
            logged = process.api[process.api["tid"] == tid]
            logged = logged[np.argsort(logged["entry_ns"], kind="stable")]
            rows = by_thread.pop((process.pid, int(tid)), [])
            around: list[int] = []  # ends of the probed calls around
            position = 0
            for index, call in enumerate(logged):
                layer, name = process.names[int(call["api"])]
                around = [end for end in around if end > int(call["entry_ns"])]
                if name not in symbols:
                    continue
                assert position < len(rows), f"{name} of thread {tid} was not recorded"
                inner = call
                for nested in logged[index + 1 : index + 4]:
                    if nested["entry_ns"] < call["exit_ns"] and nested["copy_kind"]:
                        inner = nested
                yield Pair(name, symbols[name], layer, call, inner, len(around), rows[position])
                position += 1
                around.append(int(call["exit_ns"]))
            assert position == len(rows), f"recorded, but not called: {rows[position]}"
    assert not by_thread, f"threads that called nothing: {list(by_thread)}"


def expected(pair: Pair) -> dict[str, Any]:
    """Everything but the times, as far as the log tells it."""
    logged = pair.logged
    cls = class_of(pair.name)
    told: dict[str, Any] = {
        "api": api_name(pair.name),
        "layer": "driver" if pair.layer == "driver" else "runtime",
        "class": cls,
        "result": int(logged["result"]),
        "depth": pair.depth,
    }
    if cls != "copy":
        told["copy_kind"] = None
    if not pair.symbol.stream:
        told["stream"] = None
    if logged["result"]:  # the device logs the rest once it has found no fault
        return told
    if pair.symbol.stream:
        told["stream"] = int(logged["stream"])
    if cls in SIZED:
        told["size_bytes"] = int(logged["size_bytes"])
    if cls == "copy":
        # The runtime's are told by the driver's that they make.
        told["copy_kind"] = truth.COPY_KINDS[int(pair.driver["copy_kind"])]
        told["host_memory"] = truth.HOST_MEMORY[int(pair.driver["host_memory"])]
        if "Peer" in pair.name:  # the device looks where the memory lies, not what is asked for
            told["copy_kind"] = "p2p"
        if "Prefetch" in pair.name:  # managed memory, wherever it is just now
            told["copy_kind"] = "unknown"
    return told


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """All functions, several threads in several processes at once."""
    folder = tmp_path_factory.mktemp("every")
    target = build("cuda_every.c", folder)
    return record([str(target), str(THREADS), str(TIMES)], folder, PROCESSES)


def test_every_function_is_called_and_every_call_recorded(everything: Recording) -> None:
    """Nothing is missing, nothing is invented; the target calls what it should."""
    assert len(everything.truth) == PROCESSES
    # The copy of an unknown kind, by both its names.
    assert everything.losses == {"bad_argument": 2 * PROCESSES * THREADS * TIMES}
    times: dict[str, int] = {}
    for pair in everything.pairs:
        times[pair.name] = times.get(pair.name, 0) + 1
    expected = {
        symbol.name
        for symbol in symbol_table().by_name(None, 13).values()
        if not NOT_SIMULATED.fullmatch(symbol.name)
    }
    assert set(times) == expected
    least = PROCESSES * THREADS * TIMES
    once = {"ncclCommInitRank"}  # by each thread, at its start
    assert {name for name, count in times.items() if count < least} <= once


def test_each_call_is_what_it_was(everything: Recording) -> None:
    """Name, layer, class, kind, bytes, stream, host memory, result and depth."""
    wrong: dict[str, str] = {}
    for pair in everything.pairs:
        told = expected(pair)
        if {key: pair.recorded[key] for key in told} != told:
            wrong.setdefault(pair.name, f"{pair.name}: expected {told}, found {pair.recorded}")
    assert not wrong, "\n".join(wrong.values())


def test_events_are_the_handles_that_the_program_has(everything: Recording) -> None:
    """Each thread has one of its own; what takes none has none, at either layer."""
    handles = {int(tid): int(event) for tid, event in map(str.split, everything.said)}
    assert len(handles) == PROCESSES * THREADS
    takes_one = re.compile(r"cu(da)?(Event(Record|Query|Synchronize)|StreamWaitEvent)")
    found: Counter[str] = Counter()
    for pair in everything.pairs:
        row = pair.recorded
        expected = handles[row["tid"]] if takes_one.match(pair.name) else None
        assert row["event"] == expected, pair.name
        assert row["correlation_id"] is None
        found[pair.name] += expected is not None
    # Five functions of either layer, three of them with a variant of their own stream.
    assert sum(count > 0 for count in found.values()) == 2 * (5 + 3)


def test_the_cost_of_the_probes_is_what_they_add(everything: Recording) -> None:
    """Measured on a function that does nothing; here against the device's own clock.

    Calls that begin with an instruction the kernel cannot emulate, or that the log's
    own clock makes longer, differ a little: half a microsecond is allowed.
    """
    added_ns = [
        pair.recorded["dur_ns"] - int(pair.logged["exit_ns"] - pair.logged["entry_ns"])
        for pair in everything.pairs
    ]
    probe_ns, call_ns = everything.detail["probe_ns"], everything.detail["probe_call_ns"]
    print(f"added {np.median(added_ns)} ns; measured {probe_ns} ns, to the caller {call_ns} ns")
    assert abs(float(np.median(added_ns)) - probe_ns) < PROBE_TOLERANCE_NS
    # A caller pays for both traps, of which a record sees the end of one and the
    # beginning of the other.
    assert probe_ns < call_ns < 10 * probe_ns


def test_what_measures_the_cost_is_not_recorded(everything: Recording) -> None:
    """Neither its calls, nor that its thread was off the CPU, nor anything as lost."""
    assert os.getpid() not in everything.calls["pid"].unique().to_pylist()
    assert os.getpid() not in everything.sched["pid"].unique().to_pylist()


def test_lengths_are_the_calls_own(everything: Recording) -> None:
    """Within 5 us of the device's own clock, but where the thread was off its CPU between."""
    off_cpu: dict[int, list[tuple[int, int]]] = {}
    for row in everything.sched.to_pylist():
        off_cpu.setdefault(row["tid"], []).append((row["ts_ns"], row["ts_ns"] + row["dur_ns"]))
    differences = []
    unexplained = []
    excused = 0
    for pair in everything.pairs:
        start_ns, row = pair.recorded["ts_ns"], pair.recorded
        end_ns = start_ns + row["dur_ns"]
        entry_ns, exit_ns = int(pair.logged["entry_ns"]), int(pair.logged["exit_ns"])
        # The probes are around the clocks that the function itself reads.
        assert start_ns <= entry_ns
        assert exit_ns <= end_ns
        difference = row["dur_ns"] - (exit_ns - entry_ns)
        differences.append(difference)
        if difference <= TOLERANCE_NS:
            continue
        between = ((start_ns, entry_ns), (exit_ns, end_ns))
        if any(
            off < last and first < back
            for first, last in between
            for off, back in off_cpu.get(row["tid"], ())
        ):
            excused += 1
        else:
            unexplained.append((difference, pair.name))
    median = float(np.median(differences))
    print(f"{len(differences)} calls: median {median} ns, off the CPU {excused}")
    print(f"longer by more than {TOLERANCE_NS} ns without a reason: {unexplained}")
    assert median < TOLERANCE_NS
    # An interrupt, or a hypervisor that takes the CPU away, shows nowhere.
    assert len(unexplained) <= len(differences) // 100
