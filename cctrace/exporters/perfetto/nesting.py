"""Whether the slices of a thread nest, told window by window of time.

Ranges and calls of one thread are drawn as one stack where any two of them either lie
apart or one within the other. A slice that nests has as many around it when it ends as
when it began; going through all starts and ends in order of time shows one that has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc

from cctrace.exporters.perfetto.groups import group
from cctrace.exporters.perfetto.lanes import OPEN_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Windows = Iterable[tuple[Any, int]]

CUDA: Final = "CUDA"  # the track of calls in _trace_slices; all others are of ranges


class Placed(NamedTuple):
    """How slices of a track of a thread are drawn.

    Attributes:
        is_own: On a track of their own, beside the thread's.
        is_lane: On several, since they do not nest even by themselves.
    """

    is_own: bool
    is_lane: bool


def place(read: Callable[[], Windows]) -> Mapping[tuple[int, int, str], Placed]:
    """Tell which tracks cannot be drawn on their thread's own.

    Args:
        read: Reads the rows of ``_trace_nested``: tables of rows that start in a window,
            and the end of the window, in order of time.

    Returns:
        Placement by process, thread and track of all threads whose slices do not nest.
        Calls leave the thread's track then; ranges do where those of all tracks cross.
    """
    threads = _Sweep(("pid", "tid"))
    for table, end_ns in read():
        threads.go_on(table, end_ns)
    if not threads.crossing:
        return {}
    ranges, tracks = _Sweep(("pid", "tid")), _Sweep(("pid", "tid", "track"))
    for table, end_ns in read():
        number, keys = group(table, ("pid", "tid"))
        crosses = np.array([tuple(key.values()) in threads.crossing for key in keys], np.bool_)
        chosen = table.filter(crosses[number])
        tracks.go_on(chosen, end_ns)
        ranges.go_on(chosen.filter(pc.not_equal(chosen["track"], CUDA)), end_ns)
    return {
        (pid, tid, track): Placed(
            track == CUDA or (pid, tid) in ranges.crossing, (pid, tid, track) in tracks.crossing
        )
        for pid, tid, track in tracks.known
    }


@dataclass
class _Open:
    """Slices that have not ended yet.

    Attributes:
        scope: Number of what each should nest in.
        end_ns: End.
        row: Number of the slice.
        level: How deep it is.
    """

    scope: Ints
    end_ns: Ints
    row: Ints
    level: Ints


def _none() -> Ints:
    return np.zeros(0, np.int64)


class _Sweep:
    """Goes through the slices of several scopes, each of which should nest.

    Args:
        columns: Columns that tell the scopes apart.

    Attributes:
        crossing: Scopes in which some cross.
        known: All scopes seen.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self.crossing: set[Any] = set()
        self.known: dict[Any, int] = {}
        self._open = _Open(_none(), _none(), _none(), _none())
        self._rows = 0

    def go_on(self, table: Any, until_ns: int) -> None:
        """Go through the slices that start in the next window.

        Args:
            table: Starts and lengths.
            until_ns: End of the window.
        """
        number, keys = group(table, self._columns)
        numbers = [self.known.setdefault(tuple(k.values()), len(self.known)) for k in keys]
        scope = np.array(numbers, np.int64)[number]
        start = table["ts_ns"].to_numpy().astype(np.int64)
        length = pc.fill_null(table["dur_ns"], -1).to_numpy().astype(np.int64)
        end = np.where(length < 0, OPEN_NS, start + length)
        # Of those that begin together the longest is the outermost.
        order = np.lexsort((-end, start, scope))
        scope, start, end = scope[order], start[order], end[order]
        count, before = len(start), len(self._open.row)
        row = np.concatenate([self._open.row, self._rows + np.arange(count)])
        scopes = np.concatenate([self._open.scope, scope])
        ends = np.concatenate([self._open.end_ns, end])
        levels = np.concatenate([self._open.level, np.zeros(count, np.int64)])
        self._rows += count
        due = np.flatnonzero(ends < until_ns)
        # Every start of the window, and every end in it: ends first, the innermost first.
        at = np.concatenate([start, ends[due]])
        of = np.concatenate([np.arange(before, before + count), due])
        step = np.concatenate([np.ones(count, np.int64), np.full(len(due), -1)])
        order = np.lexsort((step * row[of], step, at, scopes[of]))
        of, step = of[order], step[order]
        level = np.cumsum(step)
        first = np.flatnonzero(np.diff(scopes[of], prepend=-1))
        open_before = np.bincount(self._open.scope, minlength=len(self.known))
        offset = np.zeros(len(self.known), np.int64)
        offset[scopes[of[first]]] = level[first] - step[first]
        level += (open_before - offset)[scopes[of]]
        begins = step == 1
        levels[of[begins]] = level[begins]
        ended = of[~begins]
        uneven = ended[levels[ended] != level[~begins] + 1]
        if len(uneven):
            names = list(self.known)
            self.crossing.update(names[number] for number in np.unique(scopes[uneven]).tolist())
        left = ends >= until_ns
        self._open = _Open(scopes[left], ends[left], row[left], levels[left])
