"""decode(encode(e)) = e: rows of the table nvtx are what the agent's records said."""

from __future__ import annotations

import math
import struct
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_agent import NO_PAYLOAD, FakeAgent, FakeThread, Payload
from hypothesis import given, settings

from cctrace.record import layout, nvtx
from cctrace.record.clock import now_ns
from cctrace.record.images import Images
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.nvtx import to_table
from cctrace.record.server import Peer
from cctrace.schema import TABLES

PID = 4242
GEOMETRY = Geometry(slots=3, ring_records=64, stack_frames=16, dict_bytes=1 << 20)
Row = dict[str, Any]


class Recording:
    """One image, its agent, and the rows decoded so far."""

    def __init__(self, geometry: Geometry = GEOMETRY) -> None:
        self.ledger = LossLedger()
        self.base_ns = now_ns()
        self.images = Images(geometry, self.base_ns - 10**9, self.ledger)
        self.agent = FakeAgent(self.images.hello(Peer(PID, 0), 1))
        self.rows: list[Row] = []

    def more(self) -> None:
        """Hand a further segment over."""
        segment = self.images.more(Peer(PID, 0), 1)
        assert segment is not None
        self.agent.add(segment)

    def flush(self) -> list[Row]:
        """Drain and decode; returns the rows this gave, times counted from the base."""
        self.images.drain()
        parts = self.images.decode()
        if not parts:
            return []
        table = to_table(parts, self.images.run_keys)
        assert table.schema.equals(TABLES["nvtx"].arrow, check_metadata=True)
        table.validate(full=True)
        fresh = table.to_pylist()
        for row in fresh:
            row["ts_ns"] -= self.base_ns
        self.rows += fresh
        return fresh

    def end(self) -> list[Row]:
        """End the process and flush; returns all rows."""
        self.images.process_ended(PID)
        self.flush()
        assert self.images.alive() == 0
        return self.rows


def row(ts_ns: int, tid: int, dur_ns: int | None, kind: str, **values: Any) -> Row:
    """A row with NULLs where nothing else is said."""
    made = dict.fromkeys(TABLES["nvtx"].column_names)
    made |= {"ts_ns": ts_ns, "pid": PID, "tid": tid, "dur_ns": dur_ns, "kind": kind, "depth": 0}
    return made | values


PAYLOADS = [
    (layout.PAYLOAD_U64, 0, 0, None),
    (layout.PAYLOAD_U64, 2**63 - 1, 2**63 - 1, None),
    (layout.PAYLOAD_U64, 2**63, None, float(2**63)),
    (layout.PAYLOAD_U64, 2**64 - 1, None, float(2**64)),
    (layout.PAYLOAD_I64, -1, -1, None),
    (layout.PAYLOAD_I64, -(2**63), -(2**63), None),
    (layout.PAYLOAD_U32, 2**32 - 1, 2**32 - 1, None),
    (layout.PAYLOAD_I32, -1, -1, None),
    (layout.PAYLOAD_I32, -(2**31), -(2**31), None),
    (layout.PAYLOAD_I32, 2**31 - 1, 2**31 - 1, None),
    (layout.PAYLOAD_F64, -0.1, None, -0.1),
    (layout.PAYLOAD_F64, math.inf, None, math.inf),
    (layout.PAYLOAD_F32, 0.5, None, 0.5),
    (layout.PAYLOAD_F32, -math.inf, None, -math.inf),
]


@pytest.mark.parametrize(("kind", "value", "whole", "floating"), PAYLOADS)
def test_each_payload_kind(
    kind: int, value: float, whole: int | None, floating: float | None
) -> None:
    """Integers go to payload, floats and what BIGINT cannot hold to payload_double."""
    recording = Recording()
    recording.agent.live_thread(7).mark(recording.base_ns, payload=Payload.of(kind, value))
    recording.agent.live_thread(8).mark(recording.base_ns)
    assert recording.flush() == [
        row(0, 7, 0, "mark", payload=whole, payload_double=floating),
        row(0, 8, 0, "mark"),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        Payload.of(layout.PAYLOAD_F64, math.nan),
        Payload.of(layout.PAYLOAD_F32, math.nan),
        Payload(layout.PAYLOAD_F64, 0x7FF0_0000_0000_0001),  # signalling
        Payload(layout.PAYLOAD_F32, 0x7F80_0001),  # signalling
    ],
)
def test_not_a_number_is_a_value_and_not_null(payload: Payload) -> None:
    """A NaN payload stays one, quiet or signalling, and warns of nothing."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.mark(recording.base_ns, payload=payload)
    thread.mark(recording.base_ns + 1)
    nan, none = recording.flush()
    assert nan["payload"] is None
    assert math.isnan(nan["payload_double"])
    assert none["payload_double"] is None


def test_high_half_of_a_32_bit_payload_is_ignored() -> None:
    """The union's other bytes are whatever the program had there."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    for kind in (layout.PAYLOAD_U32, layout.PAYLOAD_I32, layout.PAYLOAD_F32):
        thread.mark(recording.base_ns, payload=Payload(kind, 0xDEAD_BEEF_3F80_0000))
    assert [(r["payload"], r["payload_double"]) for r in recording.flush()] == [
        (0x3F80_0000, None),
        (0x3F80_0000, None),
        (None, 1.0),
    ]


