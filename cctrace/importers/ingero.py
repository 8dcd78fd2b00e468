"""Ingero's SQLite file: CUDA calls, the scheduler and stacks, taken by eBPF.

Sources: the tables sources, ops and schema_info in each file; Ingero's own programs
(bpf/cuda_trace.bpf.c, driver_trace.bpf.c, host_trace.bpf.c) for what a time and an
argument mean: a call's time is its entry, an off-CPU interval's the switch back in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from cctrace.importers.accounting import Accounting, Rejects
from cctrace.importers.calls import Api, api
from cctrace.importers.run_writer import Clock, Described
from cctrace.importers.sqlite_file import TIME_LIMIT_NS, Kind, SqliteFile, beyond

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.importers.sqlite_file import Batch
    from cctrace.importers.staging import Staging

_TOOL: Final = "Ingero"
_EVENTS: Final[dict[str, Kind]] = {
    "timestamp": "int",
    "pid": "int",
    "tid": "int",
    "source": "int",
    "op": "int",
    "duration": "int",
    "arg0": "int?",
    "arg1": "int?",
    "ret_code": "int?",
    "stack_hash": "int?",
}
_LAYERS: Final = {"CUDA": "runtime", "DRIVER": "driver"}
_SWITCH: Final = ("HOST", "sched_switch")
_WAKEUP: Final = ("HOST", "sched_wakeup")
# Ingero's short names of functions.
_FULL_NAMES: Final = {
    "cudaStreamSync": "cudaStreamSynchronize",
    "cudaDeviceSync": "cudaDeviceSynchronize",
}
_SIZED: Final = ("copy", "alloc")
# cudaMemcpyKind (driver_types.h); cudaMemcpyDefault does not tell.
_KINDS: Final = {0: "h2h", 1: "h2d", 2: "d2h", 3: "d2d"}
_WITH_KIND: Final = ("cudaMemcpy", "cudaMemcpyAsync")
_WITH_STREAM: Final = ("cudaStreamSynchronize",)
_SNAPSHOTS: Final = {
    "cpu_pct": ("system.cpu", "%"),
    "mem_pct": ("system.memory", "%"),
    "mem_avail": ("system.memory_available", "MiB"),
    "swap_mb": ("system.swap", "MiB"),
    "load_avg": ("system.load", "processes"),
}
_PYTHON_SUFFIXES: Final = (".py",)
_INT32: Final = 1 << 31
_MAX_FRAMES_CHARS: Final = 1 << 20


@dataclass(frozen=True)
class _Context:
    db: SqliteFile
    staging: Staging
    accounting: Accounting
    rejects: Rejects


def read(path: Path, staging: Staging, accounting: Accounting, rejects: Rejects) -> Described:
    """Stage every event of the file.

    Args:
        path: The SQLite file.
        staging: Takes the rows.
        accounting: Is told what became of each event.
        rejects: What to do with an event that makes no sense.

    Returns:
        What else the file says.

    Raises:
        CctraceError: Exit code 4; not such a file, damaged, or an event in it makes no
            sense. The message names the place.
    """
    db = SqliteFile(path)
    try:
        db.require("events", [n for n, k in _EVENTS.items() if k == "int"], _TOOL)
        db.require("ops", ["source_id", "op_id", "name"], _TOOL)
        db.require("sources", ["id", "name"], _TOOL)
        context = _Context(db, staging, accounting, rejects)
        _events(context)
        _snapshots(context)
        _stacks(context)
        return _describe(context)
    finally:
        db.close()


def _facts(context: _Context, table: str, columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a small table that holds no events; none where it is not there."""
    if table not in context.db.columns:
        return []
    strict = Rejects(context.db.path, context.accounting, skip=False)
    return [
        dict(zip(columns, row, strict=True))
        for batch in context.db.batches(table, columns, strict, table)
        for row in zip(*(batch.optional(name) for name in columns), strict=True)
    ]


def _events(context: _Context) -> None:
    sources = {
        row["id"]: row["name"] for row in _facts(context, "sources", {"id": "int", "name": "text"})
    }
    columns = {"source_id": "int", "op_id": "int", "name": "text"}
    ops = {(row["source_id"], row["op_id"]): row["name"] for row in _facts(context, "ops", columns)}
    context.accounting.expect(context.db.count("events"))
    for batch in context.db.batches("events", _EVENTS, context.rejects, "events"):
        good = _sane(context, batch)
        pairs = np.stack([good.values["source"], good.values["op"]], axis=1)
        for source, op in np.unique(pairs, axis=0).tolist() if len(good) else []:
            rows = good.keep((pairs[:, 0] == source) & (pairs[:, 1] == op))
            names = (sources.get(source, str(source)), ops.get((source, op), str(op)))
            _stage(context, rows, names)


