"""Small runs of a decode loop, and a made-up serialization point, for tests of the report."""

from __future__ import annotations

from pathlib import Path

from runs import Row

import cctrace
from cctrace.analyze.attribution import Attribution, Point, Remedy, ReplayFacts

MS = 1_000_000
STEP_NS = 10 * MS


def crossing_rows(steps: int) -> list[Row]:
    """A loop of 10 ms: three launches, and a readback that waits 6 ms for the device."""
    rows: list[Row] = []
    for step in range(steps):
        start = step * STEP_NS
        own: Row = {"layer": "runtime", "depth": 0, "stream": 7, "result": 0}
        rows += [
            {"ts_ns": start + MS * (1 + i), "dur_ns": 30_000, "api": "cudaLaunchKernel",
             "class": "launch", **own}
            for i in range(3)
        ]  # fmt: skip
        rows.append(
            {"ts_ns": start + 3_100_000, "dur_ns": 6 * MS, "api": "cudaMemcpyAsync",
             "class": "copy", "copy_kind": "d2h", "size_bytes": 32, "host_memory": "pinned", **own}
        )  # fmt: skip
    return rows


def step_rows(steps: int, name: str = "step") -> list[Row]:
    """Ranges of 9.9 ms, 10 ms apart."""
    return [
        {"ts_ns": i * STEP_NS, "dur_ns": STEP_NS - 100_000, "name": name, "category": "decode"}
        for i in range(steps)
    ]


def attribution(run: Path) -> Attribution:
    with cctrace.open(run) as session:
        return session.attribution()


POINT = Point(
    rank=1, sentence="", role="readback", pid=8000, tid=8067, path="step/readback",
    api="cudaMemcpyAsync", cls="copy", copy_kind="d2h", size_class="<=64 B", size_bytes=32,
    stack_id=None, stack_share=None, called_from=(), count_per_step=1.0,
    held_ns_per_step=10_900_000,
    blocked_ns_per_step=10_800_000, bubble_ns_per_step=1_800_000,
    next_launch_delay_ns=12_700_000, recoverable_ns=4_200_000, recoverable_low_ns=4_000_000,
    recoverable_high_ns=4_400_000, recoverable_bound_ns=4_500_000, expected_itl_ns=8_100_000,
    remedy=Remedy("worker_readback", "Drain readback on a worker thread", "--async", "waits",
                  4_200_000, 4_000_000, 4_400_000, 8_100_000),
    alternatives=(), confidence="high", confidence_reason="", example_step_id=41,
    example_ts_ns=5, example_dur_ns=10_900_000,
)  # fmt: skip
REPLAY = ReplayFacts(503, "decode", 12_300_000, 12_400_000, 12_310_000, -0.006, True, 0)
