"""Time and memory of `cctrace.open(run).attribution()`, by the length of the run.

Each figure is of a process of its own on two cores: wall time from the call to its
return, processor time, and the highest resident memory. Runs are generated, the same
from the same seed. Then the same for a Kineto trace, beside Holistic Trace Analysis
(PyPI HolisticTraceAnalysis) on the same file:

    python benchmarks/attribution.py --events 1000000 3000000 10000000 --rounds 3
    python benchmarks/attribution.py --events 100000000 --rounds 1
    CCTRACE_HTA_PYTHON=env/bin/python python benchmarks/attribution.py --kineto FILE

`--hta` makes an environment for it where CCTRACE_HTA_PYTHON names none.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import generate_run
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import cctrace

HERE = Path(__file__).resolve().parent
CORES = 2
GIB = 1 << 30
# What 10 and 100 million events may take: seconds and bytes.
TARGETS = {10_000_000: (15.0, 2 * GIB), 100_000_000: (150.0, 6 * GIB)}
_CHILD = """
import json, resource, sys, time
import cctrace
from cctrace.analyze import pipeline
began = time.perf_counter()
with cctrace.open(sys.argv[1]) as run:
    made = run.attribution()
took = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "wall_s": took, "cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": used.ru_maxrss * 1024,
    "chunks": made.chunks, "steps": sum(step.periods for step in made.steps),
    "idle": [idle.idle_share for idle in made.device_idle],
    "observed": [idle.observed_share for idle in made.device_idle],
}))
"""

Figures = dict[str, Any]


def _two_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def child(command: list[str], **more: str) -> Figures:
    """What a child process prints as JSON on its last line."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **more},
        preexec_fn=_two_cores,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"attribution: {command[0]} failed:\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def attribute(run: Path, rounds: int) -> list[Figures]:
    """Attribution of a run, several times."""
    return [child([sys.executable, "-c", _CHILD, str(run)]) for _ in range(rounds)]


def measure(sizes: list[int], rounds: int, work: Path, seed: int) -> list[Figures]:
    """Attribution of generated runs of so many events."""
    found = []
    for events in sizes:
        made = generate_run.generate(work / f"run-{events}", events, seed)
        tries = attribute(made.path, rounds)
        found.append(
            {
                "events": made.events,
                "wall_s": sorted(t["wall_s"] for t in tries),
                "cpu_s": statistics.median(t["cpu_s"] for t in tries),
                "rss_bytes": max(t["rss_bytes"] for t in tries),
                "chunks": tries[0]["chunks"],
                "steps": tries[0]["steps"],
                "idle_error": tries[0]["idle"][0] - made.idle_ns / made.period_ns,
            }
        )
        subprocess.run(["rm", "-rf", str(made.path)], check=True)
    return found


def show(console: Console, found: list[Figures]) -> None:
    """Print the figures, and events per second beside those of the shortest run."""
    table = Table(title=f"Attribution on {CORES} cores", title_justify="left")
    for name in (
        "events",
        "wall s (least, median, most)",
        "CPU s",
        "events/s",
        "per event, of the shortest's",
        "memory",
        "chunks",
        "idle error",
        "target",
    ):
        table.add_column(name, justify="right")  # fmt: skip
    first = statistics.median(found[0]["wall_s"]) / found[0]["events"]
    for row in found:
        wall = statistics.median(row["wall_s"])
        target = TARGETS.get(row["events"])
        met = "-"
        if target is not None:
            in_time, in_memory = wall < target[0], row["rss_bytes"] < target[1]
            met = "met" if in_time and in_memory else "NOT met"
            met += f" ({target[0]:.0f} s, {target[1] / GIB:.0f} GiB)"
        table.add_row(
            f"{row['events']:,}",
            f"{row['wall_s'][0]:.2f}, {wall:.2f}, {row['wall_s'][-1]:.2f}",
            f"{row['cpu_s']:.1f}",
            f"{row['events'] / wall:,.0f}",
            f"{wall / row['events'] / first:.2f}",
            f"{row['rss_bytes'] / GIB:.2f} GiB",
            str(row["chunks"]),
            f"{row['idle_error']:+.2%}",
            met,
        )
    console.print(table)


