"""Nsight Systems' SQLite export (``nsys export --type sqlite``).

Source: Nsight Systems, "SQLite Export Schema Reference"; the schema's own comments in
each file. Tables are there only where the tool had events for them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from cctrace.importers import nsys_gpu, nsys_nvtx, nsys_sched
from cctrace.importers.calls import api
from cctrace.importers.nsys_common import Context, Strings, process_of, spans, thread_of
from cctrace.importers.run_writer import Clock, Described
from cctrace.importers.sqlite_file import SqliteFile, beyond

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.importers.accounting import Accounting, Rejects
    from cctrace.importers.staging import Staging

_TOOL: Final = "Nsight Systems"
_CALL_TABLES: Final = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
_IMPORTED: Final = {
    *_CALL_TABLES,
    *nsys_gpu.TABLES,
    nsys_nvtx.TABLE,
    nsys_sched.TABLE,
}
# Tables of events that no table of a run holds; any other with a time in it is named by
# its own name.
_NO_TABLE: Final = {
    "CUPTI_ACTIVITY_KIND_OVERHEAD": "time of the profiler itself",
    "PROFILER_OVERHEAD": "time of the profiler itself",
    "DIAGNOSTIC_EVENT": "message of the profiler; warnings are among the run's warnings",
    "OSRT_API": "calls of the operating system's libraries have no table",
    "COMPOSITE_EVENTS": "samples of the processor have no table",
}
_TIME_COLUMNS: Final = ("start", "timestamp", "startedAt", "rawTimestamp")
_WARNING: Final = 2  # ENUM_DIAGNOSTIC_SEVERITY_LEVEL
_MAX_WARNINGS: Final = 20
_WARNING_CHARS: Final = 300
_GPU_COLUMNS: Final = ("name", "totalMemory", "uuid")


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
        db.require("StringIds", ["id", "value"], _TOOL)
        context = Context(db, Strings(db), staging, accounting, rejects)
        for table in _CALL_TABLES:
            if table in db.columns:
                _calls(context, table)
        nsys_gpu.read(context)
        nsys_nvtx.read(context)
        nsys_sched.read(context)
        _account_for_others(context)
        return _describe(context)
    finally:
        db.close()


def _calls(context: Context, table: str) -> None:
    context.expect(table)
    columns = {
        "start": "int",
        "end": "int?",
        "globalTid": "int?",
        "correlationId": "int?",
        "nameId": "int",
        "returnValue": "int?",
    }
    for batch in context.batches(table, columns):
        good = spans(context, table, batch)
        good = context.with_thread(table, good)
        good, names = context.named(table, good, "nameId")
        if not len(good):
            continue
        apis = [api(name) for name in names]
        pid, tid = thread_of(good.values["globalTid"])
        result = good.values["returnValue"]
        no_result = good.null["returnValue"] | (beyond(result, 1 << 31))
        columns_of_run: dict[str, Any] = {
            "ts_ns": good.values["start"],
            "pid": pid,
            "tid": tid,
            "dur_ns": pa.array(good.values["end"] - good.values["start"], mask=good.null["end"]),
            "api": [a.name for a in apis],
            "layer": [a.layer for a in apis],
            "class": [a.cls for a in apis],
            "copy_kind": [a.copy_kind for a in apis],
            "host_memory": [a.host_memory for a in apis],
            "result": pa.array(np.where(no_result, 0, result), pa.int32(), mask=no_result),
            "correlation_id": pa.array(
                good.values["correlationId"], mask=good.null["correlationId"]
            ),
        }
        context.stage(table, "cuda_api", len(good), columns_of_run)


def _pids(context: Context) -> set[int]:
    """Processes the file names."""
    pids: set[int] = set()
    if "PROCESSES" not in context.db.columns:
        return pids
    for batch in context.facts("PROCESSES", {"globalPid": "int?", "pid": "int?"}):
        of_both = process_of(batch.values["globalPid"])
        told = np.where(batch.null["pid"], of_both, batch.values["pid"])
        known = ~(batch.null["pid"] & batch.null["globalPid"]) & (told >= 0) & (told < 1 << 31)
        pids.update(told[known].tolist())
    return pids


def _thread_names(context: Context) -> dict[tuple[int, int], str | None]:
    """Names of threads by (pid, tid)."""
    names: dict[tuple[int, int], str | None] = {}
    if "ThreadNames" not in context.db.columns:
        return names
    for batch in context.facts("ThreadNames", {"nameId": "int?", "globalTid": "int?"}):
        named = batch.keep(~batch.null["globalTid"])
        pid, tid = thread_of(named.values["globalTid"])
        for thread, number in zip(
            zip(pid.tolist(), tid.tolist(), strict=True), named.optional("nameId"), strict=True
        ):
            names[thread] = None if number is None else context.strings.get(number)
    return names


def _account_for_others(context: Context) -> None:
    """Count the events of tables that are not read."""
    db = context.db
    for table, columns in sorted(db.columns.items()):
        is_events = any(name in columns for name in _TIME_COLUMNS)
        if table in _IMPORTED or table.startswith("ENUM_") or not is_events:
            continue
        count = context.expect(table)
        context.accounting.left_out(table, _NO_TABLE.get(table, "no table for these events"), count)


def _describe(context: Context) -> Described:
    db = context.db
    export = {str(k): str(v) for k, v in db.pairs("META_DATA_EXPORT", "name", "value").items()}
    system = db.pairs("TARGET_INFO_SYSTEM_ENV", "name", "value")
    gpus = [
        {"index": i, **gpu} for i, gpu in enumerate(_rows(context, "TARGET_INFO_GPU", _GPU_COLUMNS))
    ]
    host: dict[str, Any] = {"cpu": {"model": _known(system.get("CpuDescription"))}}
    host["distribution"] = _known(system.get("OsDescription"))
    host["gpu"] = {"devices": gpus, "driver_version": _known(system.get("NvDriverVersion"))}
    version = export.get("EXPORT_PRODUCT_VERSION")
    return Described(
        clock=_clock(context, export),
        by_pid=True,
        tool={"name": _TOOL, "version": version, "schema": export.get("EXPORT_SCHEMA_VERSION")},
        host=host,
        absent={"processes": "the file names no process"},
        thread_names=_thread_names(context),
        pids=_pids(context),
        warnings=_warnings(context),
    )


def _known(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() not in ("", "unknown") else None


def _rows(context: Context, table: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a small table of facts; what is not text or an integer is left out."""
    if table not in context.db.columns:
        return []
    kinds = {name: "int?" if name == "totalMemory" else "text?" for name in columns}
    return [
        dict(zip(columns, row, strict=True))
        for batch in context.facts(table, kinds)
        for row in zip(*(batch.optional(name) for name in columns), strict=True)
    ]


