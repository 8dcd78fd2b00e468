"""Starts and ends of threads and processes, as BPF saw them, for the process tree.

They are exact to the microsecond where /proc is to 10 ms, and have those that came
and went between two walks of /proc.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf import layout
from cctrace.record.tree import ProcessTree


def apply(tree: ProcessTree, chunks: Iterable[npt.NDArray[np.void]]) -> None:
    """Tell ``tree`` what happened.

    Args:
        tree: The tree.
        chunks: Records of dtype ``layout.LIFE_EVENT``, in order.
    """
    for chunk in chunks:
        for event in chunk:
            ts_ns, pid, tid = int(event["ts_ns"]), int(event["pid"]), int(event["tid"])
            what = int(event["what"])
            comm = bytes(event["comm"]).split(b"\0")[0].decode("utf-8", "replace")
            if what == layout.Life.PROCESS:
                tree.note_process(int(event["child_tid"]), pid, ts_ns, comm)
            elif what == layout.Life.THREAD:
                tree.note_thread_start(pid, int(event["child_tid"]), ts_ns, comm)
            elif what == layout.Life.EXIT:
                tree.note_thread_end(pid, tid, ts_ns, comm)


def execs(chunks: Iterable[npt.NDArray[np.void]]) -> list[tuple[int, int]]:
    """Process and time (ns of CLOCK_MONOTONIC) of each exec."""
    return [
        (int(event["pid"]), int(event["ts_ns"]))
        for chunk in chunks
        for event in chunk[chunk["what"] == layout.Life.EXEC]
    ]
