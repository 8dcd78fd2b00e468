"""What an engine can change, as changes to a graph.

Each remedy takes a graph and returns the one that the engine would have made with it:
the same host work, other calls. Several can be applied one after the other.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from cctrace.analyze.costs import SYNCHRONOUS
from cctrace.analyze.edits import edited
from cctrace.analyze.graph import SUBMITS, WAITS, Act, Graph, Item, Thread
from cctrace.analyze.readback_remedies import (
    AsyncSchedulingOff,
    AsyncSchedulingOn,
    WorkerReadback,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.costs import Costs

MOST_BEYOND_NS = 10_000.0  # what a call may take beyond its figures
EAGER_LAUNCHES = 8  # launches in a row from which on a graph is worth capturing
SMALL_BYTES = 65_536  # copies of up to so much are put together
BATCH_COPIES = 4  # in a step, from which on it is worth it


class Remedy(Protocol):
    """One change.

    Attributes:
        code: Its name, as on the command line.
        title: What to do, in a few words.
        switch: The settings that do it, where there are any.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    switch: ClassVar[str]

    def apply(self, graph: Graph) -> Graph:
        """Return the graph as it would be; the same one if there is nothing to change."""


@dataclass(frozen=True)
class OtherHostMemory:
    """Copies use host memory of another kind."""

    costs: Costs
    memory: str
    instead_of: tuple[str, ...]

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with all copies over the bridge from and to that memory."""
        beyond_ns = self._beyond_ns(graph)
        return graph.with_threads(
            [
                replace(thread, items=[self._item(item, beyond_ns) for item in thread.items])
                for thread in graph.threads
            ]
        )

    def _beyond_ns(self, graph: Graph) -> float:
        """What such a copy typically takes beyond its figures: caches, probes, locks."""
        found = []
        for thread in graph.threads:
            for item in thread.items:
                call = item.call
                if call is None or not self._concerns(item):
                    continue
                own = self.costs.copy(call.api, call.copy_kind, call.host_memory)
                beyond_ns = item.host_ns - own.host_ns
                if item.act == Act.BLOCKING:
                    if call.dur_ns > item.host_ns + item.device_ns + item.after_ns + 1:
                        continue  # it had to wait: what beyond is, is not known
                    beyond_ns += item.after_ns + item.device_ns - own.device_ns(call.size_bytes)
                found.append(beyond_ns)
        typical_ns = statistics.median(found) if found else 0.0
        return min(max(typical_ns, self.costs.probe_ns), MOST_BEYOND_NS)

    def _concerns(self, item: Item) -> bool:
        call = item.call
        return (
            item.act in SUBMITS
            and call is not None
            and call.copy_kind in ("h2d", "d2h")
            and call.host_memory in self.instead_of
            and "Async" in call.api
        )

    def _item(self, item: Item, beyond_ns: float) -> Item:
        call = item.call
        if call is None or not self._concerns(item):
            return item
        cost = self.costs.copy(None, call.copy_kind, self.memory)
        device_ns = cost.device_ns(call.size_bytes)
        if cost.mode == SYNCHRONOUS:
            return item.but(
                act=Act.BLOCKING, host_ns=cost.host_ns, device_ns=device_ns, after_ns=beyond_ns
            )
        host_ns = cost.host_ns + beyond_ns
        after_ns = 0.0
        if cost.mode == "staged":
            after_ns = cost.ns_per_byte * (call.size_bytes or 0)
        return item.but(act=Act.ENQUEUE, host_ns=host_ns, device_ns=device_ns, after_ns=after_ns)


class PageableHostMemory(OtherHostMemory):
    """Copies are made from and to ordinary memory, which does not block under CC."""

    code: ClassVar[str] = "pageable_host_memory"
    title: ClassVar[str] = "Use pageable host memory for the copies instead of pinned"
    switch: ClassVar[str] = "pin_memory=False; decode_loop.py: --host-memory pageable"

    def __init__(self, costs: Costs) -> None:
        super().__init__(costs, "pageable", ("pinned", "registered", "managed"))


class PinnedHostMemory(OtherHostMemory):
    """Copies are made from and to pinned memory, which does not block outside of CC."""

    code: ClassVar[str] = "pinned_host_memory"
    title: ClassVar[str] = "Use pinned host memory for the copies instead of pageable"
    switch: ClassVar[str] = "pin_memory=True; decode_loop.py: --host-memory pinned"

    def __init__(self, costs: Costs) -> None:
        super().__init__(costs, "pinned", ("pageable", "unknown"))


@dataclass(frozen=True)
class CudaGraphs:
    """Launches in a row become one launch of a graph.

    What else a graph can hold (collectives, memsets, copies within the device) goes with
    them, as do calls between them that neither cross the bridge nor wait.

    Args:
        costs: Costs of the run.
        paths: NVTX paths whose launches go into one graph; None: each path has its own.
        least: Launches in a row from which on they are captured.
    """

    costs: Costs
    paths: frozenset[str] | None = None
    least: int = EAGER_LAUNCHES
    code: ClassVar[str] = "cuda_graphs"
    title: ClassVar[str] = "Capture the launches in a CUDA graph"
    switch: ClassVar[str] = (
        "vLLM: without --enforce-eager; SGLang: without --disable-cuda-graph; "
        "decode_loop.py: --launches graph"
    )

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with each row of launches as one."""
        return graph.with_threads([self._capture(thread) for thread in graph.threads])

    def _capture(self, thread: Thread) -> Thread:
        edits: dict[int, list[Item]] = {}
        row: list[int] = []
        between: list[int] = []
        for place, item in enumerate([*thread.items, Item(Act.MARK)]):
            if self._fits(item) and (not row or self._continues(thread.items[row[0]], item)):
                row += [*between, place]
                between = []
            elif row and item.act == Act.RUN and item.call is not None:
                between.append(place)  # gone too, if another launch follows
            elif item.call is not None or item.act == Act.MARK:
                self._replace(thread.items, row, edits)
                row = [place] if self._fits(item) else []
                between = []
        return edited(thread, edits)

    def _fits(self, item: Item) -> bool:
        call = item.call
        return (
            item.act == Act.ENQUEUE
            and call is not None
            and (call.cls in ("launch", "collective", "memset") or call.copy_kind == "d2d")
            and (self.paths is None or call.path in self.paths)
        )

    def _continues(self, first: Item, item: Item) -> bool:
        if first.call is None or item.call is None:
            return False
        if self.paths is None and first.call.path != item.call.path:
            return False
        return (first.stream, first.step) == (item.stream, item.step)

    def _replace(self, items: Sequence[Item], row: list[int], edits: dict[int, list[Item]]) -> None:
        calls = [items[place].call for place in row]
        if sum(call is not None and call.cls == "launch" for call in calls) < self.least:
            return
        for place in row:
            edits[place] = []
        edits[row[0]] = [
            items[row[0]].but(
                host_ns=self.costs.toll_ns("graph"),
                latency_ns=self.costs.latency_ns("graph"),
                device_ns=sum(items[place].device_ns for place in row),
            )
        ]


