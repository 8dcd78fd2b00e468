"""What kind of memory an address is, learnt from the calls that allocate and free it.

BPF cannot ask the driver, so ranges are kept per process from the allocations seen,
each with the time it was born (its allocation returned) and the time it died (its
free was entered). A copy's addresses are looked up as of the copy's own start:
within one batch an address may have been freed and given out again many times.

Records of one batch may be older than the last one of the batch before: a call's record
comes when it returns, and other threads may have freed what it used meanwhile, or its
process may have ended. So what died is kept for one batch more.

All work is on whole columns: one sort of a batch's changes with the ranges there
are, then searches of all addresses side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.losses import LossLedger

Addresses = npt.NDArray[np.uint64]
Times = npt.NDArray[np.int64]
Places = npt.NDArray[np.int8]
_Indices = npt.NDArray[np.intp]

SOURCE: Final = "cuda"
MAX_RANGES: Final = 1 << 20  # 33 MB; the target decides how many there are
# Ranges that overlap (a free was not seen) are stepped through; beyond this many the
# answer is "unknown".
_MAX_STEPS: Final = 64
_ALIVE: Final = np.iinfo(np.int64).max
_MAX_TIME: Final = 1 << 62  # so that twice a time is still a time
_TOP: Final = np.iinfo(np.uint64).max
_SIZE_LIMIT: Final = 1 << 63
_FREE: Final = -1
_OUTSIDE: Final = -1


class Place(IntEnum):
    """What an address lies in."""

    UNKNOWN = 0
    DEVICE = 1
    PINNED = 2
    PAGEABLE = 3
    REGISTERED = 4
    MANAGED = 5


@dataclass(frozen=True)
class Changes:
    """Allocations and frees of one batch, of any processes, in the order of their records.

    Attributes:
        pid: Process, n.
        address: Start of what was allocated or freed, n.
        size_bytes: Its length, n; of no meaning for a free.
        at_ns: When an allocation returned, when a free was entered, n.
        place: ``Place`` allocated, -1 for a free, n.
    """

    pid: npt.NDArray[np.int32]
    address: Addresses
    size_bytes: npt.NDArray[np.uint64]
    at_ns: Times
    place: Places


class MemoryMap:
    """Ranges of all processes.

    Use, batch by batch: ``learn`` what the batch changed, ``lookup`` as often as
    needed, ``prune``. All by one thread, but for ``forget``, ``distrust`` and
    ``watch_from_start``, which any may call.

    Args:
        ledger: Takes allocations that there was no room to remember.
        max_ranges: How many ranges may be alive, all processes together.
    """

    def __init__(self, ledger: LossLedger, max_ranges: int = MAX_RANGES) -> None:
        self._ledger = ledger
        self._max_ranges = max_ranges
        self._ranges: dict[int, _Ranges] = {}
        self._touched: set[int] = set()
        self._count = 0
        self._watched: set[int] = set()
        self._watches_all = False
        self._distrusted: set[int] = set()
        # Ends of program images as others tell them; those taken in since the last
        # prune, and since the one before.
        self._told: deque[tuple[int, int]] = deque()
        self._ends: dict[int, int] = {}
        self._earlier_ends: dict[int, int] = {}
        self._latest_ns = 0  # of all times seen
        self._horizon_ns = 0  # what died until then is looked up no more

    def __len__(self) -> int:
        return self._count

    def watch_from_start(self, pid: int | None = None) -> None:
        """Say that a process is watched from before its first CUDA call.

        Only then is memory outside of every range known to be pageable.

        Args:
            pid: The process; None: every one from now on, as where the recorder
                starts the target and probes its libraries before they are used.
        """
        if pid is None:
            self._watches_all = True
        else:
            self._watched.add(pid)
            self._distrusted.discard(pid)

    def distrust(self, pid: int | None = None) -> None:
        """Say that calls may have been missed: nothing is told to be pageable any more.

        Args:
            pid: The process that missed some, until ``forget``; None: any may have.
        """
        if pid is None:
            self._watches_all = False
            self._watched.clear()
        else:
            self._distrusted.add(pid)

    def forget(self, pid: int, at_ns: int) -> None:
        """The process's program ended, by exec or exit: its ranges are gone.

        Whether it is watched from the start stays as it was: the next program is,
        or the next process of that number.

        Args:
            pid: The process.
            at_ns: When; ranges born later, of records yet to come, are the next one's.
        """
        self._told.append((pid, at_ns))
        self._distrusted.discard(pid)

    def _take_ends(self) -> None:
        """Take in the ends that were told until now."""
        for _ in range(len(self._told)):
            pid, at_ns = self._told.popleft()
            self._ends[pid] = max(at_ns, self._ends.get(pid, at_ns))
            self._latest_ns = max(self._latest_ns, at_ns)
            ranges = self._ranges.get(pid)
            if ranges is not None:
                ranges.end_all(at_ns)
                self._touched.add(pid)

    def learn(self, changes: Changes) -> None:
        """Take in what a batch allocated and freed."""
        self._take_ends()
        sane = (changes.size_bytes > 0) & (changes.size_bytes < _SIZE_LIMIT)
        sane |= changes.place == _FREE
        sane &= (changes.address != 0) & (changes.at_ns < _MAX_TIME)
        self._latest_ns = max(self._latest_ns, int(changes.at_ns.max(where=sane, initial=0)))
        for pid, which in by_process(changes.pid):
            kept = which[sane[which]]
            if not len(kept):
                continue
            place = changes.place[kept]
            ranges = self._ranges.get(pid)
            if ranges is None:
                if (place == _FREE).all():
                    continue
                ranges = self._ranges[pid] = _Ranges()
            address = changes.address[kept]
            end = address + np.where(place == _FREE, np.uint64(0), changes.size_bytes[kept])
            end[end < address] = _TOP
            ranges.merge(address, end, changes.at_ns[kept], place)
            ended = max(self._ends.get(pid, -1), self._earlier_ends.get(pid, -1))
            if ended >= 0:
                ranges.end_all(ended)
            self._touched.add(pid)

    def lookup(
        self,
        pid: npt.NDArray[np.int32],
        address: Addresses,
        size_bytes: npt.NDArray[np.uint64],
        ts_ns: Times,
    ) -> Places:
        """Where bytes lay at a time.

        Where ranges overlap, since a free was not seen, the youngest counts.

        Args:
            pid: Process, n.
            address: First byte, n.
            size_bytes: How many, n; 0: the first byte is asked for.
            ts_ns: As of when, n.

        Returns:
            ``Place`` of each, n: UNKNOWN where the bytes lie partly in a range and
            partly not, and where they lie in none and the process was not watched
            from the start; PAGEABLE where they lie in none and it was.
        """
        self._take_ends()
        found = np.full(len(pid), _OUTSIDE, np.int8)
        for process, which in by_process(pid):
            ranges = self._ranges.get(process)
            if ranges is not None and len(ranges):
                places = ranges.find(address[which], size_bytes[which], ts_ns[which])
            else:
                places = np.full(len(which), _OUTSIDE, np.int8)
            outside = Place.PAGEABLE if self._is_complete(process) else Place.UNKNOWN
            places[places == _OUTSIDE] = outside
            found[which] = places
        return found

    def prune(self) -> None:
        """Drop what died before the last prune; call when a batch's lookups are done."""
        still_touched: set[int] = set()
        for pid in self._touched:
            ranges = self._ranges[pid]
            self._count -= ranges.counted
            ranges.prune(self._horizon_ns)
            if self._count + len(ranges) > self._max_ranges:
                ranges.prune(_ALIVE - 1)
            excess = self._count + len(ranges) - self._max_ranges
            if excess > 0:
                ranges.drop_youngest(excess)
                self._ledger.add(SOURCE, "ranges_full", excess, pid=pid)
                self.distrust(pid)
            ranges.counted = len(ranges)
            self._count += ranges.counted
            if not ranges.counted:
                del self._ranges[pid]
            elif ranges.has_dead:
                still_touched.add(pid)
        self._touched = still_touched
        self._horizon_ns = self._latest_ns
        self._earlier_ends, self._ends = self._ends, {}

    def _is_complete(self, pid: int) -> bool:
        return (self._watches_all or pid in self._watched) and pid not in self._distrusted


