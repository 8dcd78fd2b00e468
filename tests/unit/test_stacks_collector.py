"""What becomes of a walked stack: its number, its frames, and what is lost of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cctrace.record.bpf import layout
from cctrace.record.bpf.stacks import collector, programs
from cctrace.record.bpf.stacks.bounded import Bounded
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.bpf.stacks.interpreter import Interpreter, NoWalkError, find_interpreter
from cctrace.record.bpf.stacks.programs import Programs
from cctrace.record.losses import LossLedger
from cctrace.record.symbols import Frame, Symbolizer, maps

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

    def native(self, image: int | None, addresses: list[int], *, exact: bool) -> list[list[Frame]]:
        mark = "=" if exact else ":"
        return [[Frame(f"{image}{mark}{a:x}", "module", None, None, "native")] for a in addresses]

    def kernel(self, addresses: list[int]) -> list[Frame]:
        return [Frame(f"{a:x}", "[kernel]", None, None, "kernel") for a in addresses]

    def unresolved(self) -> dict[str, int]:
        return {}

    def hurry(self) -> None:
        """Nothing takes long."""

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
    """The kernel's maps of programs."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[int, int] = {}

    def image(self, pid: int) -> int:
        return self.images.get(pid, 0)

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
        taker: Any = self.collector
        self.programs = Programs(self.table, symbolizer)
        taker._begin(self.ring, FakeRing(), self.programs)

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
        [(name, table)] = self.collector.rows()
        assert name == "stacks"
        return {
            row["stack_id"]: [frame["function"] for frame in row["frames"]]
            for row in table.to_pylist()
        }


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.collector.close()


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
    [same] = bench.column(21)
    bench.table.images[HERE] = 7
    bench.put(22, [place], image=7)
    bench.put(23, [0x1000], pid=GONE)
    bench.put(24, [0x1000], pid=GONE + 1)
    again, own, others = bench.column(22, 23, 24)
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
    assert bench.functions() == {number: ["None=1000", "[truncated]"]}
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
    assert list(bench.collector.rows()) == []
    assert bench.ledger.by_reason() == {}


def test_a_fault_with_one_stack_is_counted_and_harms_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN three stacks, naming the second of which fails
    calls = iter((False, True, False))

    def fails(*_: object, **__: object) -> tuple[int, ...]:
        if next(calls):
            raise ValueError("no such thing")
        return ()

    decoder: Any = bench.collector._decoder
    monkeypatch.setattr(decoder, "_native", fails)
    for number in (71, 72, 73):
        bench.put(number, [0x1000], pid=GONE)
    first, failed, last = bench.column(71, 72, 73)
    # THEN the others have their numbers, and the run says what happened
    assert first == last != failed
    assert failed is None
    assert bench.ledger.by_reason() == {"stack_failed": 1, "stack_unknown": 1}
    assert "no such thing" in bench.collector.detail()["error"]