def _clock(context: Context, export: dict[str, str]) -> Clock:
    """How the file's times relate to other clocks.

    They count from the start of the capture, which TARGET_INFO_SESSION_START_TIME gives
    in UTC and in the system clock. An export with --ts-normalize has them from the
    epoch instead; --ts-shift adds to either.
    """
    starts: list[tuple[int | None, int | None]] = []
    table = "TARGET_INFO_SESSION_START_TIME"
    if table in context.db.columns:
        for batch in context.facts(table, {"utcEpochNs": "int?", "systemClockNs": "int?"}):
            utc, system = batch.optional("utcEpochNs"), batch.optional("systemClockNs")
            starts += zip(utc, system, strict=True)
    utc_ns, system_ns = starts[0] if starts else (None, None)
    shift = export.get("EXPORT_PARAM_TIME_SHIFT", "0")
    shift_ns = int(shift) if re.fullmatch(r"-?\d{1,18}", shift) else 0
    is_normalized = export.get("EXPORT_PARAM_TIME_NORMALIZE", "false").lower() == "true"
    origin = (utc_ns or 0) if is_normalized else 0
    origin += shift_ns
    domain = "ns of the Unix epoch" if is_normalized else "ns since the capture started"
    if shift_ns:
        domain += f", shifted by {shift_ns} ns"
    from_start = None if utc_ns is None else utc_ns - origin
    return Clock(
        domain=domain,
        source=f"{table}: utcEpochNs, systemClockNs" if starts else "the file does not tell",
        realtime_offset_ns=-shift_ns if is_normalized else from_start,
        monotonic_offset_ns=None if system_ns is None else system_ns - origin,
    )


def _warnings(context: Context) -> list[str]:
    if "DIAGNOSTIC_EVENT" not in context.db.columns:
        return []
    found: list[str] = []
    columns = {"severity": "int?", "text": "text?"}
    for batch in context.facts("DIAGNOSTIC_EVENT", columns):
        for severity, text in zip(batch.optional("severity"), batch.optional("text"), strict=True):
            if severity is not None and severity >= _WARNING and text:
                found.append(f"{_TOOL}: {text[:_WARNING_CHARS]}")
    if len(found) > _MAX_WARNINGS:
        found[_MAX_WARNINGS:] = [f"{_TOOL}: {len(found) - _MAX_WARNINGS} more"]
    return found
