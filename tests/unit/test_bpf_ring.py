"""The consumer's side of the kernel's ring, on one that the test writes as the kernel does."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from cctrace.record.bpf.layout import CUDA_EVENT, EVENT_BYTES, RING_BUSY, RING_DISCARD
from cctrace.record.bpf.ring import MappedArray, Ring

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = PAGE
RECORD = EVENT_BYTES + 8


class Producer:
    """The kernel's side: one page of the consumer's, one of its own, the data twice.

    A file's pages do not repeat, so every byte is written at both its places.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = 0

    def _write(self, position: int, data: bytes) -> None:
        for number, byte in enumerate(data):
            at = (position + number) % SIZE
            for copy in (at, at + SIZE):
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + copy)

    def reserve(self, ts_ns: int) -> int:
        """Room for a record that is not committed yet; returns its position."""
        event = np.zeros(1, CUDA_EVENT)
        event["ts_ns"] = ts_ns
        event["src"] = ts_ns ^ 0xFFFF
        at = self.position
        assert at + RECORD - self.consumed <= SIZE, "the kernel would have refused"
        self._write(at + 8, event.tobytes())
        self._write(at, (EVENT_BYTES | RING_BUSY).to_bytes(4, "little") + bytes(4))
        self.position = at + RECORD
        os.pwrite(self.fd, self.position.to_bytes(8, "little"), PAGE)
        return at

    def commit(self, at: int, *, discard: bool = False) -> None:
        length = EVENT_BYTES | (RING_DISCARD if discard else 0)
        self._write(at, length.to_bytes(4, "little"))

    def submit(self, ts_ns: int) -> None:
        self.commit(self.reserve(ts_ns))

    @property
    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")


@pytest.fixture
def producer() -> Iterator[Producer]:
    made = Producer()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(producer: Producer) -> Iterator[Ring]:
    with closing(Ring(producer.fd, SIZE)) as made:
        yield made


def times(ring: Ring) -> list[int]:
    events = ring.drain()
    assert (events["src"] == events["ts_ns"] ^ np.uint64(0xFFFF)).all()
    return [int(ts) for ts in events["ts_ns"]]


def test_empty_ring(ring: Ring, producer: Producer) -> None:
    assert times(ring) == []
    assert producer.consumed == 0


def test_records_come_in_order_and_are_given_back(ring: Ring, producer: Producer) -> None:
    for ts in range(1, 8):
        producer.submit(ts)
    assert times(ring) == [1, 2, 3, 4, 5, 6, 7]
    assert producer.consumed == 7 * RECORD
    assert times(ring) == []


def test_records_across_the_end_of_the_data_are_whole(ring: Ring, producer: Producer) -> None:
    # GIVEN a ring whose size is no multiple of a record, so that some record is cut
    assert SIZE % RECORD != 0
    # WHEN it is gone around several times, in lots of a prime number
    sent, got = 0, []
    for _ in range(41):
        for _ in range(13):
            producer.submit(sent)
            sent += 1
        got += times(ring)
    # THEN every record came, once and in order
    assert producer.position > 5 * SIZE
    assert got == list(range(sent))


def test_a_full_ring_is_drained_whole(ring: Ring, producer: Producer) -> None:
    held = SIZE // RECORD
    for first in (100, 1000):
        for ts in range(first, first + held):
            producer.submit(ts)
        assert times(ring) == list(range(first, first + held))


def test_what_lies_behind_a_busy_record_waits_for_it(ring: Ring, producer: Producer) -> None:
    # GIVEN a program that was interrupted between reserve and submit
    producer.submit(1)
    busy = producer.reserve(2)
    producer.submit(3)
    # WHEN / THEN only what is before it is taken
    assert times(ring) == [1]
    assert times(ring) == []
    producer.commit(busy)
    assert times(ring) == [2, 3]


def test_discarded_records_are_left_out_and_given_back(ring: Ring, producer: Producer) -> None:
    for ts in range(1, 6):
        producer.commit(producer.reserve(ts), discard=ts in (1, 4))
    assert times(ring) == [2, 3, 5]
    assert producer.consumed == 5 * RECORD


def test_any_mix_of_records(ring: Ring, producer: Producer) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    open_records: list[tuple[int, int]] = []
    expected: list[int] = []
    got: list[int] = []
    discarded: set[int] = set()
    for ts in range(1, 2000):
        if producer.position + RECORD - producer.consumed > SIZE:
            for at, old in open_records:
                producer.commit(at, discard=old in discarded)
            open_records.clear()
            got += times(ring)
        if dice.random() < 0.2:
            discarded.add(ts)
        else:
            expected.append(ts)
        at = producer.reserve(ts)
        if dice.random() < 0.3:
            open_records.append((at, ts))
        else:
            producer.commit(at, discard=ts in discarded)
        if dice.random() < 0.2:
            got += times(ring)
    for at, old in open_records:
        producer.commit(at, discard=old in discarded)
    got += times(ring)
    assert got == expected


def test_what_was_drained_is_a_copy(ring: Ring, producer: Producer) -> None:
    producer.submit(5)
    events = ring.drain()
    for ts in range(1000, 1000 + SIZE // RECORD):
        producer.submit(ts)
    assert [int(ts) for ts in events["ts_ns"]] == [5]


@pytest.mark.parametrize("slots", [1, 3, 512, 513])
def test_mapped_array_is_live(slots: int) -> None:
    # GIVEN a map's memory, which is whole pages
    fd = os.memfd_create("array")
    os.ftruncate(fd, 2 * PAGE)
    with closing(MappedArray(fd, slots, writable=True)) as array:
        # WHEN the kernel counts, and the recorder sets a slot
        os.pwrite(fd, (7).to_bytes(8, "little"), (slots - 1) * 8)
        assert len(array.values) == slots
        assert array.values[slots - 1] == 7
        array.values[0] = 11
        # THEN each sees the other's
        assert int.from_bytes(os.pread(fd, 8, 0), "little") == 11
    with (
        closing(MappedArray(fd, slots, writable=False)) as array,
        pytest.raises(ValueError, match="read-only"),
    ):
        array.values[0] = 1
    os.close(fd)
