"""Text that a target wrote, made safe to look at.

Names come from the traced program: they may hold anything. What shows them, a terminal
or an exported file, writes out what is not text to look at.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

# Control, format (no width, or turning the direction of text around), half of a pair, line
# and paragraph separator. Source: Unicode Standard, table 4-4.
_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Of other categories, and not seen either (Default_Ignorable_Code_Point in Unicode's
# DerivedCoreProperties.txt): joiners, fillers, selectors, what may yet become such; and
# what XML cannot hold.
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\ufffe\uffff\U000e0000-\U000e0fff]"
)
# They choose between the two ways to draw the symbol before them, so that an emoji is one.
# Behind anything else they are not seen, and two names that differ would look the same.
_EMOJI_SELECTORS: Final = "\ufe0e\ufe0f"
_TWO_DIGITS: Final = 0x100
_FOUR_DIGITS: Final = 0x10000
_PLAIN: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def harmless(text: str) -> str:
    r"""Write out what of ``text`` is not seen, so that it shows.

    An emoji keeps the variation selector behind it. Sequences of emoji that a joiner makes
    one come apart, the joiner written out: elsewhere it hides in a name.

    >>> harmless("a" + chr(0x202E) + chr(0xE0041))
    'a\\u202e\\U000e0041'
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    shown = []
    before = ""
    for character in text:
        is_kept = character in _EMOJI_SELECTORS and _is_symbol(before)
        shown.append(character if is_kept else _shown(character))
        before = character
    return "".join(shown)


def _is_symbol(character: str) -> bool:
    return character != "" and unicodedata.category(character).startswith("S")


@lru_cache(maxsize=4_096)
def _shown(character: str) -> str:
    if unicodedata.category(character) not in _CATEGORIES and not _UNSEEN.match(character):
        return character
    code = ord(character)
    if character in _PLAIN:
        return _PLAIN[character]
    if code < _TWO_DIGITS:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < _FOUR_DIGITS else f"\\U{code:08x}"
