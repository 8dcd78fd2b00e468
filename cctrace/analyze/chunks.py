"""Where a long run is cut: into chunks for its steps, and into slices for a sample.

Pure figures: starts of steps and row groups in, windows of time out. Cuts are at starts
of steps, and each chunk is read with some steps more on both sides, so that what it says
of its own steps is what the whole run would say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cctrace.store.excerpt import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cctrace.store.excerpt import Group

BEGIN: Final = -(2**63)
END: Final = 2**63 - 1
MARGIN_STEPS: Final = 8  # steps read before and after those that count

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a run that is worked through at once.

    Attributes:
        core: Steps that start in it count.
        window: What is read: the core and some steps on both sides.
    """

    core: Window
    window: Window


class Density:
    """How many events of a run start before a moment, from its row groups.

    Within a group events are taken to be spread evenly.

    Args:
        groups: Row groups of all tables that count.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        spans = [(g.first_ns, g.last_ns + 1, g.rows) for g in groups if g.rows]
        spans = [span for span in spans if span[0] > BEGIN and span[1] < END]
        moments = np.unique(np.array([s[:2] for s in spans], np.int64).ravel())
        rate = np.zeros(max(len(moments), 1))
        for first, end, rows in spans:
            each = rows / (end - first)
            rate[np.searchsorted(moments, first)] += each
            rate[np.searchsorted(moments, end)] -= each
        self._moments = moments
        # Absolute times need more digits than a double has.
        self._origin = int(moments[0]) if len(moments) else 0
        offsets = (moments - self._origin).astype(np.float64)
        self._offsets = offsets
        self._counts = np.concatenate([[0.0], np.cumsum(np.cumsum(rate)[:-1] * np.diff(offsets))])[
            : len(offsets)
        ]

    @property
    def total(self) -> int:
        """Events in all."""
        return round(float(self._counts[-1])) if len(self._counts) else 0

    def before(self, moments: _Ints) -> npt.NDArray[np.float64]:
        """Events that start before each of ``moments`` (ns), interpolated."""
        if not len(self._counts):
            return np.zeros(len(moments))
        offsets = (moments - self._origin).astype(np.float64)
        counts: npt.NDArray[np.float64] = np.interp(offsets, self._offsets, self._counts)
        return counts

    def moment(self, count: float) -> int:
        """The time, ns, before which ``count`` events start."""
        if not len(self._counts):
            return self._origin
        return self._origin + int(np.interp(count, self._counts, self._offsets))


@dataclass(frozen=True)
class Loop:
    """Steps of one thread, by start.

    Attributes:
        starts_ns: Where they start.
        ends_ns: Where they end: at the start of the next, or where their range ends.
    """

    starts_ns: _Ints
    ends_ns: _Ints


def loops(steps: Any) -> list[Loop]:
    """Steps by thread.

    Args:
        steps: Arrow table of the view ``steps``: pid, tid, ts_ns, dur_ns, period_ns.
    """
    columns = {
        name: steps[name].combine_chunks().to_numpy(zero_copy_only=False)
        for name in ("pid", "tid", "ts_ns")
    }
    lengths = _lengths(steps)
    starts = columns["ts_ns"].astype(np.int64)
    order = np.lexsort((starts, columns["tid"], columns["pid"]))
    threads = np.stack([columns["pid"][order], columns["tid"][order]])
    changes = np.flatnonzero(np.any(np.diff(threads, axis=1) != 0, axis=0)) + 1
    return [
        Loop(starts[part], starts[part] + lengths[part])
        for part in np.split(order, changes)
        if len(part)
    ]


def _lengths(steps: Any) -> _Ints:
    import pyarrow.compute as pc  # noqa: PLC0415 - chunks of plain figures need no Arrow

    known = pc.coalesce(steps["period_ns"], steps["dur_ns"], 0)
    lengths: _Ints = known.combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def cut(found: Sequence[Loop], density: Density, chunk_events: int) -> list[Chunk]:
    """Cut the steps of a run into chunks of about ``chunk_events`` events.

    Returns:
        Chunks in order whose cores hold each step once; empty where there is no step.
    """
    if not found:
        return []
    starts = np.unique(np.concatenate([loop.starts_ns for loop in found]))
    counts = density.before(starts)
    wanted = np.arange(counts[0] + chunk_events, counts[-1] - chunk_events / 4, chunk_events)
    inner = np.unique(starts[np.searchsorted(counts, wanted)]) if len(wanted) else starts[:0]
    bounds = [int(starts[0]), *(int(s) for s in inner if s > starts[0]), int(starts[-1]) + 1]
    return [
        Chunk(core, _widened(core, found, density, chunk_events))
        for core in (Window(a, b) for a, b in pairwise(bounds))
    ]


def _widened(core: Window, found: Sequence[Loop], density: Density, most: int) -> Window:
    """The core with ``MARGIN_STEPS`` steps more of each of its threads on both sides."""
    first, end = core  # of the steps that are read
    is_first, is_last = False, False
    for loop in found:
        low, high = np.searchsorted(loop.starts_ns, [core.first_ns, core.end_ns])
        if low == high:
            continue
        before, after = low - MARGIN_STEPS, high + MARGIN_STEPS
        first = min(first, int(loop.starts_ns[max(before, 0)]))
        end = max(end, int(np.max(loop.ends_ns[low : min(after, len(loop.ends_ns))])))
        is_first, is_last = is_first or before < 0, is_last or after > len(loop.ends_ns)
    # What comes before the first step or after the last, such as the loading of a model,
    # may be more than all steps together.
    at_first, at_end = density.before(np.array(core, np.int64))
    if is_first:
        first = min(first, density.moment(at_first - most)) if at_first > most else BEGIN
    if is_last:
        left = density.total - at_end
        end = max(end, density.moment(at_end + most)) if left > most else END
    return Window(first, end)


def longest_inside(chunks: Sequence[Chunk]) -> int:
    """A length, ns, that half of each chunk's margin before its core has room for."""
    rooms = [c.core.first_ns - c.window.first_ns for c in chunks if c.window.first_ns > BEGIN]
    return max(min(rooms, default=END) // 2, 1)


def sample(found: Sequence[Loop], density: Density, events: int, slices: int) -> list[Chunk] | None:
    """Choose slices spread evenly over the steps of a run, or over all of it.

    Args:
        found: Steps by thread; none: the whole run.
        density: Events of the run.
        events: About how many to choose.
        slices: In how many stretches.

    Returns:
        The slices, each with its margin; None where the whole run has no more events.
    """
    if density.total <= events:
        return None
    each = events / slices
    if found:
        starts = np.unique(np.concatenate([loop.starts_ns for loop in found]))
        low, high = density.before(starts[[0, -1]])
    else:
        starts, low, high = np.array([], np.int64), 0.0, float(density.total)
    if high - low <= events:
        slices, each = 1, max(high - low, 1.0)
    cores: list[Window] = []
    for number in range(slices):
        at = low + (high - low - each) * (number / max(slices - 1, 1))
        first, end = _snapped(starts, density.moment(at), density.moment(at + each))
        if cores:
            first = max(first, cores[-1].end_ns)
        if first < end:
            cores.append(Window(first, end))
    return _apart([Chunk(core, _widened(core, found, density, int(each))) for core in cores])


def _snapped(starts: _Ints, first_ns: int, end_ns: int) -> tuple[int, int]:
    """Both moments moved to the start of the step at or after them."""
    if not len(starts):
        return first_ns, end_ns
    first, end = np.searchsorted(starts, [first_ns, end_ns])
    last = int(starts[-1]) + 1
    return (
        int(starts[first]) if first < len(starts) else last,
        int(starts[end]) if end < len(starts) else last,
    )


def _apart(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The same chunks, each window ended where the next one begins."""
    found: list[Chunk] = []
    for chunk in chunks:
        first = max(chunk.window.first_ns, found[-1].window.end_ns if found else BEGIN)
        found.append(Chunk(chunk.core, Window(first, max(first, chunk.window.end_ns))))
    return found