@pytest.mark.parametrize("color", [0, 1, 0xFF00FF00, 2**32 - 1])
def test_colors(color: int) -> None:
    """Every ARGB value, black of no opacity included, differs from none."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.mark(recording.base_ns, recording.agent.key(b"a", color=color))
    thread.mark(recording.base_ns + 1, recording.agent.key(b"b"))
    assert [(r["name"], r["color"]) for r in recording.flush()] == [("a", color), ("b", None)]


NAMES = [
    (b"", ""),
    (b"a\0b", "a\0b"),
    (b"\0", "\0"),
    (b"\x01\x1b[31m\r\n\x7f", "\x01\x1b[31m\r\n\x7f"),
    (b"caf\xe9", "caf\ufffd"),
    (b"\xff\xfe\xfd", "\ufffd\ufffd\ufffd"),
    (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # a lone surrogate
    ("\U0001f600é".encode(), "\U0001f600é"),
    (b"n" * layout.TEXT_MAX, "n" * layout.TEXT_MAX),
    (b"\xc3" * layout.TEXT_MAX, "\ufffd" * layout.TEXT_MAX),
]


@pytest.mark.parametrize(("written", "read"), NAMES, ids=range(len(NAMES)))
def test_names_of_any_bytes(written: bytes, read: str) -> None:
    """Message, domain, category and thread name survive, invalid UTF-8 replaced."""
    recording = Recording()
    agent = recording.agent
    domain = agent.domain(written)
    agent.name_category(3, written, domain=domain)
    agent.name_thread(7, written)
    agent.live_thread(7).mark(recording.base_ns, agent.key(written, domain=domain, category=3))
    assert recording.flush() == [row(0, 7, 0, "mark", name=read, domain=read, category=read)]
    assert recording.images.take_thread_names() == [(PID, 7, read)]
    assert recording.images.take_thread_names() == []


def test_category_named_before_and_after_its_use() -> None:
    """Events written before the name have the number, later ones the name, in all keys."""
    recording = Recording()
    agent = recording.agent
    domain = agent.domain(b"d")
    thread = agent.live_thread(7)
    agent.name_category(5, b"elsewhere")  # of the default domain
    key, other = agent.key(b"a", domain=domain, category=5), agent.key(b"b", category=5)
    thread.mark(recording.base_ns, key)
    thread.mark(recording.base_ns + 1, other)
    first = recording.flush()
    agent.name_category(5, b"five", domain=domain)
    late = agent.key(b"c", domain=domain, category=5)
    for i, used in enumerate((key, other, late)):
        thread.mark(recording.base_ns + 2 + i, used)
    second = recording.flush()
    agent.name_category(5, b"renamed", domain=domain)
    thread.mark(recording.base_ns + 5, key)
    third = recording.flush()
    assert [r["category"] for r in first] == ["5", "elsewhere"]
    assert [r["category"] for r in second] == ["five", "elsewhere", "five"]
    assert [r["category"] for r in third] == ["renamed"]


def test_end_may_be_drained_before_its_start() -> None:
    """A range started and ended between two looks at two rings is joined later."""
    recording = Recording()
    ender, starter = recording.agent.live_thread(7), recording.agent.live_thread(8)
    key = recording.agent.key(b"r", color=3)
    ender.end(recording.base_ns + 31, 11)
    assert recording.flush() == []
    starter.start(recording.base_ns + 2, 11, key, Payload.of(layout.PAYLOAD_I32, -5))
    assert recording.flush() == [
        row(2, 8, 29, "start_end", name="r", color=3, payload=-5, end_tid=7)
    ]
    assert recording.end() == recording.rows
    assert recording.ledger.by_reason() == {}


def test_end_without_a_start_is_counted_after_three_flushes() -> None:
    """The end waits a little, is counted once, and its late start stays open."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.end(recording.base_ns + 5, 11)
    for _ in range(3):
        recording.flush()
        assert recording.ledger.by_reason() == {}
    recording.flush()
    assert recording.ledger.by_reason() == {"orphan_end": 1}
    thread.start(recording.base_ns + 1, 11)
    assert recording.end() == [row(1, 7, None, "start_end")]
    assert recording.ledger.by_reason() == {"orphan_end": 1}


