"""Stand-in for the agent: writes into a segment's memfd what the C agent would.

It maps the descriptor by itself and believes the header it finds there, as a
process of the target does. Names and behaviour follow ``probes/agent``; the tests
of the recorder use it to write exact, odd or hostile contents.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cctrace.record import layout

if TYPE_CHECKING:
    from cctrace.record.segment import Segment

RING_FULL: Final = layout.LOSS_REASONS.index("ring_full")
UNMATCHED_POP: Final = layout.LOSS_REASONS.index("unmatched_pop")
STACK_OVERFLOW: Final = layout.LOSS_REASONS.index("stack_overflow")

_MASK_64: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Payload:
    """A payload as the union of the NVTX event attributes holds it."""

    type: int = layout.PAYLOAD_NONE
    bits: int = 0

    @classmethod
    def of(cls, kind: int, value: float) -> Payload:
        """Pack ``value``; the 32-bit kinds fill the low half."""
        code = {
            layout.PAYLOAD_U64: "<Q",
            layout.PAYLOAD_I64: "<q",
            layout.PAYLOAD_F64: "<d",
            layout.PAYLOAD_U32: "<Ixxxx",
            layout.PAYLOAD_I32: "<ixxxx",
            layout.PAYLOAD_F32: "<fxxxx",
        }[kind]
        return cls(kind, int.from_bytes(struct.pack(code, value), "little"))


NO_PAYLOAD: Final = Payload()


class FakeAgent:
    """One process image that got a segment, and perhaps further ones.

    Args:
        segment: The recorder's segment, its descriptor still open.
    """

    def __init__(self, segment: Segment) -> None:
        self.maps: list[FakeMap] = []
        self.add(segment)
        self._keys = 0
        self._domains = 0

    def add(self, segment: Segment) -> None:
        """Map a further segment and close the recorder's descriptor, as the server does."""
        self.maps.append(FakeMap(os.dup(segment.fd)))
        segment.close_fd()

    def thread(self, tid: int) -> FakeThread | None:
        """Claim a free slot for a thread; None where there is none."""
        for segment in self.maps:
            thread = segment.claim(tid)
            if thread is not None:
                return thread
        return None

    def live_thread(self, tid: int) -> FakeThread:
        """Claim a free slot that must be there."""
        thread = self.thread(tid)
        assert thread is not None, "no free slot"
        return thread

    def domain(self, name: bytes) -> int:
        """Register a domain."""
        self._domains += 1
        self.log(layout.DICT_DOMAIN, self._domains, text=name)
        return self._domains

    def key(
        self,
        name: bytes | None,
        *,
        domain: int = 0,
        category: int = 0,
        color: int | None = None,
    ) -> int:
        """Register a combination of message, domain, category and colour."""
        self._keys += 1
        flags = (layout.DICT_HAS_TEXT if name is not None else 0) | (
            layout.DICT_HAS_COLOR if color is not None else 0
        )
        self.log(
            layout.DICT_KEY,
            self._keys,
            domain=domain,
            category=category,
            color=color or 0,
            flags=flags,
            text=name or b"",
        )
        return self._keys

    def name_category(self, category: int, name: bytes, *, domain: int = 0) -> None:
        """Give a category its name."""
        self.log(layout.DICT_CATEGORY, category, domain=domain, text=name)

    def name_thread(self, tid: int, name: bytes) -> None:
        """Give a thread its name."""
        self.log(layout.DICT_THREAD, tid, text=name)

    def log(
        self,
        kind: int,
        ident: int,
        *,
        domain: int = 0,
        category: int = 0,
        color: int = 0,
        flags: int = 0,
        text: bytes = b"",
    ) -> None:
        """Publish one dictionary entry."""
        self.raw_log(dict_entry(kind, ident, domain, category, color, flags, text))

    def raw_log(self, entry: bytes) -> None:
        """Publish any bytes as dictionary log."""
        first = self.maps[0]
        head = int(first.header["dict_head"])
        at = int(first.header["dict_offset"]) + head
        assert head + len(entry) <= int(first.header["dict_bytes"]), "dictionary is full"
        first.map[at : at + len(entry)] = entry
        first.header["dict_head"] = head + len(entry)

    def close(self) -> None:
        """Unmap everything, as the end of the process does."""
        for segment in self.maps:
            segment.close()


def dict_entry(  # noqa: PLR0917 - the fields of the struct, in order
    kind: int, ident: int, domain: int, category: int, color: int, flags: int, text: bytes
) -> bytes:
    """One entry of the dictionary log with its text, padded."""
    entry = struct.pack("<8I", kind, ident, domain, category, color, flags, len(text), 0)
    return entry + text + b"\0" * (-len(text) % 8)


