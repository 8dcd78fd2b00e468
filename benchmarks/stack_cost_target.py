"""Calls a probed function that does nothing, from so many Python frames deep.

Usage: stack_cost_target.py LIBRARY CPU. Reads "DEPTH CALLS" and prints nanoseconds per
call, until its input ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time


def at_depth(depth: int, calls: int) -> float:
    """Make the calls; returns nanoseconds per call."""
    if depth > 1:
        return at_depth(depth - 1, calls)
    call = FUNCTION
    start_ns = time.monotonic_ns()
    for _ in range(calls):
        call(4096, None, 64, None)
    return (time.monotonic_ns() - start_ns) / calls


FUNCTION = ctypes.CDLL(sys.argv[1]).cuMemcpyHtoDAsync_v2
os.sched_setaffinity(0, [int(sys.argv[2])])
for line in sys.stdin:
    depth, calls = map(int, line.split())
    # The module's own frame is one.
    print(at_depth(depth - 1, calls), flush=True)
