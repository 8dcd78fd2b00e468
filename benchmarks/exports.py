"""Time, memory and size of what people look at: whole commands, by the length of the run.

    python benchmarks/exports.py --events 1000000 --rounds 3

Each command is a process of its own, start-up included, on a generated run (the same from
the same seed). The rounds take the commands in turns. What a process that only opens the run
takes is the first row: the others cannot take less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import generate_run
from rich.console import Console
from rich.table import Table

MB = 1_000_000
GIB = 1 << 30


@dataclass
class Command:
    """One command, and what its runs took.

    Attributes:
        words: After ``cctrace``; RUN and OUT stand for the run and the file to write.
        limit_s: What a run of a million events may take, s; None: no target.
        limit_bytes: What it may write; None: no target.
    """

    words: tuple[str, ...]
    limit_s: float | None = None
    limit_bytes: int | None = None
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_bytes: int = 0
    size_bytes: int = 0


def commands() -> list[Command]:
    """What is measured."""
    out = ("-o", "OUT", "--force")
    return [
        Command(("info", "RUN")),
        Command(("flamegraph", "RUN", "--format", "folded", *out), 2),
        Command(("flamegraph", "RUN", "--format", "svg", *out), 3, 5 * MB),
        Command(("flamegraph", "RUN", "--weight", "blocked", "--format", "svg", *out), 3, 5 * MB),
        Command(("flamegraph", "RUN", "--format", "speedscope", *out)),
        Command(("report", "RUN", "--format", "html", *out), 10, 15 * MB),
        Command(("export", "RUN", "--format", "perfetto", *out), 20),
    ]


def measure(command: Command, run: Path, out: Path) -> None:
    """Run it once."""
    places = {"RUN": str(run), "OUT": str(out)}
    words = [places.get(word, word) for word in command.words]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "cctrace", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"exports: {' '.join(words)} failed:\n{said.decode()[-2000:]}")
    command.wall_s.append(time.perf_counter() - began)
    command.cpu_s.append(used.ru_utime + used.ru_stime)
    command.rss_bytes = max(command.rss_bytes, used.ru_maxrss * 1024)
    command.size_bytes = out.stat().st_size if "OUT" in command.words else 0
    out.unlink(missing_ok=True)


def show(console: Console, events: int, measured: list[Command]) -> None:
    """Print the figures beside their targets, which are those of a million events."""
    table = Table(title=f"Whole commands, a run of {events:,} events", title_justify="left")
    table.add_column("cctrace")
    for name in ("wall s (least, median, most)", "CPU s", "memory", "file", "target"):
        table.add_column(name, justify="right")
    for command in measured:
        wall_s = statistics.median(command.wall_s)
        target = "-"
        if command.limit_s is not None:
            met = wall_s < command.limit_s
            met &= command.limit_bytes is None or command.size_bytes < command.limit_bytes
            size = "" if command.limit_bytes is None else f", {command.limit_bytes / MB:.0f} MB"
            target = f"{'met' if met else 'NOT met'} ({command.limit_s:.0f} s{size})"
        table.add_row(
            " ".join(w for w in command.words if w not in {"RUN", "OUT", "-o", "--force"}),
            f"{min(command.wall_s):.2f}, {wall_s:.2f}, {max(command.wall_s):.2f}",
            f"{statistics.median(command.cpu_s):.2f}",
            f"{command.rss_bytes / GIB:.2f} GiB",
            f"{command.size_bytes / MB:.2f} MB" if command.size_bytes else "-",
            target,
        )
    console.print(table)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=generate_run.SEED)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        made = generate_run.generate(Path(work) / "run", wanted.events, wanted.seed)
        measured = commands()
        for _ in range(wanted.rounds):
            for command in measured:
                measure(command, made.path, Path(work) / "out")
    show(Console(width=140), made.events, measured)


if __name__ == "__main__":
    main()
