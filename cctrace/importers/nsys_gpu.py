"""GPU activity of an Nsight Systems file: kernels, copies, memsets, whole graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from cctrace.importers.nsys_common import Context, process_of, spans
from cctrace.importers.staging import HINTS

if TYPE_CHECKING:
    from cctrace.importers.sqlite_file import Batch

_KERNEL: Final = "CUPTI_ACTIVITY_KIND_KERNEL"
_MEMCPY: Final = "CUPTI_ACTIVITY_KIND_MEMCPY"
_MEMSET: Final = "CUPTI_ACTIVITY_KIND_MEMSET"
_GRAPH: Final = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
_SYNC: Final = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"
_EVENT: Final = "CUPTI_ACTIVITY_KIND_CUDA_EVENT"
TABLES: Final = (_KERNEL, _MEMCPY, _MEMSET, _GRAPH, _SYNC, _EVENT)

_COMMON: Final = {
    "start": "int",
    "end": "int?",
    "deviceId": "int?",
    "streamId": "int?",
    "correlationId": "int?",
    "globalPid": "int?",
}
# ENUM_CUDA_MEMCPY_OPER: what it is, and as CUPTI writes it.
_COPIES: Final = {
    1: ("h2d", "HtoD"),
    2: ("d2h", "DtoH"),
    3: ("h2d", "HtoA"),
    4: ("d2h", "AtoH"),
    5: ("d2d", "AtoA"),
    6: ("d2d", "AtoD"),
    7: ("d2d", "DtoA"),
    8: ("d2d", "DtoD"),
    9: ("h2h", "HtoH"),
    10: ("p2p", "PtoP"),
    11: ("h2d", "unified HtoD"),
    12: ("d2h", "unified DtoH"),
    13: ("d2d", "unified DtoD"),
}
# ENUM_CUDA_MEM_KIND: host memory, and its label.
_MEMORY: Final = {
    0: ("pageable", "Pageable"),
    1: ("pinned", "Pinned"),
    2: (None, "Device"),
    3: (None, "Array"),
    4: ("managed", "Managed"),
    5: (None, "Device Static"),
    6: ("managed", "Managed Static"),
}
_UNKNOWN_MEMORY: Final = (None, "Unknown")


def read(context: Context) -> None:
    """Stage the GPU activities, and what synchronisations tell of their calls."""
    columns = context.db.columns
    if _KERNEL in columns:
        _kernels(context)
    if _MEMCPY in columns:
        _copies(context)
    if _MEMSET in columns:
        _memsets(context)
    if _GRAPH in columns:
        _graphs(context)
    for table in (_SYNC, _EVENT):
        if table in columns:
            _hints(context, table)


def _kernels(context: Context) -> None:
    context.expect(_KERNEL)
    has_name = "demangledName" in context.db.columns[_KERNEL]
    name = "demangledName" if has_name else "shortName"
    for batch in context.batches(_KERNEL, {**_COMMON, name: "int"}):
        good, names = context.named(_KERNEL, spans(context, _KERNEL, batch), name)
        _stage(context, _KERNEL, good, {"class": "kernel", "name": names})


def _copies(context: Context) -> None:
    context.expect(_MEMCPY)
    more = {"bytes": "int", "copyKind": "int", "srcKind": "int?", "dstKind": "int?"}
    for batch in context.batches(_MEMCPY, {**_COMMON, **more}):
        good = _with_size(context, _MEMCPY, spans(context, _MEMCPY, batch))
        kinds, hosts, names = [], [], []
        for code, source, target in zip(
            good.values["copyKind"].tolist(),
            good.optional("srcKind"),
            good.optional("dstKind"),
            strict=True,
        ):
            kind, way = _COPIES.get(code, ("unknown", "unknown"))
            from_memory = _MEMORY.get(source, _UNKNOWN_MEMORY)
            to_memory = _MEMORY.get(target, _UNKNOWN_MEMORY)
            kinds.append(kind)
            hosts.append(_host(kind, from_memory[0], to_memory[0]))
            names.append(f"Memcpy {way} ({from_memory[1]} -> {to_memory[1]})")
        columns = {
            "class": "copy",
            "name": names,
            "copy_kind": kinds,
            "host_memory": hosts,
            "size_bytes": good.values["bytes"],
        }
        _stage(context, _MEMCPY, good, columns)


def _host(kind: str, source: str | None, target: str | None) -> str | None:
    """Memory on the host's side of a copy; None: it has no such side."""
    if kind in ("d2d", "p2p"):
        return None
    return (target if kind == "d2h" else source) or "unknown"


