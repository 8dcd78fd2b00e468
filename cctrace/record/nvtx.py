"""Records of the agent's rings to rows of the table ``nvtx``, in bulk.

A push/pop range is one record and becomes one row. A start/end range is two
records, perhaps from two threads' rings: they are joined here by range id, and a
start waits for its end as long as its process lives. All work is on whole columns;
Python's cost is per chunk and per distinct name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record import layout
from cctrace.record.dictionary import ProcessKeys, RunKeys
from cctrace.record.losses import NVTX, LossLedger
from cctrace.record.segment import Chunk, OpenFrames, Records
from cctrace.schema import TABLES

_OPEN: Final = -1  # dur_ns of a range still open, inside this module only
_NO_TID: Final = -1

_KINDS: Final = pa.array(["push_pop", "mark", "start_end"])
_KIND_CODE: Final = np.array([0, 0, 1, 2, 2], np.int32)  # record kind -> index into _KINDS

# A start that waits while this many younger ones do is given up as open.
_MAX_WAITING: Final = 1 << 20
# An end whose start has not come after this many flushes has none.
_END_PATIENCE_FLUSHES: Final = 3
# The clock of another core may be a little ahead.
_CLOCK_SLACK_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Rows:
    """Columns of some rows, all of one length.

    Attributes:
        ts_ns: Start.
        dur_ns: Length; -1: still open.
        key: Run-wide key.
        pid: Process id.
        tid: Thread id.
        depth: Nesting depth.
        kind: Record kind.
        payload: The payload's bits; None: no row has one.
        payload_type: ``layout.PAYLOAD_*``; None with ``payload``.
        end_tid: Thread that ended a start/end range, -1: none; None: no row has one.
    """

    ts_ns: npt.NDArray[np.int64]
    dur_ns: npt.NDArray[np.int64]
    key: npt.NDArray[np.int32]
    pid: npt.NDArray[np.int32]
    tid: npt.NDArray[np.int32]
    depth: npt.NDArray[np.uint16]
    kind: npt.NDArray[np.uint8]
    payload: npt.NDArray[np.uint64] | None = None
    payload_type: npt.NDArray[np.uint8] | None = None
    end_tid: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.ts_ns)


@dataclass(frozen=True)
class _Events:
    """Columns of records, all of one length; names and types as ``layout.RECORD``."""

    ts_ns: npt.NDArray[np.uint64]
    value: npt.NDArray[np.uint64]
    payload: npt.NDArray[np.uint64]
    key: npt.NDArray[np.uint32]
    depth: npt.NDArray[np.uint16]
    kind: npt.NDArray[np.uint8]
    payload_type: npt.NDArray[np.uint8]
    tid: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ts_ns)

    @classmethod
    def of(cls, records: Sequence[Records], tids: Sequence[int]) -> _Events:
        """Take the records apart; ``tids`` has the thread of each array."""
        columns = {n: np.concatenate([r[n] for r in records]) for n in _RECORD_FIELDS}
        lengths = [len(r) for r in records]
        return cls(**columns, tid=np.repeat(np.array(tids, np.int32), lengths))

    def pick(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> _Events:
        """Those events that a mask or an index array names."""
        return _Events(*(getattr(self, f.name)[which] for f in fields(self)))

    def followed_by(self, other: _Events) -> _Events:
        """These events and then the others."""
        if not len(self):
            return other
        both = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return _Events(*(np.concatenate(pair) for pair in both))


_RECORD_FIELDS: Final = tuple(f.name for f in fields(_Events) if f.name != "tid")
_NO_EVENTS: Final = _Events.of([np.zeros(0, layout.RECORD)], [0])


@dataclass
class NvtxProcess:
    """What decoding has to remember of one process image.

    Attributes:
        pid: Its process id.
        keys: Its dictionary.
        earliest_ns: No honest event of it is older, ns.
    """

    pid: int
    keys: ProcessKeys
    earliest_ns: int
    _starts: _Events = _NO_EVENTS
    _ends: list[tuple[int, _Events]] = field(default_factory=list)  # with flushes waited

    def rows(self, chunks: list[Chunk], now_ns: int, ledger: LossLedger) -> list[Rows]:
        """Decode chunks; ranges whose end is not there yet are kept back.

        Args:
            chunks: Records in the order they were written, thread by thread.
            now_ns: No honest event is younger, ns.
            ledger: Takes what is dropped, and why.

        Returns:
            Rows in the order of the records, ended start/end ranges after them.
        """
        if not chunks and not self._ends:
            return []
        events = _NO_EVENTS
        if chunks:
            events = _Events.of([chunk.records for chunk in chunks], [c.tid for c in chunks])
            events = self._plausible(events, now_ns, ledger)
        paired = events.kind >= layout.REC_START
        if not paired.any() and not self._ends:
            return [self._to_rows(events, ledger)] if len(events) else []
        done = [self._to_rows(events.pick(~paired), ledger)]
        begun = events.pick(events.kind == layout.REC_START)
        self._starts = self._starts.followed_by(begun)
        self._ends = [(age + 1, ends) for age, ends in self._ends]
        self._ends.append((0, events.pick(events.kind == layout.REC_END)))
        done += self._join(ledger)
        return [rows for rows in done if len(rows)]

    def open_rows(
        self, open_frames: list[OpenFrames], now_ns: int, ledger: LossLedger
    ) -> list[Rows]:
        """Make open rows of what threads left on their stacks."""
        made: list[Rows] = []
        for left in open_frames:
            frames = left.frames
            records = np.zeros(len(frames), layout.RECORD)
            for name in ("ts_ns", "payload", "key", "depth", "payload_type"):
                records[name] = frames[name]
            records["kind"] = layout.REC_PUSH_POP
            events = self._plausible(_Events.of([records], [left.tid]), now_ns, ledger)
            if len(events):
                made.append(self._to_rows(events, ledger, is_open=True))
        return made

    def finish(self, ledger: LossLedger) -> list[Rows]:
        """Give out every start that still waits, as an open range; the process is over."""
        left, self._starts = self._starts, _NO_EVENTS
        orphans = sum(len(ends) for _, ends in self._ends)
        self._ends = []
        ledger.add(NVTX, "orphan_end", orphans, pid=self.pid)
        return [self._to_rows(left, ledger, is_open=True)] if len(left) else []

    def _plausible(self, events: _Events, now_ns: int, ledger: LossLedger) -> _Events:
        limit = now_ns + _CLOCK_SLACK_NS
        # One unsigned comparison tests both ends: what is too early wraps, as
        # does a kind of 0.
        before_limit = np.uint64(limit) - events.ts_ns
        good = before_limit <= np.uint64(limit - self.earliest_ns)
        good &= events.kind - np.uint8(1) < np.uint8(layout.REC_END)
        good &= events.payload_type <= np.uint8(layout.PAYLOAD_F32)
        too_long = events.value > before_limit
        if too_long.any():
            # A range id may be anything; a duration may not.
            good &= ~too_long | (events.kind >= layout.REC_START)
        if good.all():
            return events
        tids, counts = np.unique(events.tid[~good], return_counts=True)
        for tid, count in zip(tids.tolist(), counts.tolist(), strict=True):
            ledger.add(NVTX, "bad_record", count, pid=self.pid, tid=tid)
        return events.pick(good)

    def _to_rows(self, events: _Events, ledger: LossLedger, *, is_open: bool = False) -> Rows:
        keys, unknown = self.keys.run_keys(events.key)
        ledger.add(NVTX, "unknown_key", unknown, pid=self.pid)
        has_payload = bool(events.payload_type.any())
        # Marks have the value 0, which is their duration.
        dur = events.value.view(np.int64)
        return Rows(
            ts_ns=events.ts_ns.view(np.int64),
            dur_ns=np.full(len(events), _OPEN, np.int64) if is_open else dur,
            key=keys,
            pid=np.full(len(events), self.pid, np.int32),
            tid=events.tid,
            depth=events.depth,
            kind=events.kind,
            payload=events.payload if has_payload else None,
            payload_type=events.payload_type if has_payload else None,
        )

    def _join(self, ledger: LossLedger) -> list[Rows]:
        starts, ends = self._starts, _NO_EVENTS
        for _, waiting_ends in self._ends:
            ends = ends.followed_by(waiting_ends)
        of_start, of_end = _same_ids(starts.value, ends.value)
        rows = self._to_rows(starts.pick(of_start), ledger)
        dur = ends.ts_ns[of_end].view(np.int64) - rows.ts_ns
        done = [replace(rows, dur_ns=np.maximum(dur, 0), end_tid=ends.tid[of_end])]
        waiting = np.ones(len(starts), bool)
        waiting[of_start] = False
        surplus = int(np.count_nonzero(waiting)) - _MAX_WAITING
        if surplus > 0:
            oldest = np.flatnonzero(waiting)[:surplus]
            done.append(self._to_rows(starts.pick(oldest), ledger, is_open=True))
            waiting[oldest] = False
        self._starts = starts.pick(waiting)
        self._forget_ends(of_end, ledger)
        return done

    def _forget_ends(self, matched: npt.NDArray[np.intp], ledger: LossLedger) -> None:
        kept = []
        base = 0
        for age, ends in self._ends:
            left = np.ones(len(ends), bool)
            left[matched[(matched >= base) & (matched < base + len(ends))] - base] = False
            base += len(ends)
            if age >= _END_PATIENCE_FLUSHES:
                ledger.add(NVTX, "orphan_end", int(np.count_nonzero(left)), pid=self.pid)
            elif left.any():
                kept.append((age, ends.pick(left)))
        self._ends = kept


def _same_ids(
    starts: npt.NDArray[np.uint64], ends: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pair each id's first start with its first end; returns their indices."""
    nothing = np.zeros(0, np.intp)
    if not len(starts) or not len(ends):
        return nothing, nothing
    # Ids come nearly in order, which the stable sort makes use of.
    order = np.argsort(starts, kind="stable")
    ids = starts[order]
    at = np.minimum(np.searchsorted(ids, ends), len(ids) - 1)
    of_end = np.flatnonzero(ids[at] == ends)
    of_start = order[at[of_end]]
    first = np.empty(len(starts), np.intp)
    first[of_start[::-1]] = of_end[::-1]
    is_first = first[of_start] == of_end
    return of_start[is_first], of_end[is_first]


