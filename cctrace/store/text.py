"""Text that a target wrote, made safe to look at.

Names come from the traced program: they may hold anything. What shows them, a terminal
or an exported file, writes out what is not text to look at.
"""

from __future__ import annotations

import re

# C0, DEL, C1, line and paragraph separators, the characters that turn the direction of
# text around (Unicode UAX #9) or have no width, halves of pairs, and what XML cannot hold.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    "\ufffe\uffff]"
)
_TWO_DIGITS = 0x100


def harmless(text: str) -> str:
    """Write control characters of ``text`` out, so that they show."""
    return _UNSAFE.sub(lambda m: _escape(m[0]), text)


def _escape(character: str) -> str:
    plain = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    code = ord(character)
    return plain or (f"\\x{code:02x}" if code < _TWO_DIGITS else f"\\u{code:04x}")
