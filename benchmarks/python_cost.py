"""Nanoseconds per NVTX event from Python, on one pinned core; prints JSON lines.

Run it uninjected, with noop_injection.c, and under the recorder. An event is one
push with its pop, or one mark. Between batches it pauses long enough for a
recorder to empty the ring.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import nvtx

EVENTS = 2003
PAUSE_S = 0.03
BATCHES = 41


def measure(kind: str, body: Callable[[], None]) -> None:
    """Time ``BATCHES`` calls of ``body``, which emits ``EVENTS`` events each."""
    found = []
    body()
    for _ in range(BATCHES):
        time.sleep(PAUSE_S)
        begun = time.perf_counter_ns()
        body()
        found.append((time.perf_counter_ns() - begun) / EVENTS)
    print(
        json.dumps({"kind": kind, "best_ns": min(found), "median_ns": statistics.median(found)}),
        flush=True,
    )


def main() -> int:
    """Measure the ways in which engines use the package."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    domain = nvtx.get_domain("bench")
    attributes = domain.get_event_attributes("step", payload=7)

    def push_pop() -> None:
        for _ in range(EVENTS):
            domain.push_range(attributes)
            domain.pop_range()

    def annotate() -> None:
        for _ in range(EVENTS):
            with nvtx.annotate("step", domain="bench"):
                pass

    def mark() -> None:
        for _ in range(EVENTS):
            nvtx.mark("token", domain="bench")

    measure("Domain.push_range/pop_range", push_pop)
    measure("annotate", annotate)
    measure("mark", mark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
