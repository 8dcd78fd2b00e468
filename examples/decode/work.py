"""The host's own work in a step, really done: CPU time in Python, the lock held."""

from __future__ import annotations

import threading
import time
import zlib
from pathlib import Path

_NS_PER_US = 1000
_PIECES = 29  # between two looks at the clock: some 3 us


def spend(dur_us: int, text: bytes = b"decode loop") -> int:
    """Work until this thread has used ``dur_us`` more CPU time; return a checksum."""
    checksum = 0
    until_ns = time.thread_time_ns() + dur_us * _NS_PER_US
    while time.thread_time_ns() < until_ns:
        for _ in range(_PIECES):
            checksum = zlib.crc32(text, checksum)
    return checksum


def name_thread(name: str) -> None:
    """Give the calling thread a name that tools outside can see (15 characters)."""
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])
