"""Rows of CUDA calls for tests of the reports on mechanisms, and their answers.

Published figures, in ns, that the reports compare with (Tinfoil, 2026-06-23; arXiv
2606.23969 and 2608.26575), are written out here once more, by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cctrace

if TYPE_CHECKING:
    from pathlib import Path

    from query_rows import Row

    from cctrace.store.library import ParamValue

US = 1_000
MS = 1_000_000
KIB = 1024
MIB = 1024 * KIB

LAUNCH_OPEN, LAUNCH_CC = 7_400, 26_000
LAUNCH_BORDER = 13_870  # the square root of 7,400 * 26,000, rounded down
WAIT_OPEN, WAIT_CC = 14_000, 55_000

CLASSES = {
    "cudaMemcpyAsync": "copy",
    "cudaMemcpy": "copy",
    "cudaLaunchKernel": "launch",
    "cudaLaunchHostFunc": "launch",
    "cuLaunchKernel": "launch",
    "cudaGraphLaunch": "graph",
    "cudaStreamSynchronize": "sync",
    "cudaDeviceSynchronize": "sync",
    "cudaStreamQuery": "sync",
    "cudaMalloc": "alloc",
    "cudaHostAlloc": "alloc",
    "cudaFree": "free",
    "cudaEventRecord": "event",
    "cudaStreamWaitEvent": "event",
    "cudaMemsetAsync": "memset",
    "ncclAllReduce": "collective",
    "ncclGroupStart": "collective",
    "ncclGroupEnd": "collective",
    "ncclCommInitRank": "collective",
}
STREAMS = 7
WITHOUT_STREAM = {"cudaMemcpy", "cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaDeviceSynchronize"}


def call(ts_ns: int, dur_ns: int | None, api: str, **more: Any) -> Row:
    """One call of the program's own, on stream 7 if the function takes one."""
    return {
        "ts_ns": ts_ns,
        "dur_ns": dur_ns,
        "api": api,
        "layer": "driver" if api.startswith("cu") and not api.startswith("cuda") else "runtime",
        "class": CLASSES[api],
        "stream": None if api in WITHOUT_STREAM or api.startswith("nccl") else STREAMS,
        "result": None if dur_ns is None else 0,
        **more,
    }


def launch(ts_ns: int, dur_ns: int | None, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaLaunchKernel", **more)


def wait(ts_ns: int, dur_ns: int | None, **more: Any) -> Row:
    return call(ts_ns, dur_ns, "cudaStreamSynchronize", **more)


def copy(ts_ns: int, dur_ns: int | None, kind: str, size: int | None, **more: Any) -> Row:
    """An asynchronous copy, with pinned memory if no other is said."""
    more = {"api": "cudaMemcpyAsync", "host_memory": "pinned", **more}
    api = more.pop("api")
    return call(ts_ns, dur_ns, api, copy_kind=kind, size_bytes=size, **more)


def steps(count: int, period_ns: int, phase: str | None = None, **more: Any) -> list[Row]:
    """Ranges named ``step``, one behind the other; the last one has no period."""
    return [
        {
            "ts_ns": number * period_ns,
            "dur_ns": period_ns,
            "name": "step",
            "domain": "loop",
            "category": phase,
            **more,
        }
        for number in range(count)
    ]


def rows(
    path: Path | list[Path], report: str, params: dict[str, ParamValue] | None = None
) -> list[Row]:
    """Rows of a report, by column."""
    paths = path if isinstance(path, list) else [path]
    with cctrace.open(*paths) as session:
        result = session.report(report, params)
        return [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]


def first(path: Path, report: str, **params: ParamValue) -> Row:
    """The first row of a report, which has the answer as all others have."""
    found = rows(path, report, params)
    assert len({(row["answer"], row["evidence"]) for row in found}) == 1
    return found[0]


def answers(paths: list[Path], report: str) -> dict[str, str]:
    """The answer for each of several runs opened at once."""
    return {row["run"]: row["answer"] for row in rows(paths, report)}
