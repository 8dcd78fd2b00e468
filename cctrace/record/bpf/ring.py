"""The kernel's ring buffer, mapped and read as one array of records.

BCC calls Python for each record, at microseconds apiece. All records of a ring of ours
have one size, so what the kernel has committed is one strided array: it is copied out
and given back in one go, at some nanoseconds a record.

Source of the layout: kernel/bpf/ringbuf.c and tools/lib/bpf/ringbuf.c: one page with
the consumer's position (writable), one with the producer's, then the data pages
twice in a row, so that no record is ever split.
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf.layout import CUDA_EVENT, RING_BUSY, ring_record

_PAGE: Final = mmap.PAGESIZE


class Ring:
    """The consumer's side of a ring of records of one size.

    Args:
        map_fd: Descriptor of the BPF_MAP_TYPE_RINGBUF map.
        size_bytes: Its data size, a power of two.
        record: What each record is; its size is a multiple of eight bytes.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(
        self, map_fd: int, size_bytes: int, record: np.dtype[np.void] = CUDA_EVENT
    ) -> None:
        self._size = size_bytes
        self._dtype = record
        self._record = ring_record(record)
        self._consumer = mmap.mmap(map_fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(
            map_fd, _PAGE + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE
        )
        # Positions are aligned 64-bit words: one load or store each, and x86-64
        # keeps loads in order and stores in order, which is all the protocol asks for.
        self._consumed = np.frombuffer(self._consumer, "<u8", 1)
        self._produced = np.frombuffer(self._data, "<u8", 1)

    def drain(self) -> npt.NDArray[np.void]:
        """Take every committed record.

        Returns:
            Records, in the order they were reserved, a copy.
        """
        at = int(self._consumed[0])
        count = (int(self._produced[0]) - at) // self._record.itemsize
        if not count:
            return np.empty(0, self._dtype)
        records = np.frombuffer(
            self._data, self._record, count, offset=_PAGE + (at & (self._size - 1))
        )
        lengths = records["length"]
        busy = np.flatnonzero(lengths & RING_BUSY)
        if len(busy):
            count = int(busy[0])
            records, lengths = records[:count], lengths[:count]
        events = np.array(records["event"])
        kept = lengths == self._dtype.itemsize
        self._consumed[0] = at + count * self._record.itemsize
        return events if kept.all() else events[kept]

    def close(self) -> None:
        """Unmap it."""
        del self._consumed, self._produced
        self._consumer.close()
        self._data.close()


class MappedArray:
    """A BPF array map of 64-bit numbers made with BPF_F_MMAPABLE, read without system calls.

    Args:
        map_fd: Its descriptor.
        slots: How many numbers it has.
        writable: Whether ours may be stored.

    Attributes:
        values: The numbers themselves, live.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, map_fd: int, slots: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        length = -(-slots * 8 // _PAGE) * _PAGE
        self._map = mmap.mmap(map_fd, length, mmap.MAP_SHARED, protection)
        self.values = np.frombuffer(self._map, "<u8", slots)

    def close(self) -> None:
        """Unmap it."""
        del self.values
        self._map.close()
