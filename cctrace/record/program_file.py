"""The file of the command's own program, and what it keeps cctrace from seeing."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# elf(5): e_ident[EI_CLASS], and of a 64-bit file e_phoff, e_phentsize, e_phnum; p_type.
_ELFCLASS32: Final = 1
_HEADER: Final = struct.Struct("<4sB27xQ14xHH")
_PT_INTERP: Final = 3
_HEAD_BYTES: Final = 4096  # linkers put the program headers first


def find_program(word: str, environment: Mapping[str, str]) -> Path | None:
    """The file that a command's first word names; None: none that can be read.

    Args:
        word: A path, or a name to look for in PATH.
        environment: The command's.
    """
    places = [word]
    if "/" not in word:
        folders = environment.get("PATH", os.defpath).split(os.pathsep)
        places = [f"{folder}/{word}" for folder in folders]
    for place in places:
        try:
            if Path(place).is_file() and os.access(place, os.R_OK):
                return Path(place)
        except (OSError, ValueError):
            continue
    return None


def is_32_bit(program: Path | None) -> bool:
    """Whether it is an ELF file for a 32-bit machine."""
    return _head(program)[:5] == b"\x7fELF" + bytes([_ELFCLASS32])


def is_static(program: Path | None) -> bool:
    """Whether it is a 64-bit ELF file that runs without a dynamic loader."""
    head = _head(program)
    if len(head) < _HEADER.size or head[:4] != b"\x7fELF" or is_32_bit(program):
        return False
    _, _, offset, size, count = _HEADER.unpack_from(head)
    starts = range(offset, min(offset + size * count, len(head) - 3), max(size, 1))
    kinds = {struct.unpack_from("<I", head, at)[0] for at in starts}
    return bool(kinds) and _PT_INTERP not in kinds


def _head(program: Path | None) -> bytes:
    try:
        if program is None:
            return b""
        with program.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""
