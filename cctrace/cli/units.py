"""How figures and names are shown to people."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_STEP = 1000

# C0, DEL, C1, line and paragraph separators, and the characters that turn the
# direction of text around (Unicode UAX #9) or have no width.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_TWO_DIGITS = 0x100


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


def harmless(text: str) -> str:
    """Write control characters of ``text`` out, so that a terminal shows them."""
    return _UNSAFE.sub(lambda m: _escape(m[0]), text)


def _escape(character: str) -> str:
    plain = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    code = ord(character)
    return plain or (f"\\x{code:02x}" if code < _TWO_DIGITS else f"\\u{code:04x}")
