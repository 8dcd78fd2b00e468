"""Names of C++ and Rust functions as their sources have them.

By LLVM's demanglers, in pydemumble: Itanium C++ ABI, Rust's legacy and v0 manglings.
"""

from __future__ import annotations

from typing import Final

import pydemumble  # type: ignore[import-untyped]  # it ships no types

from cctrace.record.symbols.frame import cut

# A short mangled name can stand for an endless one, and a long one nest deeply.
_MAX_MANGLED: Final = 4096


def demangle(name: str) -> str:
    """The name that ``name`` stands for, cut; itself where it is not mangled."""
    if not name.startswith(("_Z", "_R", "__Z", "___Z")) or len(name) > _MAX_MANGLED:
        return cut(name)
    try:
        return cut(pydemumble.demangle(name)) or cut(name)
    except (UnicodeDecodeError, ValueError, RuntimeError, MemoryError):
        return cut(name)
