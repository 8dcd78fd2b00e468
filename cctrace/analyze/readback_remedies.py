"""Remedies that change who waits for the tokens, and when."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cctrace.analyze.edits import Streams, edited
from cctrace.analyze.graph import Act, Graph, Item, Thread
from cctrace.analyze.handovers import CALL_GAP_NS, RESULT_NS, launches
from cctrace.analyze.readbacks import find_readbacks, turns_back

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.costs import Costs
    from cctrace.analyze.readbacks import Readback

# What the host does to hand over and to take, beside the calls: Python's queues.
HAND_OVER_NS = 4_000.0


@dataclass(frozen=True)
class WorkerReadback:
    """A worker thread waits for the tokens and copies them; the loop takes the last ones."""

    costs: Costs
    code: ClassVar[str] = "worker_readback"
    title: ClassVar[str] = "Drain the readback on a worker thread, one step late"
    switch: ClassVar[str] = (
        "vLLM: async scheduling with the output copied on its own thread; "
        "SGLang: overlap schedule; decode_loop.py: --async-scheduling --readback worker"
    )

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with a thread more for each thread that reads back."""
        streams = Streams(graph)
        threads = []
        for thread in graph.threads:
            found = find_readbacks(thread.items) if launches(thread) else []
            if not found:
                threads.append(thread)
                continue
            threads += self._split(thread, found, streams, graph.wake_ns)
        return graph.with_threads(threads, tuple(streams.devices))

    def _split(
        self, thread: Thread, found: list[Readback], streams: Streams, wake_ns: float
    ) -> list[Thread]:
        edits: dict[int, list[Item]] = {}
        reader: list[Item] = []
        done: list[Item] = []
        side = streams.beside(found[0].stream)
        back = turns_back(found)
        for number, readback in enumerate(found):
            first = thread.items[readback.copies[0]]
            if readback.record is None:
                mark = Item(
                    Act.RECORD,
                    first.gap_ns,
                    self.costs.toll_ns("event"),
                    stream=readback.stream,
                    step=readback.step,
                )
                kept = [mark]
            else:
                mark = thread.items[readback.record]
                kept = []
            asked = Item(Act.ANCHOR, HAND_OVER_NS / 2, step=readback.step)
            kept.append(asked)
            reader.append(Item(Act.WAIT_ANCHOR, target=asked, wake_ns=wake_ns, step=readback.step))
            done.append(self._drain(reader, thread.items, readback, mark, side))
            for place in readback.places:
                if place != readback.record and not (place == readback.sync and readback.is_late):
                    edits[place] = []
            taken = number if readback.is_late else number - back
            # Tokens of before the stretch are there.
            target = done[taken] if taken >= 0 else None
            take = Item(Act.WAIT_ANCHOR, target=target, wake_ns=wake_ns, step=readback.step)
            sync = readback.sync
            if sync is None:
                kept.append(take.but(gap_ns=CALL_GAP_NS + HAND_OVER_NS / 2))
            else:
                item = thread.items[sync]
                edits[sync] = [take.but(gap_ns=item.gap_ns + HAND_OVER_NS / 2)]
            edits[readback.copies[0]] = kept
        # The threads of a Python program run one at a time while they are in no call.
        lock = thread.tid if thread.pid in self.costs.python_pids else -1
        own = replace(edited(thread, edits), lock=lock)
        return [own, Thread(thread.pid, -thread.tid, thread.start_ns, reader, lock)]

    def _drain(
        self,
        reader: list[Item],
        items: Sequence[Item],
        readback: Readback,
        mark: Item,
        side: int,
    ) -> Item:
        """Add one turn of the worker; return the anchor at its end."""
        step = readback.step
        sync_ns = self.costs.toll_ns("sync")
        reader.append(Item(Act.WAIT_EVENT, CALL_GAP_NS, after_ns=sync_ns, target=mark, step=step))
        reader.extend(
            items[place].but(stream=side, gap_ns=CALL_GAP_NS, step=step)
            for place in readback.copies
        )
        reader.append(Item(Act.WAIT_STREAM, CALL_GAP_NS, after_ns=sync_ns, stream=side, step=step))
        done = Item(Act.ANCHOR, RESULT_NS, step=step)
        reader.append(done)
        return done


