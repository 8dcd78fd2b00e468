"""What the loop says of itself at its end: counts by class, and latencies."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from simcuda.bindings import CLASSES, CROSSINGS

Counts = Mapping[tuple[str, str], tuple[int, int]]  # (name, direction) -> (calls, bytes)


def latencies(starts_ns: list[int]) -> dict[str, int | None]:
    """Return inter-token latency from the starts of steps: mean, and percentiles that occurred.

    Args:
        starts_ns: Clock at the start of each step; the first one is the prefill.

    Returns:
        ns, rounded; None where there are too few steps. The period of the prefill
        counts in ``period_mean_ns`` alone.
    """
    periods_ns = [after - before for before, after in pairwise(starts_ns)]
    decode_ns = sorted(periods_ns[1:])

    def quantile(share: float) -> int | None:
        # Nearest rank: the smallest value with that share at or below it.
        return decode_ns[math.ceil(share * len(decode_ns)) - 1] if decode_ns else None

    return {
        "period_mean_ns": round(statistics.fmean(periods_ns)) if periods_ns else None,
        "itl_mean_ns": round(statistics.fmean(decode_ns)) if decode_ns else None,
        "itl_p50_ns": quantile(0.5),
        "itl_p99_ns": quantile(0.99),
    }


def subtract(after: Counts, before: Counts) -> Counts:
    """Return what came between two counts."""
    found = {}
    for key, (made, moved) in after.items():
        made_before, moved_before = before.get(key, (0, 0))
        if made > made_before:
            found[key] = (made - made_before, moved - moved_before)
    return found


def by_class(counts: Counts) -> dict[str, Any]:
    """Return calls by class, crossings in all, and copies with their bytes by direction."""
    classes: dict[str, int] = {}
    copies = {name: {"calls": 0, "size_bytes": 0} for name in ("h2d", "d2h")}
    for (name, direction), (made, moved) in counts.items():
        if name in CLASSES:
            classes[CLASSES[name]] = classes.get(CLASSES[name], 0) + made
        if direction:
            copies[direction]["calls"] += made
            copies[direction]["size_bytes"] += moved
    crossings = sum(made for name, made in classes.items() if name in CROSSINGS)
    return {"crossings": crossings, "classes": dict(sorted(classes.items())), **copies}


def of_process(
    rank: int | None, device: int | str | None, steps: Counts, total: Counts, starts_ns: list[int]
) -> dict[str, Any]:
    """Return one process's figures.

    Args:
        rank: Its number among those that share the model; None: it drives them.
        device: Its device; None: it uses none.
        steps: Calls made during the steps.
        total: Calls made in all, set-up and freeing included.
        starts_ns: Clock at the start of each of its steps.
    """
    calls: dict[str, int] = {}
    for (name, _), (made, _) in total.items():
        calls[name] = calls.get(name, 0) + made
    return {
        "pid": os.getpid(),
        "rank": rank,
        "device": device,
        "step_calls": by_class(steps),
        "calls": dict(sorted(calls.items())),
        **latencies(starts_ns),
    }
