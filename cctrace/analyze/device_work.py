"""How long the device worked for each call, told from when the host saw it finish.

The host sees the device only where a call waits for it: a stream does its work in order,
so that when a wait returns, all that was queued before it is done. Between two such
moments the device did what was queued in between, and no piece of it before its own
submission. That gives the sum of each group. Within a group the work is spread evenly,
less where a piece cannot have taken so long because it came last; beside a graph single
launches are taken to be short.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cctrace.analyze.costs import SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cctrace.analyze.costs import Costs
    from cctrace.analyze.graph import Call

_EDGE_NS = 2000.0  # what started so soon after its submission was held up by nothing
_BESIDE_NS = 20_000.0  # copies of another stream that ended so near may have been last
_SHORT_NS = 2_000.0  # a launch beside a graph: as an empty kernel
_MANY = 8  # pieces from which on host-bound launches hide how long each one lasts
_HIDDEN = 0.75  # share of the time that equal pieces must explain, or they are hidden


@dataclass(frozen=True)
class Span:
    """Bounds of a length, ns."""

    low_ns: float
    likely_ns: float
    high_ns: float


@dataclass
class DeviceWork:
    """What the device did, by the call that asked for it (its identity).

    Attributes:
        lengths: Of the work of each call that put some on a stream.
        waited: Calls that the device held up.
        hidden: Calls whose work was over before anyone looked: a guess within bounds.
        unseen: By call that had to wait with nothing recorded to wait for: length of the
            work that must have been queued since the call before it, ns.
    """

    lengths: dict[int, Span] = field(default_factory=dict)
    waited: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    unseen: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Piece:
    """Work on a stream, or what it waits for there."""

    call: Call
    ready_ns: float  # it cannot start before
    known_ns: float | None  # how long it takes; None: to be found
    depends: tuple[int, int] | None = None  # stream and position that must be reached


@dataclass(slots=True, eq=False)
class _Loose:
    """Work that was over when someone looked: nothing tells yet when it ended."""

    pieces: list[_Piece]
    started_ns: float | None
    over_ns: float


@dataclass(slots=True, eq=False)
class _Stream:
    pieces: list[_Piece] = field(default_factory=list)
    seen: int = 0  # so many of them are known to be done
    done_ns: float | None = None  # when they were; None: only that they were
    loose: list[_Loose] = field(default_factory=list)  # the last that were seen


@dataclass(slots=True, eq=False)
class _Group:
    """Work whose end was seen (``is_exact``) or that was over when someone looked."""

    pieces: list[_Piece]  # of unknown length
    room_ns: list[float]  # for each: until the end, less known lengths after it
    is_exact: bool

    @property
    def is_long(self) -> list[bool]:
        """Whether each piece may be long: all may, unless there are graphs."""
        graphs = [piece.call.cls == "graph" for piece in self.pieces]
        return graphs if any(graphs) else [True] * len(graphs)

    @property
    def make_up(self) -> tuple[tuple[str, str, str], ...]:
        return tuple((p.call.cls, p.call.api, p.call.path) for p in self.pieces)


class _Inference:
    """Goes through the calls of one process in the order they were made."""

    def __init__(
        self, costs: Costs, activity: Mapping[int, tuple[int, int]], *, is_counted: bool
    ) -> None:
        self._costs = costs
        self._is_counted = is_counted
        self._ends_ns: dict[int, int] = {}  # by thread: when its last call returned
        self._activity = activity
        self._streams: dict[int, _Stream] = defaultdict(_Stream)
        self._marks: dict[int | None, tuple[int, int]] = {}  # by event: stream, position
        self._groups: list[_Group] = []
        self.found = DeviceWork()

    def run(self, calls: Sequence[Call]) -> DeviceWork:
        for call in calls:
            if call.cls == "copy":
                self._copy(call)
            elif call.cls in ("launch", "graph", "memset", "collective"):
                ready_ns = call.end_ns + self._costs.latency_ns(call.cls)
                self._queue(call, ready_ns, self._observed_ns(call))
            elif call.cls == "event":
                self._event(call)
            elif call.cls == "sync":
                self._sync(call)
            elif call.cls == "free" and self._costs.free_waited(call):
                self._free(call)
            self._ends_ns[call.tid] = call.end_ns
        for stream in list(self._streams.values()):  # nobody looked any more
            self._close_loose(stream)
            rest = [p for p in stream.pieces[stream.seen :] if p.known_ns is None]
            if rest:
                self._groups.append(_Group(rest, [float("inf")] * len(rest), is_exact=False))
        self._settle()
        return self.found

    def _observed_ns(self, call: Call) -> float | None:
        seen = self._activity.get(call.correlation_id) if call.correlation_id else None
        return None if seen is None else float(seen[1])

    def _queue(self, call: Call, ready_ns: float, known_ns: float | None) -> None:
        self._streams[call.stream].pieces.append(_Piece(call, ready_ns, known_ns))
        if known_ns is not None:
            self.found.lengths[id(call)] = Span(known_ns, known_ns, known_ns)

    def _copy(self, call: Call) -> None:
        cost = self._costs.copy(call.api, call.copy_kind, call.host_memory)
        observed_ns = self._observed_ns(call)
        device_ns = cost.device_ns(call.size_bytes) if observed_ns is None else observed_ns
        if cost.mode != SYNCHRONOUS:
            self._queue(call, call.ts_ns + cost.host_ns, device_ns)
            return
        stream = self._streams[call.stream]
        position = len(stream.pieces)
        submitted_ns = call.ts_ns + cost.host_ns
        held_up = self._costs.waited(call, self._costs.least_ns(call))
        own_ns = device_ns + self._costs.probe_ns
        if held_up and stream.seen == len(stream.pieces):
            # By nothing that was recorded: launches that were not, or the call itself.
            held_up = self._is_counted
            if held_up:
                self._note_queued(call, call.end_ns - own_ns)
        if held_up:
            self._observe(call.stream, position, call.end_ns - own_ns, is_exact=True)
            self.found.waited.add(id(call))
        else:
            # What it takes beyond the figures is the host's: its caches were cold.
            device_ns = min(device_ns, max(0.0, call.dur_ns - self._costs.probe_ns))
            self._observe(call.stream, position, submitted_ns, is_exact=False)
        self._queue(call, submitted_ns, device_ns)
        # The call has seen itself end.
        self._close_loose(stream)
        stream.seen = len(stream.pieces)
        stream.done_ns = call.end_ns - self._costs.probe_ns

    def _note_queued(self, call: Call, end_ns: float) -> None:
        since_ns = self._ends_ns.get(call.tid, call.ts_ns)
        self.found.unseen[id(call)] = max(0.0, end_ns - since_ns)

    def _event(self, call: Call) -> None:
        stream = self._streams[call.stream]
        if "Record" in call.api:
            mark = call.stream, len(stream.pieces)
            self._marks[call.event] = self._marks[None] = mark
        elif "StreamWait" in call.api:
            # An event that was not told is taken to be the last one recorded.
            depends = self._marks.get(call.event)
            if depends is not None and depends[0] != call.stream:
                stream.pieces.append(_Piece(call, float(call.end_ns), 0.0, depends))

    def _sync(self, call: Call) -> None:
        if "Query" in call.api:
            return
        least_ns = self._costs.least_ns(call)
        if "Event" in call.api:
            mark = self._marks.get(call.event)
            wanted = [] if mark is None else [mark]
        elif "Stream" in call.api:
            wanted = [(call.stream, len(self._streams[call.stream].pieces))]
        else:
            wanted = self._everything()
        held_up = self._costs.waited(call, least_ns)
        if held_up:
            self.found.waited.add(id(call))
        at_ns = call.end_ns - least_ns if held_up else float(call.ts_ns)
        unseen = self._unseen(wanted)
        if held_up and self._is_counted and not unseen:
            self._note_queued(call, at_ns)
        self._observe_all(unseen, at_ns, held_up=held_up)

    def _free(self, call: Call) -> None:
        """Take a free that was held up for a wait for the device, if there is work."""
        unseen = self._unseen(self._everything())
        if unseen:
            self.found.waited.add(id(call))
            self._observe_all(unseen, call.end_ns - self._costs.least_ns(call), held_up=True)

    def _everything(self) -> list[tuple[int, int]]:
        """All that the device has been given: each stream, and the place of its end."""
        return [(key, len(stream.pieces)) for key, stream in self._streams.items()]

    def _unseen(self, wanted: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those places in streams that nobody has seen them reach."""
        return [(key, at) for key, at in wanted if at > self._streams[key].seen]

    def _observe_all(
        self, unseen: Sequence[tuple[int, int]], at_ns: float, *, held_up: bool
    ) -> None:
        """Take down that all of several streams were there at a moment, or had been."""
        last = self._last(unseen, at_ns) if held_up else None
        if last is not None:
            self._observe(*last, at_ns, is_exact=True)
        for key, position in unseen:
            self._observe(key, position, at_ns, is_exact=False)

    def _last(self, unseen: Sequence[tuple[int, int]], at_ns: float) -> tuple[int, int] | None:
        """Which of several streams was done last; None: nothing tells.

        It is the only one with work of unknown length, or one whose copies wait for all of
        that. Not where the others' copies can have taken until then by themselves.
        """
        if len(unseen) == 1:
            return unseen[0]
        pieces = {
            key: self._streams[key].pieces[self._streams[key].seen : at] for key, at in unseen
        }
        working = {
            key: index
            for key, row in pieces.items()
            for index, piece in enumerate(row)
            if piece.known_ns is None
        }
        if len(working) != 1:
            return None
        [(main, index)] = working.items()
        end = self._streams[main].seen + index + 1
        behind, beside = [], []
        for key, row in pieces.items():
            waits = any(
                p.depends is not None and p.depends[0] == main and p.depends[1] >= end for p in row
            )
            if waits:
                behind.append(key)
            elif key != main:
                beside.append(row)
        if len(behind) > 1 or any(_may_last(row, at_ns) for row in beside):
            return None
        last = behind[0] if behind else main
        return last, dict(unseen)[last]

    def _observe(self, key: int, position: int, at_ns: float, *, is_exact: bool) -> None:
        """Take down that a stream was there at a moment, or had been there before."""
        stream = self._streams[key]
        if position <= stream.seen:
            return
        pieces = stream.pieces[stream.seen : position]
        started_ns = stream.done_ns
        stream.seen, stream.done_ns = position, at_ns if is_exact else None
        has_unknown = any(piece.known_ns is None for piece in pieces)
        end_ns = at_ns
        for index in range(len(pieces) - 1, -1, -1):
            piece = pieces[index]
            if piece.known_ns is None:
                self._group(stream, _Loose(pieces[: index + 1], started_ns, end_ns), is_exact)
                return
            start_ns = end_ns - piece.known_ns
            if is_exact and piece.depends is None and start_ns <= piece.ready_ns + _EDGE_NS:
                is_exact, start_ns = False, piece.ready_ns
            if piece.depends is not None:
                self._observe(*piece.depends, start_ns, is_exact=is_exact and not has_unknown)
            end_ns = start_ns

    def _group(self, stream: _Stream, work: _Loose, is_exact: bool) -> None:  # noqa: FBT001 - a fact
        """Make a group of work, with what was not done yet when it was queued."""
        if not is_exact:
            if stream.loose and stream.loose[-1].over_ns <= work.pieces[0].ready_ns:
                self._close_loose(stream)
            stream.loose.append(work)
            return
        while stream.loose and stream.loose[-1].over_ns > work.pieces[0].ready_ns:
            before = stream.loose.pop()
            work = _Loose([*before.pieces, *work.pieces], before.started_ns, work.over_ns)
        self._close_loose(stream)
        self._close(work, is_exact=True)

    def _close_loose(self, stream: _Stream) -> None:
        for work in stream.loose:
            self._close(work, is_exact=False)
        stream.loose.clear()

    def _close(self, work: _Loose, *, is_exact: bool) -> None:
        unknown: list[_Piece] = []
        room_ns: list[float] = []
        end_ns = work.over_ns
        for piece in reversed(work.pieces):
            if piece.known_ns is None:
                ready_ns = piece.ready_ns
                if work.started_ns is not None:
                    ready_ns = max(ready_ns, work.started_ns)
                unknown.append(piece)
                room_ns.append(max(0.0, end_ns - ready_ns))
            else:
                end_ns -= piece.known_ns
                if piece.depends is not None:
                    self._observe(*piece.depends, end_ns, is_exact=False)
        self._groups.append(_Group(unknown[::-1], room_ns[::-1], is_exact))

    def _settle(self) -> None:
        """Find the lengths: of groups whose end was seen, and of the others like them."""
        typical: dict[tuple[tuple[str, str, str], ...], list[list[float]]] = defaultdict(list)
        for group in self._groups:
            if group.is_exact:
                lengths_ns = spread(group.room_ns, group.is_long)
                typical[group.make_up].append(lengths_ns)
                self._note(group, lengths_ns)
        usual = {
            make_up: [statistics.median(column) for column in zip(*rows, strict=True)]
            for make_up, rows in typical.items()
        }
        for group in self._groups:
            if not group.is_exact:
                self._note_unseen(group, usual.get(group.make_up))

    def _note(self, group: _Group, lengths_ns: list[float]) -> None:
        least_ns = min(room / (len(group.room_ns) - i) for i, room in enumerate(group.room_ns))
        total_ns = sum(lengths_ns)
        is_hidden = (
            all(group.is_long)
            and len(lengths_ns) >= _MANY
            and least_ns * len(lengths_ns) < _HIDDEN * total_ns
        )
        for piece, length_ns in zip(group.pieces, lengths_ns, strict=True):
            span = Span(length_ns, length_ns, length_ns)
            if is_hidden:
                low_ns = min(least_ns, length_ns)
                span = Span(low_ns, (low_ns + length_ns) / 2, length_ns)
                self.found.hidden.add(id(piece.call))
            self.found.lengths[id(piece.call)] = span

    def _note_unseen(self, group: _Group, usual_ns: list[float] | None) -> None:
        """Lengths of a group that was over when someone looked: as usual, if that fits."""
        if usual_ns is not None and _fits(usual_ns, group.room_ns):
            for piece, length_ns in zip(group.pieces, usual_ns, strict=True):
                self.found.lengths[id(piece.call)] = Span(length_ns, length_ns, length_ns)
            return
        most_ns = [0.0] * len(group.pieces)
        if group.room_ns[0] < float("inf"):
            most_ns = spread(group.room_ns, group.is_long)
        for piece, length_ns in zip(group.pieces, most_ns, strict=True):
            self.found.lengths[id(piece.call)] = Span(0.0, length_ns / 2, length_ns)
            self.found.hidden.add(id(piece.call))


