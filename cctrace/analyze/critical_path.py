"""The critical path of a step: the chain of work and waits that its end waited for.

A replay (:mod:`cctrace.analyze.replay`) knows for each moment what it follows from: a
call returns when the work it waits for is done, work starts when it was submitted or when
the work before it on its stream is done, a thread goes on when another one wakes it.
Walking back along that from the step's end to its start, always to what came last, gives
pieces that lie end to end and fill the step. To shorten the step, one of them has to get
shorter.

This is the longest path of the graph as defined by Kelley and Walker, "Critical-Path
Planning and Scheduling" (1959), found by following the latest predecessor. An estimate:
times are the replay's, and how long the device worked is inferred where it was not
recorded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cctrace.analyze.costs import load_costs
from cctrace.analyze.graph import Act
from cctrace.analyze.recording import WARM_UP_STEPS, Step, count_events, load
from cctrace.analyze.replay import Machine
from cctrace.analyze.stretch import Sites, build

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cctrace.analyze.graph import Call, Graph, Item, Thread
    from cctrace.store.session import Session

HOST: Final = "host"  # the thread worked outside of calls, or slept until nobody known woke it
CALL: Final = "call"  # it was in a call that did not wait
DEVICE: Final = "device"  # work of the device that a wait, or later work, waited for
LATENCY: Final = "latency"  # from the submission of work until the device began it
WAKE: Final = "wake"  # a thread was woken, and did not run yet
UNKNOWN: Final = "unknown"  # what came before is not in the stretch

STEPS_AFTER: Final = 1  # what they wait for tells how long the device worked in the step
MAX_EVENTS: Final = 60_000  # of a step and those around it that are replayed, about
_CLOSE_NS: Final = 0.5  # sums of doubles differ by less


@dataclass(frozen=True)
class Piece:
    """A piece of a critical path.

    Attributes:
        kind: host, call, device, latency, wake or unknown.
        start_ns: When it begins, ns from the start of the step.
        dur_ns: Its length, ns.
        pid: Process; of device and latency the one that submitted the work.
        tid: Thread, likewise.
        stream: Handle of the stream; None: no stream, or not told.
        call: The call it is in, or whose work it is; None: none.
        count: Calls, or pieces of work on the device, that it is made of.
    """

    kind: str
    start_ns: float
    dur_ns: float
    pid: int
    tid: int
    stream: int | None = None
    call: Call | None = None
    count: int = 1

    @property
    def end_ns(self) -> float:
        """When it ends, ns from the start of the step."""
        return self.start_ns + self.dur_ns


@dataclass(frozen=True)
class CriticalPath:
    """What the end of one step waited for, from its start on.

    Attributes:
        step_id: The step, as in the view ``steps``.
        recorded_ns: Its length as recorded, ns.
        replayed_ns: Its length in the replay, ns: the pieces sum to it.
        pieces: The pieces, by start; each begins where the one before ends.
        device: All work of devices that reaches into the step, by start, on the path or
            not; what began before has a negative start.
        is_hidden: How long the device worked is a guess that matters.
    """

    step_id: int
    recorded_ns: int
    replayed_ns: float
    pieces: tuple[Piece, ...]
    device: tuple[Piece, ...]
    is_hidden: bool


@dataclass(frozen=True)
class _Moment:
    """A place on a thread: its number, and when."""

    thread: int
    at_ns: float


@dataclass
class _Work:
    """Work of the device: when it ran, and what its start waited for."""

    item: Item
    submitted: _Moment
    start_ns: float
    end_ns: float
    before: _Cause | None  # None: the submission


_Cause = _Moment | _Work


@dataclass(frozen=True)
class _Entry:
    """What a thread did for one item: gap, call, wait, and the call's rest."""

    item: Item
    called_ns: float  # the gap and the call up to its effect are over
    end_ns: float
    cause: _Cause | None  # what the wait waited for
    lock: _Moment | None  # where the lock came from that the gap waited for


