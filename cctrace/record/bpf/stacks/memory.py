"""Memory of a traced process, read without stopping it.

Whatever comes of it is the process's own word, and may be torn: nothing is believed
before it is checked. A process that is gone, or an address that is none, is no error.

Source: process_vm_readv(2).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_ADDRESSES: Final = 1 << 47  # x86-64 gives a program the lower half, of 47 bits
MAX_BYTES: Final = 1 << 20


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_uint64), ("size", ctypes.c_size_t))


_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.POINTER(_Part),
    ctypes.c_ulong,
    ctypes.POINTER(_Part),
    ctypes.c_ulong,
    ctypes.c_ulong,
)


class Memory:
    """One process's memory.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes from ``address`` on; None: they cannot all be read."""
        if not 0 < size <= MAX_BYTES or not 0 < address < _ADDRESSES:
            return None
        buffer = ctypes.create_string_buffer(size)
        here = _Part(ctypes.addressof(buffer), size)
        there = _Part(address, size)
        done = _libc.process_vm_readv(self._pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        return buffer.raw if done == size else None

    def u64(self, address: int) -> int | None:
        """The 64-bit number at ``address``; None: it cannot be read."""
        raw = self.read(address, 8)
        return _U64.unpack(raw)[0] if raw is not None else None

    def u32(self, address: int) -> int | None:
        """The 32-bit number at ``address``; None: it cannot be read."""
        raw = self.read(address, 4)
        return _U32.unpack(raw)[0] if raw is not None else None
