"""Scheduler events of an Nsight Systems file: out to in again is one off-CPU interval."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from cctrace.importers.nsys_common import Context, thread_of
from cctrace.importers.sqlite_file import TIME_LIMIT_NS, beyond

TABLE: Final = "SCHED_EVENTS"
_STATES: Final = "ENUM_SAMPLING_THREAD_STATE"
_COLUMNS: Final = {
    "start": "int",
    "isSchedIn": "int",
    "globalTid": "int?",
    "threadState": "int?",
}
# Words in the name of a state, the first that is found; as the kernel's own states.
_MEANINGS: Final = (
    ("uninterruptible", "io"),
    ("disk", "io"),
    ("interruptible", "blocked"),
    ("sleep", "blocked"),
    ("block", "blocked"),
    ("wait", "blocked"),
    ("running", "runnable"),
    ("runnable", "runnable"),
    ("preempt", "runnable"),
    ("ready", "runnable"),
)


def read(context: Context) -> None:
    """Stage the off-CPU intervals: from a thread's switch out to its next switch in."""
    if TABLE not in context.db.columns:
        return
    context.expect(TABLE)
    states = {key: _meaning(name) for key, name in context.db.pairs(_STATES, "id", "name").items()}
    waiting: tuple[int, int, int | None] | None = None  # thread, since when, state
    order = ("globalTid", "start")
    for batch in context.batches(TABLE, _COLUMNS, order_by=order):
        start = batch.values["start"]
        bad = beyond(start, TIME_LIMIT_NS)
        good = context.drop(TABLE, batch, bad, ["start"], "time out of range")
        good = context.with_thread(TABLE, good)
        intervals: list[tuple[int, int, int | None, str]] = []
        events = zip(
            good.values["globalTid"].tolist(),
            good.values["start"].tolist(),
            good.values["isSchedIn"].tolist(),
            good.optional("threadState"),
            strict=True,
        )
        for thread, at, is_in, state in events:
            if waiting is not None and waiting[0] != thread:
                intervals.append((waiting[0], waiting[1], None, _state(states, waiting[2])))
                waiting = None
            if not is_in and waiting is None:
                waiting = (thread, at, state)
            elif not is_in:
                context.accounting.left_out(TABLE, "switch out of a thread that was out")
            elif waiting is None:
                context.accounting.left_out(TABLE, "switch in of a thread that was not seen out")
            else:
                ended = (thread, waiting[1], at - waiting[1], _state(states, waiting[2]))
                intervals.append(ended)
                context.accounting.folded(TABLE, "sched: dur_ns")
                waiting = None
        _stage(context, intervals)
    if waiting is not None:
        _stage(context, [(waiting[0], waiting[1], None, _state(states, waiting[2]))])


def _meaning(name: object) -> str:
    text = str(name).lower()
    return next((state for word, state in _MEANINGS if word in text), "unknown")


def _state(states: dict[int, str], code: int | None) -> str:
    return "unknown" if code is None else states.get(code, "unknown")


def _stage(context: Context, intervals: list[tuple[int, int, int | None, str]]) -> None:
    if not intervals:
        return
    threads, starts, lengths, states = (list(column) for column in zip(*intervals, strict=True))
    pid, tid = thread_of(np.array(threads, np.int64))
    columns = {
        "ts_ns": np.array(starts, np.int64),
        "pid": pid,
        "tid": tid,
        "dur_ns": pa.array(lengths, pa.int64()),
        "state": states,
    }
    context.stage(TABLE, "sched", len(intervals), columns)
