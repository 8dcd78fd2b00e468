"""NVTX ranges and marks of an Nsight Systems file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.importers.nsys_common import Context, process_of, spans, thread_of

if TYPE_CHECKING:
    from cctrace.importers.sqlite_file import Batch, Kind

TABLE: Final = "NVTX_EVENTS"
# ENUM_NSYS_EVENT_TYPE.
_CATEGORY: Final = 33
_DOMAIN: Final = 75
_KINDS: Final = {
    34: "mark",
    59: "push_pop",
    60: "start_end",
    65: "mark",  # NVTXT: the same, read from a text file
    70: "push_pop",
    71: "start_end",
}
_COLUMNS: Final[dict[str, Kind]] = {
    "start": "int",
    "end": "int?",
    "eventType": "int",
    "category": "int?",
    "color": "int?",
    "text": "text?",
    "globalTid": "int?",
    "endGlobalTid": "int?",
    "textId": "int?",
    "domainId": "int?",
    "uint64Value": "int?",
    "int64Value": "int?",
    "doubleValue": "real?",
    "uint32Value": "int?",
    "int32Value": "int?",
    "floatValue": "real?",
}
_COLORS: Final = 1 << 32
_Names = dict[tuple[int, int], str]


class _Ignore:
    """Rejects nothing aloud."""

    def event(self, kind: str, place: str, why: str, reason: str) -> None:
        """Pass over one row."""


def read(context: Context) -> None:
    """Stage the ranges and marks."""
    if TABLE not in context.db.columns:
        return
    context.expect(TABLE)
    domains, categories = _vocabulary(context)
    for batch in context.batches(TABLE, _COLUMNS):
        code = batch.values["eventType"]
        names = np.isin(code, (_CATEGORY, _DOMAIN))
        context.accounting.folded(TABLE, "nvtx: domain, category", int(np.count_nonzero(names)))
        wanted = np.isin(code, list(_KINDS))
        for other in np.unique(code[~wanted & ~names]).tolist():
            count = int(np.count_nonzero(code == other))
            context.accounting.left_out(TABLE, f"event of type {other}: no range or mark", count)
        good = context.with_thread(TABLE, spans(context, TABLE, batch.keep(wanted)))
        if len(good):
            _stage(context, good, domains, categories)


def _vocabulary(context: Context) -> tuple[_Names, dict[tuple[int, int, int], str]]:
    """Names of domains by (process, domain); of categories by (process, domain, category)."""
    domains: _Names = {}
    categories: dict[tuple[int, int, int], str] = {}
    columns = {k: _COLUMNS[k] for k in ("eventType", "category", "text", "globalTid", "textId")}
    # A row that makes no sense is counted when the ranges are read.
    for batch in context.db.batches(TABLE, {**columns, "domainId": "int?"}, _Ignore(), TABLE):
        named = batch.keep(np.isin(batch.values["eventType"], (_CATEGORY, _DOMAIN)))
        pids = process_of(named.values["globalTid"]).tolist()
        facts = zip(
            named.values["eventType"].tolist(),
            pids,
            named.values["domainId"].tolist(),
            named.optional("category"),
            _texts(context, named),
            strict=True,
        )
        for code, pid, domain, category, text in facts:
            if text is None:
                continue
            if code == _DOMAIN:
                domains[pid, domain] = text
            elif category is not None:
                categories[pid, domain, category] = text
    return domains, categories


def _texts(context: Context, batch: Batch) -> list[str | None]:
    return [
        text if text is not None else None if number is None else context.strings.get(number)
        for text, number in zip(batch.optional("text"), batch.optional("textId"), strict=True)
    ]


def _stage(
    context: Context,
    batch: Batch,
    domains: _Names,
    categories: dict[tuple[int, int, int], str],
) -> None:
    pid, tid = thread_of(batch.values["globalTid"])
    kinds = [_KINDS[code] for code in batch.values["eventType"].tolist()]
    is_mark = np.array([kind == "mark" for kind in kinds], np.bool_)
    is_span = np.array([kind == "start_end" for kind in kinds], np.bool_)
    length = np.where(batch.null["end"], 0, batch.values["end"] - batch.values["start"])
    is_open = batch.null["end"] & ~is_mark
    color = batch.values["color"] & (_COLORS - 1)
    ended_by = thread_of(batch.values["endGlobalTid"])[1]
    ended_by = np.where(batch.null["endGlobalTid"], tid, ended_by)
    columns: dict[str, Any] = {
        "ts_ns": batch.values["start"],
        "pid": pid,
        "tid": tid,
        "dur_ns": pa.array(np.where(is_mark, 0, length), mask=is_open),
        "kind": kinds,
        "domain": _domains(pid, batch, domains),
        "name": _texts(context, batch),
        "category": _categories(pid, batch, categories),
        "color": pa.array(color.astype(np.uint32), mask=batch.null["color"]),
        "end_tid": pa.array(ended_by.astype(np.int32), mask=~is_span | is_open),
        **_payloads(batch),
    }
    context.stage(TABLE, "nvtx", len(batch), columns)


def _domains(pid: npt.NDArray[np.int32], batch: Batch, names: _Names) -> list[str | None]:
    """Name of each event's domain; None: the default one, whose id is 0."""
    return [
        None if not domain else names.get((process, domain), f"domain {domain}")
        for process, domain in zip(pid.tolist(), batch.optional("domainId"), strict=True)
    ]


def _categories(
    pid: npt.NDArray[np.int32], batch: Batch, names: dict[tuple[int, int, int], str]
) -> list[str | None]:
    """Name of each event's category, or its number; None: no category, whose id is 0."""
    return [
        None if not category else names.get((process, domain, category), str(category))
        for process, domain, category in zip(
            pid.tolist(),
            batch.values["domainId"].tolist(),
            batch.optional("category"),
            strict=True,
        )
    ]


def _payloads(batch: Batch) -> dict[str, Any]:
    """Payload of each event: one of a union's members is told, the others are NULL."""
    integer = np.zeros(len(batch), np.int64)
    has_integer = np.zeros(len(batch), np.bool_)
    number = np.zeros(len(batch), np.float64)
    has_number = np.zeros(len(batch), np.bool_)
    for name in ("int32Value", "uint32Value", "int64Value", "uint64Value"):
        told = ~batch.null[name]
        integer[told], has_integer = batch.values[name][told], has_integer | told
    # SQLite has no unsigned integers: a negative one here is 2^63 or more.
    huge = ~batch.null["uint64Value"] & (batch.values["uint64Value"] < 0)
    number[huge] = batch.values["uint64Value"][huge].astype(np.uint64).astype(np.float64)
    has_integer &= ~huge
    has_number |= huge
    for name in ("floatValue", "doubleValue"):
        told = ~batch.null[name]
        number[told], has_number = batch.values[name][told], has_number | told
    return {
        "payload": pa.array(integer, mask=~has_integer),
        "payload_double": pa.array(number, mask=~has_number),
    }
