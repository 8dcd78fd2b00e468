"""A segment: what is drained from it is what was written, and garbage is counted."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_agent import STACK_OVERFLOW, FakeAgent, FakeThread, count

from cctrace.record import layout
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.segment import Chunk, Segment

PID = 4242
SMALL = Geometry(slots=3, ring_records=8, stack_frames=5, dict_bytes=4096)
MASK_64 = (1 << 64) - 1


@pytest.fixture
def ledger() -> LossLedger:
    return LossLedger()


def entries(ledger: LossLedger) -> list[tuple[int | None, int | None, str, int]]:
    """The ledger as (pid, tid, reason, count)."""
    rows = ledger.table().to_pylist()
    return [(row["pid"], row["tid"], row["reason"], row["count"]) for row in rows]


def times(chunks: list[Chunk]) -> list[tuple[int, list[int]]]:
    """What was drained, as thread and times."""
    return [(chunk.tid, chunk.records["ts_ns"].tolist()) for chunk in chunks]


@pytest.mark.parametrize("ring_records", [1, 2, 8, 64, 4096])
@pytest.mark.parametrize("step", [1, 3, 7, 61])
def test_ring_wraps_at_every_capacity(ring_records: int, step: int, ledger: LossLedger) -> None:
    """Batches that do not divide the capacity come out whole and in order."""
    segment = Segment(Geometry(slots=1, ring_records=ring_records, dict_bytes=0), 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    batch = min(step, ring_records)
    written: list[int] = []
    drained: list[int] = []
    while len(written) < 4 * ring_records + 211:
        for _ in range(batch):
            written.append(len(written) + 1)
            thread.mark(written[-1])
        chunks, frames = segment.drain(ledger, PID)
        assert frames == []
        for chunk in chunks:
            drained += chunk.records["ts_ns"].tolist()
    assert drained == written
    assert entries(ledger) == []
    agent.close()
    segment.close()


def test_full_ring_drops_and_counts_what_came_last(ledger: LossLedger) -> None:
    """The ring holds exactly its capacity; the rest is in the ledger with its times."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    for ts_ns in range(1, 20):
        thread.mark(ts_ns)
    chunks, _ = segment.drain(ledger, PID)
    segment.count_losses(ledger, PID)
    assert times(chunks) == [(7, list(range(1, 9)))]
    assert ledger.table().to_pylist() == [
        {
            "pid": PID,
            "tid": 7,
            "source": "nvtx",
            "reason": "ring_full",
            "count": 11,
            "first_ns": 9,
            "last_ns": 19,
        }
    ]


def test_chunks_are_copies(ledger: LossLedger) -> None:
    """The engine writing on does not change what was taken, wrapped or not."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    taken: list[Chunk] = []
    for first in (1, 7):  # the second batch wraps
        for ts_ns in range(first, first + 6):
            thread.mark(ts_ns)
        taken += segment.drain(ledger, PID)[0]
    thread.segment.ring(0)["ts_ns"] = 99
    assert times(taken) == [(7, [1, 2, 3, 4, 5, 6]), (7, [7, 8, 9, 10, 11, 12])]


def test_head_runs_over_the_end_of_its_counter(ledger: LossLedger) -> None:
    """Counters of records ever written may wrap at 2^64."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    thread.slot["head"] = thread.slot["tail"] = MASK_64 - 2
    segment._tails[0] = MASK_64 - 2
    for ts_ns in range(1, 8):
        thread.mark(ts_ns)
    chunks, _ = segment.drain(ledger, PID)
    assert times(chunks) == [(7, [1, 2, 3, 4, 5, 6, 7])]
    assert int(thread.slot["tail"]) == 4
    assert entries(ledger) == []


@pytest.mark.parametrize("head", [9, 1 << 31, 1 << 63, MASK_64])
@pytest.mark.parametrize("state", [layout.SLOT_LIVE, layout.SLOT_EXITED, 77])
def test_garbage_head_is_counted_and_left_behind(head: int, state: int, ledger: LossLedger) -> None:
    """Nothing is taken from a ring whose head cannot be; what follows is read again."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    thread.slot["head"] = head
    thread.slot["state"] = state
    chunks, frames = segment.drain(ledger, PID)
    assert (chunks, frames) == ([], [])
    assert entries(ledger) == [(PID, 7, "bad_ring", 1)]
    assert int(thread.slot["tail"]) == head
    thread.mark(5)
    assert times(segment.drain(ledger, PID)[0]) == [(7, [5])]


def test_head_that_goes_back_in_an_ended_slot_is_counted(ledger: LossLedger) -> None:
    """A head below the tail is seen by the second look at ended slots, too."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    for ts_ns in (1, 2, 3):
        thread.mark(ts_ns)
    segment.drain(ledger, PID)
    # WHEN the head goes back after the first look, as only a hostile engine's can
    taken = segment._take

    def take_then_go_back(slot: int, waiting: int, to: LossLedger, pid: int) -> Chunk | None:
        chunk = taken(slot, waiting, to, pid)
        thread.slot["head"] = 1
        return chunk

    thread.mark(4)
    thread.exit()
    segment._take = take_then_go_back  # type: ignore[method-assign, assignment] # the race, made certain
    chunks, _ = segment.drain(ledger, PID)
    assert times(chunks) == [(7, [4])]
    assert entries(ledger) == [(PID, 7, "bad_ring", 1)]


