"""The records and numbers of ``probes/bpf/cctrace.h``, for NumPy.

A test compiles the header and compares sizes, offsets and values with these.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

DEVICE_BYTES: Final = 24
COMM_BYTES: Final = 16
NO_COPY_KIND: Final = 0xFF


class Kind(IntEnum):
    """enum cct_kind."""

    NONE = 0
    CUDA = 1
    SCHED = 2
    LIFECYCLE = 3
    SWIOTLB = 4
    PAGES = 5
    UVM = 6
    CRYPTO = 7
    DMA = 8
    IOCTL = 9
    TDX = 10


KINDS: Final = 11


class Loss(IntEnum):
    """enum cct_bpf_loss."""

    RING = 0
    MAP_FULL = 1
    RETURN = 2
    ENTRY = 3
    DEPTH = 4
    READ = 5


LOSSES: Final = 6
# Names in the table ``losses``; store/losses.py says what they mean.
LOSS_REASONS: Final = {
    Loss.RING: "bpf_ring_full",
    Loss.MAP_FULL: "bpf_map_full",
    Loss.RETURN: "missed_return",
    Loss.ENTRY: "missed_entry",
    Loss.DEPTH: "nested_too_deep",
    Loss.READ: "unreadable_argument",
}

CONFIG_LAUNCHES: Final = 0
CONFIG_ATTACHING: Final = 1
CONFIG_SLOTS: Final = 8
LAUNCHES_FULL: Final = 0
LAUNCHES_AGGREGATE: Final = 1


class CudaFlag(IntFlag):
    """enum cct_cuda_flag."""

    HAS_SIZE = 1
    HAS_STREAM = 2
    HAS_ADDRESS = 4
    SIZE_PARTIAL = 8
    OPEN = 16


class SchedState(IntEnum):
    """enum cct_sched_state."""

    RUNNABLE = 0
    BLOCKED = 1
    IO = 2


class Life(IntEnum):
    """enum cct_life."""

    PROCESS = 0
    THREAD = 1
    EXEC = 2
    EXIT = 3


class IoOp(IntEnum):
    """enum cct_io_op."""

    MAP = 0
    BOUNCE = 1
    UNMAP = 2
    SYNC = 3
    FULL = 4
    ALLOC = 5
    ENCRYPT = 6
    DECRYPT = 7
    TO_SHARED = 8
    TO_PRIVATE = 9


class Direction(IntEnum):
    """enum cct_direction."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2
    UNKNOWN = 3


_HEAD: Final = [
    ("ts_ns", "<u8"),
    ("pid", "<u4"),
    ("tid", "<u4"),
    ("kind", "u1"),
    ("depth", "u1"),
    ("what", "<u2"),
    ("result", "<i2"),
    ("detail", "u1"),
    ("flags", "u1"),
    ("dur_ns", "<u8"),
]
# One view of the record for each member of its union.
CUDA_EVENT: Final = np.dtype(
    [*_HEAD, ("size_bytes", "<u8"), ("stream", "<u8"), ("dst", "<u8"), ("src", "<u8")]
)
SCHED_EVENT: Final = np.dtype([*_HEAD, ("waker_tid", "<u4"), ("pad", "<u4", (7,))])
LIFE_EVENT: Final = np.dtype(
    [
        *_HEAD,
        ("child_tid", "<u4"),
        ("parent_pid", "<u4"),
        ("comm", f"S{COMM_BYTES}"),
        ("pad", "<u8"),
    ]
)
IO_EVENT: Final = np.dtype([*_HEAD, ("size_bytes", "<u8"), ("device", f"S{DEVICE_BYTES}")])
EVENT_BYTES: Final = CUDA_EVENT.itemsize

# struct bpf_ringbuf_hdr (kernel/bpf/ringbuf.c): u32 length with two flag bits, u32 page.
RING_HEADER_BYTES: Final = 8
RING_BUSY: Final = 1 << 31
RING_DISCARD: Final = 1 << 30
RING_RECORD: Final = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", CUDA_EVENT)])
