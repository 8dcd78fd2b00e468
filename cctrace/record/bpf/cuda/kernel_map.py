"""The kernel's map ``launches``, read and cleared many entries at a time.

Sources: include/uapi/linux/bpf.h (union bpf_attr.batch, commands of Linux 5.6),
include/uapi/linux/membarrier.h, x86-64 system call table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf import syscalls

_SYS_MEMBARRIER: Final = 324
_MAP_LOOKUP_BATCH: Final = 24
_MAP_DELETE_BATCH: Final = 27
_MEMBARRIER_GLOBAL: Final = 1
_GRACE_S: Final = 0.02

HISTOGRAM_BUCKETS: Final = 40
NO_STREAM: Final = (1 << 64) - 1
# struct cuda_launch_key and struct cuda_launch_total of probes/bpf/cuda.bpf.c.
LAUNCH_KEY: Final = np.dtype(
    [("tid", "<u4"), ("site", "<u2"), ("window", "<u2"), ("stream", "<u8")]
)
LAUNCH_TOTAL: Final = np.dtype(
    [
        ("calls", "<u8"),
        ("total_ns", "<u8"),
        ("max_ns", "<u8"),
        ("first_ns", "<u8"),
        ("pid", "<u4"),
        ("pad", "<u4"),
        ("histogram", "<u4", (HISTOGRAM_BUCKETS,)),
    ]
)
Entries = npt.NDArray[np.void]

_libc = ctypes.CDLL(None, use_errno=True)


class _Batch(ctypes.Structure):
    """bpf_attr.batch."""

    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class LaunchMap:
    """The map of launches counted in the kernel.

    Args:
        map_fd: Its descriptor.
        max_entries: How many it can hold.
    """

    def __init__(self, map_fd: int, max_entries: int) -> None:
        self._map_fd = map_fd
        # A bucket is given whole or not at all: with room for all, it always fits.
        self._keys = np.zeros(max_entries, LAUNCH_KEY)
        self._totals = np.zeros(max_entries, LAUNCH_TOTAL)

    def take(self, windows: set[int]) -> tuple[Entries, Entries]:
        """Read and delete the entries of windows that no program counts in any more.

        Args:
            windows: Their numbers, as in the keys.

        Returns:
            n keys (``LAUNCH_KEY``) and their totals (``LAUNCH_TOTAL``).

        Raises:
            OSError: The kernel refuses.
        """
        keys, totals = self._read()
        ours = np.isin(keys["window"], np.array(sorted(windows), np.uint16))
        keys, totals = keys[ours], totals[ours]
        if len(keys):
            self._delete(keys)
        return keys, totals

    def _read(self) -> tuple[Entries, Entries]:
        """Every entry; those of the window in use may be there half counted."""
        found_keys, found_totals = [], []
        # Where the walk over the buckets stands; the kernel says after each call.
        at = ctypes.c_uint32()
        batch = _Batch(
            out_batch=ctypes.addressof(at),
            keys=self._keys.ctypes.data,
            values=self._totals.ctypes.data,
            map_fd=self._map_fd,
        )
        while True:
            batch.count = len(self._keys)
            code = self._call(_MAP_LOOKUP_BATCH, batch)
            if code not in (0, errno.ENOENT):
                raise OSError(code, f"map of launches: {os.strerror(code)}")
            found_keys.append(self._keys[: batch.count].copy())
            found_totals.append(self._totals[: batch.count].copy())
            if code == errno.ENOENT:  # that was the last bucket
                return np.concatenate(found_keys), np.concatenate(found_totals)
            batch.in_batch = ctypes.addressof(at)

    def _delete(self, keys: Entries) -> None:
        keys = np.ascontiguousarray(keys)
        batch = _Batch(keys=keys.ctypes.data, count=len(keys), map_fd=self._map_fd)
        code = self._call(_MAP_DELETE_BATCH, batch)
        if code:
            raise OSError(code, f"map of launches: {os.strerror(code)}")

    @staticmethod
    def _call(command: int, batch: _Batch) -> int:
        try:
            return syscalls.bpf(command, batch)
        except OSError as error:
            return error.errno or errno.EIO


def wait_for_programs() -> None:
    """Return when every BPF program that runs now has ended, some milliseconds later.

    Programs on probes run within RCU read-side sections, and membarrier waits for an
    RCU grace period. It is refused on machines with nohz_full CPUs: there the wait is
    far longer than a program takes, unless the hypervisor stops its CPU meanwhile.
    """
    number = ctypes.c_long(_SYS_MEMBARRIER)
    if _libc.syscall(number, _MEMBARRIER_GLOBAL, 0, 0) < 0:
        time.sleep(_GRACE_S)