def repeated(trace: Path, times: int, into: Path) -> Path:
    """The trace several times over, one after the other, as profilers write longer ones."""
    opened = gzip.open if trace.suffix == ".gz" else open
    with opened(trace, "rt") as file:
        data = json.load(file)
    events = data["traceEvents"]
    timed = [e for e in events if "ts" in e]
    first = min(e["ts"] for e in timed)
    length = max(e["ts"] + e.get("dur", 0) for e in timed) - first + 1_000
    highest = max(
        [e.get("args", {}).get("correlation", 0) for e in timed]
        + [e["id"] for e in timed if isinstance(e.get("id"), int)]
    )
    more = []
    for number in range(1, times):
        for event in timed:
            copy = {**event, "ts": event["ts"] + number * length}
            if isinstance(copy.get("id"), int):
                copy["id"] += number * (highest + 1)
            args = dict(copy.get("args", {}))
            for key in ("correlation", "External id"):
                if isinstance(args.get(key), int) and args[key]:
                    args[key] += number * (highest + 1)
            name = copy.get("name", "")
            if name.startswith("ProfilerStep#"):
                copy["name"] = f"ProfilerStep#{int(name.partition('#')[2]) + number * 1_000}"
            more.append({**copy, "args": args} if args else copy)
    data["traceEvents"] = events + more
    path = into / f"kineto-{times}.json"
    path.write_text(json.dumps(data))
    return path


def hta_python(work: Path, *, make: bool) -> tuple[str | None, str]:
    """A Python that has HolisticTraceAnalysis, or None and why there is none."""
    named = os.environ.get("CCTRACE_HTA_PYTHON")
    if named:
        return named, ""
    if not make:
        return None, "neither CCTRACE_HTA_PYTHON nor --hta was given"
    place = work / "hta"
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "HolisticTraceAnalysis"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        return None, f"pip cannot install it: {done.stderr.strip().splitlines()[-1:]}"
    return python, ""


def gaps(starts: npt.NDArray[Any], ends: npt.NDArray[Any]) -> float:
    """Time between the first start and the last end that no interval covers."""
    order = np.argsort(starts, kind="stable")
    covered = np.maximum.accumulate(ends[order])[:-1]
    return float(np.clip(starts[order][1:] - covered, 0, None).sum())


def idle_of(run: Path) -> Figures:
    """Idle time of the device from first to last activity: exact, and in HTA's microseconds.

    HTA rounds each start up and each end down to whole microseconds, of times that are
    doubles since 1970, so with a resolution of a quarter of one.
    """
    with cctrace.open(run) as opened:
        rows = opened.sql("SELECT ts_ns, dur_ns FROM gpu_activity WHERE dur_ns IS NOT NULL")
        table = rows.arrow()
    starts, lengths = table["ts_ns"].to_numpy(), table["dur_ns"].to_numpy()
    ends = starts + lengths
    starts_us = starts / 1000.0
    return {
        "idle_us": gaps(starts, ends) / 1000,
        "span_us": float(ends.max() - starts.min()) / 1000,
        "rounded_us": gaps(np.ceil(starts_us), np.floor(starts_us + lengths / 1000.0)),
    }


def compare(trace: Path, python: str, rounds: int, work: Path) -> Figures:
    """Import and attribution by cctrace, loading and breakdown by HTA, in turns."""
    run = work / "imported"
    ours, theirs = [], []
    for _ in range(rounds):
        command = [sys.executable, "-m", "cctrace", "import", "--from", "kineto", str(trace)]
        timed = [sys.executable, "-c", _TIMED, *command, "-o", str(run), "--force"]
        ours.append({"import": child(timed), **attribute(run, 1)[0]})
        theirs.append(child([python, str(HERE / "hta_baseline.py"), str(trace)]))
    found = idle_of(run)
    subprocess.run(["rm", "-rf", str(run)], check=True)
    return {
        "trace": trace.name,
        "bytes": trace.stat().st_size,
        "ours_s": sorted(o["import"]["wall_s"] + o["wall_s"] for o in ours),
        "ours_again_s": sorted(o["wall_s"] for o in ours),
        "ours_rss": max(max(o["import"]["rss_bytes"], o["rss_bytes"]) for o in ours),
        "hta_s": sorted(t["load_s"] + t["analyse_s"] for t in theirs),
        "hta_rss": max(t["rss_bytes"] for t in theirs),
        "hta_version": theirs[0]["version"],
        "ours_idle": found,
        "hta_idle": {k: theirs[0][k] for k in ("idle_us", "span_us", "idle_by_stream_us")},
    }


