"""Build run directories from rows written out in a test.

>>> run = make_run(tmp_path, nvtx=[{"ts_ns": 10, "dur_ns": 5, "name": "a"}])

Columns a row leaves out get a value of ``DEFAULTS``, else NULL where the schema
allows it, else 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cctrace.schema import TABLES
from cctrace.store.manifest import CLEAN, Anchor, Manifest, Recorder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cctrace.schema import Table

Row = dict[str, Any]

DEFAULTS: Mapping[str, Row] = {
    "": {"pid": 100, "tid": 100},
    "nvtx": {"dur_ns": 0, "kind": "push_pop", "depth": 0},
    "losses": {"source": "nvtx", "reason": "ring_full", "count": 1},
    "processes": {"exe": "/bin/true", "cmdline": "true", "exit_code": 0},
    "threads": {"name": "main"},
}

# One second after the epoch of each clock, so that a mix-up shows.
START = Anchor(monotonic_ns=1_000_000_000, realtime_ns=1_750_000_000 * 10**9, boottime_ns=2 * 10**9)
STOP = Anchor(monotonic_ns=3_500_000_000, realtime_ns=START.realtime_ns, boottime_ns=4 * 10**9)


def arrow_rows(table: Table, rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table of the schema, defaults filled in."""
    defaults = {**DEFAULTS[""], **DEFAULTS.get(table.name, {})}
    filled: dict[str, list[Any]] = {}
    for column in table.columns:
        default = defaults.get(column.name, None if column.nullable else 0)
        filled[column.name] = [row.get(column.name, default) for row in rows]
    unknown = {key for row in rows for key in row} - set(filled)
    assert not unknown, f"{table.name} has no column {sorted(unknown)}"
    return pa.table(filled, schema=table.arrow)


def write_part(path: Path, table: str, rows: Sequence[Row]) -> Path:
    """Write one part of ``table`` to ``path``, as the recorder would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(arrow_rows(TABLES[table], rows), path, compression="zstd")
    return path


def make_manifest(**values: Any) -> Manifest:
    """Manifest of a run that ended well, changed by ``values``."""
    defaults: dict[str, Any] = {
        "cctrace_version": "0.1.0",
        "command": ["python", "serve.py"],
        "cwd": "/srv",
        "start": START,
        "stop": STOP,
        "ended": CLEAN,
        "exit_code": 0,
        "recorder": Recorder(pid=os.getpid(), start_ticks=0),  # no process: gone
    }
    return Manifest(**{**defaults, **values})


def make_run(
    parent: Path, name: str = "run", *, manifest: Mapping[str, Any] | None = None, **rows: list[Row]
) -> Path:
    """Build the run directory ``parent/name``.

    Args:
        parent: Where to build it.
        name: Name of the directory.
        manifest: Fields of the manifest that differ from ``make_manifest()``.
        rows: Rows by table; a table that is not named has no folder.

    Returns:
        The run directory.
    """
    path = parent / name
    path.mkdir(parents=True)
    for table, content in rows.items():
        write_part(path / table / "part-000000.parquet", table, content)
    make_manifest(**(manifest or {})).write(path)
    return path
