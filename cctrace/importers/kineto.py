"""PyTorch profiler (Kineto) traces: JSON in Chrome's trace format, plain or gzip.

Sources: Trace Event Format (Chrome); Kineto's output_json.cpp for the categories and
arguments. Times are microseconds with a fraction, from the epoch or from
``baseTimeNanoseconds``, which stands behind the events.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from cctrace.importers.accounting import broken, shown
from cctrace.importers.calls import api
from cctrace.importers.json_stream import JsonEvents, Number
from cctrace.importers.run_writer import Clock, Described
from cctrace.importers.staging import BATCH_ROWS, HINTS

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.importers.accounting import Accounting, Rejects
    from cctrace.importers.staging import Staging

_TOOL: Final = "PyTorch profiler (Kineto)"
_FACTS: Final = frozenset({"schemaVersion", "deviceProperties", "baseTimeNanoseconds"})
_DOMAIN: Final = "torch"
_CALLS: Final = {"cuda_runtime": "runtime", "cuda_driver": "driver"}
_ACTIVITIES: Final = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "memset"}
# Of a thread of the host: ranges, and marks where they have no length.
_RANGES: Final = frozenset(
    {"cpu_op", "user_annotation", "python_function", "cpu_instant_event", "Runtime", "Operator"}
)
_SYNC: Final = "cuda_sync"
_LEFT_OUT: Final = {
    "gpu_user_annotation": "a user_annotation again, as its kernels span it",
    "fwdbwd": "arrow from a forward to its backward operator",
    "overhead": "time of the profiler itself",
    "Trace": "span of the profiler itself",
}
_FLOWS: Final = frozenset({"ac2g", "async_cpu_to_gpu", "async_gpu"})
_FLOW_PHASES: Final = frozenset("stf")
_INT32: Final = 1 << 31
_NS_LIMIT: Final = 1 << 62
_SIZE_LIMIT: Final = 1 << 62
_MAX_DIGITS: Final = 40
_FRACTION_DIGITS: Final = 3
# Memcpy DtoH (Device -> Pinned)
_COPY_NAME: Final = re.compile(r"(\w)to(\w)\b(?:.*\(\s*([\w ]+?)\s*->\s*([\w ]+?)\s*\))?")
_SIDES: Final = {"H": "h", "D": "d", "A": "d", "P": "p"}
_COPY_KINDS: Final = {"hd": "h2d", "dh": "d2h", "dd": "d2d", "hh": "h2h", "pp": "p2p"}
_MEMORY: Final = {"pageable": "pageable", "pinned": "pinned", "managed": "managed"}
_THREAD_NAME: Final = re.compile(r"thread -?\d+ \((.*)\)", re.DOTALL)
_MAX_NAMES: Final = 1 << 16
_MAX_KIND_CHARS: Final = 80
_PIECES_KEPT: Final = 32  # of the file, whose events may wait in memory


def read(path: Path, staging: Staging, accounting: Accounting, rejects: Rejects) -> Described:
    """Stage every event of the file.

    Args:
        path: The JSON file, plain or gzip-compressed.
        staging: Takes the rows.
        accounting: Is told what became of each event.
        rejects: What to do with an event that makes no sense.

    Returns:
        What else the file says.

    Raises:
        CctraceError: Exit code 4; not such a file, cut off, or an event in it makes no
            sense. The message names the place.
    """
    events = JsonEvents(path, "traceEvents", _FACTS)
    reader = _Reader(events, staging, accounting, rejects)
    reader.read()
    return reader.describe(path)


class _BadEventError(Exception):
    """An event that makes no sense; ``reason`` is without the value, to count by."""

    def __init__(self, reason: str, value: object = None) -> None:
        super().__init__(reason if value is None else f"{reason}: {shown(value)}")
        self.reason = reason


def to_ns(value: object) -> int:
    """Microseconds as they are written, in whole ns; half of one goes to the even side.

    Raises:
        _BadEventError: It is no number, or out of range.
    """
    if type(value) is Number:
        if value[-4:-3] == ".":  # three digits: all but dropping the point is done
            try:
                return _in_range(int(value[:-4] + value[-3:]), value)
            except ValueError:
                pass
        try:
            exact = Decimal(value)
        except InvalidOperation:
            raise _BadEventError("time is no number", value) from None
        if exact.adjusted() > _MAX_DIGITS:
            raise _BadEventError("time out of range", value)
        scaled = exact.scaleb(_FRACTION_DIGITS) if exact.adjusted() > -_MAX_DIGITS else Decimal(0)
        return _in_range(int(scaled.to_integral_value(ROUND_HALF_EVEN)), value)
    if type(value) is int:
        return _in_range(value * 1000, value)
    raise _BadEventError("time is no number", value)


def _in_range(ns: int, value: object) -> int:
    if not -_NS_LIMIT < ns < _NS_LIMIT:
        raise _BadEventError("time out of range", value)
    return ns


class _Rows:
    """Rows of one table, staged when they are many."""

    def __init__(self, staging: Staging, table: str, names: tuple[str, ...]) -> None:
        self._staging = staging
        self._table = table
        self._names = names
        self._rows: list[tuple[Any, ...]] = []
        self.append = self._rows.append

    def flush(self, at_least: int = 1) -> None:
        """Stage the rows, if there are so many."""
        if len(self._rows) < at_least:
            return
        columns: dict[str, Any] = {}
        for name, values in zip(self._names, zip(*self._rows, strict=True), strict=True):
            columns[name] = list(values)
        self._staging.add(self._table, len(self._rows), columns)
        self._rows.clear()


class _Reader:
    def __init__(
        self, events: JsonEvents, staging: Staging, accounting: Accounting, rejects: Rejects
    ) -> None:
        self._events = events
        self._staging = staging
        self._accounting = accounting
        self._rejects = rejects
        common = ("ts_ns", "pid", "tid", "dur_ns")
        self._ranges = _Rows(staging, "nvtx", (*common, "kind", "domain", "name", "category"))
        self._calls = _Rows(
            staging,
            "cuda_api",
            (*common, "api", "layer", "class", "copy_kind", "host_memory", "correlation_id"),
        )
        self._activities = _Rows(
            staging,
            "gpu_activity",
            (
                *("ts_ns", "dur_ns", "class", "name", "copy_kind", "host_memory"),
                *("stream", "device", "size_bytes", "correlation_id"),
            ),
        )
        self._hints = _Rows(staging, HINTS, ("correlation_id", "stream"))
        self._fates: dict[tuple[str, str, str], int] = {}
        self._threads: set[tuple[int, int]] = set()
        self._thread_names: dict[tuple[int, int], str] = {}
        self._base_ns: int | None = None

    def read(self) -> None:
        """Stage all events."""
        handlers: dict[str, Callable[[dict[str, Any], str], tuple[str, str]]] = {
            **dict.fromkeys(_CALLS, self._call),
            **dict.fromkeys(_ACTIVITIES, self._activity),
            **dict.fromkeys(_RANGES, self._range),
            _SYNC: self._sync,
        }
        fates = self._fates
        written = pieces = 0
        for event in self._events.read():
            kind = "?"
            try:
                phase, category = _phase_of(event)
                kind = f"{category} {phase}"
                handler = handlers.get(category)
                if handler is not None and phase in ("X", "i", "I"):
                    fate = handler(event, phase)
                else:
                    fate = self._other(event, phase, category)
            except _BadEventError as error:
                self._rejects.event(kind, self._events.place(), str(error), error.reason)
                continue
            key = (kind, *fate)
            fates[key] = fates.get(key, 0) + 1
            written += 1
            if not written % BATCH_ROWS:
                self._flush(BATCH_ROWS // 4)
            if self._events.pieces >= pieces + _PIECES_KEPT:  # events of long names
                pieces = self._events.pieces
                self._flush()
        self._flush()
        self._accounting.expect(self._events.events)
        for (kind, fate_of, detail), count in fates.items():
            getattr(self._accounting, fate_of)(kind, detail, count)

    def _flush(self, at_least: int = 1) -> None:
        for rows in (self._ranges, self._calls, self._activities, self._hints):
            rows.flush(at_least)
        if len(self._fates) > _MAX_NAMES:
            raise self._events.error("events of too many kinds")

    def _range(self, event: dict[str, Any], phase: str) -> tuple[str, str]:
        pid, tid = self._thread(event)
        start = to_ns(event.get("ts"))
        kind, length = ("push_pop", _length(event)) if phase == "X" else ("mark", 0)
        row = (start, pid, tid, length, kind, _DOMAIN, _name(event), event["cat"])
        self._ranges.append(row)
        return "imported", "nvtx"

    def _call(self, event: dict[str, Any], phase: str) -> tuple[str, str]:
        if phase != "X":
            return "left_out", "call without a length"
        pid, tid = self._thread(event)
        start, length = to_ns(event.get("ts")), _length(event)
        name = _name(event)
        known = api(name)
        row = (
            *(start, pid, tid, length, known.name, _CALLS[event["cat"]], known.cls),
            *(known.copy_kind, known.host_memory),
            _integer(event, "correlation", _NS_LIMIT),
        )
        self._calls.append(row)
        return "imported", "cuda_api"

    def _activity(self, event: dict[str, Any], phase: str) -> tuple[str, str]:
        if phase != "X":
            return "left_out", "activity without a length"
        start, length = to_ns(event.get("ts")), _length(event)
        cls = _ACTIVITIES[event["cat"]]
        name = _name(event)
        kind, host = _copy(name) if cls == "copy" else (None, None)
        # Kineto's process and thread of an activity are its device and stream.
        device = _integer(event, "device", _INT32)
        stream = _integer(event, "stream", _NS_LIMIT)
        row = (
            *(start, length, cls, name, kind, host, stream, device),
            _integer(event, "bytes", _SIZE_LIMIT),
            _integer(event, "correlation", _NS_LIMIT),
        )
        self._activities.append(row)
        return "imported", "gpu_activity"

    def _sync(self, event: dict[str, Any], phase: str) -> tuple[str, str]:
        del phase
        correlation = _integer(event, "correlation", _NS_LIMIT)
        if correlation is None:
            return "left_out", "tells of no call"
        self._hints.append((correlation, _integer(event, "stream", _INT32)))
        return "folded", "cuda_api: stream"

    def _other(self, event: dict[str, Any], phase: str, category: str) -> tuple[str, str]:
        if phase == "M":
            return self._metadata(event)
        if category in _FLOWS:
            return "folded", "correlation_id"
        if category in _LEFT_OUT:
            return "left_out", _LEFT_OUT[category]
        if phase in _FLOW_PHASES:
            return "left_out", "arrow between events"
        if phase in ("i", "I"):
            return "left_out", "moment of the profiler itself"
        return "left_out", "category or phase not known"

    def _metadata(self, event: dict[str, Any]) -> tuple[str, str]:
        args = event.get("args")
        name = args.get("name") if isinstance(args, dict) else None
        pid, tid = event.get("pid"), event.get("tid")
        if event.get("name") != "thread_name" or not isinstance(name, str):
            return "left_out", "how to show it"
        if type(pid) is not int or type(tid) is not int:
            return "left_out", "how to show it"
        if len(self._thread_names) >= _MAX_NAMES:
            return "left_out", "name of one thread too many"
        named = _THREAD_NAME.fullmatch(name)
        # "thread 1262 (pt_autograd_0)"; the last one told is the most precise.
        self._thread_names[pid, tid] = named[1] if named else name
        return "folded", "threads: name"

    def _thread(self, event: dict[str, Any]) -> tuple[int, int]:
        pid, tid = event.get("pid"), event.get("tid")
        if type(pid) is not int or not 0 <= pid < _INT32:
            raise _BadEventError("pid is no process id", pid)
        if type(tid) is not int or not -_INT32 <= tid < 1 << 63:
            raise _BadEventError("tid is no thread id", tid)
        if tid >= _INT32:
            # A pthread_t; its lower half tells threads apart as well.
            tid = (tid & 0xFFFFFFFF) - ((tid & _INT32) << 1)
        thread = (pid, tid)
        if thread not in self._threads:
            if len(self._threads) >= 1 << 20:
                raise _BadEventError("more than 2^20 threads")
            self._threads.add(thread)
        return thread

    def describe(self, path: Path) -> Described:
        """Tell what is beside the events."""
        facts = self._events.facts
        base = facts.get("baseTimeNanoseconds", 0)
        if type(base) is not int or not -_NS_LIMIT < base < _NS_LIMIT:
            raise broken(path, "baseTimeNanoseconds", f"{shown(base)} is no time in ns")
        for edge in (self._staging.first_ns, self._staging.last_ns):
            if edge is not None and not -_NS_LIMIT < edge + base < _NS_LIMIT:
                raise broken(path, "baseTimeNanoseconds", f"{base} puts times out of range")
        properties = facts.get("deviceProperties")
        devices = properties if isinstance(properties, list) else []
        gpus = [
            {"index": gpu.get("id"), "name": gpu.get("name")}
            for gpu in devices
            if isinstance(gpu, dict) and isinstance(gpu.get("name"), str)
        ]
        return Described(
            clock=Clock(
                domain="CLOCK_REALTIME: ns of the Unix epoch",
                source="ts and dur, microseconds"
                + (f", and baseTimeNanoseconds {base}" if base else ""),
                realtime_offset_ns=0,
                shift_ns=base,
            ),
            by_pid=False,
            tool={
                "name": "PyTorch profiler (Kineto)",
                "schema": _plain(facts.get("schemaVersion")),
            },
            host={"gpu": {"devices": gpus}},
            absent={"sched": "a PyTorch trace has no scheduler events"},
            thread_names={t: self._thread_names.get(t) for t in self._threads},
            detail={"gpu": {"pid": "of the call with the same correlation id"}},
        )


def _phase_of(event: object) -> tuple[str, str]:
    if not isinstance(event, dict):
        raise _BadEventError("not an object", event)
    phase = event.get("ph")
    if not isinstance(phase, str):
        raise _BadEventError("ph is no text", phase)
    category = event.get("cat", "-")
    if not isinstance(category, str):
        raise _BadEventError("cat is no text", category)
    return phase[:_MAX_KIND_CHARS], category[:_MAX_KIND_CHARS]


def _length(event: dict[str, Any]) -> int | None:
    """Length, ns; None: the event has none, so it never ended."""
    if "dur" not in event:
        return None
    length = to_ns(event["dur"])
    if length < 0:
        raise _BadEventError("negative dur", event["dur"])
    return length


def _name(event: dict[str, Any]) -> str:
    name = event.get("name")
    if not isinstance(name, str):
        raise _BadEventError("name is no text", name)
    return str(name)


def _integer(event: dict[str, Any], key: str, limit: int) -> int | None:
    """A whole number among the arguments, 0 or more; None: not told, or -1 for none."""
    args = event.get("args")
    if args is None:
        return None
    if not isinstance(args, dict):
        raise _BadEventError("args is no object", args)
    value = args.get(key)
    if value is None or value == -1:
        return None
    if type(value) is not int or not 0 <= value < limit:
        raise _BadEventError(f"{key} is no whole number in range", value)
    return value


def _copy(name: str) -> tuple[str, str | None]:
    """Copy kind and host memory, told by the name of a copy."""
    match = _COPY_NAME.search(name)
    if match is None:
        return "unknown", "unknown"
    sides = _SIDES.get(match[1], "?") + _SIDES.get(match[2], "?")
    kind = _COPY_KINDS.get(sides, "unknown")
    if kind in ("d2d", "p2p"):
        return kind, None
    memory = match[4] if kind == "d2h" else match[3]
    return kind, _MEMORY.get((memory or "").lower(), "unknown")


def _plain(value: object) -> str | int | None:
    return value if isinstance(value, str | int) else None
