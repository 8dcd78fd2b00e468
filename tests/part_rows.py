"""Rows of calls, steps and waits, and what the parts of calls and steps make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, span

import cctrace
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

US = 1000
CALL_PARTS = (
    "toll_ns",
    "transfer_ns",
    "queue_wait_ns",
    "sync_wait_ns",
    "launch_ns",
    "alloc_ns",
    "runnable_ns",
    "unattributed_ns",
)
STEP_PARTS = (
    "queue_wait_ns",
    "bridge_toll_ns",
    "bridge_transfer_ns",
    "launch_ns",
    "alloc_ns",
    "sync_wait_ns",
    "lock_wait_ns",
    "runnable_ns",
    "host_compute_ns",
    "unattributed_ns",
)
SCHED = {"sources": [Source("cuda", "attached"), Source("sched", "attached")]}
CC = SCHED | {"host": {"gpu": {"cc_state": "on", "devices": [{"name": "NVIDIA B300"}]}}}


def call(ts_ns: int, dur_ns: int | None, cls: str, api: str | None = None, **more: Any) -> Row:
    """One CUDA call of the runtime at depth 0, on stream 7."""
    names = {
        "copy": "cudaMemcpyAsync",
        "sync": "cudaStreamSynchronize",
        "launch": "cudaLaunchKernel",
        "alloc": "cudaMalloc",
        "free": "cudaFree",
    }
    row = {"api": api or names.get(cls, f"cuda_{cls}"), "class": cls, "layer": "runtime"}
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, **row, "depth": 0, "stream": 7, **more}


def copy(ts_ns: int, dur_ns: int | None, size: int = 0, kind: str = "d2h", **more: Any) -> Row:
    """A pinned copy."""
    what = {"copy_kind": kind, "host_memory": "pinned", "size_bytes": size}
    return {**call(ts_ns, dur_ns, "copy"), **what, **more}


def steps(*starts: int, **more: Any) -> list[Row]:
    """Steps that start then; the last has no period."""
    return [span(start, 1, "step", domain="loop", **more) for start in starts]


def off_cpu(ts_ns: int, dur_ns: int | None, state: str = "blocked", **more: Any) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "state": state, **more}


def costs(run: Path) -> list[dict[str, Any]]:
    """Rows of crossing_costs by start; all parts that are not 0, and the start."""
    with cctrace.open(run) as session:
        rows = session.sql("SELECT * FROM crossing_costs ORDER BY ts_ns, dur_ns").arrow()
    return [
        {part: row[part] for part in ("ts_ns", *CALL_PARTS) if row[part] != 0}
        for row in rows.to_pylist()
    ]


def parts(run: Path) -> list[dict[str, Any]]:
    """Rows of step_parts by step; all parts that are not 0."""
    with cctrace.open(run) as session:
        rows = session.sql("SELECT * FROM step_parts ORDER BY step_id").arrow().to_pylist()
    for row in rows:
        assert sum(row[part] for part in STEP_PARTS) == row["period_ns"], row
        assert min(row[part] for part in STEP_PARTS) >= 0, row
    return [{part: row[part] for part in STEP_PARTS if row[part] != 0} for row in rows]
