"""Calls and the GPU activities they started, joined by CUPTI's correlation ids.

A call learns its stream, and a copy its size, direction and host memory, from the
activities; an activity learns its process and thread from the call. All of it works
on whole columns: some 60 bytes for a call or an activity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.importers.nesting import depths
from cctrace.importers.staging import HINTS, Columns, codes, ints, nulls

if TYPE_CHECKING:
    from cctrace.importers.staging import Staging

_Array = npt.NDArray[Any]
_Mask = npt.NDArray[np.bool_]
_NO_PID: Final = -(2**31)
_UNKNOWN: Final = "unknown"
_KINDS: Final = ("h2d", "d2h", "d2d", "p2p", "h2h", _UNKNOWN)
_MEMORIES: Final = ("pinned", "pageable", "registered", "managed", _UNKNOWN)
# Copies that have a side in host memory, or may have.
_WITH_HOST: Final = ("h2d", "d2h", "h2h", _UNKNOWN)


@dataclass(frozen=True)
class Column:
    """Values of a column, and which of them are NULL.

    Attributes:
        values: By row; of text its place in ``texts``.
        null: Which rows are NULL, whatever the value.
        texts: Texts that occur; none where the column is no text.
    """

    values: _Array
    null: _Mask
    texts: tuple[str, ...] = ()

    def arrow(self, rows: slice, kind: pa.DataType) -> pa.Array:
        """Some rows of it as Arrow."""
        if not self.texts:
            return pa.array(self.values[rows], kind, mask=self.null[rows])
        numbers = pa.array(self.values[rows].astype(np.int32), mask=self.null[rows])
        return pa.DictionaryArray.from_arrays(numbers, pa.array(self.texts)).cast(kind)


@dataclass(frozen=True)
class Joined:
    """What the join adds, by table and column, for all rows in staged order.

    Attributes:
        calls: Columns of ``cuda_api``.
        activities: Columns of ``gpu_activity``.
        shared_ids: Calls that share their correlation id with another call.
        unmatched: Activities whose call is not in the file.
    """

    calls: dict[str, Column]
    activities: dict[str, Column]
    shared_ids: int
    unmatched: int


def join(staging: Staging, *, by_pid: bool) -> Joined:
    """Join the staged calls and activities.

    Args:
        staging: All batches of the file.
        by_pid: Correlation ids are of a process; where not, of the whole file, and
            activities do not tell their process.

    Returns:
        The columns to fill in. What several activities of a call do not agree on is
        NULL (``unknown`` for the kind of a copy and its host memory).
    """
    calls = _Calls(staging)
    activities = _Activities(staging)
    hints = _Table(staging, HINTS, no_pid=_NO_PID)
    keys = _keys([calls.ids, activities.ids, hints.ids], by_pid=by_pid)
    call_keys, activity_keys, hint_keys = keys
    call_of, shared = _outermost_call(calls, call_keys, activity_keys)
    return Joined(
        calls=_of_calls(calls, activities, call_keys, activity_keys, (hints.data, hint_keys)),
        activities=_of_activities(calls, activities, call_of, by_pid=by_pid),
        shared_ids=shared,
        unmatched=int(np.count_nonzero(call_of < 0)),
    )


class _Table:
    """One side of the join: its keys in memory, its other columns on demand."""

    def __init__(self, staging: Staging, table: str, *, no_pid: int = 0) -> None:
        self.data = Columns(staging, table)
        self.pid = ints(self.data, "pid", no_pid)
        self.correlation = ints(self.data, "correlation_id")
        self.no_correlation = nulls(self.data, "correlation_id")

    @property
    def ids(self) -> tuple[_Array, _Array, _Mask]:
        """What its keys are made of."""
        return self.pid, self.correlation, self.no_correlation


class _Classed(_Table):
    def __init__(self, staging: Staging, table: str, *, no_pid: int = 0) -> None:
        super().__init__(staging, table, no_pid=no_pid)
        self._cls, self._classes = codes(self.data, "class")

    def is_class(self, name: str) -> _Mask:
        """Which rows are of that class."""
        if name not in self._classes:
            return np.zeros(len(self._cls), np.bool_)
        return np.asarray(self._cls == self._classes.index(name))


class _Calls(_Classed):
    def __init__(self, staging: Staging) -> None:
        super().__init__(staging, "cuda_api")
        self.tid = ints(self.data, "tid")
        self.ts_ns = ints(self.data, "ts_ns")
        thread = thread_codes(self.pid, self.tid)
        self.depth = depths(thread, self.ts_ns, ints(self.data, "dur_ns", -1))


class _Activities(_Classed):
    def __init__(self, staging: Staging) -> None:
        super().__init__(staging, "gpu_activity", no_pid=_NO_PID)


def thread_codes(pid: _Array, tid: _Array) -> npt.NDArray[np.int32]:
    """Number threads of the run, so that equal (pid, tid) have equal numbers."""
    key = (pid.astype(np.int64) << 32) | (tid.astype(np.int64) & 0xFFFFFFFF)
    return np.asarray(np.unique(key, return_inverse=True)[1], np.int32)


def _keys(tables: list[tuple[_Array, _Array, _Mask]], *, by_pid: bool) -> list[_Array]:
    """A number for each (process, correlation id) that occurs; -1 where there is no id."""
    correlation = np.concatenate([table[1] for table in tables])
    number = np.unique(correlation, return_inverse=True)[1].astype(np.int64)
    if by_pid:
        pid = np.concatenate([table[0] for table in tables])
        pids, which = np.unique(pid, return_inverse=True)
        number = number * max(len(pids), 1) + which
    number[np.concatenate([table[2] for table in tables])] = -1
    return np.split(number, np.cumsum([len(table[0]) for table in tables])[:-1])


def _outermost_call(calls: _Calls, call_keys: _Array, wanted: _Array) -> tuple[_Array, int]:
    """Row of the call that each wanted key belongs to, -1 for none; calls that share keys.

    Of several calls with one key it is the outermost, then the first.
    """
    rows = np.flatnonzero(call_keys >= 0)
    order = rows[np.lexsort((calls.ts_ns[rows], calls.depth[rows], call_keys[rows]))]
    ordered = call_keys[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    unique, first = ordered[is_first], order[is_first]
    found = np.full(len(wanted), -1, np.int64)
    if len(unique):
        at = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
        hit = (unique[at] == wanted) & (wanted >= 0)
        found[hit] = first[at[hit]]
    shared = np.flatnonzero(~is_first)
    return found, len(np.union1d(shared, shared - 1))


class _PerKey:
    """Least and greatest value of each key, and their sum."""

    def __init__(self, keys: _Array, values: _Array) -> None:
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        self.keys = self.least = self.greatest = self.sum = keys
        self.fits = np.zeros(0, np.bool_)
        if not len(keys):
            return
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        self.keys = keys[starts]
        self.least = np.minimum.reduceat(values, starts)
        self.greatest = np.maximum.reduceat(values, starts)
        self.sum = np.add.reduceat(values, starts)
        # Sizes are below 2^62 each; their sum may still not fit.
        self.fits = np.abs(np.add.reduceat(values.astype(np.float64), starts)) < float(2**62)

    def at(self, keys: _Array) -> tuple[_Array, _Mask]:
        """Index of each of ``keys``, and whether it is there."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, (self.keys[at] == keys) & (keys >= 0)

    def agreed(self, keys: _Array) -> tuple[_Array, _Mask, _Mask]:
        """The value of each of ``keys``, whether there is one, and whether only one."""
        at, there = self.at(keys)
        if not len(self.keys):
            return np.zeros(len(keys), np.int64), there, there
        return self.least[at], there, there & (self.least[at] == self.greatest[at])


