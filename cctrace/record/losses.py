"""The ledger of what was lost, and why: every drop ends up in the table ``losses``."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from cctrace.schema import TABLES
from cctrace.store.losses import REASONS

NVTX: Final = "nvtx"
RECORDER: Final = "recorder"

# Reasons after which the event itself is still in the run, only poorer, or
# that count something other than events.
NOT_EVENTS: Final = frozenset(name for name, reason in REASONS.items() if not reason.loses_event)

# The target says which threads and how many; neither may grow without end.
_MAX_ENTRIES: Final = 1 << 14
_MAX_COUNT: Final = (1 << 63) - 1  # BIGINT


@dataclass
class _Entry:
    count: int
    first_ns: int | None
    last_ns: int | None


class LossLedger:
    """Losses by (pid, tid, source, reason); any thread may add."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int | None, int | None, str, str], _Entry] = {}
        self._lock = threading.Lock()

    def add(
        self,
        source: str,
        reason: str,
        count: int,
        *,
        pid: int | None = None,
        tid: int | None = None,
        first_ns: int | None = None,
        last_ns: int | None = None,
    ) -> None:
        """Count ``count`` losses; times are ns of CLOCK_MONOTONIC, None: unknown.

        Beyond some thousands of rows, further threads' losses are counted without
        their pid and tid.
        """
        if count <= 0:
            return
        with self._lock:
            key = (pid, tid, source, reason)
            if key not in self._entries and len(self._entries) >= _MAX_ENTRIES:
                key = (None, None, source, reason)
            entry = self._entries.get(key)
            if entry is None:
                self._entries[key] = _Entry(min(count, _MAX_COUNT), first_ns, last_ns)
                return
            entry.count = min(entry.count + count, _MAX_COUNT)
            if first_ns is not None:
                entry.first_ns = min(first_ns, entry.first_ns or first_ns)
            if last_ns is not None:
                entry.last_ns = max(last_ns, entry.last_ns or last_ns)

    def lost_events(self) -> int:
        """Events that are not in the run at all."""
        with self._lock:
            return sum(e.count for k, e in self._entries.items() if k[3] not in NOT_EVENTS)

    def by_reason(self) -> dict[str, int]:
        """Counts by reason, all reasons."""
        with self._lock:
            totals: dict[str, int] = {}
            for (_, _, _, reason), entry in self._entries.items():
                totals[reason] = totals.get(reason, 0) + entry.count
            return totals

    def table(self) -> pa.Table:
        """The table ``losses``, by pid, tid, source and reason, unknown ones first."""
        with self._lock:
            rows = [
                {
                    "pid": pid,
                    "tid": tid,
                    "source": source,
                    "reason": reason,
                    "count": entry.count,
                    "first_ns": entry.first_ns,
                    "last_ns": entry.last_ns,
                }
                for (pid, tid, source, reason), entry in sorted(
                    self._entries.items(), key=lambda item: _order(*item[0])
                )
            ]
        return pa.Table.from_pylist(rows, schema=TABLES["losses"].arrow)


def _order(pid: int | None, tid: int | None, source: str, reason: str) -> tuple[int, int, str, str]:
    return (-1 if pid is None else pid, -1 if tid is None else tid, source, reason)