@dataclass(frozen=True)
class AsyncSchedulingOn:
    """The tokens are copied on a stream beside, and waited for one step later."""

    costs: Costs
    code: ClassVar[str] = "async_scheduling_on"
    title: ClassVar[str] = "Turn async scheduling on: take the tokens one step late"
    switch: ClassVar[str] = (
        "vLLM: --async-scheduling; SGLang: overlap schedule; decode_loop.py: --async-scheduling"
    )

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with each readback waited for where the next one is."""
        streams = Streams(graph)
        threads = []
        for thread in graph.threads:
            found = [r for r in find_readbacks(thread.items) if not r.is_late]
            if not launches(thread):
                threads.append(thread)
            elif not found:
                threads.append(self._later(thread, graph))
            else:
                threads.append(self._defer(thread, found, streams))
        return graph.with_threads(threads, tuple(streams.devices))

    def _defer(self, thread: Thread, found: list[Readback], streams: Streams) -> Thread:
        side = streams.beside(found[0].stream)
        back = turns_back(found)
        event_ns = self.costs.toll_ns("event")
        edits: dict[int, list[Item]] = {}
        done: list[Item] = []
        for number, readback in enumerate(found):
            step = readback.step
            first = thread.items[readback.copies[0]]
            for place in readback.places:
                edits[place] = []
            mark = Item(Act.RECORD, first.gap_ns, event_ns, stream=readback.stream, step=step)
            calls = [
                mark,
                Item(Act.STREAM_WAIT, CALL_GAP_NS, event_ns, stream=side, target=mark, step=step),
            ]
            calls += [
                thread.items[place].but(stream=side, gap_ns=CALL_GAP_NS)
                for place in readback.copies
            ]
            done.append(Item(Act.RECORD, CALL_GAP_NS, event_ns, stream=side, step=step))
            calls.append(done[-1])
            sync = None if readback.sync is None else thread.items[readback.sync]
            taken = number - back
            wait = Item(
                Act.WAIT_EVENT,
                CALL_GAP_NS if sync is None else sync.gap_ns,
                after_ns=self.costs.toll_ns("sync"),
                target=done[taken] if taken >= 0 else None,
                step=step,
            )
            edits[readback.copies[0]] = calls
            if readback.sync is None:
                calls.append(wait)
            else:
                edits[readback.sync] = [wait]
        return edited(thread, edits)

    def _later(self, thread: Thread, graph: Graph) -> Thread:
        """Have a thread that waits for a reading thread wait for its last turn instead."""
        readers = {
            item.uid
            for other in graph.threads
            if other is not thread and not launches(other) and find_readbacks(other.items)
            for item in other.items
            if item.act == Act.ANCHOR
        }
        waits: dict[int, list[int]] = defaultdict(list)
        for place, item in enumerate(thread.items):
            if item.act == Act.WAIT_ANCHOR and item.target and item.target.uid in readers:
                waits[item.step].append(place)
        edits: dict[int, list[Item]] = {}
        for step, places in waits.items():
            before = waits.get(step - 1, [])
            for index, place in enumerate(places):
                item = thread.items[place]
                from_end = len(places) - index
                target = thread.items[before[-from_end]].target if from_end <= len(before) else None
                edits[place] = [item.but(target=target)]
        return edited(thread, edits)


@dataclass(frozen=True)
class AsyncSchedulingOff:
    """The tokens are copied on the stream of the work, and waited for at once."""

    costs: Costs
    code: ClassVar[str] = "async_scheduling_off"
    title: ClassVar[str] = "Turn async scheduling off: take the tokens at once"
    switch: ClassVar[str] = (
        "vLLM: --no-async-scheduling; SGLang: --disable-overlap-schedule; "
        "decode_loop.py: without --async-scheduling"
    )

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with each late readback waited for where it is asked for."""
        return graph.with_threads([self._at_once(thread) for thread in graph.threads])

    def _at_once(self, thread: Thread) -> Thread:
        edits: dict[int, list[Item]] = {}
        late = [r for r in find_readbacks(thread.items) if r.is_late]
        for readback in late:
            for place in readback.places:
                edits[place] = []
        for readback in late:
            first = readback.record if readback.record is not None else readback.copies[0]
            gap_ns = thread.items[first].gap_ns
            calls = []
            for place in readback.copies:
                calls.append(thread.items[place].but(stream=readback.stream, gap_ns=gap_ns))
                gap_ns = CALL_GAP_NS
            calls.append(
                Item(
                    Act.WAIT_STREAM,
                    CALL_GAP_NS,
                    after_ns=self.costs.toll_ns("sync"),
                    stream=readback.stream,
                    step=readback.step,
                )
            )
            edits[readback.copies[0]] = calls
        return edited(thread, edits)
