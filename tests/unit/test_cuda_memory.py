"""Ranges of memory: what an address was when a copy started, against a slow reference."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cctrace.record.bpf.cuda.memory import Changes, MemoryMap, Place, by_process
from cctrace.record.losses import LossLedger

TOP = 2**64 - 1
UNKNOWN, DEVICE, PINNED, PAGEABLE = Place.UNKNOWN, Place.DEVICE, Place.PINNED, Place.PAGEABLE
REGISTERED, MANAGED = Place.REGISTERED, Place.MANAGED


@dataclass(frozen=True)
class Change:
    """An allocation, or with ``place`` None a free."""

    at_ns: int
    address: int
    size: int = 0
    place: Place | None = None
    pid: int = 7


@dataclass(frozen=True)
class Ask:
    """One address asked for."""

    ts_ns: int
    address: int
    size: int
    pid: int = 7


def learn(memory: MemoryMap, *changes: Change) -> None:
    """Give changes to ``memory`` as one batch."""
    memory.learn(
        Changes(
            np.array([c.pid for c in changes], np.int32),
            np.array([c.address for c in changes], np.uint64),
            np.array([c.size for c in changes], np.uint64),
            np.array([c.at_ns for c in changes], np.int64),
            np.array([-1 if c.place is None else c.place for c in changes], np.int8),
        )
    )


def ask(memory: MemoryMap, *asks: Ask) -> list[Place]:
    """What ``memory`` says of each."""
    found = memory.lookup(
        np.array([a.pid for a in asks], np.int32),
        np.array([a.address for a in asks], np.uint64),
        np.array([a.size for a in asks], np.uint64),
        np.array([a.ts_ns for a in asks], np.int64),
    )
    return [Place(int(place)) for place in found]


def watched(max_ranges: int = 1 << 20) -> tuple[MemoryMap, LossLedger]:
    """A map of processes watched from their start."""
    ledger = LossLedger()
    memory = MemoryMap(ledger, max_ranges)
    memory.watch_from_start()
    return memory, ledger


def test_an_address_is_what_it_was_at_the_time() -> None:
    # GIVEN one address that is pinned, then device memory, then pageable, all in one batch
    memory, _ = watched()
    learn(
        memory,
        Change(100, 0x1000, 0x100, PINNED),
        Change(200, 0x1000),
        Change(250, 0x1000, 0x80, DEVICE),
        Change(300, 0x1000),
    )
    times = [99, 100, 199, 200, 249, 250, 299, 300]
    # THEN each moment has its own answer, the very moments of change included
    assert ask(memory, *(Ask(t, 0x1010, 0x10) for t in times)) == [
        PAGEABLE, PINNED, PINNED, PAGEABLE, PAGEABLE, DEVICE, DEVICE, PAGEABLE,
    ]  # fmt: skip
    # AND the later, shorter range does not hold what the first one held
    assert ask(memory, Ask(150, 0x1090, 1), Ask(260, 0x1090, 1)) == [PINNED, PAGEABLE]
    # AND a record that comes one batch late finds what there was then, no later one does
    memory.prune()
    assert ask(memory, Ask(150, 0x1010, 0x10)) == [PINNED]
    memory.prune()
    assert len(memory) == 0


def test_edges() -> None:
    memory, _ = watched()
    learn(memory, Change(0, 0x1000, 0x100, PINNED), Change(0, 0x1100, 0x100, REGISTERED))
    memory.prune()
    asks = {
        Ask(1, 0x1000, 0x100): PINNED,
        Ask(1, 0x10FF, 1): PINNED,
        Ask(1, 0x1100, 0): REGISTERED,
        Ask(1, 0x10FF, 2): UNKNOWN,  # runs from one into the other
        Ask(1, 0x0FFF, 1): PAGEABLE,
        Ask(1, 0x0FFF, 2): UNKNOWN,  # runs into the first
        Ask(1, 0x0F00, 0x1000): UNKNOWN,  # holds both
        Ask(1, 0x1200, 1): PAGEABLE,
        Ask(1, 0x11FF, 2): UNKNOWN,  # runs out of the last
        Ask(1, 0, 1): PAGEABLE,
        Ask(1, TOP, TOP): PAGEABLE,  # the end of the address space
        Ask(1, 0x1000, TOP): UNKNOWN,
    }
    assert dict(zip(asks, ask(memory, *asks), strict=True)) == asks


def test_pageable_is_told_only_of_processes_watched_from_the_start() -> None:
    memory = MemoryMap(LossLedger())
    memory.watch_from_start(7)
    learn(memory, Change(1, 0x1000, 16, PINNED), Change(1, 0x1000, 16, PINNED, pid=8))
    asks = [Ask(5, a, 8, pid) for pid in (7, 8) for a in (0x1000, 0x2000)]
    assert ask(memory, *asks) == [PINNED, PAGEABLE, PINNED, UNKNOWN]
    # WHEN something was missed
    memory.distrust(7)
    assert ask(memory, *asks) == [PINNED, UNKNOWN, PINNED, UNKNOWN]
    # THEN only the next program is trusted again
    memory.forget(7, 10)
    assert ask(memory, Ask(11, 0x1000, 8), Ask(11, 0x2000, 8)) == [PAGEABLE, PAGEABLE]
    memory.distrust()
    assert ask(memory, Ask(11, 0x2000, 8)) == [UNKNOWN]


def test_processes_do_not_mix() -> None:
    memory, _ = watched()
    learn(
        memory,
        Change(1, 0x1000, 16, PINNED, pid=7),
        Change(2, 0x1000, 16, DEVICE, pid=9),
        Change(3, 0x1000, pid=8),
    )
    memory.prune()
    asks = [Ask(5, 0x1008, 8, pid) for pid in (9, 8, 7, 9)]
    assert ask(memory, *asks) == [DEVICE, PAGEABLE, PINNED, DEVICE]
    assert len(memory) == 2


def test_a_free_that_took_long_does_not_free_what_came_after() -> None:
    # GIVEN a free in the runtime around one in the driver, and another thread that is given
    # the address while the outer one has not returned; the outer free's record comes last
    memory, _ = watched()
    learn(memory, Change(10, 0x1000, 64, PINNED))
    memory.prune()
    learn(
        memory,
        Change(21, 0x1000),  # the driver's, entered at 21
        Change(25, 0x1000, 64, DEVICE),  # the other thread's
        Change(20, 0x1000),  # the runtime's, entered at 20
    )
    assert ask(memory, Ask(15, 0x1000, 8), Ask(22, 0x1000, 8), Ask(30, 0x1000, 8)) == [
        PINNED, PAGEABLE, DEVICE,
    ]  # fmt: skip
    memory.prune()
    assert ask(memory, Ask(40, 0x1000, 8)) == [DEVICE]


def test_nested_calls_make_and_free_one_range() -> None:
    memory, _ = watched()
    learn(memory, Change(10, 0x1000, 64, PINNED), Change(12, 0x1000, 64, PINNED))
    memory.prune()
    memory.prune()
    assert len(memory) == 1
    learn(memory, Change(21, 0x1000), Change(20, 0x1000))
    memory.prune()
    memory.prune()
    assert len(memory) == 0


def test_where_ranges_overlap_the_youngest_counts() -> None:
    # GIVEN a range whose free was lost, and later ones over parts of it
    memory, _ = watched()
    learn(
        memory,
        Change(10, 0x1000, 0x1000, PINNED),
        Change(20, 0x0800, 0x1000, DEVICE),
        Change(30, 0x1200, 0x100, MANAGED),
    )
    addresses = [0x0800, 0x1000, 0x1200, 0x1400, 0x1900]
    assert ask(memory, *(Ask(40, a, 8) for a in addresses)) == [
        DEVICE, DEVICE, MANAGED, DEVICE, PINNED,
    ]  # fmt: skip
    assert ask(memory, *(Ask(15, a, 8) for a in addresses)) == [
        PAGEABLE, PINNED, PINNED, PINNED, PINNED,
    ]  # fmt: skip


def test_an_end_of_the_program_ends_its_ranges_whichever_comes_first() -> None:
    # GIVEN an exec at 50, told before the batch that holds what was allocated around it
    memory, _ = watched()
    memory.forget(7, 50)
    learn(memory, Change(40, 0x1000, 64, PINNED), Change(60, 0x2000, 64, PINNED))
    asks = [Ask(t, a, 8) for t in (45, 70) for a in (0x1000, 0x2000)]
    assert ask(memory, *asks) == [PINNED, PAGEABLE, PAGEABLE, PINNED]
    memory.prune()
    memory.prune()
    # THEN only the new program's is kept; and the same for one told afterwards
    assert len(memory) == 1
    memory.forget(7, 80)
    assert ask(memory, Ask(75, 0x2000, 8), Ask(85, 0x2000, 8)) == [PINNED, PAGEABLE]
    memory.prune()
    # AND what the program did last, in records that are drained after its end was told
    assert ask(memory, Ask(75, 0x2000, 8), Ask(85, 0x2000, 8)) == [PINNED, PAGEABLE]
    memory.prune()
    assert len(memory) == 0


def test_an_end_told_by_another_thread_waits_for_the_batch() -> None:
    # GIVEN a thread that tells ends, 100,003 of them, while batches are learnt and looked up
    memory, _ = watched()

    def tell() -> None:
        for at_ns in range(100_003):
            memory.forget(8, at_ns)

    teller = threading.Thread(target=tell)
    teller.start()
    for i in range(307):
        base = 0x100000 * (i + 1)
        learn(memory, *(Change(10 + i, base + 64 * k, 64, PINNED, pid=8) for k in range(13)))
        learn(memory, Change(10 + i, base, 64, PINNED))
        assert ask(memory, Ask(11 + i, base, 8)) == [PINNED]
        memory.prune()
    teller.join()
    # THEN no batch was disturbed, and all of the ended process is gone
    memory.forget(8, 1000)
    learn(memory)
    memory.prune()
    memory.prune()
    assert len(memory) == 307


def test_no_room_is_counted_and_ends_the_trust() -> None:
    memory, ledger = watched(max_ranges=11)
    learn(memory, *(Change(i, 0x1000 * (i + 1), 64, PINNED) for i in range(7)))
    memory.prune()
    learn(memory, *(Change(100 + i, 0x1000 * (i + 1), 64, DEVICE, pid=8) for i in range(9)))
    # Freed within the batch: never counted against the limit.
    learn(memory, *(Change(200, 0x1000 * (i + 1), pid=8) for i in range(2)))
    memory.prune()
    # THEN the first are kept, the rest counted, and the process that had too many is not trusted
    assert len(memory) == 11
    assert ledger.by_reason() == {"ranges_full": 3}
    asks = [Ask(300, 0x1000 * (i + 1), 8, 8) for i in range(9)]
    assert ask(memory, *asks) == [UNKNOWN] * 2 + [DEVICE] * 4 + [UNKNOWN] * 3
    assert ask(memory, Ask(300, 0x900000, 8, 7)) == [PAGEABLE]


@pytest.mark.parametrize(
    "change",
    [
        Change(1, 0, 64, PINNED),
        Change(1, 0x1000, 0, PINNED),
        Change(1, 0x1000, 2**63, PINNED),
        Change(2**62, 0x1000, 64, PINNED),
        Change(1, 0x1000),
        Change(1, 0),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_not_learnt(change: Change) -> None:
    memory, _ = watched()
    learn(memory, change)
    memory.prune()
    assert len(memory) == 0


def test_a_range_up_to_the_end_of_the_address_space() -> None:
    memory, _ = watched()
    learn(memory, Change(1, TOP - 10, 2**62, PINNED))
    assert ask(memory, Ask(2, TOP - 1, 1)) == [PINNED]


def test_many_stale_ranges_are_given_up_on() -> None:
    # GIVEN more ranges over one address than are looked through
    memory, _ = watched()
    learn(memory, Change(1, 0x1000, 0x10000, PINNED))
    learn(memory, *(Change(2, 0x1000 + 8 * i, 4, DEVICE) for i in range(1, 100)))
    learn(memory, *(Change(3, 0x1000 + 8 * i) for i in range(1, 100)))
    # THEN the answer is "unknown", and one further back is found all the same
    assert ask(memory, Ask(5, 0x1500, 1), Ask(5, 0x1100, 1)) == [UNKNOWN, PINNED]
    memory.prune()
    memory.prune()
    assert ask(memory, Ask(5, 0x1500, 1)) == [PINNED]


def test_a_storm_on_one_address_is_searched_by_time() -> None:
    # GIVEN 50,000 allocations and frees of one address within a batch
    count = 50_021
    memory, _ = watched()
    at_ns = np.arange(2 * count, dtype=np.int64) * 10
    places = np.where(np.arange(2 * count) % 2 == 0, np.int8(PINNED), np.int8(-1))
    ones = np.ones(2 * count, np.uint64)
    memory.learn(Changes(np.full(2 * count, 7, np.int32), ones * 4096, ones * 64, at_ns, places))
    # WHEN it is asked for between all of them
    found = memory.lookup(np.full(2 * count, 7, np.int32), ones * 4100, ones, at_ns + 5)
    assert (found[::2] == PINNED).all()
    assert (found[1::2] == PAGEABLE).all()
    memory.prune()
    memory.prune()
    assert len(memory) == 0


def test_by_process_keeps_the_order() -> None:
    pid = np.array([5, 3, 5, 5, 3], np.int32)
    assert {p: which.tolist() for p, which in by_process(pid)} == {3: [1, 4], 5: [0, 2, 3]}
    assert list(by_process(pid[:0])) == []
    assert [(p, w.tolist()) for p, w in by_process(pid[2:4])] == [(5, [0, 1])]


class Reference:
    """The same by dictionaries and loops."""

    def __init__(self) -> None:
        self.ranges: list[dict[str, Any]] = []
        self.latest = self.horizon = 0

    def learn(self, changes: list[Change]) -> None:
        """Each range ends at what comes next at its start."""
        self.latest = max([self.latest, *(change.at_ns for change in changes)])
        for change in changes:
            if change.place is not None:
                self.ranges.append({"dies": None, **vars(change)})
        frees = [vars(c) for c in changes if c.place is None]
        for old in self.ranges:
            later = [
                c["at_ns"]
                for c in frees + self.ranges
                if (c["pid"], c["address"]) == (old["pid"], old["address"])
                and c["at_ns"] >= old["at_ns"]
                and (c["place"] is None or c["at_ns"] > old["at_ns"])
            ]
            ends = [*later, *([old["dies"]] if old["dies"] is not None else [])]
            old["dies"] = min(ends) if ends else None

    def ask(self, asked: Ask) -> Place:
        """By looking at every range."""
        last = asked.address + max(asked.size, 1) - 1
        alive = [
            r
            for r in self.ranges
            if r["pid"] == asked.pid
            and r["at_ns"] <= asked.ts_ns
            and (r["dies"] is None or asked.ts_ns < r["dies"])
        ]
        holding = [r for r in alive if r["address"] <= asked.address < r["address"] + r["size"]]
        if holding:
            best = max(holding, key=lambda r: (r["at_ns"], r["address"]))
            return Place(best["place"]) if last < best["address"] + best["size"] else UNKNOWN
        if any(asked.address < r["address"] <= last for r in alive):
            return UNKNOWN
        return PAGEABLE

    def prune(self) -> None:
        """Drop what died until the batch before the last."""
        self.ranges = [r for r in self.ranges if r["dies"] is None or r["dies"] > self.horizon]
        self.horizon = self.latest


PLACES = [DEVICE, PINNED, REGISTERED, MANAGED]
ASKS = st.builds(
    Ask,
    ts_ns=st.integers(0, 60),
    address=st.integers(1, 40),
    size=st.integers(0, 12),
    pid=st.sampled_from([7, 8]),
)


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[Change], list[Ask]]]:
    """Batches of changes, no two allocations at one moment, in any order within a batch."""
    moments = draw(st.lists(st.integers(0, 60), unique=True, max_size=24))
    changes = [
        Change(
            at_ns=moment,
            address=draw(st.integers(1, 32)),
            size=draw(st.integers(1, 9)),
            place=draw(st.sampled_from([*PLACES, None, None])),
            pid=draw(st.sampled_from([7, 7, 8])),
        )
        for moment in moments
    ]
    # Some frees at the very moment of an allocation.
    changes += [Change(c.at_ns, c.address, pid=c.pid) for c in changes if draw(st.booleans())]
    cuts = sorted(draw(st.lists(st.integers(0, len(changes)), max_size=3)))
    parts = [changes[a:b] for a, b in zip([0, *cuts], [*cuts, len(changes)], strict=True)]
    return [(part, draw(st.lists(ASKS, max_size=12))) for part in parts]


@settings(deadline=None, max_examples=300)
@given(batches())
def test_any_history_against_the_reference(history: list[tuple[list[Change], list[Ask]]]) -> None:
    memory, _ = watched()
    reference = Reference()
    for changes, asks in history:
        learn(memory, *changes)
        reference.learn(changes)
        assert dict(zip(asks, ask(memory, *asks), strict=True)) == {
            asked: reference.ask(asked) for asked in asks
        }
        memory.prune()
        reference.prune()
        assert len(memory) == len(reference.ranges)