@dataclass(frozen=True)
class ReuseAllocations:
    """Memory is kept from step to step: no allocation, no free, no first copy."""

    costs: Costs
    code: ClassVar[str] = "reuse_allocations"
    title: ClassVar[str] = "Allocate once and reuse, instead of in every step"
    switch: ClassVar[str] = (
        "a preallocated buffer or the framework's caching allocator; "
        "decode_loop.py: without --alloc-per-step"
    )

    def apply(self, graph: Graph) -> Graph:
        """Return the graph without allocations, and with cheap copies after them."""
        return graph.with_threads([self._reuse(thread) for thread in graph.threads])

    def _reuse(self, thread: Thread) -> Thread:
        edits: dict[int, list[Item]] = {}
        is_fresh = False
        for place, item in enumerate(thread.items):
            call = item.call
            if call is None or item.step < 0:
                continue
            if call.cls in ("alloc", "free"):
                edits[place] = []
                is_fresh = call.cls == "alloc"
            elif is_fresh and call.cls == "copy" and call.copy_kind in ("h2d", "d2h"):
                edits[place] = [self._known(item)]
                is_fresh = False
        return edited(thread, edits)

    def _known(self, item: Item) -> Item:
        """The first copy of an allocation, as any other one."""
        call = item.call
        assert call is not None  # noqa: S101 - by the caller
        memory = call.host_memory
        cost = self.costs.copy(None, call.copy_kind, memory)
        own = self.costs.copy(call.api, call.copy_kind, memory)
        device_ns = min(cost.latency_ns, own.latency_ns) + cost.ns_per_byte * (call.size_bytes or 0)
        return item.but(
            host_ns=min(item.host_ns, cost.host_ns + self.costs.probe_ns), device_ns=device_ns
        )


