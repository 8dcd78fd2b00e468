"""Process images: what each program that loaded the agent has handed us.

An image is one program of one process: exec makes a new one, fork makes one for
the child. It has one or more segments and one dictionary. The drain takes records
out of all of them; when a process has ended, its last records, its open ranges and
its loss counters are taken and the memory is given back.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field, replace
from typing import Final

from cctrace.record.clock import now_ns
from cctrace.record.dictionary import ProcessKeys, RunKeys
from cctrace.record.layout import Geometry
from cctrace.record.limits import fitting, leaves_descriptors, live_tids
from cctrace.record.losses import NVTX, LossLedger
from cctrace.record.nvtx import NvtxProcess, Rows
from cctrace.record.segment import Chunk, OpenFrames, Segment
from cctrace.record.server import Peer

_MAX_SEGMENTS: Final = 64  # of one image
_MAX_IMAGES: Final = 4096  # alive at a time
_QUEUE_RECORDS: Final = 16 << 20  # 512 MiB of records waiting to be written


@dataclass
class Image:
    """One program of one process.

    Attributes:
        token: Names it on the socket.
        pid: Process id, from the kernel.
        process: Decoding state.
        segments: Its shared memory, first one first.
        ended: No more will be written; drain a last time and close.
        chunks: Records drained and not decoded yet.
        open_frames: Open ranges of threads that ended, not decoded yet.
        tids: Threads that have written.
    """

    token: int
    pid: int
    process: NvtxProcess
    segments: list[Segment]
    ended: bool = False
    chunks: list[Chunk] = field(default_factory=list)
    open_frames: list[OpenFrames] = field(default_factory=list)
    tids: set[int] = field(default_factory=set)


class Images:
    """All images of a run; the server adds, the drain reads, the writer decodes.

    Args:
        geometry: Sizes of a first segment.
        earliest_ns: Start of the run; older events are garbage.
        ledger: Takes losses.
    """

    def __init__(self, geometry: Geometry, earliest_ns: int, ledger: LossLedger) -> None:
        self._geometry = geometry
        self._earliest_ns = earliest_ns
        self._ledger = ledger
        self._lock = threading.Lock()
        self._images: dict[int, Image] = {}
        self._drained: list[Image] = []
        self._thread_names: list[tuple[int, int, str]] = []
        self._new_threads: list[tuple[int, int, int]] = []
        self._queued = 0
        self.run_keys = RunKeys()
        self.drained = 0

    def hello(self, peer: Peer, token: int) -> Segment:
        """Make the first segment of a new image; an earlier one of the pid was exec'ed over.

        Raises:
            OSError: No memory or descriptors left, or too many images.
        """
        segment = Segment(fitting(self._geometry, peer.pid), 0)
        if not leaves_descriptors(segment.fd):
            segment.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        keys = ProcessKeys(self.run_keys)
        image = Image(token, peer.pid, NvtxProcess(peer.pid, keys, self._earliest_ns), [segment])
        with self._lock:
            if len(self._images) >= _MAX_IMAGES:
                segment.close()
                raise OSError("too many processes at a time")
            for other in self._images.values():
                if other.pid == peer.pid:
                    other.ended = True
            self._images[token] = image
        return segment

    def more(self, peer: Peer, token: int) -> Segment | None:
        """Make a further segment; None where the token is not the peer's, or it has enough."""
        with self._lock:
            image = self._images.get(token)
            if image is None or image.ended or image.pid != peer.pid:
                return None
            if len(image.segments) >= _MAX_SEGMENTS:
                return None
            _end_silent_threads(image)
            geometry = fitting(replace(self._geometry, dict_bytes=0), peer.pid)
            segment = Segment(geometry, len(image.segments))
            image.segments.append(segment)
            return segment

    def process_ended(self, pid: int) -> None:
        """Note that nothing more comes from ``pid``."""
        with self._lock:
            for image in self._images.values():
                if image.pid == pid:
                    image.ended = True

    def end_all(self) -> None:
        """Note that nothing more is to be taken from anyone: recording is over."""
        with self._lock:
            for image in self._images.values():
                image.ended = True

    def drain(self) -> int:
        """Take every published record of every image.

        When the writer is far behind nothing is taken: the rings fill and the
        agent drops and counts.

        Returns:
            Records taken.
        """
        with self._lock:
            images = list(self._images.values())
            if self._queued > _QUEUE_RECORDS:
                return 0
        taken = 0
        for image in images:
            ended = image.ended  # read before draining, so the last drain misses nothing
            chunks: list[Chunk] = []
            frames: list[OpenFrames] = []
            for segment in list(image.segments):
                drain = segment.drain_last if ended else segment.drain
                new_chunks, new_frames = drain(self._ledger, image.pid)
                chunks += new_chunks
                frames += new_frames
            taken += sum(len(chunk.records) for chunk in chunks)
            with self._lock:
                image.chunks += chunks
                image.open_frames += frames
                if ended:
                    del self._images[image.token]
                    self._drained.append(image)
        with self._lock:
            self._queued += taken
        self.drained += taken
        return taken

    def decode(self) -> list[Rows]:
        """Decode what was drained since the last call, and give back what is over.

        Called by the writer alone: dictionaries and loss counters are its own.
        """
        with self._lock:
            over = self._drained
            self._drained = []
            images = [*self._images.values(), *over]
            work = [(image, image.chunks, image.open_frames) for image in images]
            for image, _, _ in work:
                image.chunks, image.open_frames = [], []
            self._queued = 0
        rows: list[Rows] = []
        now = now_ns()
        for image, chunks, frames in work:
            # After the chunks were taken: a key is published before its records.
            self._read_dictionary(image)
            for segment in list(image.segments):
                segment.count_losses(self._ledger, image.pid)
            for chunk in chunks:
                if chunk.tid not in image.tids:
                    image.tids.add(chunk.tid)
                    first_ns = int(chunk.records["ts_ns"][0])
                    self._new_threads.append((image.pid, chunk.tid, min(first_ns, now)))
            rows += image.process.rows(chunks, now, self._ledger)
            rows += image.process.open_rows(frames, now, self._ledger)
        for image in over:
            rows += image.process.finish(self._ledger)
            if all(segment.is_untouched() for segment in image.segments):
                self._ledger.add(NVTX, "untraced", 1, pid=image.pid)
            for segment in image.segments:
                segment.close()
        return rows

    def take_thread_names(self) -> list[tuple[int, int, str]]:
        """Names programs gave to their threads since the last call: pid, tid, name."""
        found, self._thread_names = self._thread_names, []
        return found

    def take_new_threads(self) -> list[tuple[int, int, int]]:
        """Threads whose first events came since the last call: pid, tid, ts_ns."""
        found, self._new_threads = self._new_threads, []
        return found

    def alive(self) -> int:
        """Images that are not over."""
        with self._lock:
            return len(self._images)

    def _read_dictionary(self, image: Image) -> None:
        keys = image.process.keys
        keys.feed(image.segments[0].dictionary(keys.offset))
        self._ledger.add(NVTX, "bad_dictionary", keys.bad, pid=image.pid)
        keys.bad = 0
        self._thread_names += [(image.pid, t, name) for t, name in keys.thread_names.items()]
        keys.thread_names.clear()


def _end_silent_threads(image: Image) -> None:
    """Free the slots of threads that ended without saying so."""
    # Slots first: a thread that claims one after this is no concern of ours, and
    # one that is not in the later list is gone.
    held = [(s, slot, tid) for s in image.segments for slot, tid in s.live_slots()]
    there = live_tids(image.pid)
    if there is None:
        return
    for segment, slot, tid in held:
        if tid not in there:
            segment.end_slot(slot)