def code_start() -> int:
    """Where the first file's code begins in this process, after something that is none."""
    return next(
        int(line.split("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "r-xp" in line and "/" in line
    )


def test_a_wait_is_where_it_was_and_a_call_where_it_returns_to(bench: Bench) -> None:
    """A fault may be at the first instruction of all, which no call returns to."""
    start = code_start()
    bench.put(81, [start, start + 4], family=int(layout.Kind.SCHED))
    bench.put(82, [start, start + 4], family=int(layout.Kind.CUDA))
    [wait, call] = bench.column(81, 82)
    assert wait is not None
    assert wait != call
    found = bench.functions()
    assert found[wait] == [f"{HERE}={start:x}", f"{HERE}:{start + 4:x}"]
    # What the call would return to has no call before it.
    assert call is not None
    assert found[call] == []
    assert bench.ledger.by_reason() == {"stack_astray": 1}


def test_nothing_is_cut_by_a_look_from_before_the_stack(bench: Bench) -> None:
    """Code may have been mapped since; only what is still not there counts as none."""
    place = code_start() + 0x40
    bench.put(91, [place])
    bench.column(91)
    # GIVEN a program that may not be looked at again for long
    program = bench.programs.of(HERE, 0)
    program.looks = 1 << 20
    bench.put(92, [place, 0x1000, place])
    [number] = bench.column(92)
    assert number is not None
    expected = [f"{HERE}:{place:x}", f"{HERE}:1000", f"{HERE}:{place:x}"]
    assert bench.functions()[number] == expected
    assert bench.ledger.by_reason() == {}


def test_a_program_that_keeps_its_reader_holds_up_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process whose memory does not come, and two stacks of it
    monkeypatch.setattr(collector, "_BATCH_PATIENCE_S", 0.05)
    monkeypatch.setattr(collector, "_LAST_PATIENCE_S", 0.05)
    reading, go_on = threading.Event(), threading.Event()

    def never_ends(_: object) -> None:
        reading.set()
        go_on.wait()

    monkeypatch.setattr(bench.programs, "look", never_ends)
    bench.put(101, [0x1000])
    bench.put(102, [0x2000])
    try:
        assert bench.collector.drain()
        assert reading.wait(60)
        # THEN rings are emptied, and events written, all the same
        bench.put(103, [0x3000])
        assert bench.collector.drain()
        assert not bench.ring.records
        assert bench.column(101) == [None]
        assert list(bench.collector.rows()) == []
        assert bench.ledger.by_reason() == {"stack_unknown": 1, "stack_failed": 3}
    finally:
        go_on.set()


def test_a_full_queue_leaves_stacks_in_the_ring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel drops, counts, and has them come again."""
    monkeypatch.setattr(collector, "_QUEUE_BYTES", -1)
    bench.put(111, [0x1000], pid=GONE)
    assert not bench.collector.drain()
    assert len(bench.ring.records) == 1
    monkeypatch.undo()
    assert bench.collector.drain()
    assert bench.column(111) != [None]


def test_a_walk_costs_what_its_frames_do(bench: Bench) -> None:
    assert bench.collector.walk_ns() == 800 + 3 * 130 + 40 * 70
    bench.put(121, [0x1000, 0x2000, 0x3000], pid=GONE)
    bench.put(122, [0x1000], pid=GONE)
    bench.column(121, 122)
    assert bench.collector.walk_ns() == 800 + 2 * 130


def test_programs_that_ended_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_KEPT_S", 0.0)
    bench.put(131, [0x1000])
    bench.put(132, [0x1000], pid=GONE)
    bench.column(131, 132)
    before = bench.programs.of(HERE, 0)
    bench.collector.process_ended(HERE)
    bench.put(133, [0x2000], pid=GONE)
    bench.column(133)
    bench.put(134, [0x3000], pid=GONE)
    bench.column(134)
    assert bench.programs.of(HERE, 0) is not before


def test_who_was_no_python_may_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By loading libpython, however late; by failing at first; and not by anything else."""
    table, symbolizer = FakeTable(), FakeSymbolizer()
    several = Programs(table, cast("Symbolizer", symbolizer))
    regions = [maps.Region(0x1000, 0x2000, 0, b"0:1", 7, b"/usr/bin/engine")]
    found: list[object] = []
    looks, here = 0, threading.get_ident()

    def find(*_: object) -> Interpreter | None:
        nonlocal looks
        # A thread that another test has left may look at programs of its own.
        looks += threading.get_ident() == here
        if isinstance(found[-1], NoWalkError):
            raise found[-1]
        return cast("Interpreter | None", found[-1])

    monkeypatch.setattr(programs, "find_interpreter", find)
    monkeypatch.setattr(programs, "candidates", lambda *_: regions)
    found.append(None)
    program = several.of(HERE, 0)
    # GIVEN a program that was found to be none as often as it is tried
    for _ in range(31):
        several.look(program)
    assert (looks, program.looked_at, program.python) == (10, 1, None)
    assert several.detail()["not_walked"] == {}
    # WHEN it maps a libpython that cannot be walked yet
    regions.append(maps.Region(0x3000, 0x4000, 0, b"0:1", 8, b"/usr/lib/libpython3.11.so"))
    found.append(NoWalkError("not yet"))
    several.look(program)
    assert several.detail()["not_walked"] == {"not yet": 1}
    # AND, with another one, can
    own = find_interpreter(HERE, maps.parse(maps.read(HERE)))
    regions.append(maps.Region(0x5000, 0x6000, 0, b"0:1", 9, b"/usr/lib/libpython3.12.so"))
    found.append(own)
    several.look(program)
    assert looks == 12
    assert program.python is not None
    assert int(table[HERE]["looked_at"]) == program.looked_at == 2
    assert several.detail()["not_walked"] == {}


def test_a_fork_into_another_process_namespace_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = FakeTable()
    several = Programs(table, cast("Symbolizer", FakeSymbolizer()))
    maker = several.of(HERE, 0)
    assert maker.python is not None
    number = maker.looked_at
    del table[HERE]
    # GIVEN one that is where its maker is
    table.images[HERE] = 5
    assert several.of(HERE, 5, number).python is maker.python
    assert HERE not in table
    # AND one that is not
    monkeypatch.setattr(programs, "namespace", lambda _: (3, 4))
    table.images[HERE] = 6
    assert several.of(HERE, 6, number).python is maker.python
    assert int(table[HERE]["image"]) == 6
    assert int(table[HERE]["looked_at"]) == number


def test_reasons_are_as_many_as_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Programs(FakeTable(), cast("Symbolizer", FakeSymbolizer()))
    numbers = iter(range(1000))

    def find(*_: object) -> None:
        raise NoWalkError(f"reason {next(numbers)}")

    monkeypatch.setattr(programs, "find_interpreter", find)
    for image in range(101):
        several.of(HERE, image)
        cast("FakeTable", several._table).images[HERE] = image + 1
    reasons = several.detail()["not_walked"]
    assert isinstance(reasons, dict)
    assert len(reasons) == 65
    assert sum(reasons.values()) == 101


def test_what_is_remembered_takes_no_more_than_it_may() -> None:
    kept: Bounded[str, int] = Bounded(17)
    kept.put("a", 1, 7)
    kept.put("b", 2, 7)
    assert kept.get("a") == 1
    kept.put("c", 3, 7)  # "b" was not used for longest
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)
    kept.put("a", 4, 3)
    assert (kept.size_bytes, len(kept)) == (10, 2)
    assert kept.pop("a") == 4
    assert kept.pop("a") is None
    kept.put("large", 5, 18)
    assert (kept.size_bytes, len(kept)) == (0, 0)
