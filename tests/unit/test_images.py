"""Process images: who may have segments, when an image is over, and when draining pauses."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from fake_agent import FakeAgent

from cctrace.record import images as images_module
from cctrace.record.clock import now_ns
from cctrace.record.images import Images
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.nvtx import Rows
from cctrace.record.server import Peer

GEOMETRY = Geometry(slots=2, ring_records=64, stack_frames=8, dict_bytes=4096)
PEER = Peer(4242, 0)


@pytest.fixture
def ledger() -> LossLedger:
    return LossLedger()


@pytest.fixture
def images(ledger: LossLedger) -> Images:
    return Images(GEOMETRY, now_ns() - 10**9, ledger)


def hello(images: Images, token: int, pid: int = PEER.pid) -> FakeAgent:
    """A new image of ``pid`` and its agent."""
    return FakeAgent(images.hello(Peer(pid, 0), token))


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    gc.collect()  # what earlier tests left would go away meanwhile
    return len(list(Path("/proc/self/fd").iterdir()))


def found(parts: list[Rows]) -> list[tuple[int, int, int]]:
    """Rows as (pid, tid, length), in order."""
    return [
        (pid, tid, dur)
        for part in parts
        for pid, tid, dur in zip(
            part.pid.tolist(), part.tid.tolist(), part.dur_ns.tolist(), strict=True
        )
    ]


def test_exec_ends_the_first_image_with_all_it_wrote(images: Images) -> None:
    """A second hello of a pid: records, open ranges and names of the first stay its own."""
    first = hello(images, 1)
    thread = first.live_thread(4242)
    thread.push(now_ns(), first.key(b"never popped"))
    thread.mark(now_ns(), first.key(b"before"))
    second = hello(images, 2)
    second.live_thread(4242).mark(now_ns(), second.key(b"after"))
    assert images.alive() == 2
    assert images.drain() == 2
    assert images.alive() == 1
    parts = images.decode()
    assert found(parts) == [(4242, 4242, 0), (4242, 4242, 0), (4242, 4242, -1)] or found(parts) == [
        (4242, 4242, 0),
        (4242, 4242, -1),
        (4242, 4242, 0),
    ]
    names = [images.run_keys.columns(part.key).name.to_pylist() for part in parts]
    assert sorted(name for part in names for name in part) == ["after", "before", "never popped"]
    assert images.more(PEER, 1) is None
    assert images.more(PEER, 2) is not None


def test_token_of_another_process_is_refused(images: Images) -> None:
    """Neither another pid's token nor one never given out gets a segment."""
    hello(images, 1, pid=10)
    hello(images, 2, pid=20)
    assert images.more(Peer(10, 0), 2) is None
    assert images.more(Peer(10, 0), 3) is None
    assert images.more(Peer(10, 0), 0) is None
    segment = images.more(Peer(10, 0), 1)
    assert segment is not None
    assert segment.geometry.dict_bytes == 0
    assert segment.geometry.slots == GEOMETRY.slots


