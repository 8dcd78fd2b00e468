"""Rows small enough to check by hand, and what a query makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cctrace

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.store.library import ParamValue

Row = dict[str, Any]

BATCH = 2**32  # one request in the upper half of a payload


def span(ts_ns: int, dur_ns: int | None, name: str, **more: Any) -> Row:
    """One push/pop range."""
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "name": name, **more}


def table(path: Path | list[Path], query: str, params: dict[str, ParamValue] | None = None) -> str:
    """Rows of a report, or of SQL where ``query`` holds a space, as CSV without header."""
    paths = path if isinstance(path, list) else [path]
    with cctrace.open(*paths) as session:
        run = session.sql if " " in query else session.report
        rows = run(query, params).fetchall()
    return "".join(
        ",".join("" if value is None else str(value) for value in row) + "\n" for row in rows
    )


def lines(text: str) -> str:
    """``text`` less its indentation and first line break."""
    return "".join(line.strip() + "\n" for line in text.strip().splitlines())


def vllm_step(ts_ns: int, dur_ns: int | None, phase: str, batch: int, **more: Any) -> list[Row]:
    """A step of vLLM that scheduled something."""
    return [
        span(ts_ns, dur_ns, "vllm.step", domain="cctrace", **more),
        {
            "ts_ns": ts_ns + 3,
            "kind": "mark",
            "name": "vllm.scheduled",
            "domain": "cctrace",
            "category": phase,
            "payload": batch,
            **more,
        },
    ]