def _of_calls(
    calls: _Calls,
    activities: _Activities,
    call_keys: _Array,
    activity_keys: _Array,
    hinted: tuple[Columns, _Array],
) -> dict[str, Column]:
    hints, hint_keys = hinted
    count = len(call_keys)
    columns = {"depth": Column(calls.depth, np.zeros(count, np.bool_))}
    # A stream: from the activities, else from what a synchronisation waited for.
    stream = _existing(calls.data, "stream")
    for data, keys in ((activities.data, activity_keys), (hints, hint_keys)):
        _fill(stream, call_keys, data, keys, "stream")
    columns["stream"] = stream
    event = _existing(calls.data, "event")
    _fill(event, call_keys, hints, hint_keys, "event")
    columns["event"] = event
    columns["size_bytes"] = _sizes(calls, activities, call_keys, activity_keys)
    columns |= _copies(calls, activities, call_keys, activity_keys)
    return columns


def _existing(data: Columns, name: str) -> Column:
    return Column(ints(data, name).copy(), nulls(data, name).copy())


def _fill(column: Column, call_keys: _Array, data: Columns, keys: _Array, name: str) -> None:
    told = (keys >= 0) & ~nulls(data, name)
    value, _, agreed = _PerKey(keys[told], ints(data, name)[told]).agreed(call_keys)
    fill = column.null & agreed
    column.values[fill] = value[fill]
    column.null[fill] = False


