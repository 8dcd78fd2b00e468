"""Calls in flight, as the programs of ``cuda.bpf.c`` keep them: read, never written."""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.symbols import COOKIE_OUT, COOKIE_SITE_BITS

MAX_DEPTH: Final = 8
SLOTS: Final = 16384
# struct cuda_frame and struct cuda_thread of cuda.bpf.c; a test compares them.
FRAME: Final = np.dtype(
    [
        ("ts_ns", "<u8"),
        ("sp", "<u8"),
        ("cookie", "<u8"),
        ("size_bytes", "<u8"),
        ("stream", "<u8"),
        ("dst", "<u8"),
        ("src", "<u8"),
        ("stack_id", "<u8"),
        ("detail", "u1"),
        ("flags", "u1"),
        ("pad", "u1", (6,)),
    ]
)
THREAD: Final = np.dtype(
    [
        ("tid", "<u4"),
        ("pid", "<u4"),
        ("depth", "<u2"),
        ("inherited", "<u2"),
        ("slot", "<u4"),
        ("frames", FRAME, (MAX_DEPTH,)),
    ]
)


class Frames:
    """The map of calls in flight, mapped.

    Args:
        map_fd: Descriptor of the map ``cuda_threads``.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, map_fd: int) -> None:
        size = SLOTS * THREAD.itemsize
        self._map = mmap.mmap(
            map_fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ
        )
        self._threads = np.frombuffer(self._map, THREAD, SLOTS)

    def open_calls(self) -> npt.NDArray[np.void]:
        """Calls that have begun and not returned.

        Returns:
            Records as ``layout.CUDA_EVENT``, flagged as open, outer ones first. What
            runs meanwhile may be torn.
        """
        busy = self._threads[(self._threads["tid"] != 0) & (self._threads["depth"] != 0)].copy()
        depths = np.arange(MAX_DEPTH)
        thread, depth = np.nonzero(depths < busy["depth"][:, None])
        frames = busy["frames"][thread, depth]
        calls = np.zeros(len(frames), layout.CUDA_EVENT)
        calls["ts_ns"] = frames["ts_ns"]
        calls["pid"] = busy["pid"][thread]
        calls["tid"] = busy["tid"][thread]
        calls["kind"] = layout.Kind.CUDA
        calls["depth"] = depth
        calls["what"] = frames["cookie"] & ((1 << COOKIE_SITE_BITS) - 1)
        calls["detail"] = frames["detail"]
        calls["flags"] = frames["flags"] | int(layout.CudaFlag.OPEN)
        calls["size_bytes"] = frames["size_bytes"]
        calls["stream"] = frames["stream"]
        calls["stack_id"] = frames["stack_id"]
        # What an allocation would have stored, it has not.
        stored = (frames["cookie"] & COOKIE_OUT) != 0
        for name in ("dst", "src"):
            calls[name] = np.where(stored, 0, frames[name])
        return calls

    def close(self) -> None:
        """Unmap it."""
        del self._threads
        self._map.close()
