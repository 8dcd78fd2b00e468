"""Make a graph of what was recorded of a stretch of steps."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cctrace.analyze.costs import SYNCHRONOUS
from cctrace.analyze.device_work import Span, infer
from cctrace.analyze.graph import Act, Call, Graph, Item, Thread
from cctrace.analyze.handovers import share_lock
from cctrace.analyze.recording import WARM_UP_STEPS, Recording, Step, Wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cctrace.analyze.costs import Costs
    from cctrace.analyze.device_work import DeviceWork

_LANES = 2  # copies at once where copies do not block: one engine a direction


@dataclass(frozen=True)
class SiteKey:
    """What tells one call site from another.

    Not the stack: what is worth batching or capturing into one graph comes from one line
    after the other.

    Attributes:
        role: Role of the thread, as in ``thread_roles``.
        path: NVTX path.
        api: Function.
        cls: Class of the function.
        copy_kind: Kind of copy; None: no copy.
        size_class: Class of its size; None: no size.
    """

    role: str
    path: str
    api: str
    cls: str
    copy_kind: str | None
    size_class: str | None


class Sites:
    """Call sites by number."""

    def __init__(self, roles: Mapping[tuple[int, int], str]) -> None:
        self._roles = roles
        self._numbers: dict[SiteKey, int] = {}
        self.keys: list[SiteKey] = []

    def number(self, call: Call) -> int:
        """Return the number of the site a call was made at."""
        role = self._roles.get((call.pid, call.tid), "unknown")
        key = SiteKey(role, call.path, call.api, call.cls, call.copy_kind, call.size_class)
        if key not in self._numbers:
            self._numbers[key] = len(self.keys)
            self.keys.append(key)
        return self._numbers[key]


# -- the graph ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """A graph, and what it was made from.

    Attributes:
        graph: The stretch as it was.
        steps: Its steps; number i of the graph is the i-th.
        hidden: Whether lengths on the device are guesses that matter.
        counted: Whether launches were counted rather than recorded.
    """

    graph: Graph
    steps: list[Step]
    hidden: bool
    counted: bool = False


class _Builder:
    """Makes the graph of one stretch."""

    def __init__(self, recording: Recording, costs: Costs, sites: Sites, bound: str) -> None:
        self._recording = recording
        self._costs = costs
        self._sites = sites
        self._bound = bound
        self._start_ns = recording.steps[0].ts_ns
        self._end_ns = recording.steps[-1].ts_ns + recording.steps[-1].period_ns
        self._step_starts = [step.ts_ns for step in recording.steps]
        self._driver = recording.steps[0].pid, recording.steps[0].tid
        self._streams: dict[tuple[int, int], int] = {}
        self._stream_pids: list[int] = []
        self._work: dict[int, DeviceWork] = {}
        self._records: dict[int, Item] = {}  # by identity of the recording call
        self._record_of: dict[int, Call | None] = {}  # by identity of the waiting call
        self.hidden = False

    def build(self) -> Graph:
        keys = self._participants()
        self._infer(keys)
        waits = {key: self._outside(key) for key in keys}
        anchors = self._anchors(keys, waits)
        threads = []
        for key in keys:
            items = self._items(key, waits[key], anchors)
            threads.append(Thread(*key, self._first_ns(key, waits[key]), items))
        pids = sorted(set(self._stream_pids))
        at_once = {pid: 1 if self._copies_block(pid) else _LANES for pid in pids}
        return Graph(
            tuple(threads),
            tuple(pids.index(pid) for pid in self._stream_pids),
            tuple(at_once[pid] for pid in pids),
            min(WARM_UP_STEPS, len(self._recording.steps) - 1),
            len(self._recording.steps) - 1,
            self._recording.wake_ns,
        )

    def _participants(self) -> list[tuple[int, int]]:
        """The driving thread, those that call CUDA, and whoever wakes one of these."""
        tids = {tid: (pid, tid) for pid, tid in self._recording.waits}
        tids |= {tid: (pid, tid) for pid, tid in self._recording.calls}
        found = [self._driver, *sorted(set(self._recording.calls) - {self._driver})]
        for key in found:  # grows meanwhile
            for wait in self._outside(key):
                waker = tids.get(wait.waker_tid) if wait.waker_tid else None
                if waker is not None and waker not in found:
                    found.append(waker)
        return found

    def _outside(self, key: tuple[int, int]) -> list[Wait]:
        """The waits of a thread that began outside of its CUDA calls."""
        calls = self._recording.calls.get(key, [])
        starts = [call.ts_ns for call in calls]
        found = []
        for wait in self._recording.waits.get(key, []):
            at = bisect_right(starts, wait.ts_ns) - 1
            if at < 0 or calls[at].end_ns <= wait.ts_ns:
                found.append(wait)
        return found

    def _first_ns(self, key: tuple[int, int], waits: Sequence[Wait]) -> float:
        """When a thread's first gap begins: its own work is not known before."""
        if key == self._driver:
            return 0.0
        first = [call.ts_ns for call in self._recording.calls.get(key, [])[:1]]
        first += [wait.ts_ns for wait in waits[:1]]
        return float(min(first) - self._start_ns) if first else 0.0

    def _copies_block(self, pid: int) -> bool:
        return (
            any(
                self._costs.copy(call.api, call.copy_kind, call.host_memory).mode == SYNCHRONOUS
                for key, calls in self._recording.calls.items()
                if key[0] == pid
                for call in calls
                if call.cls == "copy"
                and call.copy_kind in ("h2d", "d2h")
                and call.host_memory != "pageable"
                and "Async" in call.api
            )
            or self._costs.is_confidential
        )

    def _infer(self, keys: Iterable[tuple[int, int]]) -> None:
        by_pid: dict[int, list[Call]] = defaultdict(list)
        for key in keys:
            by_pid[key[0]] += self._recording.calls.get(key, [])
        for pid, calls in by_pid.items():
            calls.sort(key=lambda call: call.ts_ns)
            work = infer(
                calls,
                self._costs,
                self._recording.activity.get(pid, {}),
                is_counted=pid in self._recording.counted,
            )
            self._work[pid] = work
            self.hidden = self.hidden or bool(work.hidden)
            marks: dict[int | None, Call] = {}
            for call in calls:
                if call.cls == "event" and "Record" in call.api:
                    marks[call.event] = marks[None] = call
                elif "StreamWaitEvent" in call.api or "EventSynchronize" in call.api:
                    self._record_of[id(call)] = marks.get(call.event)

    def _anchors(
        self, keys: list[tuple[int, int]], waits: Mapping[tuple[int, int], Sequence[Wait]]
    ) -> dict[tuple[int, int], list[tuple[int, Item]]]:
        """Anchors by thread, by moment: where each waiting thread was woken from."""
        by_tid = {key[1]: key for key in keys}
        found: dict[tuple[int, int], list[tuple[int, Item]]] = defaultdict(list)
        self._woken_by: dict[int, Item] = {}
        for key in keys:
            for wait in waits[key]:
                waker = by_tid.get(wait.waker_tid) if wait.waker_tid else None
                if waker is None or waker == key or wait.end_ns >= self._end_ns:
                    continue
                anchor = Item(Act.ANCHOR)
                found[waker].append((wait.end_ns, anchor))
                self._woken_by[id(wait)] = anchor
        for entries in found.values():
            entries.sort(key=lambda entry: entry[0])
        return found

    def _items(
        self,
        key: tuple[int, int],
        waits: Sequence[Wait],
        anchors: Mapping[tuple[int, int], list[tuple[int, Item]]],
    ) -> list[Item]:
        """What a thread did, in order."""
        # (moment, order at equal moments, what)
        events: list[tuple[int, int, Any]] = []
        calls = self._recording.calls.get(key, [])
        events += [(call.ts_ns, 3, call) for call in calls]
        events += [(wait.ts_ns, 2, wait) for wait in waits]
        starts = [call.ts_ns for call in calls]
        for at_ns, anchor in anchors.get(key, []):
            at = bisect_right(starts, at_ns) - 1
            if at >= 0 and calls[at].end_ns > at_ns:
                at_ns = calls[at].ts_ns  # noqa: PLW2901 - a call is not cut: before it
            events.append((at_ns, 1, anchor))
        if key == self._driver:
            events += [
                (ts_ns, 0, Item(Act.MARK, step=number))
                for number, ts_ns in enumerate([*self._step_starts, self._end_ns])
            ]
        events.sort(key=lambda event: event[:2])
        items: list[Item] = []
        now_ns = self._start_ns + int(self._first_ns(key, waits))
        for at_ns, _, what in events:
            gap_ns = float(max(0, at_ns - now_ns))
            step = bisect_right(self._step_starts, at_ns) - 1
            if isinstance(what, Item):
                what.gap_ns = gap_ns
                what.step = step if what.step < 0 else what.step
                items.append(what)
                now_ns = max(now_ns, at_ns)
            elif isinstance(what, Wait):
                items.append(self._wait_item(what, gap_ns, step))
                now_ns = max(now_ns, what.end_ns)
            else:
                item = self._call_item(what, step)
                unseen_ns = self._work[what.pid].unseen.get(id(what))
                if unseen_ns is not None:
                    queued = Item(Act.ENQUEUE, stream=item.stream, device_ns=unseen_ns, step=step)
                    items.append(queued)
                item.gap_ns = gap_ns
                items.append(item)
                now_ns = max(now_ns, what.end_ns)
        return items

    def _wait_item(self, wait: Wait, gap_ns: float, step: int) -> Item:
        anchor = self._woken_by.get(id(wait))
        if anchor is None:  # a timer, a disk, someone else: as long as it took
            return Item(Act.RUN, gap_ns + wait.dur_ns, step=step)
        return Item(
            Act.WAIT_ANCHOR,
            gap_ns,
            target=anchor,
            step=step,
            recorded_ns=wait.dur_ns,
            end_ns=wait.end_ns,
        )

    def _stream(self, pid: int, handle: int) -> int:
        key = pid, handle
        if key not in self._streams:
            self._streams[key] = len(self._stream_pids)
            self._stream_pids.append(pid)
        return self._streams[key]

    def _length_ns(self, call: Call) -> float:
        span = self._work[call.pid].lengths.get(id(call), Span(0.0, 0.0, 0.0))
        if self._bound == "low":
            return span.low_ns
        return span.high_ns if self._bound == "high" else span.likely_ns

    def _call_item(self, call: Call, step: int) -> Item:
        site = self._sites.number(call)
        if call.cls == "copy":
            return self._copy_item(call, site, step)
        host_ns = float(call.dur_ns)
        if call.cls in ("launch", "graph", "memset", "collective"):
            return Item(
                Act.ENQUEUE,
                host_ns=host_ns,
                stream=self._stream(call.pid, call.stream),
                device_ns=self._length_ns(call),
                latency_ns=self._costs.latency_ns(call.cls),
                site=site,
                step=step,
                call=call,
            )
        if call.cls == "event" and "Record" in call.api:
            item = Item(Act.RECORD, host_ns=host_ns, site=site, step=step, call=call)
            item.stream = self._stream(call.pid, call.stream)
            self._records[id(call)] = item
            return item
        if "StreamWaitEvent" in call.api:
            item = Item(Act.STREAM_WAIT, host_ns=host_ns, site=site, step=step, call=call)
            item.stream = self._stream(call.pid, call.stream)
            return item
        is_sync = call.cls == "sync" and "Query" not in call.api
        if is_sync or (call.cls == "free" and id(call) in self._work[call.pid].waited):
            return self._sync_item(call, site, step)
        return Item(Act.RUN, host_ns=host_ns, site=site, step=step, call=call)

    def _sync_item(self, call: Call, site: int, step: int) -> Item:
        act = Act.WAIT_DEVICE
        if "Event" in call.api:
            act = Act.WAIT_EVENT
        elif "Stream" in call.api:
            act = Act.WAIT_STREAM
        after_ns = float(call.dur_ns)
        if id(call) in self._work[call.pid].waited:
            after_ns = min(after_ns, self._costs.least_ns(call))
        stream = self._stream(call.pid, call.stream)
        return Item(act, after_ns=after_ns, stream=stream, site=site, step=step, call=call)

    def _copy_item(self, call: Call, site: int, step: int) -> Item:
        cost = self._costs.copy(call.api, call.copy_kind, call.host_memory)
        item = Item(Act.ENQUEUE, host_ns=float(call.dur_ns), site=site, step=step, call=call)
        item.stream = self._stream(call.pid, call.stream)
        item.device_ns = self._length_ns(call)
        item.bridge = call.copy_kind in ("h2d", "d2h")
        if cost.mode == SYNCHRONOUS:
            item.act = Act.BLOCKING
            item.after_ns = min(self._costs.probe_ns, float(call.dur_ns))
            item.host_ns = max(0.0, call.dur_ns - item.device_ns - item.after_ns)
            if id(call) in self._work[call.pid].waited:
                item.host_ns = min(cost.host_ns, item.host_ns)
        return item

    def link(self, graph: Graph) -> None:
        """Point waits for events at the records they wait for."""
        for thread in graph.threads:
            for item in thread.items:
                if item.call is None or item.act not in (Act.STREAM_WAIT, Act.WAIT_EVENT):
                    continue
                record = self._record_of.get(id(item.call))
                item.target = None if record is None else self._records.get(id(record))


def build(recording: Recording, costs: Costs, sites: Sites, bound: str = "likely") -> Stretch:
    """Make the graph of a stretch.

    Args:
        recording: What was recorded of it.
        costs: What calls cost when nothing holds them up.
        sites: Numbers of the call sites; grows.
        bound: low, likely or high: which end of the bounds of lengths on the device.
    """
    builder = _Builder(recording, costs, sites, bound)
    graph = builder.build()
    builder.link(graph)
    graph = share_lock(graph, costs.python_pids)
    return Stretch(graph, recording.steps, builder.hidden, bool(recording.counted))