def _sizes(
    calls: _Calls, activities: _Activities, call_keys: _Array, activity_keys: _Array
) -> Column:
    size = _existing(calls.data, "size_bytes")
    moved = ints(activities.data, "size_bytes", -1)
    for cls in ("copy", "memset"):
        rows = activities.is_class(cls) & (activity_keys >= 0)
        per_key = _PerKey(activity_keys[rows], moved[rows])
        at, there = per_key.at(call_keys)
        if not len(per_key.keys):
            continue
        fill = size.null & there & calls.is_class(cls)
        fill &= (per_key.least[at] >= 0) & per_key.fits[at]
        size.values[fill] = per_key.sum[at][fill]
        size.null[fill] = False
    return size


def _copies(
    calls: _Calls, activities: _Activities, call_keys: _Array, activity_keys: _Array
) -> dict[str, Column]:
    is_copy = calls.is_class("copy")
    rows = activities.is_class("copy") & (activity_keys >= 0)
    found = {}
    for name, texts in (("copy_kind", _KINDS), ("host_memory", _MEMORIES)):
        column = _places(calls.data, name, texts)
        # What an activity between devices has as NULL: -1.
        theirs = _places(activities.data, name, texts).values[rows].astype(np.int64)
        value, there, agreed = _PerKey(activity_keys[rows], theirs).agreed(call_keys)
        fill = is_copy & column.null & there
        column.values[fill] = np.where(agreed, value, texts.index(_UNKNOWN))[fill]
        column.null[fill] = column.values[fill] < 0
        found[name] = column
    kind, host = found["copy_kind"], found["host_memory"]
    # A copy has a kind always, and one to or from the host has host memory.
    kind.values[is_copy & kind.null] = _KINDS.index(_UNKNOWN)
    kind.null[is_copy] = False
    with_host = [_KINDS.index(name) for name in _WITH_HOST]
    may_have_host = is_copy & np.isin(kind.values, with_host)
    host.values[may_have_host & host.null] = _MEMORIES.index(_UNKNOWN)
    host.null[may_have_host] = False
    host.null[is_copy & ~may_have_host] = True
    return found


def _places(data: Columns, name: str, texts: tuple[str, ...]) -> Column:
    """A column of text as places in ``texts``, which has all there are; -1: NULL."""
    numbers, own = codes(data, name)
    place = np.array([*(texts.index(text) for text in own), -1], np.int8)[numbers]
    return Column(place, place < 0, texts)


def _of_activities(
    calls: _Calls, activities: _Activities, call_of: _Array, *, by_pid: bool
) -> dict[str, Column]:
    hit = call_of >= 0
    tid = _existing(activities.data, "tid")
    pid = _existing(activities.data, "pid")
    for column, of_calls in ((tid, calls.tid), (pid, calls.pid)):
        fill = hit & column.null
        column.values[fill] = of_calls[call_of[fill]]
        column.null[fill] = False
    pids = np.unique(calls.pid)
    if not by_pid and len(pids) == 1:
        # The trace is of one process, so an activity without its call is that process's too.
        pid.values[pid.null] = pids[0]
        pid.null[:] = False
    return {"pid": pid, "tid": tid}
