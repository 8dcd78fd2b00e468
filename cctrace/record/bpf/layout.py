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
    STACK_RING = 6
    STACK_MAP = 7


LOSSES: Final = 8
# Names in the table ``losses``; store/losses.py says what they mean.
LOSS_REASONS: Final = {
    Loss.RING: "bpf_ring_full",
    Loss.MAP_FULL: "bpf_map_full",
    Loss.RETURN: "missed_return",
    Loss.ENTRY: "missed_entry",
    Loss.DEPTH: "nested_too_deep",
    Loss.READ: "unreadable_argument",
    Loss.STACK_RING: "stack_ring_full",
    Loss.STACK_MAP: "stack_map_full",
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


class Python(IntEnum):
    """enum cct_python."""

    NONE = 0
    V_3_10 = 1
    V_3_11 = 2
    V_3_12 = 3
    V_3_13 = 4


class StackFlag(IntFlag):
    """enum cct_stack_flag."""

    CUT = 1
    UNREADABLE = 2


STACK_NATIVE: Final = 127
STACK_PYTHON: Final = 127


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
    ("stack_id", "<u8"),
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

# struct cct_stack_process
STACK_PROCESS: Final = np.dtype(
    [
        ("image", "<u8"),
        ("threads_head", "<u8"),
        ("text_start", "<u8"),
        ("text_bytes", "<u8"),
        ("namespace_device", "<u8"),
        ("namespace_inode", "<u8"),
        ("prev_at", "<u2"),
        ("next_at", "<u2"),
        ("id_at", "<u2"),
        ("frame_at", "<u2"),
        ("cframe_at", "<u2"),
        ("pthread_tid_at", "<u2"),
        ("layout", "<u2"),
        ("looked_at", "<u2"),
        ("code_name_at", "<u2"),
        ("code_file_at", "<u2"),
        ("code_lines_at", "<u2"),
        ("text_hash_at", "<u2"),
    ]
)
# struct cct_python_frame
PYTHON_FRAME: Final = np.dtype([("code", "<u8"), ("place", "<u8"), ("mark", "<u8")])
# struct cct_stack
STACK: Final = np.dtype(
    [
        ("id", "<u8"),
        ("image", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("kernel", "<i4"),
        ("natives", "<u2"),
        ("pythons", "<u2"),
        ("flags", "<u2"),
        ("family", "<u2"),
        ("looked_at", "<u2"),
        ("pad", "<u2"),
        ("native", "<u8", (STACK_NATIVE,)),
        ("python", PYTHON_FRAME, (STACK_PYTHON,)),
    ]
)
CODE_TEXT_BYTES: Final = 512
CODE_LINES_BYTES: Final = 3072
CODE_HEAD_BYTES: Final = 256
# struct cct_code
CODE: Final = np.dtype(
    [
        ("code", "<u8"),
        ("name", "<u8"),
        ("file", "<u8"),
        ("lines", "<u8"),
        ("mark", "<u8"),
        ("image", "<u8"),
        ("pid", "<u4"),
        ("pad", "<u4"),
        ("code_object", "u1", (CODE_HEAD_BYTES,)),
        ("name_object", "u1", (CODE_TEXT_BYTES,)),
        ("file_object", "u1", (CODE_TEXT_BYTES,)),
        ("lines_object", "u1", (CODE_LINES_BYTES,)),
    ]
)

# struct bpf_ringbuf_hdr (kernel/bpf/ringbuf.c): u32 length with two flag bits, u32 page.
RING_HEADER_BYTES: Final = 8
RING_BUSY: Final = 1 << 31
RING_DISCARD: Final = 1 << 30


def ring_record(record: np.dtype[np.void]) -> np.dtype[np.void]:
    """A record in its ring, after the kernel's header."""
    return np.dtype([("length", "<u4"), ("page", "<u4"), ("event", record)])


RING_RECORD: Final = ring_record(CUDA_EVENT)
