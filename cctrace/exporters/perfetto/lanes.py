"""Slices that may overlap, on as many tracks as it takes.

A track of Perfetto holds slices that nest. What runs side by side gets lanes: a slice
takes the lowest one that is free when it begins.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

OPEN_NS: Final = 2**63 - 1  # end of what has none


class Lanes:
    """Gives out the lanes of one place, in order of the slices' starts."""

    def __init__(self) -> None:
        self._busy: list[tuple[int, int]] = []  # end and lane
        self._free: list[int] = []
        self._lanes = 0

    def take(self, start_ns: Ints, end_ns: Ints) -> Ints:
        """Lanes of the next slices.

        Args:
            start_ns: Starts, in order and no earlier than those before.
            end_ns: Ends; ``OPEN_NS`` where there is none.

        Returns:
            The lane of each, from 0.
        """
        if self._are_apart(start_ns, end_ns):
            self._busy, self._free = [(int(end_ns[-1]), 0)], list(range(1, self._lanes))
            self._lanes = max(self._lanes, 1)
            return np.zeros(len(start_ns), np.int64)
        taken = []
        for start, end in zip(start_ns.tolist(), end_ns.tolist(), strict=True):
            while self._busy and self._busy[0][0] <= start:
                heapq.heappush(self._free, heapq.heappop(self._busy)[1])
            if self._free:
                lane = heapq.heappop(self._free)
            else:
                lane = self._lanes
                self._lanes += 1
            heapq.heappush(self._busy, (end, lane))
            taken.append(lane)
        return np.array(taken, np.int64)

    def _are_apart(self, start_ns: Ints, end_ns: Ints) -> bool:
        """Whether none of them overlaps another, or one from before."""
        last = max((end for end, _ in self._busy), default=start_ns[0])
        return bool(last <= start_ns[0] and (end_ns[:-1] <= start_ns[1:]).all())
