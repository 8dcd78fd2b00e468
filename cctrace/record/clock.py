"""Clocks: one moment read on all three, and /proc's start times on the run's clock."""

from __future__ import annotations

import os
import time

from cctrace.store.manifest import Anchor

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def now_ns() -> int:
    """CLOCK_MONOTONIC, ns: the clock of every ``ts_ns``."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def read_anchor() -> Anchor:
    """Read the three clocks within one short interval.

    The other two clocks are placed at the middle of the two monotonic readings
    around them; of five tries the tightest counts.
    """
    best: tuple[int, Anchor] | None = None
    for _ in range(5):
        before = now_ns()
        realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        width = now_ns() - before
        if best is None or width < best[0]:
            best = width, Anchor(before + width // 2, realtime, boottime)
    assert best is not None  # noqa: S101 - the loop ran
    return best[1]


def ticks_to_monotonic_ns(ticks: int, anchor: Anchor) -> int:
    """Convert a start time of /proc/PID/stat to CLOCK_MONOTONIC.

    Args:
        ticks: Field 22, clock ticks since boot, suspended time counted.
        anchor: Clocks of one moment; suspends after it would shift the result.

    Source: proc_pid_stat(5); the field counts CLOCK_BOOTTIME since Linux 5.5.
    """
    return ticks * _TICK_NS - (anchor.boottime_ns - anchor.monotonic_ns)