def to_table(parts: list[Rows], keys: RunKeys) -> pa.Table:
    """Turn rows into the table ``nvtx``.

    Args:
        parts: Rows as ``NvtxProcess`` gives them.
        keys: The run's keys, which the rows' ``key`` indexes.

    Returns:
        Rows by ``TABLES["nvtx"]``, in the order given: per thread by end of range.
    """
    names = keys.columns(_column(parts, "key").astype(np.int32, copy=False))
    payload, payload_double = _payloads(parts)
    dur = _column(parts, "dur_ns")
    kind = pa.DictionaryArray.from_arrays(pa.array(_KIND_CODE[_column(parts, "kind")]), _KINDS)
    columns = {
        "ts_ns": pa.array(_column(parts, "ts_ns")),
        "pid": pa.array(_column(parts, "pid")),
        "tid": pa.array(_column(parts, "tid")),
        "dur_ns": _nullable(dur, dur == _OPEN),
        "kind": kind,
        "domain": names.domain,
        "name": names.name,
        "category": names.category,
        "payload": payload,
        "payload_double": payload_double,
        "depth": pa.array(_column(parts, "depth").astype(np.int32)),
        "color": names.color,
        "end_tid": _end_tids(parts),
    }
    schema = TABLES["nvtx"].arrow
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _column(parts: list[Rows], name: str) -> npt.NDArray[np.generic]:
    if len(parts) == 1:
        column: npt.NDArray[np.generic] = getattr(parts[0], name)
        return column
    return np.concatenate([getattr(part, name) for part in parts])