class _Watched(Machine):
    """A replay that notes what each moment follows from."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.entries: list[list[_Entry]] = [[] for _ in graph.threads]
        self.works: list[_Work] = []
        self._thread = 0
        self._tail_of: dict[int, _Cause] = {}  # by stream: what its last work is
        self._reached_by: dict[int, _Cause] = {}  # by uid of RECORD
        self._passed_at: dict[int, _Moment] = {}  # by uid of ANCHOR
        self._copies: dict[int, list[_Work]] = defaultdict(list)  # by device
        self._lock_from: dict[int, _Moment] = {}  # by thread

    def _advance(self, number: int, now_ns: float) -> None:
        self._thread = number
        super()._advance(number, now_ns)

    def _take_lock(self, thread: Thread, number: int, now_ns: float, dur_ns: float) -> float | None:
        owner, until_ns = self._locks.get(thread.lock, (number, now_ns))
        if owner != number and until_ns > now_ns:
            self._lock_from[number] = _Moment(owner, until_ns)
        return super()._take_lock(thread, number, now_ns, dur_ns)

    def _do(self, item: Item, now_ns: float) -> float:
        here = _Moment(self._thread, now_ns)
        cause = self._cause(item)
        if item.act == Act.ANCHOR:
            self._passed_at[item.uid] = here
        elif item.act == Act.RECORD:
            later = self._tails_ns[item.stream] > now_ns
            self._reached_by[item.uid] = self._tail_of.get(item.stream, here) if later else here
        elif (
            item.act == Act.STREAM_WAIT
            and item.target is not None
            and self._reached_ns[item.target.uid] > self._tails_ns[item.stream]
        ):
            self._tail_of[item.stream] = self._reached_by.get(item.target.uid, here)
        end_ns = super()._do(item, now_ns)
        if item.act == Act.BLOCKING:
            cause = self._tail_of[item.stream]
        lock = self._lock_from.pop(self._thread, None)
        self.entries[self._thread].append(_Entry(item, now_ns, end_ns, cause, lock))
        return end_ns

    def _cause(self, item: Item) -> _Cause | None:
        """What a wait waits for."""
        if item.act == Act.WAIT_STREAM:
            return self._tail_of.get(item.stream)
        if item.act == Act.WAIT_DEVICE:
            streams = self._by_device[self._graph.streams[item.stream]]
            return self._tail_of.get(max(streams, key=lambda stream: self._tails_ns[stream]))
        if item.target is None:
            return None
        if item.act == Act.WAIT_EVENT:
            return self._reached_by.get(item.target.uid)
        return self._passed_at.get(item.target.uid) if item.act == Act.WAIT_ANCHOR else None

    def _submit(self, item: Item, now_ns: float) -> float:
        ready_ns = now_ns + item.latency_ns
        tail_ns = self._tails_ns[item.stream]
        before = self._tail_of.get(item.stream) if tail_ns > ready_ns else None
        end_ns = super()._submit(item, now_ns)
        start_ns = end_ns - item.device_ns
        if item.bridge:
            copies = self._copies[self._graph.streams[item.stream]]
            if start_ns > max(ready_ns, tail_ns) + _CLOSE_NS:
                held = (w for w in reversed(copies) if abs(w.end_ns - start_ns) <= _CLOSE_NS)
                before = next(held, before)
        work = _Work(item, _Moment(self._thread, now_ns), start_ns, end_ns, before)
        if item.bridge:
            copies.append(work)
        self._tail_of[item.stream] = work
        self.works.append(work)
        return end_ns


class _Walk:
    """Walks back from one moment to another, and collects the pieces in between."""

    def __init__(self, watched: _Watched, graph: Graph, from_ns: float) -> None:
        self._graph = graph
        self._entries = watched.entries
        self._ends = [[entry.end_ns for entry in entries] for entries in watched.entries]
        self._from_ns = from_ns
        self._found: list[Piece] = []  # the last one first; each ends where the next one begins
        self._at_ns = from_ns

    def back(self, cause: _Cause) -> list[Piece]:
        """Return the pieces from the start on to ``cause``."""
        at: _Cause | None = cause
        self._at_ns = cause.at_ns if isinstance(cause, _Moment) else cause.end_ns
        while at is not None and self._at_ns > self._from_ns:
            at = self._of_thread(at) if isinstance(at, _Moment) else self._of_device(at)
        if self._at_ns > self._from_ns:
            self._add(UNKNOWN, self._from_ns, 0, None)
        return list(reversed(self._found))

    def _add(
        self, kind: str, start_ns: float, thread: int, item: Item | None, *, on_stream: bool = False
    ) -> None:
        """Add what lies between ``start_ns`` and where the walk is."""
        start_ns = max(start_ns, self._from_ns)
        if start_ns >= self._at_ns - _CLOSE_NS:
            return
        whose = self._graph.threads[thread]
        call = item.call if item else None
        piece = Piece(
            kind,
            start_ns - self._from_ns,
            self._at_ns - start_ns,
            whose.pid,
            whose.tid,
            call.stream if call and on_stream else None,
            call,
        )
        self._at_ns = start_ns
        last = self._found[-1] if self._found else None
        if last is not None and _alike(piece, last):
            self._found[-1] = replace(
                piece, dur_ns=last.end_ns - piece.start_ns, count=last.count + 1
            )
        else:
            self._found.append(piece)

    def _of_device(self, work: _Work) -> _Cause:
        thread = work.submitted.thread
        self._add(DEVICE, work.start_ns, thread, work.item, on_stream=True)
        if work.before is not None:
            return work.before
        self._add(LATENCY, work.submitted.at_ns, thread, work.item, on_stream=True)
        return work.submitted

    def _of_thread(self, moment: _Moment) -> _Cause | None:
        """Go back over one entry of a thread."""
        thread = moment.thread
        at = bisect_left(self._ends[thread], moment.at_ns)
        if at == len(self._entries[thread]):
            return None
        entry = self._entries[thread][at]
        item = entry.item
        if moment.at_ns > entry.called_ns:
            self._add(CALL, max(entry.end_ns - item.after_ns, entry.called_ns), thread, item)
            if self._at_ns > entry.called_ns and entry.cause is not None:
                return self._awaited(entry, thread)
            self._add(CALL, entry.called_ns, thread, item)
        self._add(CALL, entry.called_ns - item.host_ns, thread, item)
        gap_ns = entry.called_ns - item.host_ns - item.gap_ns
        self._add(HOST, gap_ns, thread, None)
        before_ns = self._ends[thread][at - 1] if at else self._graph.threads[thread].start_ns
        if entry.lock is not None and gap_ns > before_ns:
            self._add(WAKE, entry.lock.at_ns, thread, None)
            return entry.lock
        return _Moment(thread, before_ns) if at else None

    def _awaited(self, entry: _Entry, thread: int) -> _Cause:
        """Go from the end of a wait to what ended it."""
        cause = entry.cause
        assert cause is not None  # noqa: S101 - the caller has looked
        ended_ns = cause.at_ns if isinstance(cause, _Moment) else cause.end_ns
        if ended_ns <= entry.called_ns:  # it had ended before: no wait
            self._add(CALL, entry.called_ns, thread, entry.item)
            return _Moment(thread, entry.called_ns)
        self._add(WAKE, ended_ns, thread, entry.item)
        return cause


def _alike(piece: Piece, following: Piece) -> bool:
    """Whether two pieces are one to the reader."""
    if (piece.kind, piece.pid, piece.tid, piece.stream) != (
        following.kind,
        following.pid,
        following.tid,
        following.stream,
    ):
        return False
    if piece.kind == CALL:
        return piece.call is following.call
    return piece.kind != LATENCY


def _device(watched: _Watched, graph: Graph, from_ns: float, end_ns: float) -> tuple[Piece, ...]:
    """All work of devices between two moments."""
    found = []
    for work in watched.works:
        if work.start_ns < end_ns and work.end_ns > from_ns and work.end_ns > work.start_ns:
            whose, call = graph.threads[work.submitted.thread], work.item.call
            stream = call.stream if call else None
            dur_ns = work.end_ns - work.start_ns
            found.append(
                Piece(DEVICE, work.start_ns - from_ns, dur_ns, whose.pid, whose.tid, stream, call)
            )
    return tuple(sorted(found, key=lambda piece: (piece.start_ns, piece.dur_ns)))


def path_of(graph: Graph, step: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The critical path of one step of a graph, replayed as it is.

    Args:
        graph: The graph, of which the step is not the last mark.
        step: Number of the step in it.

    Returns:
        Pieces that lie end to end from its start to the next one's, which sum to its
        length in the replay; and all work of devices meanwhile. None where the replay did
        not come to its end.
    """
    watched = _Watched(graph)
    starts = dict(watched.run().starts_ns)
    if step not in starts or step + 1 not in starts:
        return (), ()
    from_ns, end_ns = starts[step], starts[step + 1]
    pieces = _Walk(watched, graph, from_ns).back(_Moment(0, end_ns))
    return tuple(pieces), _device(watched, graph, from_ns, end_ns)


