"""How deep each interval lies in others, for all at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]
_END_OF_TIME = np.iinfo(np.int64).max


def depths(group: npt.NDArray[np.int32], ts_ns: _Ints, dur_ns: _Ints) -> npt.NDArray[np.int32]:
    """How many intervals of the same group are open where each one starts.

    Of intervals that start together the longer is the outer one; of equal ones the
    first. An interval of no length holds nothing. Where intervals overlap without one
    holding the other, this is still the number that is open.

    Args:
        group: Group (thread) of each of n intervals, any number.
        ts_ns: Start, ns.
        dur_ns: Length, ns; -1: it never ended.

    Returns:
        Depth of each interval, >= 0, in the order given.
    """
    result = np.zeros(len(ts_ns), np.int32)
    if not len(ts_ns):
        return result
    by_group = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[by_group])) + 1
    for rows in np.split(by_group, bounds):
        start = ts_ns[rows]
        end = np.where(dur_ns[rows] < 0, _END_OF_TIME, start + dur_ns[rows])
        order = np.lexsort((-end, start))
        start, end = start[order], end[order]
        has_length = end > start
        opened: _Ints = np.cumsum(has_length, dtype=np.int64) - has_length
        ends = np.sort(end[has_length])
        closed = np.searchsorted(ends, start, side="right")
        result[rows[order]] = opened - closed
    return result