def test_ends_that_wait_when_the_process_ends_are_counted() -> None:
    """Nothing is dropped in silence at the end."""
    recording = Recording()
    recording.agent.live_thread(7).end(recording.base_ns, 11)
    assert recording.end() == []
    assert recording.ledger.by_reason() == {"orphan_end": 1}


def test_end_before_its_start_by_the_clock_has_length_zero() -> None:
    """Two cores' clocks may differ by a little; no length is negative."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.start(recording.base_ns + 9, 11)
    thread.end(recording.base_ns + 8, 11)
    assert recording.flush() == [row(9, 7, 0, "start_end", end_tid=7)]


def test_range_ids_of_any_value_and_twice_the_same() -> None:
    """Ids are only compared: 0 and 2^64-1 are fine, and a repeated one is joined once each."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    for i, range_id in enumerate((0, 2**64 - 1, 2**63, 5)):
        thread.start(recording.base_ns + i, range_id)
    thread.start(recording.base_ns + 4, 5)
    for i, range_id in enumerate((0, 2**64 - 1, 2**63, 5)):
        thread.end(recording.base_ns + 100 + i, range_id)
    rows = sorted(recording.end(), key=lambda r: r["ts_ns"])
    assert [(r["ts_ns"], r["dur_ns"]) for r in rows] == [
        (0, 100),
        (1, 100),
        (2, 100),
        (3, 100),
        (4, None),
    ]


def test_starts_that_wait_too_many_are_given_out_as_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, as open ranges; their ends then have no start."""
    monkeypatch.setattr(nvtx, "_MAX_WAITING", 5)
    recording = Recording()
    thread = recording.agent.live_thread(7)
    for i in range(7):
        thread.start(recording.base_ns + i, i)
    assert recording.flush() == [row(i, 7, None, "start_end") for i in range(2)]
    for i in range(7):
        thread.end(recording.base_ns + 50, i)
    assert recording.flush() == [
        row(i, 7, 50 - i, "start_end", end_tid=7) for i in range(2, 7)
    ]
    recording.end()
    assert recording.ledger.by_reason() == {"orphan_end": 2}


BAD_RECORDS = {
    "no kind": {"kind": 0},
    "unknown kind": {"kind": 5},
    "unknown payload": {"payload_type": 7},
    "before the run": {"ts_ns": -(10**9) - 1},
    "long after": {"ts_ns": 3600 * 10**9},
    "no time": {"absolute_ns": 0},
    "time beyond BIGINT": {"absolute_ns": 2**64 - 1},
    "ends after now": {"value": 3600 * 10**9},
    "length beyond BIGINT": {"value": 2**64 - 1},
}


@pytest.mark.parametrize("change", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_record_that_cannot_be_is_dropped_and_counted(change: dict[str, int]) -> None:
    """Its neighbours stay; the count is its thread's."""
    recording = Recording()
    good, bad = recording.agent.live_thread(7), recording.agent.live_thread(8)
    good.write(layout.REC_PUSH_POP, recording.base_ns, 3, 0, NO_PAYLOAD)
    for ts_ns in (1, 2, 3):
        bad.write(layout.REC_PUSH_POP, recording.base_ns + ts_ns, 3, 0, NO_PAYLOAD)
    record = recording.agent.maps[0].ring(1)[1]
    for name, value in change.items():
        if name == "absolute_ns":
            record["ts_ns"] = value
        else:
            record[name] = value + (recording.base_ns if name == "ts_ns" else 0)
    assert [(r["tid"], r["ts_ns"]) for r in recording.flush()] == [(7, 0), (8, 1), (8, 3)]
    found = recording.ledger.table().to_pylist()
    assert [(r["pid"], r["tid"], r["reason"], r["count"]) for r in found] == [
        (PID, 8, "bad_record", 1)
    ]
    assert recording.ledger.lost_events() == 1