def _optional(parts: list[Rows], name: str, missing: int, kind: type) -> npt.NDArray[np.generic]:
    columns = [getattr(part, name) for part in parts]
    return np.concatenate(
        [
            np.full(len(part), missing, kind) if column is None else column
            for part, column in zip(parts, columns, strict=True)
        ]
    )


def _nullable(values: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array(values, pa.from_numpy_dtype(values.dtype), mask=mask if mask.any() else None)


def _end_tids(parts: list[Rows]) -> pa.Array:
    if all(part.end_tid is None for part in parts):
        return pa.nulls(sum(map(len, parts)), pa.int32())
    end_tid = _optional(parts, "end_tid", _NO_TID, np.int32)
    return _nullable(end_tid, end_tid == _NO_TID)


def _payloads(parts: list[Rows]) -> tuple[pa.Array, pa.Array]:
    """Split the union into the integer and the floating column, one of them NULL."""
    if all(part.payload is None for part in parts):
        rows = sum(map(len, parts))
        return pa.nulls(rows, pa.int64()), pa.nulls(rows, pa.float64())
    types = _optional(parts, "payload_type", layout.PAYLOAD_NONE, np.uint8)
    bits = _optional(parts, "payload", 0, np.uint64)
    whole = bits.view(np.int64).copy()
    low = bits.astype(np.uint32)  # keeps the low half
    is_u32 = types == layout.PAYLOAD_U32
    is_i32 = types == layout.PAYLOAD_I32
    whole[is_u32] = low[is_u32]
    whole[is_i32] = low.view(np.int32)[is_i32]
    too_big = (types == layout.PAYLOAD_U64) & (bits > np.uint64(2**63 - 1))
    is_f64 = types == layout.PAYLOAD_F64
    is_f32 = types == layout.PAYLOAD_F32
    is_double = is_f64 | is_f32 | too_big
    double = np.zeros(len(types))
    double[is_f64] = bits.view(np.float64)[is_f64]
    with np.errstate(invalid="ignore"):  # a signalling NaN turns quiet
        double[is_f32] = low.view(np.float32)[is_f32]
    double[too_big] = bits[too_big]
    return (
        _nullable(whole, is_double | (types == layout.PAYLOAD_NONE)),
        _nullable(double, ~is_double),
    )