@dataclass(frozen=True)
class BatchCopies:
    """Small copies to the device in a row become one copy, launches between them one graph.

    Copies to the host are left alone: each brings what was not there before.

    Args:
        costs: Costs of the run.
        path: NVTX path of the copies; None: any.
    """

    costs: Costs
    path: str | None = None
    code: ClassVar[str] = "batch_copies"
    title: ClassVar[str] = "Put the small copies together into one"
    switch: ClassVar[str] = "one packed buffer a step; decode_loop.py: without --crossings"

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with one copy, and one launch, for each row of them."""
        return graph.with_threads([self._batch(thread) for thread in graph.threads])

    def _batch(self, thread: Thread) -> Thread:
        edits: dict[int, list[Item]] = {}
        row: list[int] = []
        for place, item in enumerate([*thread.items, Item(Act.MARK)]):
            if self.is_small(item) or (row and self._is_launch(item)):
                if row and not self._continues(thread.items[row[0]], item):
                    self._replace(thread.items, row, edits)
                    row = []
                row.append(place)
            elif row and (item.call is not None or item.act == Act.MARK):
                self._replace(thread.items, row, edits)
                row = []
        return edited(thread, edits)

    def _replace(
        self,
        items: Sequence[Item],
        places: list[int],
        edits: dict[int, list[Item]],
    ) -> None:
        copies = [place for place in places if self.is_small(items[place])]
        if len(copies) < BATCH_COPIES:
            return
        between = [place for place in places if place not in set(copies)]
        for place in places:
            edits[place] = []
        first = items[copies[0]]
        calls = [items[place].call for place in copies]
        size_bytes = sum(call.size_bytes or 0 for call in calls[1:] if call is not None)
        call = first.call
        assert call is not None  # noqa: S101 - is_small has looked
        cost = self.costs.copy(call.api, call.copy_kind, call.host_memory)
        edits[copies[0]] = [first.but(device_ns=first.device_ns + cost.ns_per_byte * size_bytes)]
        if between:
            work_ns = sum(items[place].device_ns for place in between)
            edits[between[0]] = [items[between[0]].but(device_ns=work_ns)]

    @staticmethod
    def _continues(first: Item, item: Item) -> bool:
        return (
            first.stream == item.stream
            and first.call is not None
            and item.call is not None
            and first.call.path == item.call.path
        )

    def is_small(self, item: Item) -> bool:
        """Whether an item is one of the copies to be put together."""
        call = item.call
        return (
            item.act in SUBMITS
            and call is not None
            and self.path in (None, call.path)
            and call.copy_kind == "h2d"
            and (call.size_bytes or 0) <= SMALL_BYTES
        )

    def _is_launch(self, item: Item) -> bool:
        call = item.call
        return call is not None and call.cls == "launch" and self.path in (None, call.path)


@dataclass(frozen=True)
class NoWait:
    """The calls of some sites return at once: no remedy, but what one could bring there."""

    sites: frozenset[int]
    code: ClassVar[str] = "no_wait"
    title: ClassVar[str] = "Nothing waits here any more"
    switch: ClassVar[str] = ""

    def apply(self, graph: Graph) -> Graph:
        """Return the graph with the waits of the sites gone, and what they cost."""
        return graph.with_threads(
            [
                replace(thread, items=[self._item(item) for item in thread.items])
                for thread in graph.threads
            ]
        )

    def _item(self, item: Item) -> Item:
        if item.site not in self.sites:
            return item
        if item.act == Act.BLOCKING:
            return item.but(act=Act.ENQUEUE, after_ns=0.0)
        if item.act in WAITS:
            return item.but(act=Act.RUN, after_ns=0.0, target=None)
        # Others may wait for a record: it stays where it is.
        uid = item.uid
        free = item.but(host_ns=0.0, after_ns=0.0)
        free.uid = uid
        return free


def apply(graph: Graph, remedies: Sequence[Remedy]) -> Graph:
    """Apply remedies, those that change single calls before those that change the order."""
    for remedy in sorted(remedies, key=lambda remedy: _ORDER.index(remedy.code)):
        graph = remedy.apply(graph)
    return graph


_ORDER = [
    kind.code
    for kind in (
        ReuseAllocations,
        BatchCopies,
        CudaGraphs,
        PageableHostMemory,
        PinnedHostMemory,
        AsyncSchedulingOff,
        AsyncSchedulingOn,
        WorkerReadback,
        NoWait,
    )
]


def everywhere(costs: Costs) -> dict[str, Remedy]:
    """Return each remedy by its code, applied wherever it fits."""
    found: list[Remedy] = [
        ReuseAllocations(costs),
        BatchCopies(costs),
        CudaGraphs(costs),
        PageableHostMemory(costs),
        PinnedHostMemory(costs),
        AsyncSchedulingOff(costs),
        AsyncSchedulingOn(costs),
        WorkerReadback(costs),
    ]
    return {remedy.code: remedy for remedy in found}