def test_records_between_the_two_looks_at_an_ended_slot_are_taken(ledger: LossLedger) -> None:
    """A thread that writes and ends during the drain loses nothing."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    early, late = agent.live_thread(7), agent.live_thread(8)
    taken = segment._take

    def take_then_write(slot: int, waiting: int, to: LossLedger, pid: int) -> Chunk | None:
        segment._take = taken  # type: ignore[method-assign] # once
        late.mark(2)
        late.mark(3)
        return taken(slot, waiting, to, pid)

    early.mark(1)
    late.exit()
    segment._take = take_then_write  # type: ignore[method-assign, assignment] # the race, made certain
    chunks, _ = segment.drain(ledger, PID)
    assert times(chunks) == [(7, [1]), (8, [2, 3])]
    assert int(late.slot["state"]) == layout.SLOT_FREE


def test_ended_slot_is_freed_only_when_drained_and_then_serves_another_thread(
    ledger: LossLedger,
) -> None:
    """Each record has the tid of the thread that wrote it, over 13 reuses."""
    segment = Segment(Geometry(slots=1, ring_records=8, stack_frames=5, dict_bytes=0), 0)
    agent = FakeAgent(segment)
    seen: list[tuple[int, list[int]]] = []
    for tid in range(100, 113):
        thread = agent.live_thread(tid)
        for ts_ns in range(5):
            thread.mark(tid * 10 + ts_ns)
        thread.exit()
        assert agent.thread(999) is None
        seen += times(segment.drain(ledger, PID)[0])
    assert seen == [(tid, [tid * 10 + i for i in range(5)]) for tid in range(100, 113)]


def test_losses_belong_to_the_thread_that_had_them_over_reuse_of_its_slot(
    ledger: LossLedger,
) -> None:
    """A new thread in the slot gets neither the counts nor the times of the last."""
    segment = Segment(Geometry(slots=1, ring_records=2, stack_frames=5, dict_bytes=0), 0)
    agent = FakeAgent(segment)
    for tid, lost in ((100, 3), (200, 5), (300, 0), (400, 7)):
        thread = agent.live_thread(tid)
        for i in range(2 + lost):
            thread.mark(tid + i)
        thread.exit()
        segment.drain(ledger, PID)
    segment.count_losses(ledger, PID)  # the writer comes round much later
    rows = [
        (row["tid"], row["count"], row["first_ns"], row["last_ns"])
        for row in ledger.table().to_pylist()
    ]
    assert rows == [(100, 3, 102, 104), (200, 5, 202, 206), (400, 7, 402, 408)]


def test_loss_counters_are_added_once_and_in_full(ledger: LossLedger) -> None:
    """Counting between drains takes what is new; the process's own have no tid."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    for _ in range(3):
        thread.lose(STACK_OVERFLOW, 50)
        count(agent.maps[0].header["losses"][6], 60)
        segment.count_losses(ledger, PID)
        segment.count_losses(ledger, PID)
    assert entries(ledger) == [(PID, None, "no_slot", 3), (PID, 7, "stack_overflow", 3)]


@pytest.mark.parametrize("counts", [[MASK_64], [5, 3], [1 << 54], [(1 << 53) + 1]])
def test_implausible_loss_counts_are_counted_as_garbage(
    counts: list[int], ledger: LossLedger
) -> None:
    """A counter that jumps or goes back is one bad_ring, not an absurd figure."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    for value in counts:
        thread.slot["losses"][0]["count"] = value
        segment.count_losses(ledger, PID)
    expected = {"bad_ring": 1, **({"ring_full": 5} if len(counts) == 2 else {})}
    assert ledger.by_reason() == expected


def push_all(thread: FakeThread, frames: int) -> None:
    """Push ``frames`` ranges at times 1, 2, 3, ..."""
    for ts_ns in range(1, frames + 1):
        thread.push(ts_ns)


def test_open_frames_of_ended_and_live_threads(ledger: LossLedger) -> None:
    """Outermost first, without those closed out of order; an ended slot's come once."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    ended, live = agent.live_thread(7), agent.live_thread(8)
    push_all(ended, 5)
    push_all(live, 3)
    agent.maps[0].stack(1)[1]["closed"] = 1
    ended.exit()
    _, frames = segment.drain(ledger, PID)
    assert [(f.tid, f.frames["ts_ns"].tolist()) for f in frames] == [(7, [1, 2, 3, 4, 5])]
    _, frames = segment.drain_last(ledger, PID)
    assert [(f.tid, f.frames["ts_ns"].tolist()) for f in frames] == [(8, [1, 3])]
    assert segment.drain(ledger, PID) == ([], [])