def _may_last(pieces: Sequence[_Piece], at_ns: float) -> bool:
    """Whether pieces of known length may have gone on until a moment, some us aside."""
    copied_ns = sum(piece.known_ns or 0.0 for piece in pieces)
    return max(piece.ready_ns for piece in pieces) + copied_ns > at_ns - _BESIDE_NS


def _fits(lengths_ns: Sequence[float], room_ns: Sequence[float]) -> bool:
    after_ns = 0.0
    for length_ns, room in zip(reversed(lengths_ns), reversed(room_ns), strict=True):
        after_ns += length_ns
        if after_ns > room + _EDGE_NS:
            return False
    return True


def spread(room_ns: Sequence[float], is_long: Sequence[bool]) -> list[float]:
    """Spread the time of a group over its pieces: evenly, as far as each one's room goes.

    Args:
        room_ns: For each piece, in order: from when it could start until the end of the
            group, ns; its own length and those after it must fit in. None is longer
            than the one before it.
        is_long: For each piece, whether it shares the time; the others are short.

    Returns:
        The lengths, ns. The sum of those from the first long one on is its room.
    """
    lengths_ns = [0.0] * len(room_ns)
    first = list(is_long).index(True)
    short_ns = sum(_SHORT_NS for long in is_long[first:] if not long)
    left_ns, after_ns = max(0.0, room_ns[first] - short_ns), 0.0
    left = sum(is_long)
    for index in range(len(room_ns) - 1, -1, -1):
        wanted_ns = left_ns / left if is_long[index] and left else _SHORT_NS
        length_ns = max(0.0, min(wanted_ns, room_ns[index] - after_ns))
        if index == first:
            length_ns = max(0.0, room_ns[first] - after_ns)
        lengths_ns[index] = length_ns
        after_ns += length_ns
        if is_long[index]:
            left_ns -= length_ns
            left -= 1
    return lengths_ns


def infer(
    calls: Sequence[Call],
    costs: Costs,
    activity: Mapping[int, tuple[int, int]],
    *,
    is_counted: bool = False,
) -> DeviceWork:
    """Find how long the device worked for each call of one process.

    Args:
        calls: Its calls, by start.
        costs: What calls cost when nothing holds them up.
        activity: (start, length) on the device, ns, by correlation_id; where given it is
            used, and nothing is inferred for that call.
        is_counted: Whether launches were counted in the kernel rather than recorded:
            then calls wait for work that is not among the calls.
    """
    return _Inference(costs, activity, is_counted=is_counted).run(calls)