def test_unknown_keys_keep_the_event_and_are_counted() -> None:
    """An event whose name was lost is still an event."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.mark(recording.base_ns, recording.agent.key(b"a"))
    thread.mark(recording.base_ns + 1, 2)
    thread.mark(recording.base_ns + 2, 2**32 - 1)
    assert [r["name"] for r in recording.flush()] == ["a", None, None]
    assert recording.ledger.by_reason() == {"unknown_key": 2}
    assert recording.ledger.lost_events() == 0


# ---- programs made by hypothesis, against a model that knows no encoding ----

FLOATS = st.floats(width=32, allow_nan=False)
PAYLOAD = st.one_of(
    st.just((layout.PAYLOAD_NONE, 0)),
    st.tuples(st.just(layout.PAYLOAD_U64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(layout.PAYLOAD_I64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(layout.PAYLOAD_U32), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(layout.PAYLOAD_I32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(layout.PAYLOAD_F64), st.floats(allow_nan=False)),
    st.tuples(st.just(layout.PAYLOAD_F32), FLOATS),
)
# Name, domain (0: default), category (0: none), colour.
KEY = st.tuples(
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=9)),
    st.integers(0, 2),
    st.integers(0, 2),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
THREAD = st.integers(0, 4)
OPERATION = st.one_of(
    st.tuples(st.just("push"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("pop"), THREAD),
    st.tuples(st.just("mark"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("start"), THREAD, st.integers(0, 6), PAYLOAD),
    st.tuples(st.just("end"), THREAD, st.integers(0, 9)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("exit"), THREAD),
)


class Program:
    """Runs operations against the agent and says by itself what rows they make."""

    def __init__(self, keys: list[Any]) -> None:
        self.recording = Recording()
        agent = self.recording.agent
        self.domains = [None, "first", "zweite"]
        for name in self.domains[1:]:
            assert name is not None
            agent.domain(name.encode())
        agent.name_category(1, b"one")
        agent.name_category(2, b"two", domain=1)
        categories = {(0, 1): "one", (1, 2): "two"}
        self.names: list[Row] = [{}]
        self.keys = [(0, 0)]  # key and its domain
        for name, domain, category, color in keys:
            encoded = None if name is None else name.encode()
            key = agent.key(encoded, domain=domain, category=category, color=color)
            self.keys.append((key, domain))
            named = categories.get((domain, category), str(category)) if category else None
            self.names.append(
                {
                    "name": name,
                    "domain": self.domains[domain],
                    "category": named,
                    "color": color,
                }
            )
        self.threads: dict[int, FakeThread] = {}
        self.tids: dict[int, int] = {}
        self.open: dict[int, list[tuple[int, Row]]] = {}
        self.left: list[Row] = []
        self.started: dict[int, Row] = {}
        self.next_id = 1
        self.clock = 0
        self.expected: list[Row] = []

    def run(self, operations: list[tuple[Any, ...]]) -> None:
        for name, *arguments in operations:
            self.clock += 1
            getattr(self, name)(*arguments)

    def thread(self, number: int) -> FakeThread:
        if number not in self.threads:
            self.tids[number] = self.tids.get(number, 1000 * number) + 1
            thread = self.recording.agent.thread(self.tids[number])
            if thread is None:
                self.recording.more()
                thread = self.recording.agent.live_thread(self.tids[number])
            self.threads[number] = thread
            self.open[number] = []
        return self.threads[number]

    def event(
        self, number: int, key: int, payload: tuple[int, float], kind: str, **values: Any
    ) -> Row:
        type_, value = payload
        if type_ in (layout.PAYLOAD_F32, layout.PAYLOAD_F64) or value >= 2**63:
            values["payload_double"] = float(value)
        elif type_ != layout.PAYLOAD_NONE:
            values["payload"] = value
        named = self.names[key % len(self.names)]
        return row(self.clock, self.tids[number], 0, kind) | named | values

    def at(self) -> int:
        return self.recording.base_ns + self.clock

    def key(self, key: int) -> tuple[int, int]:
        return self.keys[key % len(self.keys)]

    def push(self, number: int, key: int, payload: tuple[int, float]) -> None:
        thread = self.thread(number)
        used, domain = self.key(key)
        depth = sum(1 for d, _ in self.open[number] if d == domain)
        self.open[number].append((domain, self.event(number, key, payload, "push_pop", depth=depth)))
        thread.push(self.at(), used, domain, packed(payload))

    def pop(self, number: int) -> None:
        self.thread(number).pop(self.at())
        if self.open[number]:
            _, begun = self.open[number].pop()
            self.expected.append(begun | {"dur_ns": self.clock - begun["ts_ns"]})

    def mark(self, number: int, key: int, payload: tuple[int, float]) -> None:
        self.thread(number).mark(self.at(), self.key(key)[0], packed(payload))
        self.expected.append(self.event(number, key, payload, "mark"))

    def start(self, number: int, key: int, payload: tuple[int, float]) -> None:
        self.thread(number).start(self.at(), self.next_id, self.key(key)[0], packed(payload))
        self.started[self.next_id] = self.event(number, key, payload, "start_end")
        self.next_id += 1

    def end(self, number: int, choice: int) -> None:
        if not self.started:
            return
        range_id = list(self.started)[choice % len(self.started)]
        self.thread(number).end(self.at(), range_id)
        begun = self.started.pop(range_id)
        self.expected.append(
            begun | {"dur_ns": self.clock - begun["ts_ns"], "end_tid": self.tids[number]}
        )

    def flush(self) -> None:
        self.recording.flush()

    def exit(self, number: int) -> None:
        if number in self.threads:
            self.threads.pop(number).exit()
            self.left += [begun for _, begun in self.open.pop(number)]
            self.flush()  # so that few threads can be many, one after the other

    def finish(self) -> list[Row]:
        opened = [begun for frames in self.open.values() for _, begun in frames]
        opened += [*self.started.values(), *self.left]
        self.expected += [begun | {"dur_ns": None} for begun in opened]
        return self.recording.end()


def packed(payload: tuple[int, float]) -> Payload:
    type_, value = payload
    return Payload.of(type_, value) if type_ else NO_PAYLOAD


def by_start(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: (r["ts_ns"], r["tid"]))


@settings(max_examples=211, deadline=None)
@given(st.lists(KEY, max_size=5), st.lists(OPERATION, max_size=61))
def test_any_program_is_decoded_exactly(
    keys: list[Any], operations: list[tuple[Any, ...]]
) -> None:
    """Threads that come and go, domains, segments, flushes at any moment, open ends."""
    program = Program(keys)
    program.run(operations)
    found = program.finish()
    assert by_start(found) == by_start(program.expected)
    lost = {"unmatched_pop", "stack_overflow"}
    assert set(program.recording.ledger.by_reason()) <= lost
    assert "stack_overflow" not in program.recording.ledger.by_reason() or len(operations) > 16


def test_program_of_prime_counts_is_decoded_exactly() -> None:
    """10,007 events of one thread over a ring of 64, drained in unequal steps."""
    recording = Recording()
    agent = recording.agent
    thread = agent.live_thread(7)
    keys = [agent.key(f"name {i}".encode()) for i in range(13)]
    rng = np.random.default_rng(10007)
    expected = []
    for i in range(10007):
        if i % int(rng.integers(1, 60)) == 0 or (i % 61 == 0):
            recording.flush()
        thread.write(layout.REC_PUSH_POP, recording.base_ns + i, i % 97, keys[i % 13], NO_PAYLOAD, 2)
        expected.append(row(i, 7, i % 97, "push_pop", name=f"name {i % 13}", depth=2))
    assert recording.end() == expected
    assert recording.ledger.by_reason() == {}


def test_order_of_rows_is_that_of_the_records_and_open_frames_come_last() -> None:
    """Ended ranges follow the others of their flush, open ones follow everything."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.push(recording.base_ns + 1)
    thread.start(recording.base_ns + 2, 5)
    thread.mark(recording.base_ns + 3)
    thread.end(recording.base_ns + 4, 5)
    thread.mark(recording.base_ns + 5)
    assert [r["ts_ns"] for r in recording.end()] == [3, 5, 2, 1]


def test_depth_of_65535_stays_itself() -> None:
    """The saturated depth is not taken for a sign."""
    recording = Recording()
    thread = recording.agent.live_thread(7)
    thread.write(layout.REC_PUSH_POP, recording.base_ns, 1, 0, NO_PAYLOAD, 65535)
    assert [r["depth"] for r in recording.flush()] == [65535]


def test_payload_codes_are_those_of_struct() -> None:
    """The tests' own packing is right: -5 as i32 is 0xFFFFFFFB in the low half."""
    assert Payload.of(layout.PAYLOAD_I32, -5).bits == 0xFFFF_FFFB
    assert Payload.of(layout.PAYLOAD_F64, 1.5).bits == struct.unpack("<Q", struct.pack("<d", 1.5))[0]
