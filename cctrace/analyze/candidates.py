"""What each call site does, and the remedies that there is evidence for."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cctrace.analyze import remedies as known
from cctrace.analyze.costs import SYNCHRONOUS
from cctrace.analyze.graph import WAITS, Act
from cctrace.analyze.handovers import launches, takes_at_once
from cctrace.analyze.readback_remedies import (
    AsyncSchedulingOff,
    AsyncSchedulingOn,
    WorkerReadback,
)
from cctrace.analyze.readbacks import find_readbacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.analyze.graph import Call, Item
    from cctrace.analyze.remedies import Remedy
    from cctrace.analyze.replay import Replay
    from cctrace.analyze.sample import Sample

_EVERY_OTHER = 0.5  # times a step, from which on something belongs to the loop


@dataclass
class SiteFacts:
    """What a site does in the steps that count."""

    calls: int = 0
    held_ns: float = 0.0
    blocked_ns: float = 0.0
    bubble_ns: float = 0.0
    delays_ns: list[float] = field(default_factory=list)
    threads: set[tuple[int, int]] = field(default_factory=set)
    lengths: list[tuple[int, int, Item]] = field(default_factory=list)
    stacks_ns: Counter[int] = field(default_factory=Counter)  # time in the calls of each stack
    waits: bool = False

    def add(self, call: Call, item: Item) -> None:
        """Count one call."""
        self.calls += 1
        self.held_ns += call.dur_ns
        self.threads.add((call.pid, call.tid))
        self.lengths.append((call.dur_ns, call.ts_ns, item))
        if call.stack_id is not None:
            self.stacks_ns[call.stack_id] += call.dur_ns


@dataclass(frozen=True)
class Candidate:
    """A remedy, the site it is for, and why it is thought of."""

    remedy: Remedy
    site: int
    evidence: str


def gather(sample: Sample, replays: Sequence[Replay]) -> dict[int, SiteFacts]:
    """Add up what each site does in the steps that count."""
    found: dict[int, SiteFacts] = defaultdict(SiteFacts)
    for stretch, done in zip(sample.stretches, replays, strict=True):
        graph = stretch.graph
        for site, blocked_ns in done.blocked_ns.items():
            found[site].blocked_ns += blocked_ns
        for site, bubble_ns in done.bubble_ns.items():
            found[site].bubble_ns += bubble_ns
        for thread in graph.threads:
            next_launch_ns: int | None = None
            for item in reversed(thread.items):
                call = item.call
                if call is None:
                    continue
                if graph.first_step <= item.step <= graph.last_step:
                    facts = found[item.site]
                    facts.add(call, item)
                    facts.waits = facts.waits or item.act in WAITS
                    if next_launch_ns is not None:
                        facts.delays_ns.append(next_launch_ns - call.ts_ns)
                if call.cls in ("launch", "graph"):
                    next_launch_ns = call.ts_ns
    found.pop(-1, None)
    return dict(found)


class Candidates:
    """Goes through the sites for remedies there is evidence for."""

    def __init__(self, sample: Sample, facts: dict[int, SiteFacts], steps: int) -> None:
        self._sample = sample
        self._costs = sample.costs
        self._facts = facts
        self._steps = max(1, steps)
        self.found: list[Candidate] = []
        self.together: dict[int, frozenset[int]] = {}  # by site: those of its readback

    def run(self) -> list[Candidate]:
        """Return all of them."""
        self._readbacks()
        self._memory()
        self._graphs()
        self._allocations()
        self._batches()
        return self.found

    def _most(self, sites: set[int]) -> int | None:
        """The site of several that waits longest, then the one that takes longest."""
        known_sites = [site for site in sites if site in self._facts]
        if not known_sites:
            return None
        return max(
            known_sites, key=lambda site: (self._facts[site].blocked_ns, self._facts[site].held_ns)
        )

    def _us(self, value_ns: float) -> str:
        return f"{value_ns / self._steps / 1000:.1f} us a step"

    def _readbacks(self) -> None:
        """Readbacks of threads that launch, by whether they are late."""
        sites: dict[bool, set[int]] = defaultdict(set)
        off_thread: set[int] = set()
        for stretch in self._sample.stretches:
            for thread in stretch.graph.threads:
                on_launching = launches(thread)
                for readback in find_readbacks(thread.items):
                    places = {thread.items[place].site for place in readback.places}
                    if on_launching:
                        sites[readback.is_late] |= places
                    else:
                        off_thread |= places
                        off_thread |= {i.site for i in thread.items if i.act in WAITS}
        for where in (*sites.values(), off_thread):
            waiting = frozenset(s for s in where if s in self._facts and self._facts[s].waits)
            self.together |= dict.fromkeys(waiting, waiting)
        costs = self._costs
        for is_late, where in sites.items():
            site = self._most(where)
            if site is None:
                continue
            facts = self._facts[site]
            evidence = (
                f"{self._sample.sites.keys[site].api} waits {self._us(facts.blocked_ns)} "
                f"on the thread that launches"
            )
            self.found.append(Candidate(WorkerReadback(costs), site, evidence))
            if is_late:
                self.found.append(Candidate(AsyncSchedulingOff(costs), site, evidence))
            else:
                self.found.append(Candidate(AsyncSchedulingOn(costs), site, evidence))
        site = self._most(off_thread)
        at_once = all(takes_at_once(stretch.graph) for stretch in self._sample.stretches)
        if site is not None and not sites and at_once:
            evidence = "the loop waits for the thread that reads back, in the same step"
            self.found.append(Candidate(AsyncSchedulingOn(costs), site, evidence))

    def _copies(self, memories: tuple[str | None, ...]) -> set[int]:
        """Sites of asynchronous copies over the bridge, most of them with such memory."""
        found = set()
        for site, facts in self._facts.items():
            key = self._sample.sites.keys[site]
            if key.copy_kind not in ("h2d", "d2h") or "Async" not in key.api:
                continue
            calls = [item.call for _, _, item in facts.lengths if item.call is not None]
            if sum(call.host_memory in memories for call in calls) * 2 > len(calls):
                found.add(site)
        return found

    def _memory(self) -> None:
        blocking = {
            site
            for site in self._copies(("pinned", "registered", "managed"))
            if self._sample.sites.keys[site].copy_kind == "h2d" and self._facts[site].waits
        }
        site = self._most(blocking)
        if site is not None:
            total_ns = sum(self._facts[s].held_ns for s in blocking)
            evidence = f"pinned copies to the device hold their thread for {self._us(total_ns)}"
            remedy = known.PageableHostMemory(self._costs)
            self.found.append(Candidate(remedy, site, evidence))
        pageable = self._copies(("pageable",))
        modes = {self._costs.copy(None, kind, "pinned").mode for kind in ("h2d", "d2h")}
        site = self._most(pageable)
        if site is not None and SYNCHRONOUS not in modes:
            total_ns = sum(self._facts[s].held_ns for s in pageable)
            evidence = f"pageable copies hold their thread for {self._us(total_ns)}"
            self.found.append(Candidate(known.PinnedHostMemory(self._costs), site, evidence))

    def _graphs(self) -> None:
        keys = self._sample.sites.keys
        regions: dict[tuple[str, tuple[str, ...]], set[int]] = defaultdict(set)
        depth = {role: _shared_depth(paths) for role, paths in self._paths_by_role().items()}
        for site in self._facts:
            if keys[site].cls == "launch":
                region = keys[site].path.split("/")[: depth[keys[site].role] + 1]
                regions[keys[site].role, tuple(region)].add(site)
        for where in regions.values():
            calls = sum(self._facts[site].calls for site in where)
            threads = set[tuple[int, int]]().union(*(self._facts[s].threads for s in where))
            count = calls / self._steps / len(threads)
            heaviest = self._most(where)
            if heaviest is None or count < known.EAGER_LAUNCHES:
                continue
            total_ns = sum(self._facts[s].held_ns for s in where)
            evidence = f"{count:.1f} launches a step take {self._us(total_ns)}"
            remedy = known.CudaGraphs(self._costs, frozenset(keys[site].path for site in where))
            self.found.append(Candidate(remedy, heaviest, evidence))

    def _paths_by_role(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for site in self._facts:
            key = self._sample.sites.keys[site]
            found[key.role].add(key.path)
        return found

    def _allocations(self) -> None:
        allocating = {s for s in self._facts if self._sample.sites.keys[s].cls == "alloc"}
        if not allocating:
            return
        paths = {self._sample.sites.keys[site].path for site in allocating}
        around = {
            site
            for site in self._facts
            if self._sample.sites.keys[site].path in paths
            and self._sample.sites.keys[site].cls in ("alloc", "free")
        }
        fresh = self._fresh_copies()
        calls = sum(self._facts[site].calls for site in allocating)
        if calls / self._steps < _EVERY_OTHER:  # not a thing of every step
            return
        site = max(around | fresh, key=lambda s: self._facts[s].held_ns)
        total_ns = sum(self._facts[s].held_ns for s in around | fresh)
        evidence = (
            f"{calls / self._steps:.1f} allocations a step, with their first copies and frees, "
            f"take {self._us(total_ns)}"
        )
        self.found.append(Candidate(known.ReuseAllocations(self._costs), site, evidence))

    def _fresh_copies(self) -> set[int]:
        """Sites of the copies that come first after an allocation."""
        found: set[int] = set()
        for stretch in self._sample.stretches:
            for thread in stretch.graph.threads:
                is_fresh = False
                for item in thread.items:
                    cls = item.call.cls if item.call else None
                    if cls == "alloc":
                        is_fresh = True
                    elif is_fresh and cls == "copy":
                        found.add(item.site)
                        is_fresh = False
        return found & set(self._facts)

    def _batches(self) -> None:
        by_path: dict[str, set[int]] = defaultdict(set)
        for site, facts in self._facts.items():
            key = self._sample.sites.keys[site]
            item = facts.lengths[0][2]
            if key.copy_kind == "h2d" and item.act in (Act.ENQUEUE, Act.BLOCKING):
                by_path[key.path].add(site)
        for path, where in by_path.items():
            remedy = known.BatchCopies(self._costs, path)
            small = [
                item
                for site in where
                for _, _, item in self._facts[site].lengths
                if remedy.is_small(item)
            ]
            threads = set[tuple[int, int]]().union(*(self._facts[s].threads for s in where))
            count = len(small) / self._steps / len(threads)
            heaviest = self._most(where)
            if heaviest is None or count < known.BATCH_COPIES:
                continue
            total_ns = sum(item.call.dur_ns for item in small if item.call)
            evidence = f"{count:.1f} small copies a step at one place take {self._us(total_ns)}"
            self.found.append(Candidate(remedy, heaviest, evidence))


def _shared_depth(paths: set[str]) -> int:
    """Return how many ranges all paths have in common: those around the parts of a step."""
    parts = [path.split("/") for path in paths]
    depth = 0
    while all(len(names) > depth + 1 for names in parts) and (
        len({names[depth] for names in parts}) == 1
    ):
        depth += 1
    return depth