def test_segments_of_one_image_are_bounded(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that asks for ever more is refused in the end."""
    monkeypatch.setattr(images_module, "_MAX_SEGMENTS", 5)
    agent = hello(images, 1)
    for _ in range(4):
        segment = images.more(PEER, 1)
        assert segment is not None
        agent.add(segment)
    assert images.more(PEER, 1) is None
    # All ten slots are drained, those of every segment.
    for tid in range(10):
        agent.live_thread(tid).mark(now_ns())
    assert agent.thread(11) is None
    assert images.drain() == 10
    assert sorted(tid for _, tid, _ in found(images.decode())) == list(range(10))


def test_images_at_a_time_are_bounded(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is an OSError, which the server counts; an end makes room."""
    monkeypatch.setattr(images_module, "_MAX_IMAGES", 3)
    held = open_descriptors()
    for token in (1, 2, 3):
        hello(images, token, pid=token)
    with pytest.raises(OSError, match="too many processes"):
        images.hello(Peer(4, 0), 4)
    images.process_ended(2)
    images.drain()
    hello(images, 4, pid=4)
    assert images.alive() == 3
    images.end_all()
    images.drain()
    images.decode()
    assert open_descriptors() == held


def test_ended_process_is_drained_a_last_time_and_given_back(
    images: Images, ledger: LossLedger
) -> None:
    """Records, open ranges of ended and live threads, starts without ends, and losses."""
    agent = hello(images, 1)
    alive, gone = agent.live_thread(7), agent.live_thread(8)
    alive.push(now_ns())
    alive.start(now_ns(), 5)
    alive.mark(now_ns())
    gone.push(now_ns())
    gone.exit()
    for _ in range(70):
        alive.mark(now_ns())
    images.process_ended(PEER.pid)
    assert images.drain() == 64
    assert images.alive() == 0
    rows = found(images.decode())
    assert rows.count((4242, 7, 0)) == 63
    assert rows.count((4242, 7, -1)) == 2
    assert rows.count((4242, 8, -1)) == 1
    assert len(rows) == 66
    assert ledger.by_reason() == {"ring_full": 8}
    assert images.decode() == []
    assert images.drain() == 0


def test_writing_after_the_end_is_seen_by_nobody(images: Images) -> None:
    """The engine's own mapping outlives ours: it may write on without harm."""
    agent = hello(images, 1)
    images.end_all()
    images.drain()
    images.decode()
    agent.live_thread(7).mark(now_ns())
    assert images.drain() == 0
    assert images.decode() == []
    assert images.more(PEER, 1) is None


def test_draining_pauses_while_too_much_waits_to_be_written(
    images: Images, ledger: LossLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rings then fill, the agent drops and counts, and decoding lets it go on."""
    monkeypatch.setattr(images_module, "_QUEUE_RECORDS", 100)
    agent = hello(images, 1)
    thread = agent.live_thread(7)
    written = 0
    taken = []
    for _ in range(5):
        for _ in range(61):
            thread.mark(now_ns())
            written += 1
        taken.append(images.drain())
    assert taken == [61, 61, 0, 0, 0]
    decoded = sum(map(len, images.decode()))
    assert decoded == 122
    assert images.drain() == 64
    decoded += sum(map(len, images.decode()))
    assert written - decoded == ledger.by_reason()["ring_full"] == 119
    assert images.drained == decoded


def test_end_of_a_process_waits_while_draining_is_paused(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ended process's last records are not dropped for a slow writer."""
    monkeypatch.setattr(images_module, "_QUEUE_RECORDS", 3)
    agent = hello(images, 1)
    thread = agent.live_thread(7)
    for _ in range(5):
        thread.mark(now_ns())
    images.drain()
    for _ in range(7):
        thread.mark(now_ns())
    images.end_all()
    assert images.drain() == 0
    assert images.alive() == 1
    assert sum(map(len, images.decode())) == 5
    assert images.drain() == 7
    assert images.alive() == 0
    assert sum(map(len, images.decode())) == 7


def test_bad_dictionary_is_counted_once(images: Images, ledger: LossLedger) -> None:
    """Its events go on without names."""
    agent = hello(images, 1)
    agent.raw_log(b"\xff" * 64)
    thread = agent.live_thread(7)
    for _ in range(3):
        thread.mark(now_ns(), 1)
        images.drain()
        images.decode()
    assert ledger.by_reason() == {"bad_dictionary": 1, "unknown_key": 3}


def test_threads_that_ended_in_silence_give_their_slots_back(
    ledger: LossLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a process wants more slots, those of threads it no longer has come free."""
    images = Images(GEOMETRY, now_ns() - 10**9, ledger)
    agent = hello(images, 1)
    gone, there = agent.live_thread(5), agent.live_thread(7)
    gone.mark(now_ns())
    there.mark(now_ns())
    monkeypatch.setattr(images_module, "live_tids", lambda _pid: {7})
    assert images.more(PEER, 1) is not None
    images.drain()
    assert (gone.slot["state"], there.slot["state"]) == (0, 1)
    assert found(images.decode()) == [(4242, 5, 0), (4242, 7, 0)]


def test_threads_of_another_pid_namespace_keep_their_slots(
    ledger: LossLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be told who is there, nobody is taken for gone."""
    images = Images(GEOMETRY, now_ns() - 10**9, ledger)
    thread = hello(images, 1).live_thread(5)
    monkeypatch.setattr(images_module, "live_tids", lambda _pid: None)
    assert images.more(PEER, 1) is not None
    images.drain()
    assert thread.slot["state"] == 1


def test_process_that_never_wrote_is_told(images: Images, ledger: LossLedger) -> None:
    """It asked for a segment and could not map it: no event says so."""
    images.hello(PEER, 1)
    images.end_all()
    images.drain()
    assert images.decode() == []
    assert ledger.by_reason() == {"untraced": 1}


def test_descriptors_are_left_for_the_run(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the limit a process is turned away, and nothing of its segment stays open."""
    before = open_descriptors()
    monkeypatch.setattr(images_module, "leaves_descriptors", lambda _fd: False)
    with pytest.raises(OSError, match="Too many open files"):
        images.hello(PEER, 1)
    assert open_descriptors() == before
    assert images.alive() == 0
