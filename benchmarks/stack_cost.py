"""What taking the stack of a call costs the engine, and what other ways would.

Run as root: ``.venv/bin/python benchmarks/stack_cost.py [--rounds N] [--loop N]``.
Prints one JSON object. ``calls``: nanoseconds per probed call, without stacks and with,
by the depth of the stack, native and Python; the two are measured in turns. ``others``:
what the alternatives of docs/adr/0006 cost. ``loop`` (with ``--loop``): the decode loop's
inter-token latency under each mode of ``--stacks``, as a ratio to that without record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from cctrace.record.bpf.cuda.source import Cuda
from cctrace.record.bpf.probes import Probes
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.losses import LossLedger

HERE: Final = Path(__file__).resolve().parent
DEPTHS: Final = (3, 13, 37, 97)
STEP: Final = ("--crossings", "30", "--gpu-us", "10007")
_RING_BYTES: Final = 64 << 20


class Caller:
    """A program that makes the calls, from how many frames deep it is told."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ns_per_call(self, depth: int, calls: int) -> float:
        """Have it make ``calls`` calls."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(f"{depth} {calls}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


class Recorded:
    """cctrace's programs on a file of their own, with or without stacks."""

    def __init__(self, command: list[str], path: Path, *, stacks: bool) -> None:
        self._ledger = LossLedger()
        self.stacks = StackCollector("crossings", self._ledger) if stacks else None
        self._cuda = Cuda("full", self._ledger, self.stacks)
        self._probes = Probes([self._cuda], _RING_BYTES, self._ledger)
        self._probes.start()
        for _, error in self._probes.refused():
            sys.exit(f"stack_cost: {error.message}")
        self._cuda.attach_library(path)
        with self._probes.spawning():
            self.caller = Caller(command)
        # One call, which makes the program known; all later ones are like each other.
        self.caller.ns_per_call(2, 1)
        self.drain()

    def drain(self) -> None:
        """Take what the rings hold."""
        self._probes.drain()
        if self.stacks is not None:
            self.stacks.drain()

    def close(self) -> None:
        """Detach; refuse to report figures of calls that were dropped."""
        self.caller.close()
        self._probes.detach()
        self._probes.rows()
        if self._ledger.by_reason():
            sys.exit(f"stack_cost: lost: {self._ledger.by_reason()}")
        self._probes.close()
        if self.stacks is not None:
            self.stacks.close()


def build(folder: Path) -> tuple[Path, Path]:
    """Compile the program, and the same as a library for Python to call."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("stack_cost: no C compiler: apt-get install gcc libc6-dev")
    flags = ["-O1", "-fcf-protection=none", "-fno-omit-frame-pointer", "-rdynamic"]
    flags.append("-fno-optimize-sibling-calls")
    program, library = folder / "stack_cost", folder / "libcuda.so.1"
    for target, more in ((program, []), (library, ["-shared", "-fPIC"])):
        source = str(HERE / "stack_cost.c")
        subprocess.run([compiler, *flags, *more, source, "-o", str(target)], check=True)
    return program, library


def calls(folder: Path, rounds: int, count: int, core: int) -> dict[str, Any]:
    """Nanoseconds per call, by kind of frames, depth, and whether stacks are taken."""
    program, library = build(folder)
    target = [sys.executable, str(HERE / "stack_cost_target.py")]
    found: dict[str, Any] = {}
    for kind in ("native", "python"):
        kinds: dict[str, tuple[Recorded, list[list[float]]]] = {}
        for mode in ("none", "crossings"):
            # Probes belong to the file: each its own.
            path = folder / f"{mode}-{(program if kind == 'native' else library).name}"
            shutil.copy(program if kind == "native" else library, path)
            command = [str(path)] if kind == "native" else [*target, str(path)]
            recorded = Recorded([*command, str(core)], path, stacks=mode != "none")
            kinds[mode] = (recorded, [[] for _ in DEPTHS])
        for _ in range(rounds):
            for number, depth in enumerate(DEPTHS):
                for recorded, samples in kinds.values():
                    samples[number].append(recorded.caller.ns_per_call(depth, count))
                    recorded.drain()
        for recorded, _ in kinds.values():
            recorded.close()
        found[kind] = {
            depth: _compare(kinds["none"][1][number], kinds["crossings"][1][number])
            for number, depth in enumerate(DEPTHS)
        }
    return found


def _compare(without: list[float], taken: list[float]) -> dict[str, float]:
    """What a stack adds to a call: by the medians, and by the least of the rounds."""
    middle, middle_taken = statistics.median(without), statistics.median(taken)
    return {
        "without_ns": round(middle, 1),
        "with_ns": round(middle_taken, 1),
        "stack_ns": round(middle_taken - middle, 1),
        "stack_least_ns": round(min(taken) - min(without), 1),
        "ratio": round(middle_taken / middle, 3),
    }


_WALK: Final = """
def walk():
    frame = sys._getframe()
    while frame is not None:
        frame.f_code, frame.f_lasti
        frame = frame.f_back
