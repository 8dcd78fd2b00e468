"""Small files as other tools write them, and what an import makes of them."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.importers.api import Imported, import_file

Row = dict[str, Any]

PID, TID = 4711, 4713
CALL: Row = {"ph": "X", "cat": "cuda_runtime", "pid": PID, "tid": TID}
KERNEL: Row = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7}

# Columns of Nsight Systems' tables that matter here, as its exporter declares them.
NSYS_COLUMNS = {
    "StringIds": "id INTEGER PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER, end INTEGER, eventClass INTEGER, "
    "globalTid INTEGER, correlationId INTEGER, nameId INTEGER, returnValue INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER, end INTEGER, deviceId INTEGER, "
    "streamId INTEGER, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER, end INTEGER, deviceId INTEGER, "
    "streamId INTEGER, correlationId INTEGER, globalPid INTEGER, bytes INTEGER, "
    "copyKind INTEGER, srcKind INTEGER, dstKind INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER, end INTEGER, deviceId INTEGER, "
    "streamId INTEGER, correlationId INTEGER, globalPid INTEGER, bytes INTEGER",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start INTEGER, end INTEGER, deviceId INTEGER, "
    "streamId INTEGER, correlationId INTEGER, globalPid INTEGER, graphId INTEGER",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": "start INTEGER, end INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, syncType INTEGER, eventId INTEGER",
    "NVTX_EVENTS": "start INTEGER, end INTEGER, eventType INTEGER, category INTEGER, "
    "color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, "
    "domainId INTEGER, uint64Value INTEGER, int64Value INTEGER, doubleValue REAL",
    "SCHED_EVENTS": "start INTEGER, cpu INTEGER, isSchedIn INTEGER, globalTid INTEGER, "
    "threadState INTEGER",
    "ENUM_SAMPLING_THREAD_STATE": "id INTEGER PRIMARY KEY, name TEXT, label TEXT",
    "OSRT_API": "start INTEGER, end INTEGER, globalTid INTEGER, nameId INTEGER",
    "PROCESSES": "globalPid INTEGER, pid INTEGER, name TEXT",
    "ThreadNames": "nameId INTEGER, priority INTEGER, globalTid INTEGER",
    "TARGET_INFO_SESSION_START_TIME": "utcEpochNs INTEGER, utcTime TEXT, localTime TEXT, "
    "systemClockNs INTEGER",
    "META_DATA_EXPORT": "name TEXT, value TEXT",
    "TARGET_INFO_SYSTEM_ENV": "globalVid INTEGER, name TEXT, value TEXT",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT, totalMemory INTEGER, uuid TEXT",
    "DIAGNOSTIC_EVENT": "timestamp INTEGER, severity INTEGER, text TEXT",
}
INGERO_COLUMNS = {
    "events": "id INTEGER PRIMARY KEY, timestamp INTEGER, pid INTEGER, tid INTEGER, "
    "source INTEGER, op INTEGER, duration INTEGER, arg0 INTEGER DEFAULT 0, "
    "arg1 INTEGER DEFAULT 0, ret_code INTEGER DEFAULT 0, stack_hash INTEGER DEFAULT 0",
    "sources": "id INTEGER PRIMARY KEY, name TEXT, description TEXT",
    "ops": "source_id INTEGER, op_id INTEGER, name TEXT, description TEXT",
    "stack_traces": "hash INTEGER PRIMARY KEY, ips TEXT, frames TEXT",
    "system_snapshots": "id INTEGER PRIMARY KEY, timestamp INTEGER, cpu_pct REAL, mem_pct REAL, "
    "mem_avail INTEGER, swap_mb INTEGER, load_avg REAL",
    "process_names": "pid INTEGER, name TEXT, seen_at INTEGER",
    "event_aggregates": "bucket INTEGER, source INTEGER, op INTEGER, pid INTEGER, "
    "count INTEGER, stored INTEGER",
}
INGERO_SOURCES = [
    {"id": 1, "name": "CUDA"},
    {"id": 3, "name": "HOST"},
    {"id": 4, "name": "DRIVER"},
    {"id": 7, "name": "NET"},
]
INGERO_OPS = [
    {"source_id": 1, "op_id": 1, "name": "cudaMalloc"},
    {"source_id": 1, "op_id": 3, "name": "cudaLaunchKernel"},
    {"source_id": 1, "op_id": 5, "name": "cudaStreamSync"},
    {"source_id": 1, "op_id": 7, "name": "cudaMemcpyAsync"},
    {"source_id": 3, "op_id": 1, "name": "sched_switch"},
    {"source_id": 3, "op_id": 2, "name": "sched_wakeup"},
    {"source_id": 4, "op_id": 1, "name": "cuLaunchKernel"},
    {"source_id": 4, "op_id": 3, "name": "cuMemcpyAsync"},
    {"source_id": 7, "op_id": 1, "name": "net_send"},
]


def global_tid(pid: int = PID, tid: int = TID) -> int:
    """Nsight Systems' serialized thread id, with the bits of a machine in front."""
    return 1 << 48 | pid << 24 | tid


