"""Run the real command line on real processes, and read what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CCTRACE = [sys.executable, "-m", "cctrace"]
DEADLINE_S = 60.0


def environment(**extra: str) -> dict[str, str]:
    """The test's environment without what an outer injection could have left in it."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("CCTRACE_", "NVTX_")) and k != "PYTHONPATH"
    }
    return kept | extra


def record(
    run: Path, *command: str | Path, options: tuple[str, ...] = (), **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """`cctrace record -o run OPTIONS -- command`, to its end.

    Without ``--sources`` among the options: what needs no BPF, which takes a second
    to compile and what these tests are not about. Without ``--stacks`` none, which take
    two more.
    """
    if "--sources" not in options:
        options = ("--sources", "nvtx,processes", *options)
    if "--stacks" not in options:
        options = ("--stacks", "none", *options)
    kwargs.setdefault("env", environment())
    return subprocess.run(
        [*CCTRACE, "record", "-o", str(run), *options, "--", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        **kwargs,
    )


def rows(run: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, straight from its Parquet parts, by start."""
    parts = sorted((run / table).glob("part-*.parquet"))
    found = [row for part in parts for row in pq.read_table(part).to_pylist()]
    return sorted(found, key=lambda row: row.get("ts_ns") or 0)


# What the kernel may keep from probes of the scheduler on a busy machine; it is counted,
# and of no meaning to a test of something else.
OF_SCHED = frozenset({"program_not_run", "missed_return", "missed_entry"})


def losses(run: Path, *, with_sched: bool = False) -> dict[str, int]:
    """Lost events by reason; those of the scheduler's own only where asked for."""
    totals: dict[str, int] = {}
    for row in rows(run, "losses"):
        if with_sched or row["source"] not in ("sched", "bpf") or row["reason"] not in OF_SCHED:
            totals[row["reason"]] = totals.get(row["reason"], 0) + row["count"]
    return totals
