"""What recording costs on this machine, as ratios within one run.

Three modes of the same program, taken in turns so that a noisy neighbour hits
all of them: *uninjected* (NVTX finds nothing to load), *no-op* (an injection
whose callbacks return at once: the price NVTX itself asks of any tool), and
*recorded* (under ``cctrace record``). Then a storm of events at a steady rate,
with the emitter's own count as the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attribution
import bpf_cost
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from cctrace.errors import CctraceError
from cctrace.record.bpf.probes import require_bpf
from cctrace.record.host import HostFacts

HERE = Path(__file__).resolve().parent
CCTRACE = [sys.executable, "-m", "cctrace"]
MODES = ("uninjected", "no-op", "recorded")
NS_PER_S = 1e9


@dataclass(frozen=True)
class Programs:
    """The compiled C programs of this directory."""

    cost: Path
    storm: Path
    noop: Path


def build(into: Path) -> Programs:
    """Compile the C programs with the headers of the nvidia-nvtx wheel."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench: no C compiler: apt-get install gcc libc6-dev")
    include = subprocess.run(
        [sys.executable, HERE.parent / "scripts" / "nvtx_include.py"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    programs = Programs(into / "nvtx_cost", into / "nvtx_storm", into / "noop_injection.so")
    for target, flags in (
        (programs.cost, []),
        (programs.storm, ["-pthread"]),
        (programs.noop, ["-shared", "-fPIC"]),
    ):
        source = HERE / f"{target.stem}.c"
        subprocess.run(
            [compiler, "-O2", *flags, "-isystem", include, "-o", target, source, "-ldl"],
            check=True,
        )
    return programs


def environment(mode: str, noop: Path) -> dict[str, str]:
    """The environment of a mode; what an outer tool may have left is taken out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CCTRACE_", "NVTX_"))}
    return kept | ({"NVTX_INJECTION64_PATH": str(noop)} if mode == "no-op" else {})


def run_mode(mode: str, command: list[str], noop: Path, run: Path) -> str:
    """Run ``command`` in ``mode``; returns its stdout."""
    if mode == "recorded":
        options = ["-q", "--force", "-o", str(run), "--sources", "nvtx,processes"]
        command = [*CCTRACE, "record", *options, "--", *command]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment(mode, noop)
    ).stdout


def cost(command: list[str], noop: Path, work: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Nanoseconds per event, by kind and mode: best of all batches, median of medians."""
    best: dict[tuple[str, str], list[float]] = defaultdict(list)
    median: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for mode in MODES:
            for line in run_mode(mode, command, noop, work / "cost").splitlines():
                row = json.loads(line)
                best[row["kind"], mode].append(row["best_ns"])
                median[row["kind"], mode].append(row["median_ns"])
    result: dict[str, dict[str, Any]] = {}
    for (kind, mode), bests in best.items():
        result.setdefault(kind, {})[mode] = {
            "best_ns": round(min(bests), 1),
            "median_ns": round(statistics.median(median[kind, mode]), 1),
            "medians_ns": [round(m, 1) for m in median[kind, mode]],
        }
    return result


def storm(programs: Programs, work: Path, rate: int, seconds: int, threads: int) -> dict[str, Any]:
    """Record ``rate`` events a second; compare with what the emitter says it emitted."""
    run = work / "storm"
    command = [str(programs.storm), "-r", str(rate), "-s", str(seconds), "-t", str(threads)]
    emitted = json.loads(run_mode("recorded", command, programs.noop, run))
    manifest = json.loads((run / "run.json").read_text())
    parts = list((run / "nvtx").glob("part-*.parquet"))
    recorded = sum(pq.read_metadata(part).num_rows for part in parts)
    size_bytes = sum(part.stat().st_size for part in parts)
    shutil.rmtree(run)
    return {
        "rate": rate,
        "seconds": seconds,
        "threads": threads,
        "emitted": emitted["events"],
        "recorded": recorded,
        "lost": manifest["lost"],
        "bytes_per_event": round(size_bytes / max(recorded, 1), 2),
        "recorder_cpu_s": manifest["recorder"]["cpu_s"],
        "recorder_cpu_s_per_million": round(
            manifest["recorder"]["cpu_s"] / max(recorded, 1) * 1e6, 3
        ),
    }


def show_cost(console: Console, title: str, result: dict[str, dict[str, Any]]) -> None:
    """Print the costs, the recorder's over the no-op, and the ratios."""
    table = Table(title=title, title_justify="left")
    ratios = ("recorded / no-op", "recorded / uninjected")
    for name in ("event", *(f"{m} ns" for m in MODES), "recorded - no-op ns", *ratios):
        table.add_column(name, justify="left" if name == "event" else "right")
    for kind, modes in result.items():
        best = [modes[mode]["best_ns"] for mode in MODES]
        median = [modes[mode]["median_ns"] for mode in MODES]
        table.add_row(
            kind,
            *(f"{b:,.1f} ({m:,.1f})" for b, m in zip(best, median, strict=True)),
            f"{best[2] - best[1]:,.1f} ({median[2] - median[1]:,.1f})",
            *(f"{best[2] / best[i]:.2f} ({median[2] / median[i]:.2f})" for i in (1, 0)),
        )
    console.print(table)


def show_storms(console: Console, storms: list[dict[str, Any]]) -> None:
    """Print what became of the storms."""
    table = Table(title="Storm: events at a steady rate", title_justify="left")
    names = list(storms[0])
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in storms:
        table.add_row(*(f"{row[n]:,}" if isinstance(row[n], int) else str(row[n]) for n in names))
    console.print(table)


def bpf_part(console: Console, work: Path, *, quick: bool) -> dict[str, Any] | None:
    """The BPF sources, where this machine lets us use them."""
    try:
        require_bpf()
    except CctraceError as error:
        console.print(f"BPF sources: not measured: {error.message}")
        return None
    return bpf_cost.measure(console, work, quick=quick)


def main() -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round and short storms")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    rounds, seconds = (1, 5) if options.quick else (5, 30)
    console = Console(width=None if sys.stdout.isatty() else 150)
    with HostFacts() as host:
        facts = host.facts()
    machine = f"{facts['cpu']['model']}, {facts['cpu']['usable']} cores, Linux {facts['kernel']}"
    console.print(f"machine: {machine}; {rounds} rounds; best (median)")
    with tempfile.TemporaryDirectory(prefix="cctrace-bench.") as folder:
        work = Path(folder)
        programs = build(work)
        in_c = cost([str(programs.cost)], programs.noop, work, rounds)
        show_cost(console, "NVTX event in C", in_c)
        in_python = cost(
            [sys.executable, str(HERE / "python_cost.py")], programs.noop, work, rounds
        )
        show_cost(console, "NVTX event from Python (package nvtx)", in_python)
        storms = [
            storm(programs, work, rate, seconds if rate == 1_000_000 else 5, threads)
            for rate, threads in ((1_000_000, 1), (1_000_000, 2), (2_000_000, 2))
        ]
        show_storms(console, storms)
        in_bpf = bpf_part(console, work, quick=options.quick)
    analysis = attribution.part(console, quick=options.quick)
    if options.json:
        result = {
            "machine": machine,
            "c": in_c,
            "python": in_python,
            "storms": storms,
            "bpf": in_bpf,
            "analysis": analysis,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
