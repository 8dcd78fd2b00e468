"""Hand-overs between a Python loop and its thread that reads back, told from the calls.

What was recorded between two threads of a Python program are mostly waits for the
interpreter's lock, whose moments mean nothing once anything changes. What does mean
something are the calls: the reading thread waits for an event that the loop recorded, so
it was asked then; and the loop takes the tokens at one place in its turn, either those it
has just asked for or those of the turn before. This module puts that in the place of the
recorded waits, and has the two threads share the lock.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cctrace.analyze.graph import SUBMITS, WAITS, Act, Graph, Item, Thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CALL_GAP_NS = 3_000.0  # the interpreter's work between two calls in a row
RESULT_NS = 10_000.0  # to make a result of what was copied, and hand it over
_SOON_NS = 300_000  # a wait that ends so soon after a turn of the reader was for it
_SURE = 0.8  # share of the turns in which it has to be so
_FEWEST_TURNS = 3


@dataclass
class _Turn:
    """What a reading thread did for one event."""

    record: Item  # in the other thread
    items: list[Item] = field(default_factory=list)
    done: Item = field(default_factory=lambda: Item(Act.ANCHOR, RESULT_NS))
    end_ns: int = 0  # recorded

    @property
    def reads(self) -> bool:
        """Whether something was copied or waited for."""
        return bool(self.items)


def launches(thread: Thread) -> bool:
    """Whether a thread launches kernels or graphs, be they recorded or only counted."""
    return any(
        item.act == Act.ENQUEUE and (item.call is None or item.call.cls in ("launch", "graph"))
        for item in thread.items
    )


def share_lock(graph: Graph, python_pids: Iterable[int]) -> Graph:
    """Put hand-overs in the place of the recorded waits between Python threads.

    Args:
        graph: A stretch as recorded.
        python_pids: Processes that run Python.

    Returns:
        The same stretch where no thread of such a process reads back for another one.
    """
    owners = {item.uid: number for number, t in enumerate(graph.threads) for item in t.items}
    threads = list(graph.threads)
    wake_ns = graph.wake_ns
    python = frozenset(python_pids)
    for number, reader in enumerate(graph.threads):
        if reader.pid not in python or launches(reader):
            continue
        turns = _turns(reader, owners)
        asking = {owners[turn.record.uid] for turn in turns}
        if len(turns) < _FEWEST_TURNS or len(asking) != 1:
            continue
        [asker] = asking
        if threads[asker].pid != reader.pid:
            continue
        anchors = {item.uid for item in reader.items if item.act == Act.ANCHOR}
        threads[asker] = _asking(threads[asker], turns, anchors, wake_ns)
        threads[number] = _reading(reader, turns, wake_ns, threads[asker].lock)
    if all(old is new for old, new in zip(graph.threads, threads, strict=True)):
        return graph
    return replace(graph, threads=tuple(threads))


def _turns(reader: Thread, owners: dict[int, int]) -> list[_Turn]:
    found: list[_Turn] = []
    for item in reader.items:
        if item.act == Act.WAIT_EVENT and item.target is not None and item.target.uid in owners:
            found.append(_Turn(item.target))
        if found and item.act == Act.ANCHOR:  # others may wait for it
            item.gap_ns = 0.0
            found[-1].items.append(item)
        if not found or item.call is None:
            continue
        if item.act in SUBMITS or item.act in WAITS or item.act == Act.RUN:
            found[-1].items.append(item.but(gap_ns=CALL_GAP_NS))
            found[-1].end_ns = item.call.end_ns
    return [turn for turn in found if turn.reads]


def _reading(reader: Thread, turns: Sequence[_Turn], wake_ns: float, lock: int) -> Thread:
    items: list[Item] = []
    for turn in turns:
        step = turn.items[0].step
        asked = turn.record
        items.append(Item(Act.WAIT_ANCHOR, target=asked, wake_ns=wake_ns, step=step))
        items += turn.items
        turn.done.step = turn.record.step
        items.append(turn.done)
    return replace(reader, items=items, lock=lock)


def _asking(thread: Thread, turns: Sequence[_Turn], anchors: set[int], wake_ns: float) -> Thread:
    """Have the asking thread wait for the reader where it takes its results."""
    by_record = {turn.record.uid: number for number, turn in enumerate(turns)}
    waits = [place for place, item in enumerate(thread.items) if _is_on(item, anchors)]
    after = _taking_site(thread.items, waits, by_record)
    places = _places(thread.items, set(waits), by_record, after)
    back = _back(thread.items, places, turns, anchors)
    items: list[Item] = []
    for place, item in enumerate(thread.items):
        if place in waits:
            items.append(item.but(act=Act.RUN, target=None))
        else:
            items.append(item)
        for number in places.get(place, ()):
            target = turns[number - back].done if number >= back else None
            items.append(Item(Act.WAIT_ANCHOR, target=target, wake_ns=wake_ns, step=item.step))
    return replace(thread, items=items, lock=thread.tid)


def _is_on(item: Item, anchors: set[int]) -> bool:
    return item.act == Act.WAIT_ANCHOR and item.target is not None and item.target.uid in anchors


def _taking_site(
    items: Sequence[Item], waits: Sequence[int], by_record: dict[int, int]
) -> int | None:
    """The site of the call after which the thread waits longest; None: after the record."""
    total_ns: dict[int | None, int] = defaultdict(int)
    is_waiting = set(waits)
    site: int | None = None
    for place, item in enumerate(items):
        if item.call is not None:
            site = None if item.uid in by_record else item.site
        if place in is_waiting:
            total_ns[site] += item.recorded_ns
    return max(total_ns, key=lambda key: total_ns[key]) if total_ns else None


def _places(
    items: Sequence[Item], waits: set[int], by_record: dict[int, int], after: int | None
) -> dict[int, list[int]]:
    """Where each turn's place of taking is: the last wait behind the call, or the call."""
    found: dict[int, list[int]] = defaultdict(list)
    asked: list[int] = []
    at: int | None = None
    for place, item in enumerate(items):
        if item.call is not None:
            if at is not None:
                found[at] += asked
                asked, at = [], None
            if item.uid in by_record:
                asked.append(by_record[item.uid])
            if item.uid in by_record if after is None else item.site == after:
                at = place
        elif at is not None and place in waits:
            at = place
    if at is not None:
        found[at] += asked
    return found


def _back(
    items: Sequence[Item],
    places: dict[int, list[int]],
    turns: Sequence[_Turn],
    anchors: set[int],
) -> int:
    """How many turns back the results are that are taken."""
    by_step: dict[int, int] = defaultdict(int)
    for turn in turns:
        by_step[turn.record.step] += 1
    counts = sorted(by_step.values())
    a_step = counts[len(counts) // 2]
    at_once = total = 0
    for place, numbers in places.items():
        item = items[place]
        for number in numbers:
            total += 1
            late_ns = item.end_ns - turns[number].end_ns
            at_once += _is_on(item, anchors) and 0 <= late_ns <= _SOON_NS
    return 0 if at_once >= _SURE * total else a_step


def takes_at_once(graph: Graph) -> bool:
    """Whether a loop waits for what it has a reading thread read in the same step."""
    own = [thread for thread in graph.threads if thread.lock == thread.tid]
    done = {
        item.uid
        for thread in graph.threads
        if thread.lock >= 0 and thread.lock != thread.tid
        for item in thread.items
        if item.act == Act.ANCHOR
    }
    same = [
        item.target.step == item.step
        for thread in own
        for item in thread.items
        if item.act == Act.WAIT_ANCHOR and item.target is not None and item.target.uid in done
    ]
    return sum(same) * 2 > len(same)