def by_process(pid: npt.NDArray[np.int32]) -> Iterator[tuple[int, _Indices]]:
    """Each distinct value with the positions where it stands, in their order."""
    if not len(pid):
        return
    if (pid == pid[0]).all():
        yield int(pid[0]), np.arange(len(pid))
        return
    order = np.argsort(pid, kind="stable")
    in_order = pid[order]
    bounds = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    for which in np.split(order, bounds):
        yield int(pid[which[0]]), which


class _Ranges:
    """Ranges of one process, by start and then by birth.

    Ranges of one start are versions of it: each dies at the latest when the next is
    born. The dead are among them until ``prune``.
    """

    def __init__(self) -> None:
        self.counted = 0
        self._start: Addresses = np.empty(0, np.uint64)
        self._end: Addresses = np.empty(0, np.uint64)
        self._born: Times = np.empty(0, np.int64)
        self._dies: Times = np.empty(0, np.int64)
        self._place: Places = np.empty(0, np.int8)
        self._index()

    def __len__(self) -> int:
        return len(self._start)

    def merge(self, address: Addresses, end: Addresses, at_ns: Times, place: Places) -> None:
        """Add allocations and frees (place -1)."""
        start = np.concatenate([self._start, address])
        time = np.concatenate([self._born, at_ns])
        places = np.concatenate([self._place, place])
        is_free = places == _FREE
        # Equal moments: the range first, then what frees it.
        order = np.lexsort((time * 2 + is_free, start))
        start, time, is_free = start[order], time[order], is_free[order]
        dies = np.concatenate([self._dies, np.full(len(address), _ALIVE)])[order]
        # What comes next at the same start ends a range: its free, or what was
        # given out there after a free that was not seen.
        again = np.flatnonzero(start[1:] == start[:-1])
        dies[again] = np.minimum(dies[again], time[again + 1])
        kept = ~is_free
        self._start, self._born, self._dies = start[kept], time[kept], dies[kept]
        self._end = np.concatenate([self._end, end])[order][kept]
        self._place = places[order][kept]
        self._index()

    def end_all(self, at_ns: int) -> None:
        """Let those born until then die then."""
        self._dies = np.where(self._born <= at_ns, np.minimum(self._dies, at_ns), self._dies)

    @property
    def has_dead(self) -> bool:
        """Whether any has died."""
        return bool((self._dies != _ALIVE).any())

    def prune(self, until_ns: int) -> None:
        """Drop what died until then."""
        self._keep(self._dies > until_ns)

    def drop_youngest(self, count: int) -> None:
        """Drop as many, the last ones born."""
        kept = np.ones(len(self), np.bool_)
        kept[np.argsort(self._born, kind="stable")[max(0, len(self) - count) :]] = False
        self._keep(kept)

    def find(self, address: Addresses, size_bytes: npt.NDArray[np.uint64], ts_ns: Times) -> Places:
        """As ``MemoryMap.lookup``; -1: in no range at all."""
        last = address + np.maximum(size_bytes, np.uint64(1)) - np.uint64(1)
        last[last < address] = _TOP
        group = np.searchsorted(self._starts, address, side="right") - 1
        found = np.full(len(address), _OUTSIDE, np.int8)
        self._find_containing(found, group.copy(), address, last, ts_ns)
        self._find_beginning_inside(found, group, last, ts_ns)
        return found

    def _find_containing(
        self, found: Places, group: _Indices, address: Addresses, last: Addresses, ts_ns: Times
    ) -> None:
        youngest = np.full(len(address), -1, np.int64)
        asked = np.arange(len(address))
        for _ in range(_MAX_STEPS):
            asked = asked[group[asked] >= 0]
            # No range that starts here or before reaches the address: done.
            asked = asked[self._reach[group[asked]] > address[asked]]
            if not len(asked):
                return
            version, alive = self._version_at(group[asked], ts_ns[asked])
            holds = alive & (self._end[version] > address[asked])
            holds &= self._born[version] > youngest[asked]
            hit, version = asked[holds], version[holds]
            youngest[hit] = self._born[version]
            whole = self._end[version] > last[hit]
            found[hit] = np.where(whole, self._place[version], np.int8(Place.UNKNOWN))
            group[asked] -= 1
        found[asked] = Place.UNKNOWN

    def _find_beginning_inside(
        self, found: Places, group: _Indices, last: Addresses, ts_ns: Times
    ) -> None:
        """Bytes that start outside of every range and run into one are of no one kind."""
        asked = np.flatnonzero(found == _OUTSIDE)
        group = group + 1
        for _ in range(_MAX_STEPS):
            asked = asked[group[asked] < len(self._starts)]
            asked = asked[self._starts[group[asked]] <= last[asked]]
            if not len(asked):
                return
            _, alive = self._version_at(group[asked], ts_ns[asked])
            found[asked[alive]] = Place.UNKNOWN
            asked = asked[~alive]
            group[asked] += 1
        found[asked] = Place.UNKNOWN

    def _version_at(self, group: _Indices, ts_ns: Times) -> tuple[_Indices, npt.NDArray[np.bool_]]:
        """The last range of each group born until a time, and whether it lived then."""
        low, high = self._first[group], self._first[group + 1]
        # Halve [low, high) for all side by side; where starts are unique, not once.
        for _ in range(int((high - low).max() - 1).bit_length()):
            middle = (low + high) // 2
            is_born = self._born[middle] <= ts_ns
            low = np.where(is_born, middle, low)
            high = np.where(is_born, high, np.maximum(middle, low + 1))
        return low, (self._born[low] <= ts_ns) & (ts_ns < self._dies[low])

    def _keep(self, which: npt.NDArray[np.bool_]) -> None:
        if which.all():
            return
        self._start, self._end, self._born = self._start[which], self._end[which], self._born[which]
        self._dies, self._place = self._dies[which], self._place[which]
        self._index()

    def _index(self) -> None:
        """Where each distinct start begins, and how far ranges up to it reach."""
        changed = np.flatnonzero(self._start[1:] != self._start[:-1]) + 1
        heads = np.concatenate([np.zeros(min(1, len(self)), np.intp), changed])
        self._first = np.append(heads, len(self)).astype(np.intp)
        self._starts = self._start[heads]
        ends = np.maximum.reduceat(self._end, heads) if len(heads) else self._end
        self._reach = np.maximum.accumulate(ends)
