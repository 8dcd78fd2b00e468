"""One frame of a stack, and how its texts are kept within bounds."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["native", "python", "kernel"]

# C++ templates make names of a million characters; nobody reads past the first thousands.
MAX_CHARACTERS: Final = 2048
CUT: Final = "…"


class Frame(NamedTuple):
    """One frame, as in the column ``stacks.frames``.

    Attributes:
        function: Its name, demangled; where there is none, the address in the words
            that the package's docstring lists.
        module: Path of its file as the process saw it, or a name in brackets
            (``[vdso]``, ``[uprobes]``, ``[anon]``, ``[kernel]``, a kernel module's);
            None: the address lay in no mapping.
        file: Source file; None: unknown.
        line: Line in it, from 1; None: unknown.
        kind: native, python or kernel.
    """

    function: str | None
    module: str | None
    file: str | None
    line: int | None
    kind: Kind


def cut(text: str) -> str:
    """``text`` itself, or its first 2048 characters and an ellipsis in place of the rest."""
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + CUT


def decode(raw: bytes) -> str:
    """What a file calls something: UTF-8 with U+FFFD for what is none, cut."""
    return cut(raw[: 4 * MAX_CHARACTERS + 4].decode("utf-8", "replace"))