_TIMED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": time.perf_counter() - began, "rss_bytes": used.ru_maxrss * 1024}))
"""


def show_comparison(console: Console, rows: list[Figures]) -> None:
    """Print both tools' times and idle figures."""
    table = Table(title="Beside Holistic Trace Analysis", title_justify="left")
    for name in (
        "trace",
        "bytes",
        "cctrace s (import + attribution)",
        "HTA s (load + breakdowns)",
        "ratio",
        "memory (cctrace, HTA)",
        "idle us (cctrace, so rounded, HTA)",
    ):
        table.add_column(name, justify="right")  # fmt: skip
    for row in rows:
        ours, theirs = statistics.median(row["ours_s"]), statistics.median(row["hta_s"])
        again = statistics.median(row["ours_again_s"])
        idle = row["ours_idle"]
        table.add_row(
            row["trace"],
            f"{row['bytes']:,}",
            f"{ours:.2f} (attribution {again:.2f})",
            f"{theirs:.2f}",
            f"{theirs / ours:.2f}",
            f"{row['ours_rss'] / GIB:.2f}, {row['hta_rss'] / GIB:.2f} GiB",
            f"{idle['idle_us']:,.0f}, {idle['rounded_us']:,.0f}, "
            f"{row['hta_idle']['idle_us']:,.0f} of {idle['span_us']:,.0f}",
        )
    console.print(table)


def run_all(console: Console, options: argparse.Namespace) -> Figures:
    """Measure, print, and return every figure."""
    with tempfile.TemporaryDirectory(prefix="cctrace-bench.") as folder:
        work = Path(folder)
        found = measure(options.events, options.rounds, work, options.seed)
        show(console, found)
        compared: list[Figures] = []
        python, why = hta_python(work, make=options.hta)
        if options.kineto is None or not options.kineto.exists():
            why = "no Kineto trace was named: --kineto FILE"
        if python is None or why:
            console.print(f"Holistic Trace Analysis: not compared: {why}")
        else:
            traces = [options.kineto]
            traces += [repeated(options.kineto, times, work) for times in options.repeat]
            compared = [compare(trace, python, options.rounds, work) for trace in traces]
            show_comparison(console, compared)
    return {"attribution": found, "hta": compared, "seed": options.seed}


def part(console: Console, *, quick: bool) -> Figures:
    """The part of `make bench`: short runs, and the comparison where it costs no download."""
    sizes = ["300000", "1000000"] if quick else ["1000000", "3000000", "10000000"]
    rounds = "1" if quick else "3"
    options = _parser().parse_args(["--events", *sizes, "--rounds", rounds])
    return run_all(console, options)


def _parser() -> argparse.ArgumentParser:
    shared = HERE.parent.parent / "shared" / "data" / "kineto_rank0.pt.trace.json.gz"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured")
    parser.add_argument("--seed", type=int, default=generate_run.SEED, help="of generated runs")
    parser.add_argument("--kineto", type=Path, default=shared if shared.exists() else None,
                        help="a Kineto trace to compare on")  # fmt: skip
    parser.add_argument("--repeat", type=int, nargs="*", default=[20],
                        help="also that trace so many times over")  # fmt: skip
    parser.add_argument("--hta", action="store_true",
                        help="make an environment with HolisticTraceAnalysis")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser


def main() -> int:
    """Measure as the options say."""
    options = _parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    figures = run_all(console, options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