@pytest.mark.parametrize("drained_before", [True, False])
def test_range_being_popped_when_its_process_died_comes_once(
    drained_before: bool,
    ledger: LossLedger,
) -> None:
    """A pop publishes its record, then drops its frame; SIGKILL can come between."""
    segment = Segment(SMALL, 0)
    thread = FakeAgent(segment).live_thread(7)
    push_all(thread, 3)
    thread.pop(5)
    thread.slot["depth"] = 3  # as it was before the pop was complete
    if drained_before:
        segment.drain(ledger, PID)
    chunks, frames = segment.drain_last(ledger, PID)
    assert [(f.tid, f.frames["ts_ns"].tolist()) for f in frames] == [(7, [1, 2])]
    assert times(chunks) == ([] if drained_before else [(7, [3])])


@pytest.mark.parametrize("depth", [6, 1 << 16, (1 << 32) - 1])
@pytest.mark.parametrize("ended", [True, False])
def test_garbage_depth_is_counted_and_reads_nothing(
    depth: int,
    ended: bool,
    ledger: LossLedger,
) -> None:
    """A stack deeper than it can be is not read at all."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    thread.slot["depth"] = depth
    if ended:
        thread.exit()
    _, frames = segment.drain(ledger, PID)
    assert frames == []
    assert segment.drain_last(ledger, PID)[1] == []
    assert entries(ledger) == [(PID, 7, "bad_frame", 1)]


def test_header_and_tails_written_by_the_engine_are_not_believed(ledger: LossLedger) -> None:
    """The recorder reads by its own geometry and tails, whatever the segment says."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    thread = agent.live_thread(7)
    thread.mark(1)
    segment.drain(ledger, PID)
    thread.mark(2)
    agent.maps[0].map[: layout.SEGMENT.itemsize] = b"\xff" * layout.SEGMENT.itemsize
    agent.maps[0].slots["tail"] = 12345
    assert times(segment.drain(ledger, PID)[0]) == [(7, [2])]
    assert len(segment.dictionary(0)) == SMALL.dict_bytes  # dict_head is bounded
    assert segment.dictionary(SMALL.dict_bytes) == b""


def test_peer_can_neither_shrink_nor_grow_nor_unseal_the_segment() -> None:
    """Its ftruncate fails with EPERM, so no mapping of it can ever fault."""
    segment = Segment(SMALL, 0)
    hostile = (
        "import errno, fcntl, os, sys\n"
        "fd = int(sys.argv[1])\n"
        "def refused(call, *args):\n"
        "    try: call(fd, *args)\n"
        "    except OSError as error: return error.errno == errno.EPERM\n"
        "    return False\n"
        "size = os.fstat(fd).st_size\n"
        "print([refused(os.ftruncate, n) for n in (0, 4096, size - 1, size + 1)],\n"
        "      refused(os.posix_fallocate, 0, size + 4096),\n"
        "      refused(fcntl.fcntl, fcntl.F_ADD_SEALS, 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hostile, str(segment.fd)],
        pass_fds=[segment.fd],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[True, True, True, True] True True\n"
    assert os.fstat(segment.fd).st_size == SMALL.segment_bytes
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(segment.fd, fcntl.F_GET_SEALS) == wanted
    segment.drain(LossLedger(), PID)


def test_close_unmaps_and_keeps_what_was_taken(ledger: LossLedger) -> None:
    """Chunks outlive the segment, and closing twice as many fds as were made is not tried."""
    segment = Segment(SMALL, 0)
    agent = FakeAgent(segment)
    agent.live_thread(7).mark(3)
    chunks, _ = segment.drain(ledger, PID)
    assert segment.fd == -1
    segment.close()
    assert isinstance(segment._map, mmap.mmap)
    assert segment._map.closed
    assert times(chunks) == [(7, [3])]


def test_untouched_pages_cost_no_memory() -> None:
    """A default segment is hundreds of megabytes long and takes almost none."""
    segment = Segment(Geometry(), 0)
    segment.drain(LossLedger(), PID)
    segment.count_losses(LossLedger(), PID)
    used_bytes = os.fstat(segment.fd).st_blocks * 512
    assert Geometry().segment_bytes > 500 << 20
    assert used_bytes <= 64 << 10
    assert np.all(segment._tails == 0)
    segment.close()