def _sane(context: _Context, batch: Batch) -> Batch:
    values = batch.values
    checks = (
        (values["duration"] < 0, ["duration"], "negative duration"),
        (
            (beyond(values["timestamp"], TIME_LIMIT_NS)) | (values["duration"] >= TIME_LIMIT_NS),
            ["timestamp", "duration"],
            "time out of range",
        ),
        (
            (beyond(values["pid"], _INT32)) | (beyond(values["tid"], _INT32)),
            ["pid", "tid"],
            "no process or thread id",
        ),
    )
    good = np.ones(len(batch), np.bool_)
    kept = batch
    for bad, columns, reason in checks:
        now = kept.drop_bad(context.rejects, "events", bad[good], columns, reason)
        good[np.flatnonzero(good)[bad[good]]] = False
        kept = now
    return kept


def _stage(context: _Context, rows: Batch, names: tuple[str, str]) -> None:
    """Stage the events of one operation."""
    source, op = names
    kind = f"{source} {op}"
    if source in _LAYERS:
        context.staging.add(
            "cuda_api", len(rows), _calls(rows, api(_FULL_NAMES.get(op, op)), source)
        )
        context.accounting.imported(kind, "cuda_api", len(rows))
    elif names == _SWITCH:
        context.staging.add("sched", len(rows), _switches(rows))
        context.accounting.imported(kind, "sched", len(rows))
    else:
        context.accounting.left_out(kind, "no table for these events", len(rows))


def _calls(rows: Batch, known: Api, source: str) -> dict[str, Any]:
    values, null = rows.values, rows.null
    count = len(rows)
    arg0, result = values["arg0"], values["ret_code"]
    has_size = ~null["arg0"] & (arg0 >= 0) & (known.cls in _SIZED)
    columns: dict[str, Any] = {
        "ts_ns": values["timestamp"],
        "pid": values["pid"],
        "tid": values["tid"],
        "dur_ns": values["duration"],
        "api": known.name,
        "layer": _LAYERS[source],
        "class": known.cls,
        "host_memory": known.host_memory,
        "size_bytes": pa.array(arg0, mask=~has_size),
        "result": pa.array(result, mask=null["ret_code"] | (beyond(result, _INT32))),
        "stack_id": pa.array(
            values["stack_hash"], mask=null["stack_hash"] | (values["stack_hash"] == 0)
        ),
    }
    if known.name in _WITH_STREAM:
        columns["stream"] = pa.array(arg0, mask=null["arg0"])
    if known.cls == "copy":
        # Only the runtime's copies have the kind as an argument.
        told = known.name in _WITH_KIND
        kinds: list[int | None] = rows.optional("arg1") if told else [None] * count
        columns["copy_kind"] = [
            "unknown" if kind is None else _KINDS.get(kind, "unknown") for kind in kinds
        ]
    return columns


def _switches(rows: Batch) -> dict[str, Any]:
    # Ingero writes the event when the thread is switched in again.
    return {
        "ts_ns": rows.values["timestamp"] - rows.values["duration"],
        "pid": rows.values["pid"],
        "tid": rows.values["tid"],
        "dur_ns": rows.values["duration"],
        "state": "unknown",
    }


def _snapshots(context: _Context) -> None:
    table = "system_snapshots"
    if table not in context.db.columns:
        return
    context.accounting.expect(context.db.count(table))
    columns: dict[str, Any] = {"timestamp": "int", **dict.fromkeys(_SNAPSHOTS, "real?")}
    for batch in context.db.batches(table, columns, context.rejects, table):
        bad = beyond(batch.values["timestamp"], TIME_LIMIT_NS)
        for name in _SNAPSHOTS:
            bad |= ~np.isfinite(batch.values[name])
        good = batch.drop_bad(context.rejects, table, bad, ["timestamp", *_SNAPSHOTS], "bad sample")
        for name, (counter, unit) in _SNAPSHOTS.items():
            told = good.keep(~good.null[name])
            samples = {
                "ts_ns": told.values["timestamp"],
                "name": counter,
                "value": told.values[name],
                "unit": unit,
            }
            context.staging.add("counters", len(told), samples)
        context.accounting.imported(table, "counters", len(good))


