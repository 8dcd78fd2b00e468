"""Processes and threads of an imported run: whoever is named, or has events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cctrace.importers.staging import Columns, ints

if TYPE_CHECKING:
    from cctrace.importers.staging import Staging

_TABLES: Final = ("cuda_api", "nvtx", "sched")
_INT32: Final = 1 << 32


def stage_threads(
    staging: Staging, names: dict[tuple[int, int], str | None], pids: set[int]
) -> None:
    """Stage the tables ``processes`` and ``threads``.

    No format tells when a process or thread began; what is known is that it was there
    at the first event.

    Args:
        staging: All events of the file, staged.
        names: Names of threads by (pid, tid); None: not known.
        pids: Processes the file names.
    """
    threads = dict(names)
    for table in _TABLES:
        data = Columns(staging, table)
        both = ints(data, "pid").astype(np.int64) * _INT32
        both += ints(data, "tid").astype(np.int64) + (_INT32 >> 1)
        for packed in np.unique(both).tolist():
            threads.setdefault((packed // _INT32, packed % _INT32 - (_INT32 >> 1)), None)
    at = staging.first_ns or 0
    processes = sorted(pids | {pid for pid, _ in threads})
    known = sorted(threads)
    columns: dict[str, Any] = _moments(len(processes), at)
    columns |= {"start_ns": columns["ts_ns"], "pid": processes, "tid": processes}
    staging.add("processes", len(processes), columns)
    columns = _moments(len(known), at)
    columns |= {"pid": [pid for pid, _ in known], "tid": [tid for _, tid in known]}
    staging.add("threads", len(known), columns | {"name": [threads[thread] for thread in known]})


def _moments(count: int, at: int) -> dict[str, Any]:
    return {"ts_ns": np.full(count, at, np.int64)}
