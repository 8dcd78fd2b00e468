"""How figures and names are shown to people."""

from __future__ import annotations

import shlex
from pathlib import Path

from cctrace.store.text import harmless

__all__ = ["count", "harmless", "shell_word", "size"]

_STEP = 1000


def size(size_bytes: int) -> str:
    """Bytes in the largest unit that leaves at least 1, to one digit."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} TB"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 process, 1,009 processes."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def shell_word(path: Path) -> str:
    """The path as one word for a shell."""
    return shlex.quote(str(path))
