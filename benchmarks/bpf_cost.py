"""What the BPF sources cost on this machine, as ratios within one run.

A storm of probed calls at a steady rate, with the caller's own count as the truth; and
the decode loop's inter-token latency with and without ``cctrace record``, in turns,
at several crossings a step.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CCTRACE = [sys.executable, "-m", "cctrace"]
# A step of 10 ms on the device with 30 crossings; then eager launches, of which each is
# a crossing of its own; and a step of 3.5 ms, shorter than any engine's on a model of
# any size, as the worst case. Steps are for some ten seconds, since `--launches auto`
# takes a second or two to make up its mind.
LOOPS: dict[str, tuple[str, ...]] = {
    "30 crossings, 10 ms": ("--crossings", "30", "--gpu-us", "10007", "--steps", "503"),
    "30 crossings, 3.5 ms": ("--crossings", "30", "--steps", "1009"),
    "200 launches": ("--launches", "eager", "--kernels", "200", "--gpu-us", "10007",
                     "--steps", "503"),
    "2,000 launches": ("--launches", "eager", "--kernels", "2000", "--gpu-us", "10007",
                       "--steps", "211"),
}  # fmt: skip


@dataclass(frozen=True)
class Programs:
    """The compiled C programs."""

    storm: Path
    stub: Path


def build(into: Path) -> Programs:
    """Compile the storm and the library it calls."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench: no C compiler: apt-get install gcc libc6-dev")
    programs = Programs(into / "bpf_storm", into / "libcudart.so.13")
    # First of all `push %rbp`, as in NVIDIA's own: what else a function may begin with, the
    # kernel has to step over, which takes ten times as long.
    library = ["-shared", "-fPIC", "-O0", "-fcf-protection=none"]
    for target, source, flags in (
        (programs.storm, "bpf_storm.c", ["-pthread", "-ldl"]),
        (programs.stub, "stub_cudart.c", library),
    ):
        subprocess.run([compiler, "-O2", "-o", target, HERE / source, *flags], check=True)
    return programs


def storm(programs: Programs, work: Path, rate: int, seconds: int, threads: int) -> dict[str, Any]:
    """Record ``rate`` calls a second; compare with what the caller says it called."""
    run = work / "bpf_storm_run"
    record = [*CCTRACE, "record", "-q", "--force", "-o", str(run), "--sources", "processes,cuda"]
    caller = [str(programs.storm), str(programs.stub), str(rate), str(seconds), str(threads)]
    called = json.loads(
        subprocess.run(
            [*record, "--", *caller], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )
    manifest = json.loads((run / "run.json").read_text())
    parts = list((run / "cuda_api").glob("part-*.parquet"))
    recorded = sum(pq.read_metadata(part).num_rows for part in parts)
    size_bytes = sum(part.stat().st_size for part in parts)
    shutil.rmtree(run)
    cpu_s = manifest["recorder"]["cpu_s"]
    return {
        "rate": rate,
        "achieved": round(called["calls"] / called["seconds"]),
        "threads": threads,
        "calls": called["calls"],
        "recorded": recorded,
        "lost": manifest["lost"],
        "ns_per_call": called["ns_per_call"],
        "bytes_per_event": round(size_bytes / max(recorded, 1), 2),
        "recorder_cpu_s_per_million": round(cpu_s / max(recorded, 1) * 1e6, 3),
    }


def itl(work: Path, switches: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Inter-token latency of the decode loop, plain and recorded, in turns."""
    command = [
        sys.executable, str(ROOT / "examples" / "decode_loop.py"),
        "--profile", "b300-cc", *switches,
    ]  # fmt: skip
    found: dict[str, list[float]] = {"plain": [], "recorded": []}
    run = work / "itl_run"
    events = 0
    for _ in range(rounds):
        for mode, prefix in (
            ("plain", []),
            ("recorded", [*CCTRACE, "record", "-q", "--force", "-o", str(run), "--"]),
        ):
            said = subprocess.run(
                [*prefix, *command], check=True, stdout=subprocess.PIPE, text=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("CCTRACE_")},
            ).stdout  # fmt: skip
            found[mode].append(json.loads(said)["itl_p50_ns"])
        manifest = json.loads((run / "run.json").read_text())
        events = manifest["tables"].get("cuda_api", 0)
        launches = manifest["tables"].get("cuda_launches", 0)
    plain, recorded = (statistics.median(found[mode]) for mode in ("plain", "recorded"))
    ratios = [r / p for p, r in zip(found["plain"], found["recorded"], strict=True)]
    return {
        "itl_plain_us": round(plain / 1000, 1),
        "itl_recorded_us": round(recorded / 1000, 1),
        "ratio": round(recorded / plain, 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "cuda_api_rows": events,
        "cuda_launches_rows": launches,
    }


def show(console: Console, title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one line for each row."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    console.print(table)


def measure(console: Console, work: Path, *, quick: bool) -> dict[str, Any]:
    """Run it all and print it."""
    programs = build(work)
    storms = {
        f"{rate:,}/s": storm(programs, work, rate, 3 if quick else 20, 2)
        for rate in (100_000, 500_000)
    }
    show(console, "Storm: probed calls at a steady rate", storms)
    loops = {name: itl(work, switches, 1 if quick else 5) for name, switches in LOOPS.items()}
    show(console, "Decode loop under record, default sources", loops)
    costs = probe_cost(quick=quick)
    show_cost(console, costs)
    return {"storms": storms, "itl": loops, "probe_cost": costs}


def probe_cost(*, quick: bool) -> dict[str, Any]:
    """What a probed call costs, next to empty probes and bpftrace (probe_cost.py)."""
    rounds = ["--rounds", "11"] if quick else []
    said = subprocess.run(
        [sys.executable, str(HERE / "probe_cost.py"), *rounds],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    found: dict[str, Any] = json.loads(said)
    return found


def show_cost(console: Console, costs: dict[str, Any]) -> None:
    """Print what a probed call costs, least and median, and over the empty pair."""
    table = Table(title="A probed call", title_justify="left")
    for name in ("call", "probe", "least ns", "median ns", "least / empty", "median / empty"):
        table.add_column(name, justify="left" if name in ("call", "probe") else "right")
    for call, probes in costs.items():
        if not isinstance(probes, dict):  # the kernel, the number of calls
            continue
        for probe, cost in probes.items():
            table.add_row(
                call, probe, str(cost["least_ns"]), str(cost["median_ns"]),
                str(cost["to_empty_least"]), str(cost["to_empty_median"]),
            )  # fmt: skip
    console.print(table)