def sqlite_file(path: Path, columns: dict[str, str], **tables: list[Row]) -> Path:
    """A SQLite file with these tables; a row's columns that are left out are NULL."""
    with closing(sqlite3.connect(path)) as db, db:
        for table, rows in tables.items():
            db.execute(f"CREATE TABLE {table} ({columns[table]})")
            for row in rows:
                names, marks = ", ".join(f'"{n}"' for n in row), ", ".join("?" * len(row))
                db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*row.values()])
    return path


def nsys_file(path: Path, strings: list[str], **tables: list[Row]) -> Path:
    """A file of Nsight Systems; string ids are the places in ``strings``."""
    ids = [{"id": i, "value": text} for i, text in enumerate(strings)]
    return sqlite_file(path, NSYS_COLUMNS, StringIds=ids, **tables)


def ingero_file(path: Path, events: list[Row], **tables: list[Row]) -> Path:
    """A file of Ingero."""
    known: dict[str, list[Row]] = {"sources": INGERO_SOURCES, "ops": INGERO_OPS}
    return sqlite_file(path, INGERO_COLUMNS, events=events, **known, **tables)


def kineto_text(events: list[Any], **facts: Any) -> str:
    """A PyTorch trace as text; a time given as text is written as a number, digit by digit."""
    text = json.dumps({"schemaVersion": 1, "traceEvents": events, **facts})
    for event in events:
        for key in ("ts", "dur"):
            if isinstance(event, dict) and isinstance(event.get(key), str):
                text = text.replace(f'"{key}": "{event[key]}"', f'"{key}": {event[key]}')
    return text


def kineto_file(path: Path, events: list[Any], **facts: Any) -> Path:
    """A PyTorch trace, compressed where the name says so."""
    data = kineto_text(events, **facts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def imported(path: Path, kind: str, **options: Any) -> tuple[Path, Imported]:
    """The run an import of ``path`` writes, and what it says."""
    run = path.parent / "run"
    return run, import_file(path, kind, run, **options)


def rows(run: Path, table: str, *columns: str) -> list[Any]:
    """Rows of a table by start, straight from its parts: dictionaries, or tuples of columns."""
    found: list[Row] = []
    for part in sorted((run / table).glob("part-*.parquet")):
        found += pq.ParquetFile(part).read().to_pylist()
    found.sort(key=lambda row: (row.get("ts_ns") or 0, row.get("depth") or 0))
    return [tuple(row[name] for name in columns) for row in found] if columns else found


def accounting(done: Imported) -> dict[str, Any]:
    """By kind of event, what became of how many: ``(rows, folded, left out)``."""
    kinds = done.manifest.sources[0].detail["accounting"]
    return {
        kind: tuple(sum(told[fate].values()) for fate in ("imported", "folded", "left_out"))
        for kind, told in kinds.items()
    }


def refusal(path: Path, kind: str, **options: Any) -> str:
    """The message of an import that must fail for its data, leaving nothing behind."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(CctraceError) as caught:
        imported(path, kind, **options)
    error = caught.value
    assert error.exit_code == EXIT_BAD_DATA, error.message
    assert error.message.startswith(f"{path}: "), error.message
    assert sorted(path.parent.rglob("*")) == before
    return error.message.removeprefix(f"{path}: ")
