"""One shared-memory segment: made here, written by the engine, drained here.

The engine can write anything into it at any time. So geometry and tails are
kept on this side, every count read is bounded before it is used, and records are
copied out before anyone looks at them. The memfd is sealed against resizing: a
mapping can then never fault, whatever the other side does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record import layout
from cctrace.record.layout import Geometry
from cctrace.record.losses import NVTX, LossLedger

Records = npt.NDArray[np.void]

# A count beyond this can only be garbage: 285 years at one a microsecond.
_PLAUSIBLE_COUNT: Final = 1 << 53
_MASK_64: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Chunk:
    """Records of one thread in the order they were written.

    Attributes:
        tid: Thread they came from, as the engine says.
        records: ``layout.RECORD`` array, a copy.
    """

    tid: int
    records: Records


@dataclass(frozen=True)
class OpenFrames:
    """Ranges of one thread that were pushed and not popped, outermost first.

    Attributes:
        tid: Thread they were pushed on.
        frames: ``layout.FRAME`` array, a copy.
    """

    tid: int
    frames: Records


class Segment:
    """A mapped segment and how far it has been read.

    Args:
        geometry: Sizes; the header is written from them and never read again.
        index: 0 for a process's first segment, which has the dictionary.

    Raises:
        OSError: No memory or descriptors left.
    """

    def __init__(self, geometry: Geometry, index: int) -> None:
        self.geometry = geometry
        self.fd = os.memfd_create("cctrace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, geometry.segment_bytes)
            fcntl.fcntl(
                self.fd,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            self._map = mmap.mmap(self.fd, geometry.segment_bytes)
        except BaseException:
            os.close(self.fd)
            raise
        head = geometry.header(index).tobytes()
        self._map[: len(head)] = head
        self._slots = np.frombuffer(
            self._map, layout.SLOT, geometry.slots, offset=geometry.slots_offset
        )
        self._header = np.frombuffer(self._map, layout.SEGMENT, 1)
        self._tails = np.zeros(geometry.slots, np.uint64)
        self._losses_seen = np.zeros((geometry.slots + 1, layout.LOSS_REASONS_MAX), np.uint64)
        self._losses_lock = threading.Lock()  # the drain counts too, where it frees a slot

    def close_fd(self) -> None:
        """Close the descriptor once it is handed over; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def drain(self, ledger: LossLedger, pid: int) -> tuple[list[Chunk], list[OpenFrames]]:
        """Take every record published so far, and free the slots of ended threads.

        Returns:
            Chunks in slot order, and what ended threads had left open.
        """
        heads = self._slots["head"].copy()
        states = self._slots["state"].copy()
        waiting = heads - self._tails
        chunks: list[Chunk] = []
        for slot in np.flatnonzero(waiting):
            chunk = self._take(int(slot), int(waiting[slot]), ledger, pid)
            if chunk is not None:
                chunks.append(chunk)
        open_frames: list[OpenFrames] = []
        # The states were read after the heads, so an ended thread's last
        # records may still be in the ring: those slots are read once more.
        for slot in np.flatnonzero(states == layout.SLOT_EXITED):
            index = int(slot)
            left = int(self._slots["head"][index]) - int(self._tails[index]) & _MASK_64
            chunk = self._take(index, left, ledger, pid) if left else None
            if chunk is not None:
                chunks.append(chunk)
            frames = self._open_frames(index, ledger, pid)
            if frames is not None:
                open_frames.append(frames)
            self._slots["depth"][index] = 0
            self._settle_losses(index, ledger, pid)
            self._slots["state"][index] = layout.SLOT_FREE
        return chunks, open_frames

    def drain_last(self, ledger: LossLedger, pid: int) -> tuple[list[Chunk], list[OpenFrames]]:
        """Drain what will not be looked at again, and read what is open in it.

        The process may have ended at any instruction, or still run: frames are read
        before records, and one whose record is there too was being popped.

        Returns:
            As ``drain``, with the open ranges of all threads.
        """
        live = np.flatnonzero(self._slots["state"] == layout.SLOT_LIVE)
        found = ((int(slot), self._open_frames(int(slot), ledger, pid)) for slot in live)
        before = {slot: frames for slot, frames in found if frames is not None}
        chunks, open_frames = self.drain(ledger, pid)
        for slot, left in before.items():
            if int(self._slots["state"][slot]) == layout.SLOT_FREE:
                continue  # its thread has ended since, and was read again
            own = [c.records for c in chunks if c.tid == left.tid]
            popped = [r["ts_ns"][r["kind"] == layout.REC_PUSH_POP] for r in own]
            times = np.concatenate([np.zeros(0, np.uint64), *popped])
            still_open = ~np.isin(left.frames["ts_ns"], times)
            open_frames.append(OpenFrames(left.tid, left.frames[still_open]))
        return chunks, open_frames

    def live_slots(self) -> list[tuple[int, int]]:
        """Slots that threads hold: slot, tid."""
        live = np.flatnonzero(self._slots["state"] == layout.SLOT_LIVE)
        return [(int(slot), _as_tid(self._slots["tid"][slot])) for slot in live]

    def end_slot(self, slot: int) -> None:
        """Say for a thread that is gone what it did not: its slot is to be freed.

        A raw SYS_exit runs no destructors.
        """
        self._slots["state"][slot] = layout.SLOT_EXITED

    def is_untouched(self) -> bool:
        """Whether the process never wrote to it: it could not map it, or is gone."""
        claimed = self._slots["claimed_ns"].any() or self._slots["head"].any()
        return not claimed and not self._header["dict_head"][0]

    def count_losses(self, ledger: LossLedger, pid: int) -> None:
        """Add to the ledger what the agent has counted since the last call."""
        with self._losses_lock:
            rows = np.concatenate([self._slots["losses"], self._header["losses"]])
            fresh = rows["count"] - self._losses_seen
            for index in np.flatnonzero(fresh.any(axis=1)):
                is_slot = index < self.geometry.slots
                tid = _as_tid(self._slots["tid"][index]) if is_slot else None
                _add_losses(ledger, rows[index], fresh[index], pid, tid)
            self._losses_seen = rows["count"]

    def dictionary(self, start: int) -> bytes:
        """Bytes of the dictionary log published beyond ``start``, a copy."""
        head = min(int(self._header["dict_head"][0]), self.geometry.dict_bytes)
        if head <= start:
            return b""
        base = self.geometry.dict_offset
        return self._map[base + start : base + head]

    def close(self) -> None:
        """Unmap; the segment must not be used any more."""
        self.close_fd()
        del self._slots, self._header
        self._map.close()

    def _take(self, slot: int, waiting: int, ledger: LossLedger, pid: int) -> Chunk | None:
        size = self.geometry.ring_records
        tail = int(self._tails[slot])
        head = tail + waiting & _MASK_64
        self._tails[slot] = head
        if waiting > size:
            # No honest producer gets there: the head itself is garbage.
            ledger.add(NVTX, "bad_ring", 1, pid=pid, tid=_as_tid(self._slots["tid"][slot]))
            self._slots["tail"][slot] = head
            return None
        ring = self._ring(slot)
        first = tail % size
        end = first + waiting
        if end <= size:
            records = ring[first:end].copy()
        else:
            records = np.concatenate([ring[first:], ring[: end - size]])
        # Only now may the engine write there again.
        self._slots["tail"][slot] = head
        return Chunk(_as_tid(self._slots["tid"][slot]), records)

    def _ring(self, slot: int) -> Records:
        return np.frombuffer(
            self._map,
            layout.RECORD,
            self.geometry.ring_records,
            offset=self.geometry.rings_offset + slot * self.geometry.ring_stride,
        )

    def _settle_losses(self, slot: int, ledger: LossLedger, pid: int) -> None:
        """Count what an ended thread lost, and begin at nothing for the slot's next one."""
        with self._losses_lock:
            row = self._slots["losses"][slot].copy()
            fresh = row["count"] - self._losses_seen[slot]
            _add_losses(ledger, row, fresh, pid, _as_tid(self._slots["tid"][slot]))
            self._slots["losses"][slot] = 0
            self._losses_seen[slot] = 0

    def _open_frames(self, slot: int, ledger: LossLedger, pid: int) -> OpenFrames | None:
        depth = int(self._slots["depth"][slot])
        if depth == 0:
            return None
        tid = _as_tid(self._slots["tid"][slot])
        if depth > self.geometry.stack_frames:
            ledger.add(NVTX, "bad_frame", 1, pid=pid, tid=tid)
            return None
        stack = np.frombuffer(
            self._map,
            layout.FRAME,
            depth,
            offset=self.geometry.stacks_offset + slot * self.geometry.stack_stride,
        )
        frames = stack[stack["closed"] == 0].copy()
        # A pop writes its record first and drops its frame second; starts of one
        # thread never repeat, so the last record tells whether it got between.
        last = self._ring(slot)[int(self._slots["head"][slot]) - 1 & self.geometry.ring_records - 1]
        if last["kind"] == layout.REC_PUSH_POP:
            frames = frames[frames["ts_ns"] != last["ts_ns"]]
        return OpenFrames(tid, frames)


def _add_losses(
    ledger: LossLedger,
    row: npt.NDArray[np.void],
    fresh: npt.NDArray[np.uint64],
    pid: int,
    tid: int | None,
) -> None:
    for reason in np.flatnonzero(fresh):
        count = int(fresh[reason])
        if reason >= len(layout.LOSS_REASONS) or count > _PLAUSIBLE_COUNT:
            ledger.add(NVTX, "bad_ring", 1, pid=pid)
            continue
        ledger.add(
            NVTX,
            layout.LOSS_REASONS[reason],
            count,
            pid=pid,
            tid=tid,
            first_ns=_as_time(row["first_ns"][reason]),
            last_ns=_as_time(row["last_ns"][reason]),
        )


def _as_tid(value: np.uint32) -> int:
    return int(value) & 0x7FFF_FFFF


def _as_time(value: np.uint64) -> int | None:
    return int(value) if 0 < value < _PLAUSIBLE_COUNT << 10 else None