def deep(depth):
    return deep(depth - 1) if depth else min(timeit.repeat(walk, number=1000, repeat=31)) * 1e6
print(deep(30))
"""
_CALLS: Final = """
def inner(a): return a
def outer():
    for _ in range(1000):
        inner(1)
print(min(timeit.repeat(outer, number=100, repeat=31)) * 1e4)
"""


def others(pythons: list[str]) -> dict[str, Any]:
    """The walk of 37 frames in the process itself; a call with perf's trampolines."""
    found: dict[str, Any] = {}
    head = "import sys, timeit\n"
    for python in pythons:

        def said(text: str, *flags: str, python: str = python) -> float:
            done = subprocess.run(
                [python, *flags, "-c", head + text], capture_output=True, text=True, check=True
            )
            return round(float(done.stdout), 1)

        own = {"walk_in_process_ns": said(_WALK), "python_call_ns": said(_CALLS)}
        probe = [python, "-X", "perf", "-c", "import sys; print(sys.version_info >= (3, 12))"]
        known = subprocess.run(probe, capture_output=True, text=True, check=False)
        if known.stdout.strip() == "True":
            own["python_call_perf_ns"] = said(_CALLS, "-X", "perf")
        found[Path(python).resolve().name + " " + python] = own
    return found


def loop(work: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Inter-token latency of a step of 10 ms with 30 crossings, in turns."""
    command = [sys.executable, str(HERE.parent / "examples" / "decode_loop.py")]
    command += ["--profile", "b300-cc", *STEP, "--steps", str(steps)]
    run = str(work / "run")
    record = [sys.executable, "-m", "cctrace", "record", "-q", "--force", "-o", run]
    samples: dict[str, list[float]] = {}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CCTRACE_")}
    for _ in range(rounds):
        for mode in ("plain", "none", "crossings", "all"):
            prefix = [] if mode == "plain" else [*record, "--stacks", mode, "--"]
            said = subprocess.run(
                [*prefix, *command], check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            samples.setdefault(mode, []).append(json.loads(said)["itl_p50_ns"])
    plain = samples["plain"]
    return {
        mode: {
            "itl_us": round(statistics.median(values) / 1000, 1),
            "ratio": round(statistics.median(values) / statistics.median(plain), 4),
            "ratios": [round(v / p, 4) for v, p in zip(values, plain, strict=True)],
        }
        for mode, values in samples.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=1000, help="in each round")
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--loop", type=int, default=0, help="rounds of the decode loop")
    parser.add_argument("--steps", type=int, default=503, help="of each decode loop")
    parser.add_argument("--python", action="append", help="for the alternatives, besides this")
    options = parser.parse_args()
    result: dict[str, Any] = {"kernel": platform.release(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        result["calls"] = calls(Path(folder), options.rounds, options.calls, options.core)
        result["others"] = others([sys.executable, *(options.python or [])])
        if options.loop:
            result["loop"] = loop(Path(folder), options.loop, options.steps)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