def critical_paths(
    session: Session, run_label: str, around: Mapping[int, Sequence[Step]]
) -> dict[int, CriticalPath]:
    """Find the critical path of some steps.

    Args:
        session: The run, opened; its tables may be cut to the steps ``around``.
        run_label: Its label.
        around: By ``step_id``: the step and those before and after it, by start.

    Returns:
        The paths by ``step_id``; none of a step that calls nothing, that has too many
        calls to replay, or that the replay cannot finish.
    """
    if not around:
        return {}
    costs = load_costs(session, run_label)
    found = {}
    for step_id, steps in around.items():
        number = [step.step_id for step in steps].index(step_id)
        if count_events(session, run_label, steps) * len(steps) > MAX_EVENTS:
            continue
        recording = load(session, run_label, list(steps))
        if not recording.calls:
            continue
        stretch = build(recording, costs, Sites({}))
        pieces, device = path_of(stretch.graph, number)
        if pieces:
            found[step_id] = CriticalPath(
                step_id,
                steps[number].period_ns,
                pieces[-1].end_ns,
                pieces,
                device,
                stretch.hidden or stretch.counted,
            )
    return found


def steps_around(session: Session, step_ids: Iterable[int]) -> dict[int, list[Step]]:
    """Return what is needed to replay each of some steps, by ``step_id``."""
    asked = ",".join(str(int(step_id)) for step_id in step_ids)
    rows = session.report(
        "steps_around", {"steps": asked, "before": WARM_UP_STEPS, "after": STEPS_AFTER}
    ).fetchall()
    found: dict[int, list[Step]] = defaultdict(list)
    for _, of_step, *row in rows:
        found[of_step].append(Step(*row))
    return dict(found)
