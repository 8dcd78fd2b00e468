"""Changing graphs: lists of items with some replaced, and further streams."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cctrace.analyze.graph import Graph, Item, Thread


def edited(thread: Thread, edits: dict[int, list[Item]]) -> Thread:
    """Replace the items at some places."""
    if not edits:
        return thread
    items: list[Item] = []
    for place, item in enumerate(thread.items):
        if place in edits:
            items += edits[place]
        else:
            items.append(item)
    return replace(thread, items=items)


class Streams:
    """The streams of a graph, and the ones a remedy adds."""

    def __init__(self, graph: Graph) -> None:
        self.devices = list(graph.streams)

    def beside(self, stream: int) -> int:
        """Add a stream on the device of another one."""
        self.devices.append(self.devices[stream])
        return len(self.devices) - 1