def _stacks(context: _Context) -> None:
    table = "stack_traces"
    if table not in context.db.columns:
        return
    for batch in context.db.batches(
        table,
        {"hash": "int", "ips": "text?", "frames": "text?"},
        Rejects(context.db.path, context.accounting, skip=False),
        table,
    ):
        frames = [
            _frames(symbols or "", addresses or "")
            for symbols, addresses in zip(
                batch.optional("frames"), batch.optional("ips"), strict=True
            )
        ]
        columns = {"stack_id": batch.values["hash"], "frames": frames}
        context.staging.add("stacks", len(batch), columns)


def _frames(symbols: str, addresses: str) -> list[dict[str, Any]]:
    """Frames of a stack, innermost first; addresses where there are no symbols."""
    found = _list(symbols)
    if not found:
        found = [{"i": address} for address in _list(addresses) if isinstance(address, str)]
    return [_frame(frame) for frame in found if isinstance(frame, dict)]


def _list(text: str) -> list[Any]:
    if len(text) > _MAX_FRAMES_CHARS:
        return []
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _frame(frame: dict[str, Any]) -> dict[str, Any]:
    """One frame: s symbol + offset, i address, f file, l line (Python frames only)."""
    function, place, line = frame.get("s") or frame.get("i"), frame.get("f"), frame.get("l")
    file = place if isinstance(place, str) else None
    is_python = file is not None and file.endswith(_PYTHON_SUFFIXES)
    return {
        "function": function if isinstance(function, str) else None,
        "module": None if is_python else file,
        "file": file if is_python else None,
        "line": line if type(line) is int and 0 <= line < _INT32 else None,
        "kind": "python" if is_python else "native",
    }


def _thread_names(context: _Context) -> dict[tuple[int, int], str | None]:
    """Names of main threads by (pid, tid).

    process_names has other threads as well, without saying whose; a process is what
    has events.
    """
    pids: set[int] = set()
    for table in ("cuda_api", "sched"):
        pids.update(context.staging.columns(table, ["pid"])["pid"].unique().to_pylist())
    columns = {"pid": "int", "name": "text?"}
    return {
        (row["pid"], row["pid"]): row["name"]
        for row in _facts(context, "process_names", columns)
        if row["pid"] in pids
    }


def _describe(context: _Context) -> Described:
    session_columns = {
        "gpu_model": "text?",
        "gpu_driver": "text?",
        "cpu_model": "text?",
        "kernel": "text?",
        "os_release": "text?",
        "ingero_ver": "text?",
    }
    sessions = _facts(context, "sessions", session_columns)
    session = sessions[-1] if sessions else dict.fromkeys(session_columns)
    # "NVIDIA GeForce RTX 4090, 24564 MiB"
    gpu = (session["gpu_model"] or "").split(",", maxsplit=1)[0]
    return Described(
        clock=Clock(
            domain="CLOCK_REALTIME: ns of the Unix epoch",
            source="events.timestamp, ns (schema_info: timestamp_unit)",
            realtime_offset_ns=0,
        ),
        by_pid=True,
        tool={"name": _TOOL, "version": session["ingero_ver"] or None},
        host={
            "kernel": session["kernel"] or None,
            "distribution": session["os_release"] or None,
            "cpu": {"model": session["cpu_model"] or None},
            "gpu": {
                "devices": [{"index": 0, "name": gpu}] if gpu else [],
                "driver_version": session["gpu_driver"] or None,
            },
        },
        absent={
            "gpu": "Ingero sees calls, not the GPU",
            "nvtx": "Ingero records no ranges",
        },
        detail={
            "sched": {
                "threads": "main threads of the traced processes only",
                "state": "not told: off the CPU, waiting or ready",
            }
        },
        thread_names=_thread_names(context),
        not_in_file=_not_in_file(context),
    )


def _not_in_file(context: _Context) -> dict[str, int]:
    """Events that Ingero counted and did not store, by source."""
    names = {
        row["id"]: row["name"] for row in _facts(context, "sources", {"id": "int", "name": "text"})
    }
    columns = {"source": "int", "count": "int", "stored": "int"}
    found: dict[str, int] = {}
    for row in _facts(context, "event_aggregates", columns):
        source = names.get(row["source"], "")
        missing = row["count"] - row["stored"]
        ours = "cuda" if source in _LAYERS else "sched" if source == "HOST" else None
        if ours and missing > 0:
            found[ours] = found.get(ours, 0) + missing
    return found
