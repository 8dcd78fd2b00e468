"""decode(encode(e)) = e: rows of the table nvtx are what the agent's records said."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from fake_agent import NO_PAYLOAD, Payload
from fake_recording import PID, Recording, row

from cctrace.record import layout, nvtx

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
    assert recording.flush() == [row(i, 7, 50 - i, "start_end", end_tid=7) for i in range(2, 7)]
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
        thread.write(
            layout.REC_PUSH_POP, recording.base_ns + i, i % 97, keys[i % 13], NO_PAYLOAD, 2
        )
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
    assert (
        Payload.of(layout.PAYLOAD_F64, 1.5).bits == struct.unpack("<Q", struct.pack("<d", 1.5))[0]
    )
