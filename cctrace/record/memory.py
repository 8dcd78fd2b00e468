"""Keep the memory of one flush for the next."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

import pyarrow as pa

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_MMAP_THRESHOLD_BYTES: Final = 32 << 20  # the most glibc takes
_TRIM_THRESHOLD_BYTES: Final = 1 << 30


def keep_freed_memory() -> None:
    """Have malloc serve Arrow too, and reuse large blocks instead of freeing them.

    Every flush needs the same dozen arrays of a few MiB. Got afresh from the kernel
    each time, their page faults were a quarter of what recording costs. Without
    glibc nothing happens.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
