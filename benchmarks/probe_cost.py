"""What a probed call costs the engine: nothing, an empty pair of probes, cctrace, bpftrace.

Run as root: ``.venv/bin/python benchmarks/probe_cost.py [--rounds N] [--calls N]``.
Prints one JSON object: for each function and what is attached to it, the nanoseconds per
call (median and least of the rounds) and the ratio to the empty pair. Every round
measures each of them in turn, so that a noisy neighbour disturbs all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cctrace.record.bpf import frontend, layout
from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.bpf.headers import find_headers
from cctrace.record.bpf.probes import Probes
from cctrace.record.bpf.uprobes import UprobePrograms
from cctrace.record.losses import LossLedger

HERE: Final = Path(__file__).parent
FUNCTIONS: Final = {
    "copy": "cuMemcpyHtoDAsync_v2",
    "launch": "cuLaunchKernel",
    "sync": "cuStreamSynchronize",
}
_RING_BYTES: Final = 64 << 20
Attach = Callable[[], contextlib.AbstractContextManager[None]]


class Program:
    """The program that makes the calls; it waits between batches."""

    def __init__(self, path: Path, core: int) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [str(path), str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ns_per_call(self, function: str, calls: int) -> float:
        """Have it make ``calls`` calls."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(f"{function} {calls}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def build(folder: Path) -> Path:
    """Compile the program."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("probe_cost: no C compiler: apt-get install gcc libc6-dev")
    path = folder / "probe_cost"
    flags = ["-O2", "-fcf-protection=none", "-rdynamic"]
    subprocess.run([compiler, *flags, str(HERE / "probe_cost.c"), "-o", str(path)], check=True)
    return path


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    """Attach nothing."""
    yield


def empty_pair(path: Path) -> tuple[Attach, Callable[[], None]]:
    """A pair of programs that return at once, at all the functions."""
    headers = find_headers()
    module = frontend.Module([HERE / "probe_cost.bpf.c"], [], headers)
    programs = UprobePrograms(module, "on_empty_entry", "on_empty_return")
    with path.open("rb") as file, ElfFile(file.fileno(), str(path)) as elf:
        sites = [(function.offset, 0) for function in elf.functions(list(FUNCTIONS.values()))]

    @contextlib.contextmanager
    def attach() -> Iterator[None]:
        link = programs.attach(str(path), sites)
        yield
        link.close()

    def close() -> None:
        module.close()
        headers.close()

    return attach, close


class Recorded:
    """cctrace's own programs, draining after each batch."""

    def __init__(self, path: Path, core: int) -> None:
        self._ledger = LossLedger()
        self._cuda = Cuda("full", self._ledger)
        self._probes = Probes([self._cuda], _RING_BYTES, self._ledger)
        self._probes.start()
        for _, error in self._probes.refused():
            sys.exit(f"probe_cost: {error.message}")
        with self._probes.spawning():
            self.program = Program(path, core)
        self._path = path
        self._attached = False

    @contextlib.contextmanager
    def recording(self, mode: int) -> Iterator[None]:
        """Attached, launches recorded in full or aggregated."""
        self._probes.set_config(layout.CONFIG_LAUNCHES, mode)
        self._cuda.attach_library(self._path)
        yield

    def drained(self) -> int:
        """Records since the last call."""
        return self._probes.drain()

    def close(self) -> None:
        """Detach; refuse to report figures of calls that were dropped."""
        self.program.close()
        self._probes.detach()
        self._probes.rows()
        if self._ledger.by_reason():
            sys.exit(f"probe_cost: calls were lost: {self._ledger.by_reason()}")
        self._probes.close()


@contextlib.contextmanager
def bpftrace(path: Path, function: str, folder: Path) -> Iterator[None]:
    """bpftrace, recording the same of each call."""
    text = (HERE / "probe_cost.bt").read_text()
    script = folder / f"{function}.bt"
    script.write_text(text.replace("PROGRAM", str(path)).replace("FUNCTION", function))
    with (folder / "bpftrace.txt").open("w") as output:
        tracer = subprocess.Popen(
            ["bpftrace", str(script)], stdout=output, stderr=subprocess.PIPE, text=True
        )
        if tracer.stderr is None:
            raise RuntimeError("no pipe")
        tracer.stderr.readline()  # "Attaching 2 probes..."
        probe = Program(path, 0)
        # Attached is what costs: an unprobed call takes nanoseconds.
        while probe.ns_per_call("copy", 1000) < 100 and tracer.poll() is None:
            pass
        probe.close()
        yield
        tracer.terminate()
        tracer.wait()


def measure(path: Path, folder: Path, rounds: int, calls: int, core: int) -> dict[str, object]:
    """Nanoseconds per call, by function and by what is attached."""
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in FUNCTIONS}

    def take(program: Program, kind: str, names: tuple[str, ...] = tuple(FUNCTIONS)) -> None:
        for name in names:
            samples[name].setdefault(kind, []).append(program.ns_per_call(name, calls))

    bare = Program(path, core)
    attach_empty, close_empty = empty_pair(path)
    for _ in range(rounds):
        take(bare, "none")
        with attach_empty():
            take(bare, "empty")
    # cctrace stays attached while its rounds alternate with the empty pair's, which then
    # runs in a copy of the program: probes belong to the file.
    twin = folder / "twin"
    shutil.copy(path, twin)
    twin_program = Program(twin, core)
    attach_twin, close_twin = empty_pair(twin)
    recorded = Recorded(path, core)
    with attach_twin():
        for _ in range(rounds):
            take(twin_program, "empty")
            with recorded.recording(layout.LAUNCHES_FULL):
                take(recorded.program, "cctrace")
            recorded.drained()
            with recorded.recording(layout.LAUNCHES_AGGREGATE):
                take(recorded.program, "cctrace_aggregated", ("launch",))
            recorded.drained()
    recorded.close()
    close_twin()
    close_empty()
    bare.close()
    twin_program.close()
    if shutil.which("bpftrace"):
        other = folder / "other"
        shutil.copy(path, other)
        with bpftrace(other, FUNCTIONS["copy"], folder):
            program = Program(other, core)
            for _ in range(rounds):
                take(program, "bpftrace", ("copy",))
            program.close()
    return {name: _summary(kinds) for name, kinds in samples.items()}


def _summary(kinds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    empty = kinds["empty"]
    return {
        kind: {
            "median_ns": round(statistics.median(values), 1),
            "least_ns": round(min(values), 1),
            "to_empty_median": round(statistics.median(values) / statistics.median(empty), 3),
            "to_empty_least": round(min(values) / min(empty), 3),
        }
        for kind, values in kinds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=1000, help="in each round")
    parser.add_argument("--core", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder))
        figures = measure(path, Path(folder), options.rounds, options.calls, options.core)
    print(json.dumps({"kernel": platform.release(), "calls": options.calls, **figures}, indent=2))


if __name__ == "__main__":
    main()
