"""What becomes of a walked stack: its number, its frames, and what is lost of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cctrace.record.bpf import layout
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.bpf.stacks.programs import Programs
from cctrace.record.losses import LossLedger
from cctrace.record.symbols import Frame, Symbolizer

HERE = os.getpid()
GONE = 1 << 22  # no process's number


@dataclass
class FakeSymbolizer:
    """Calls every address by itself, and remembers what it was told."""

    observed: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)

    def observe(self, pid: int) -> int:
        self.observed.append(pid)
        return pid

    def forget(self, pid: int) -> None:
        self.forgotten.append(pid)

    def native(self, image: int | None, addresses: list[int]) -> list[list[Frame]]:
        return [[Frame(f"{image}:{a:x}", "module", None, None, "native")] for a in addresses]

    def kernel(self, addresses: list[int]) -> list[Frame]:
        return [Frame(f"{a:x}", "[kernel]", None, None, "kernel") for a in addresses]

    def unresolved(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing to give back."""


class FakeRing:
    """A ring of what a test puts in."""

    def __init__(self) -> None:
        self.records: list[np.void] = []

    def drain(self) -> list[np.void]:
        records, self.records = self.records, []
        return records

    def close(self) -> None:
        """Nothing to give back."""


class FakeTable(dict[int, np.void]):
    """The kernel's map of programs."""

    def put(self, pid: int, entry: np.void) -> None:
        self[pid] = entry


class Bench:
    """A collector on rings of the test's own."""

    def __init__(self) -> None:
        self.ledger = LossLedger()
        self.symbolizer = FakeSymbolizer()
        symbolizer = cast("Symbolizer", self.symbolizer)
        self.collector = StackCollector("all", self.ledger, symbolizer)
        self.ring, self.table = FakeRing(), FakeTable()
        collector: Any = self.collector
        collector._ring, collector._code_ring = self.ring, FakeRing()
        collector._programs = Programs(self.table, symbolizer)

    def put(self, number: int, native: list[int], **fields: int) -> None:
        record = np.zeros(1, layout.STACK)[0]
        record["id"], record["pid"], record["image"] = number, HERE, 0
        record["looked_at"], record["kernel"] = 1, -1
        record["family"] = layout.Kind.CUDA
        record["natives"] = len(native)
        record["native"][: len(native)] = native
        for name, value in fields.items():
            record[name] = value
        self.ring.records.append(record)

    def column(self, *numbers: int) -> list[int | None]:
        found: list[int | None] = self.collector.column(
            np.array(numbers, np.uint64), "cuda"
        ).to_pylist()
        return found

    def functions(self) -> dict[int, list[str]]:
        [(name, table)] = self.collector.finish()
        assert name == "stacks"
        return {
            row["stack_id"]: [frame["function"] for frame in row["frames"]]
            for row in table.to_pylist()
        }


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_events_get_the_number_of_what_their_stack_consists_of(bench: Bench) -> None:
    # GIVEN two stacks of a process that is gone, and one of its two events' numbers unknown
    bench.put(11, [0x1000, 0x2000], pid=GONE)
    bench.put(12, [0x1000, 0x3000], pid=GONE)
    one, other, none, unknown = bench.column(11, 12, 0, 13)
    assert one is not None
    assert other is not None
    assert none is unknown is None
    assert len({one, other}) == 2
    # THEN that is counted, and the others have rows
    assert bench.ledger.by_reason() == {"stack_unknown": 1}
    assert bench.functions() == {one: ["None:1000", "None:2000"], other: ["None:1000", "None:3000"]}


def test_one_stack_has_one_number_whatever_the_kernel_calls_it(bench: Bench) -> None:
    """In places of files; code that a program has made for itself is its own."""
    place = next(
        int(line.split("-")[0], 16) + 0x40
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "r-xp" in line and "/" in line
    )
    bench.put(21, [place], image=0)
    bench.put(22, [place], image=7)
    bench.put(23, [0x1000], pid=GONE)
    bench.put(24, [0x1000], pid=GONE + 1)
    same, again, own, others = bench.column(21, 22, 23, 24)
    assert same == again
    assert own != others
    # AND a new image is one that the symbolizer is told of
    assert bench.symbolizer.forgotten == [HERE]


def test_a_walk_that_goes_astray_ends_there(bench: Bench) -> None:
    """At the first address where no code lies; trampolines of the kernel are left out."""
    place = next(
        int(line.split("-")[0], 16) + 0x40
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "r-xp" in line and "/" in line
    )
    bench.put(31, [place, 0x7FFFFFFFE000, place + 4, 0x1000, place])
    [number] = bench.column(31)
    assert bench.functions() == {number: [f"{HERE}:{place:x}", f"{HERE}:{place + 4:x}"]}


def test_a_stack_that_was_cut_says_so(bench: Bench) -> None:
    flags = int(layout.StackFlag.CUT | layout.StackFlag.UNREADABLE)
    bench.put(41, [0x1000], pid=GONE, flags=flags, family=int(layout.Kind.SCHED))
    [number] = bench.column(41)
    assert bench.functions() == {number: ["None:1000", "[truncated]"]}
    assert bench.ledger.by_reason() == {"stack_truncated": 1, "stack_unreadable": 1}


def test_python_frames_of_no_known_python_stay_addresses(bench: Bench) -> None:
    record_python = np.zeros(layout.STACK_PYTHON, layout.PYTHON_FRAME)
    record_python["code"][:2] = 0xABC, 0xDEF
    bench.put(51, [], pid=GONE, looked_at=77)
    bench.ring.records[-1]["python"] = record_python
    bench.ring.records[-1]["pythons"] = 2
    [number] = bench.column(51)
    assert bench.functions() == {number: ["<python 0xabc>", "<python 0xdef>"]}
    assert bench.ledger.by_reason() == {"stack_unresolved": 2}


def test_the_kernel_is_told_once_what_a_program_is(bench: Bench) -> None:
    # GIVEN a stack of this process, which nobody has looked at
    bench.put(61, [0x1000], looked_at=0)
    bench.column(61)
    entry = bench.table[HERE]
    assert int(entry["looked_at"]) > 0
    assert bench.collector.detail()["mode"] == "all"
    # THEN it is not looked at again for stacks of it that were under way
    looks = len(bench.symbolizer.observed)
    bench.put(62, [], looked_at=0)
    bench.column(62)
    assert len(bench.symbolizer.observed) == looks


def test_nothing_taken_leaves_no_table(bench: Bench) -> None:
    assert bench.column(0, 0) == [None, None]
    assert bench.collector.finish() == []
    assert bench.ledger.by_reason() == {}


def test_a_fault_with_one_stack_is_counted_and_harms_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN three stacks, naming the second of which fails
    calls = iter((False, True, False))

    def fails(*_: object) -> tuple[int, ...]:
        if next(calls):
            raise ValueError("no such thing")
        return ()

    monkeypatch.setattr(bench.collector, "_native", fails)
    for number in (71, 72, 73):
        bench.put(number, [0x1000], pid=GONE)
    first, failed, last = bench.column(71, 72, 73)
    # THEN the others have their numbers, and the run says what happened
    assert first == last != failed
    assert failed is None
    assert bench.ledger.by_reason() == {"stack_failed": 1, "stack_unknown": 1}
    assert "no such thing" in bench.collector.detail()["error"]