class FakeMap:
    """One mapped segment; takes over ``fd``."""

    def __init__(self, fd: int) -> None:
        try:
            self.map = mmap.mmap(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        self.header: Any = np.frombuffer(self.map, layout.SEGMENT, 1)[0]
        assert int(self.header["magic"]) == layout.MAGIC
        assert int(self.header["version"]) == layout.SHM_VERSION
        assert int(self.header["segment_bytes"]) == len(self.map)
        self.slots: Any = np.frombuffer(
            self.map,
            layout.SLOT,
            int(self.header["slots"]),
            offset=int(self.header["slots_offset"]),
        )

    def claim(self, tid: int) -> FakeThread | None:
        """Claim a free slot."""
        free = np.flatnonzero(self.slots["state"] == layout.SLOT_FREE)
        if not len(free):
            return None
        slot = self.slots[free[0]]
        slot["tid"] = tid
        slot["depth"] = 0
        slot["state"] = layout.SLOT_LIVE
        return FakeThread(self, int(free[0]), tid)

    def ring(self, slot: int) -> Any:
        """The ring of a slot as an array of records."""
        offset = int(self.header["rings_offset"]) + slot * int(self.header["ring_stride"])
        return np.frombuffer(
            self.map, layout.RECORD, int(self.header["ring_records"]), offset=offset
        )

    def stack(self, slot: int) -> Any:
        """The open stack of a slot as an array of frames."""
        offset = int(self.header["stacks_offset"]) + slot * int(self.header["stack_stride"])
        return np.frombuffer(self.map, layout.FRAME, int(self.header["stack_frames"]), offset)

    def close(self) -> None:
        """Unmap."""
        del self.header, self.slots
        self.map.close()


@dataclass
class FakeThread:
    """One thread with its slot; times are given by the caller, ns."""

    segment: FakeMap
    index: int
    tid: int
    _frames: list[tuple[int, int, int, int, Payload]] = field(default_factory=list)

    @property
    def slot(self) -> Any:
        """The slot's own record, writable."""
        return self.segment.slots[self.index]

    @property
    def depth(self) -> int:
        """Ranges open on this thread."""
        return len(self._frames)

    def push(
        self, ts_ns: int, key: int = 0, domain: int = 0, payload: Payload = NO_PAYLOAD
    ) -> None:
        """Open a range."""
        if len(self._frames) >= int(self.segment.header["stack_frames"]):
            self.lose(STACK_OVERFLOW, ts_ns)
            return
        depth = sum(1 for frame in self._frames if frame[2] == domain)
        frame = self.segment.stack(self.index)[len(self._frames)]
        frame["ts_ns"], frame["payload"], frame["key"] = ts_ns, payload.bits, key
        frame["domain"], frame["depth"] = domain, min(depth, 65535)
        frame["payload_type"], frame["closed"] = payload.type, 0
        self._frames.append((ts_ns, key, domain, depth, payload))
        self.slot["depth"] = len(self._frames)

    def pop(self, ts_ns: int) -> None:
        """Close the innermost range, whatever its domain."""
        if not self._frames:
            self.lose(UNMATCHED_POP, ts_ns)
            return
        begun_ns, key, _, depth, payload = self._frames.pop()
        self.slot["depth"] = len(self._frames)
        self.write(layout.REC_PUSH_POP, begun_ns, ts_ns - begun_ns, key, payload, depth)

    def mark(self, ts_ns: int, key: int = 0, payload: Payload = NO_PAYLOAD) -> None:
        """Write a mark."""
        self.write(layout.REC_MARK, ts_ns, 0, key, payload)

    def start(self, ts_ns: int, range_id: int, key: int = 0, payload: Payload = NO_PAYLOAD) -> None:
        """Begin a range that any thread may end."""
        self.write(layout.REC_START, ts_ns, range_id, key, payload)

    def end(self, ts_ns: int, range_id: int) -> None:
        """End a range that any thread began."""
        self.write(layout.REC_END, ts_ns, range_id, 0, NO_PAYLOAD)

    def write(  # noqa: PLR0917 - the fields of the record
        self, kind: int, ts_ns: int, value: int, key: int, payload: Payload, depth: int = 0
    ) -> None:
        """Write one record, or count it as lost where the ring is full."""
        head, tail = int(self.slot["head"]), int(self.slot["tail"])
        ring = self.segment.ring(self.index)
        if (head - tail) & _MASK_64 >= len(ring):
            self.lose(RING_FULL, ts_ns)
            return
        # The tuple is in the order of struct cct_record.
        ring[head % len(ring)] = (
            ts_ns,
            value,
            payload.bits,
            key,
            min(depth, 65535),
            kind,
            payload.type,
        )
        self.slot["head"] = (head + 1) & _MASK_64

    def lose(self, reason: int, ts_ns: int) -> None:
        """Count a loss."""
        count(self.slot["losses"][reason], ts_ns)

    def exit(self) -> None:
        """End the thread; the recorder frees the slot."""
        self.slot["state"] = layout.SLOT_EXITED


def count(loss: Any, ts_ns: int) -> None:
    """Count one loss in a ``struct cct_loss_count``."""
    loss["first_ns"] = int(loss["first_ns"]) or ts_ns
    loss["last_ns"] = ts_ns
    loss["count"] = int(loss["count"]) + 1