def _memsets(context: Context) -> None:
    context.expect(_MEMSET)
    for batch in context.batches(_MEMSET, {**_COMMON, "bytes": "int"}):
        good = _with_size(context, _MEMSET, spans(context, _MEMSET, batch))
        columns = {"class": "memset", "name": "Memset", "size_bytes": good.values["bytes"]}
        _stage(context, _MEMSET, good, columns)


def _graphs(context: Context) -> None:
    """Whole graphs, where the tool was told not to trace the nodes inside them."""
    context.expect(_GRAPH)
    for batch in context.batches(_GRAPH, {**_COMMON, "graphId": "int?"}):
        good = spans(context, _GRAPH, batch)
        names = [
            "CUDA graph" if number is None else f"CUDA graph {number}"
            for number in good.optional("graphId")
        ]
        _stage(context, _GRAPH, good, {"class": "kernel", "name": names})


def _with_size(context: Context, table: str, batch: Batch) -> Batch:
    size = batch.values["bytes"]
    bad = (size < 0) | (size >= 1 << 62)
    return context.drop(table, batch, bad, ["bytes"], "size out of range")


def _stage(context: Context, table: str, batch: Batch, columns: dict[str, Any]) -> None:
    device, no_device = batch.values["deviceId"], batch.null["deviceId"]
    bad = ~no_device & ((device < 0) | (device >= 1 << 31))
    if bad.any():
        # Rare enough to go through the lists by hand.
        kept = (~bad).tolist()
        columns = {
            name: [v for v, ok in zip(values, kept, strict=True) if ok]
            if isinstance(values, list)
            else values[~bad]
            if isinstance(values, np.ndarray)
            else values
            for name, values in columns.items()
        }
        batch = context.drop(table, batch, bad, ["deviceId"], "device out of range")
    common = {
        "ts_ns": batch.values["start"],
        "dur_ns": pa.array(batch.values["end"] - batch.values["start"], mask=batch.null["end"]),
        "pid": pa.array(
            process_of(batch.values["globalPid"]).astype(np.int32), mask=batch.null["globalPid"]
        ),
        "device": pa.array(batch.values["deviceId"].astype(np.int32), mask=batch.null["deviceId"]),
        "stream": pa.array(batch.values["streamId"], mask=batch.null["streamId"]),
        "correlation_id": pa.array(batch.values["correlationId"], mask=batch.null["correlationId"]),
    }
    context.stage(table, "gpu_activity", len(batch), common | columns)


def _hints(context: Context, table: str) -> None:
    """What a synchronisation or an event record tells of its call: stream and event."""
    context.expect(table)
    columns = dict.fromkeys(("correlationId", "globalPid", "streamId", "eventId"), "int?")
    for batch in context.batches(table, columns):
        told = batch.keep(~batch.null["correlationId"] & ~batch.null["globalPid"])
        context.accounting.folded(table, "cuda_api: stream, event", len(told))
        context.accounting.left_out(table, "tells of no call", len(batch) - len(told))
        stream, event = told.values["streamId"], told.values["eventId"]
        # A wait for the whole context has no stream, one for a stream no event.
        no_stream = told.null["streamId"] | (stream < 0) | (stream >= _NONE_32)
        no_event = told.null["eventId"] | (event <= 0) | (event >= _NONE_32)
        hints = {
            "pid": process_of(told.values["globalPid"]).astype(np.int32),
            "correlation_id": told.values["correlationId"],
            "stream": pa.array(stream, mask=no_stream),
            "event": pa.array(event, mask=no_event),
        }
        context.staging.add(HINTS, len(told), hints)


_NONE_32: Final = 0xFFFFFFFF  # CUPTI_SYNCHRONIZATION_INVALID_VALUE
