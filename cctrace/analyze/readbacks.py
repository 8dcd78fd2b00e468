"""Find the readbacks in what a thread did: a copy to the host, and what waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cctrace.analyze.graph import SUBMITS, Act

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.graph import Item

_SYNCS = (Act.WAIT_STREAM, Act.WAIT_EVENT, Act.WAIT_DEVICE)


@dataclass
class Readback:
    """One readback, by the places of its calls in the thread's list.

    Attributes:
        copies: The copies to the host; one at least.
        sync: The call that waits for them; None: the copy itself does.
        record: The record that the copies' own stream waits for; None: they are on the
            stream of the work itself.
        stream_wait: The call that has the copies' stream wait for it; None: none does.
        done_record: The record after the copies; None: none.
        is_late: Whether ``sync`` belongs to a later turn of the loop.
        step: Number of the step.
        stream: The stream whose work is read back.
    """

    copies: list[int]
    sync: int | None = None
    record: int | None = None
    stream_wait: int | None = None
    done_record: int | None = None
    is_late: bool = False
    step: int = -1
    stream: int = -1

    @property
    def places(self) -> list[int]:
        """Places of all its calls, in order."""
        others = (self.record, self.stream_wait, self.done_record, self.sync)
        return sorted([*self.copies, *(place for place in others if place is not None)])


@dataclass
class _Open:
    """What is known while going through the list."""

    stream_waits: dict[int, int] = field(default_factory=dict)  # by stream: place
    places: dict[int, int] = field(default_factory=dict)  # by uid of a record: place
    found: list[Readback] = field(default_factory=list)
    current: Readback | None = None


def is_readback_copy(item: Item) -> bool:
    """Whether an item copies to the host."""
    return item.act in SUBMITS and item.call is not None and item.call.copy_kind == "d2h"


def find_readbacks(items: Sequence[Item]) -> list[Readback]:
    """Find the readbacks of a thread.

    Copies with nothing but waits and records between them are one readback. One that is
    waited for by a mark after further work is late.

    Args:
        items: What the thread did, in order.

    Returns:
        The readbacks, in order.
    """
    state = _Open()
    for place, item in enumerate(items):
        if item.act == Act.STREAM_WAIT:
            state.stream_waits[item.stream] = place
        elif item.act == Act.RECORD:
            _record(state, items, place, item)
        elif is_readback_copy(item):
            _copy(state, items, place, item)
        elif item.act in SUBMITS:
            state.current = None
        elif item.act in _SYNCS and not (item.call is not None and item.call.cls == "free"):
            _sync(state, items, place, item)
    _find_late(state.found, items)
    return state.found


def _record(state: _Open, items: Sequence[Item], place: int, item: Item) -> None:
    state.places[item.uid] = place
    current = state.current
    if current is not None and item.stream == items[current.copies[-1]].stream:
        current.done_record = place


def _copy(state: _Open, items: Sequence[Item], place: int, item: Item) -> None:
    current = state.current
    if (
        current is not None
        and current.sync is None
        and item.stream == items[current.copies[0]].stream
    ):
        current.copies.append(place)
        return
    found = Readback([place], step=item.step, stream=item.stream)
    waiting = state.stream_waits.pop(item.stream, None)
    if waiting is not None:
        found.stream_wait = waiting
        target = items[waiting].target
        found.record = None if target is None else state.places.get(target.uid)
        if found.record is not None:
            found.stream = items[found.record].stream
    state.current = found
    state.found.append(found)


def _sync(state: _Open, items: Sequence[Item], place: int, item: Item) -> None:
    current = state.current
    if current is None or current.sync is not None:
        return
    if item.act == Act.WAIT_STREAM:
        fits = item.stream == items[current.copies[-1]].stream
    elif item.act == Act.WAIT_EVENT:
        done = current.done_record
        fits = done is not None and item.target is items[done]
    else:
        fits = True
    if fits:
        current.sync = place


def _find_late(found: Sequence[Readback], items: Sequence[Item]) -> None:
    """Find the waits for marks of readbacks that nothing waited for at once."""
    waits = {
        item.target.uid: place
        for place, item in enumerate(items)
        if item.act == Act.WAIT_EVENT and item.target is not None
    }
    for readback in found:
        if readback.sync is None and readback.done_record is not None:
            readback.sync = waits.get(items[readback.done_record].uid)
            readback.is_late = True


def turns_back(found: Sequence[Readback]) -> int:
    """Return how many readbacks a step has: the same one of the step before is so far back."""
    by_step: dict[int, int] = {}
    for readback in found:
        by_step[readback.step] = by_step.get(readback.step, 0) + 1
    counts = sorted(by_step.values())
    return counts[len(counts) // 2] if counts else 1
