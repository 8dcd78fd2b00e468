"""Mirror of ``probes/agent/cctrace_shm.h``: what agent and recorder share.

The header is the contract; ``tests/unit/test_layout.py`` compiles it and compares
every size, offset and constant with this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

MAGIC: Final = 0x31474553544343
SHM_VERSION: Final = 1

SLOT_FREE: Final = 0
SLOT_LIVE: Final = 1
SLOT_EXITED: Final = 2

# In the order of `enum cct_loss`; the names are `losses.reason`.
LOSS_REASONS: Final = (
    "ring_full",
    "stack_overflow",
    "string_table_full",
    "reentrant",
    "unmatched_pop",
    "truncated_string",
    "no_slot",
)
LOSS_REASONS_MAX: Final = 8

REC_PUSH_POP: Final = 1
REC_MARK: Final = 2
REC_START: Final = 3
REC_END: Final = 4

PAYLOAD_NONE: Final = 0
PAYLOAD_U64: Final = 1
PAYLOAD_I64: Final = 2
PAYLOAD_F64: Final = 3
PAYLOAD_U32: Final = 4
PAYLOAD_I32: Final = 5
PAYLOAD_F32: Final = 6

DICT_KEY: Final = 1
DICT_DOMAIN: Final = 2
DICT_CATEGORY: Final = 3
DICT_THREAD: Final = 4
DICT_HAS_TEXT: Final = 1
DICT_TRUNCATED: Final = 2
DICT_HAS_COLOR: Final = 4
TEXT_MAX: Final = 65535

WIRE_MAGIC: Final = 0x57544343
WIRE_VERSION: Final = 1
REQ_HELLO: Final = 1
REQ_MORE: Final = 2
REQ_REPORT: Final = 3
REQ_LIBRARY: Final = 4
REPORT_MAX: Final = 65536
LIBRARY_PATH_MAX: Final = 4096
REPLY_OK: Final = 0
REPLY_REFUSED: Final = 1

LOSS = np.dtype([("count", "<u8"), ("first_ns", "<u8"), ("last_ns", "<u8")])

RECORD = np.dtype(
    [
        ("ts_ns", "<u8"),
        ("value", "<u8"),
        ("payload", "<u8"),
        ("key", "<u4"),
        ("depth", "<u2"),
        ("kind", "u1"),
        ("payload_type", "u1"),
    ]
)

FRAME = np.dtype(
    [
        ("ts_ns", "<u8"),
        ("payload", "<u8"),
        ("key", "<u4"),
        ("domain", "<u4"),
        ("depth", "<u2"),
        ("payload_type", "u1"),
        ("closed", "u1"),
        ("reserved", "<u4"),
    ]
)

SLOT = np.dtype(
    [
        ("state", "<u4"),
        ("tid", "<u4"),
        ("claimed_ns", "<u8"),
        ("reserved0", "<u8", (6,)),
        ("head", "<u8"),
        ("depth", "<u4"),
        ("reserved1", "<u4"),
        ("reserved2", "<u8", (6,)),
        ("tail", "<u8"),
        ("reserved3", "<u8", (7,)),
        ("losses", LOSS, (LOSS_REASONS_MAX,)),
    ]
)

DICT_ENTRY = np.dtype(
    [
        ("type", "<u4"),
        ("id", "<u4"),
        ("domain", "<u4"),
        ("category", "<u4"),
        ("color", "<u4"),
        ("flags", "<u4"),
        ("bytes", "<u4"),
        ("reserved", "<u4"),
    ]
)

SEGMENT = np.dtype(
    [
        ("magic", "<u8"),
        ("version", "<u4"),
        ("index", "<u4"),
        ("segment_bytes", "<u8"),
        ("slots", "<u4"),
        ("ring_records", "<u4"),
        ("stack_frames", "<u4"),
        ("reserved0", "<u4"),
        ("slots_offset", "<u8"),
        ("rings_offset", "<u8"),
        ("ring_stride", "<u8"),
        ("stacks_offset", "<u8"),
        ("stack_stride", "<u8"),
        ("dict_offset", "<u8"),
        ("dict_bytes", "<u8"),
        ("reserved1", "<u8", (3,)),
        ("dict_head", "<u8"),
        ("reserved2", "<u8", (7,)),
        ("losses", LOSS, (LOSS_REASONS_MAX,)),
    ]
)

REQUEST = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("type", "<u2"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("token", "<u8"),
    ]
)

REPLY = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("status", "<u2"),
        ("token", "<u8"),
        ("segment_bytes", "<u8"),
    ]
)

STRUCTS: Final[dict[str, np.dtype[np.void]]] = {
    "cct_loss_count": LOSS,
    "cct_record": RECORD,
    "cct_frame": FRAME,
    "cct_slot": SLOT,
    "cct_dict_entry": DICT_ENTRY,
    "cct_segment": SEGMENT,
    "cct_request": REQUEST,
    "cct_reply": REPLY,
}

_PAGE_BYTES: Final = 4096


def _round_up(size: int, unit: int = _PAGE_BYTES) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Geometry:
    """Sizes of a segment; pages nobody writes to cost no memory.

    Attributes:
        slots: Thread slots, so threads that can write at the same time.
        ring_records: Records a ring holds; a power of two.
        stack_frames: Open ranges a thread can have.
        dict_bytes: Size of the dictionary log; 0 in a process's further segments.
    """

    slots: int = 64
    ring_records: int = 1 << 18
    stack_frames: int = 1024
    dict_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.ring_records < 1 or self.ring_records & (self.ring_records - 1):
            raise ValueError(f"ring_records must be a power of two, not {self.ring_records}")

    @property
    def slots_offset(self) -> int:
        """Offset of the slots, bytes."""
        return _round_up(SEGMENT.itemsize)

    @property
    def ring_stride(self) -> int:
        """Bytes from one ring to the next."""
        return _round_up(self.ring_records * RECORD.itemsize)

    @property
    def rings_offset(self) -> int:
        """Offset of the rings, bytes."""
        return self.slots_offset + _round_up(self.slots * SLOT.itemsize)

    @property
    def stack_stride(self) -> int:
        """Bytes from one open stack to the next."""
        return _round_up(self.stack_frames * FRAME.itemsize)

    @property
    def stacks_offset(self) -> int:
        """Offset of the open stacks, bytes."""
        return self.rings_offset + self.slots * self.ring_stride

    @property
    def dict_offset(self) -> int:
        """Offset of the dictionary log, bytes."""
        return self.stacks_offset + self.slots * self.stack_stride

    @property
    def segment_bytes(self) -> int:
        """Size of the whole segment."""
        return self.dict_offset + _round_up(self.dict_bytes)

    def header(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """The segment header as the recorder writes it, one ``SEGMENT`` record."""
        head = np.zeros(1, SEGMENT)
        values: dict[str, int] = {
            "magic": MAGIC,
            "version": SHM_VERSION,
            "index": index,
            "segment_bytes": self.segment_bytes,
            "slots": self.slots,
            "ring_records": self.ring_records,
            "stack_frames": self.stack_frames,
            "slots_offset": self.slots_offset,
            "rings_offset": self.rings_offset,
            "ring_stride": self.ring_stride,
            "stacks_offset": self.stacks_offset,
            "stack_stride": self.stack_stride,
            "dict_offset": self.dict_offset,
            "dict_bytes": self.dict_bytes,
        }
        for name, value in values.items():
            head[name] = value
        return head
