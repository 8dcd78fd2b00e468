"""Replay a stretch of a run: when would each step have started, had it been like this?

A simulation by events. Each thread does its items in order, each stream its work in
order; times follow from the lengths in the graph alone. Replaying an unchanged graph
gives the recorded times back, replaying one that a remedy has changed tells what the
remedy would do: what a wait no longer holds up starts earlier, until something else
holds it up.

Assumed: host work takes as long as it was recorded to take, whenever it happens; the
work of a stream takes as long on the device, whatever else runs there; threads do not
slow each other down except where they were seen to wait for each other.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from cctrace.analyze.graph import WAITS, Act

if TYPE_CHECKING:
    from cctrace.analyze.graph import Graph, Item, Thread

_LANE_MEMORY = 16  # copies that a later one may still run before


@dataclass
class Replay:
    """What a replay found.

    Attributes:
        starts_ns: (number, time in ns) of each step, by start.
        blocked_ns: By site: time its calls waited, in steps that count.
        bubble_ns: By site: time a device was idle after its calls returned, in steps
            that count.
        stuck: Waits that nothing would have ended; they were let go.
    """

    starts_ns: list[tuple[int, float]] = field(default_factory=list)
    blocked_ns: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    bubble_ns: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    stuck: int = 0

    def periods_ns(self, first: int, last: int) -> dict[int, float]:
        """Return the length of each step from number ``first`` to ``last``, ns."""
        found = {}
        for (step, start_ns), (following, end_ns) in zip(
            self.starts_ns, self.starts_ns[1:], strict=False
        ):
            if first <= step <= last and following == step + 1:
                found[step] = end_ns - start_ns
        return found


class _Device:
    """One device: when its streams are through, and when a copy may run."""

    def __init__(self, copies_at_once: int) -> None:
        self._lanes: list[list[tuple[float, float]]] = [[] for _ in range(copies_at_once)]
        self.busy_until_ns = 0.0
        self.last_wait = -1  # site of the wait that returned last

    def place_copy(self, ready_ns: float, dur_ns: float) -> float:
        """Return when a copy starts that could at ``ready_ns``, and take the room."""
        best_ns, best_lane, best_at = inf, self._lanes[0], 0
        for lane in self._lanes:
            start_ns, at = ready_ns, 0
            for at, (begin_ns, end_ns) in enumerate(lane):  # noqa: B007 - used after the loop
                if start_ns + dur_ns <= begin_ns:
                    break
                start_ns = max(start_ns, end_ns)
            else:
                at = len(lane)
            if start_ns < best_ns:
                best_ns, best_lane, best_at = start_ns, lane, at
        best_lane.insert(best_at, (best_ns, best_ns + dur_ns))
        if len(best_lane) > _LANE_MEMORY:
            del best_lane[0]
        return best_ns


class Machine:
    """All threads, streams and devices at one moment of the replay.

    :mod:`cctrace.analyze.critical_path` watches one at work.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._first, self._last = graph.first_step, graph.last_step
        self._tails_ns = [0.0] * len(graph.streams)
        self._devices = [_Device(count) for count in graph.copies_at_once]
        self._of_stream = [self._devices[device] for device in graph.streams]
        self._by_device: list[list[int]] = [[] for _ in graph.copies_at_once]
        for stream, device in enumerate(graph.streams):
            self._by_device[device].append(stream)
        self._passed_ns: dict[int, float] = {}  # by uid of RECORD and ANCHOR: when
        self._reached_ns: dict[int, float] = {}  # by uid of RECORD: when its stream is there
        self._parked: dict[int, list[tuple[int, float]]] = {}  # by uid: thread, since when
        self._locks: dict[int, tuple[int, float]] = {}  # by lock: who has it, until when
        self._next = [0] * len(graph.threads)
        self._since_ns: list[float | None] = [None] * len(graph.threads)  # None: in no call
        self._ready = [(thread.start_ns, number) for number, thread in enumerate(graph.threads)]
        heapq.heapify(self._ready)
        self.found = Replay()

    def run(self) -> Replay:
        """Have every thread do all its items."""
        while True:
            while self._ready:
                now_ns, number = heapq.heappop(self._ready)
                self._advance(number, now_ns)
            if not self._parked:
                return self.found
            self._let_go()

    def _let_go(self) -> None:
        """End the wait that began first: what it waits for can no longer come."""
        uid = min(self._parked, key=lambda key: self._parked[key][0][1])
        if self._next[0] < len(self._graph.threads[0].items):  # else it is the stretch's end
            self.found.stuck += len(self._parked[uid])
        since_ns = self._parked[uid][0][1]
        self._reached_ns[uid] = since_ns
        self._pass(uid, since_ns)

    def _pass(self, uid: int, now_ns: float) -> None:
        self._passed_ns[uid] = now_ns
        for number, since_ns in self._parked.pop(uid, ()):
            heapq.heappush(self._ready, (max(since_ns, now_ns), number))

    def _advance(self, number: int, now_ns: float) -> None:
        """Run one thread until another one is behind it, or it has to wait for one."""
        thread = self._graph.threads[number]
        items = thread.items
        at, since_ns = self._next[number], self._since_ns[number]
        while at < len(items):
            item = items[at]
            if since_ns is None:
                if thread.lock >= 0 and item.gap_ns:
                    if self._ready and now_ns > self._ready[0][0]:
                        heapq.heappush(self._ready, (now_ns, number))
                        break
                    free_ns = self._take_lock(thread, number, now_ns, item.gap_ns)
                    if free_ns is None:
                        break
                    now_ns = free_ns
                since_ns = now_ns + item.gap_ns + item.host_ns
                if self._ready and since_ns > self._ready[0][0]:
                    heapq.heappush(self._ready, (since_ns, number))
                    break
            target = item.target
            if target is not None and target.uid not in self._passed_ns:
                self._parked.setdefault(target.uid, []).append((number, since_ns))
                break
            now_ns = self._do(item, since_ns)
            since_ns = None
            at += 1
        self._next[number], self._since_ns[number] = at, since_ns

    def _take_lock(self, thread: Thread, number: int, now_ns: float, dur_ns: float) -> float | None:
        """Take the interpreter's lock for work outside of calls.

        The loop's own thread gets it when it is next free; one beside it tries again
        then, and finds it taken where the loop was faster.

        Returns:
            When the thread has it; None: it has to try again, which is seen to.
        """
        owner, until_ns = self._locks.get(thread.lock, (number, now_ns))
        if owner != number and until_ns > now_ns:
            now_ns = until_ns + self._graph.wake_ns
            if thread.tid != thread.lock:
                heapq.heappush(self._ready, (now_ns, number))
                return None
        self._locks[thread.lock] = number, now_ns + dur_ns
        return now_ns

    def _do(self, item: Item, now_ns: float) -> float:
        """Do what an item does at its moment; return when the thread goes on."""
        act = item.act
        if act in WAITS:
            return self._wait(item, now_ns)
        if act == Act.ENQUEUE:
            self._submit(item, now_ns)
        elif act == Act.MARK:
            self.found.starts_ns.append((item.step, now_ns))
        elif act == Act.ANCHOR:
            self._pass(item.uid, now_ns)
        elif act == Act.RECORD:
            self._reached_ns[item.uid] = max(now_ns, self._tails_ns[item.stream])
            self._pass(item.uid, now_ns)
        elif act == Act.STREAM_WAIT and item.target is not None:
            reached_ns = self._reached_ns[item.target.uid]
            self._tails_ns[item.stream] = max(self._tails_ns[item.stream], reached_ns)
        return now_ns + item.after_ns

    def _wait(self, item: Item, now_ns: float) -> float:
        act, until_ns = item.act, now_ns
        if act == Act.BLOCKING:
            until_ns = self._submit(item, now_ns)
        elif act == Act.WAIT_STREAM:
            until_ns = self._tails_ns[item.stream]
        elif act == Act.WAIT_DEVICE:
            device = self._graph.streams[item.stream]
            until_ns = max(self._tails_ns[stream] for stream in self._by_device[device])
        elif item.target is not None and act == Act.WAIT_EVENT:
            until_ns = self._reached_ns[item.target.uid]
        elif item.target is not None:  # WAIT_ANCHOR
            until_ns = self._passed_ns[item.target.uid]
            if until_ns > now_ns:
                until_ns += item.wake_ns
        held_ns = until_ns - now_ns
        if act == Act.BLOCKING:
            held_ns -= item.device_ns  # its own
        if held_ns > 0 and item.stream >= 0:
            self._of_stream[item.stream].last_wait = item.site
            if self._counts(item):
                self.found.blocked_ns[item.site] += held_ns
        return max(now_ns, until_ns) + item.after_ns

    def _counts(self, item: Item) -> bool:
        return self._first <= item.step <= self._last

    def _submit(self, item: Item, now_ns: float) -> float:
        """Put an item's work on its stream; return when it will be done."""
        device = self._of_stream[item.stream]
        start_ns = max(now_ns + item.latency_ns, self._tails_ns[item.stream])
        if item.bridge:
            start_ns = device.place_copy(start_ns, item.device_ns)
        if start_ns > device.busy_until_ns and self._counts(item):
            self.found.bubble_ns[device.last_wait] += start_ns - device.busy_until_ns
        end_ns = start_ns + item.device_ns
        self._tails_ns[item.stream] = end_ns
        device.busy_until_ns = max(device.busy_until_ns, end_ns)
        return end_ns


def replay(graph: Graph) -> Replay:
    """Replay a graph.

    Args:
        graph: The stretch; a remedy may have changed it.

    Returns:
        The steps' starts, and who waited for how long.
    """
    return Machine(graph).run()
