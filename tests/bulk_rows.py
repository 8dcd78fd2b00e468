"""Rows of the reports on bulk copies and on the bounce paths, and how their answers are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, span

import cctrace
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

MB = 10**6
MIB = 1 << 20
MS = 10**6  # ns
S = 10**9  # ns
T0 = S  # where the rows of a run begin


def found(path: Path, report: str, **params: Any) -> list[Row]:
    """Rows of a report, by column."""
    with cctrace.open(path) as session:
        result = session.report(report, params)
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def only(path: Path, report: str, **params: Any) -> Row:
    """The one row of a report."""
    (row,) = found(path, report, **params)
    return row


def attached(*names: str, **host: Any) -> dict[str, Any]:
    """A manifest with these sources attached."""
    return {"sources": [Source(name, "attached") for name in names], "host": host}


def copy(ts_ns: int, dur_ns: int | None, size: int | None, **more: Any) -> Row:
    """A copy to the device, if no other kind is said."""
    return {
        "ts_ns": ts_ns,
        "dur_ns": dur_ns,
        "api": "cudaMemcpyAsync",
        "layer": "runtime",
        "class": "copy",
        "copy_kind": "h2d",
        "host_memory": "pageable",
        "size_bytes": size,
        "result": None if dur_ns is None else 0,
        **more,
    }


def readback(ts_ns: int, dur_ns: int, **more: Any) -> Row:
    return copy(ts_ns, dur_ns, 64, copy_kind="d2h", **more)


def call(ts_ns: int, dur_ns: int, api: str, cls: str, **more: Any) -> Row:
    return copy(ts_ns, dur_ns, None, **{"copy_kind": None, "host_memory": None, **more}) | {
        "api": api,
        "class": cls,
    }


def launch(ts_ns: int, **more: Any) -> Row:
    return call(ts_ns, 5_000, "cudaLaunchKernel", "launch", **more)


def wait(ts_ns: int, dur_ns: int, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaStreamSynchronize", "sync", **more)


def step(ts_ns: int, dur_ns: int | None, phase: str | None = "decode", **more: Any) -> Row:
    return span(ts_ns, dur_ns, "step", category=phase, **more)


def steps(first_ns: int, period_ns: int, count: int, phase: str = "decode") -> list[Row]:
    """Steps that follow each other at once."""
    return [step(first_ns + i * period_ns, period_ns, phase) for i in range(count)]
