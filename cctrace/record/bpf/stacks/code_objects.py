"""Names, files and lines of Python frames, read from code objects.

All of it is the process's word: types, lengths and kinds are checked, and what makes
no sense gives no name.

Sources: Include/cpython/code.h (PyCodeObject), Include/cpython/unicodeobject.h and
PEP 393 (str), Objects/lnotab_notes.txt of 3.10 and PEP 626 (co_linetable there),
InternalDocs/code_objects.md (3.11 and later: Objects/locations.md).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cctrace.record.bpf.layout import Python
from cctrace.record.bpf.stacks.interpreter import Interpreter
from cctrace.record.bpf.stacks.memory import MAX_BYTES

_MAX_TEXT: Final = 4096  # characters of a name or path
# Of a table of lines; instructions beyond have none. To read that much takes 18 ms.
_MAX_TABLE: Final = 64 << 10
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_MAX_LINE: Final = (1 << 31) - 1
_UNIT_BYTES: Final = 2  # of an instruction
_NO_LINE: Final = -128  # 3.10: a stretch that belongs to no line
_LONG, _NO_COLUMNS, _NO_PLACE = 14, 13, 15  # enum _PyCodeLocationInfoKind
_ONE_LINE: Final = 10
_CODECS: Final = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
# What 3.12 puts below each call from C.
_SHIM: Final = "<interpreter trampoline>"


@dataclass(frozen=True)
class Code:
    """A code object.

    Attributes:
        function: Qualified name; in 3.10 the name.
        file: Its file, as compiled.
        first_line: Line it begins at.
        linetable: Its table of lines.
        address: Of its first instruction; 3.10: 0.
        layout: Whose table that is.
    """

    function: str
    file: str
    first_line: int
    linetable: bytes
    address: int
    layout: Python

    @property
    def size_bytes(self) -> int:
        """About what it takes of memory."""
        return 512 + len(self.linetable) + 4 * (len(self.function) + len(self.file))

    @property
    def is_shim(self) -> bool:
        """Whether it is the interpreter's own, and no function."""
        return self.function == _SHIM

    def line(self, place: int) -> int | None:
        """The line of an instruction.

        Args:
            place: Its address, as the frame has it; 3.10: its number.

        Returns:
            Line from 1; None: it has none.
        """
        if self.layout is Python.V_3_10:
            # A frame that has not begun is at -1.
            number = struct.unpack("<i", struct.pack("<I", place & 0xFFFFFFFF))[0]
            return line_of_3_10(self.linetable, self.first_line, number * _UNIT_BYTES)
        return line_of(self.linetable, self.first_line, (place - self.address) // _UNIT_BYTES)


def line_of_3_10(linetable: bytes, first_line: int, offset: int) -> int | None:
    """The line of an instruction by the table of 3.10.

    Args:
        linetable: Pairs of bytes: how many bytes of code, and (signed) how many lines
            further they are; -128: they have none.
        first_line: Where it starts.
        offset: Of the instruction, bytes.
    """
    if offset < 0:
        return _checked(first_line)
    line, end = first_line, 0
    for length, delta in struct.iter_unpack("<Bb", linetable[: len(linetable) & ~1]):
        if delta != _NO_LINE:
            line += delta
        end += length
        if offset < end:
            return _checked(line) if delta != _NO_LINE else None
    return None


def line_of(linetable: bytes, first_line: int, unit: int) -> int | None:
    """The line of an instruction by the table of 3.11 and later.

    Args:
        linetable: Entries of a byte with its high bit set, its kind in bits 3 to 6 and
            its length less one in bits 0 to 2, and more bytes, as the kind says.
        first_line: Where it starts.
        unit: Number of the instruction, in units of two bytes.
    """
    if unit < 0:
        return _checked(first_line)
    line, at, end = first_line, 0, 0
    while at < len(linetable):
        head = linetable[at]
        kind = head >> 3 & 15
        delta, at = _delta(linetable, at + 1, kind)
        line += delta
        end += (head & 7) + 1
        if unit < end:
            return _checked(line) if kind != _NO_PLACE else None
        while at < len(linetable) and not linetable[at] & 0x80:
            at += 1
    return None


def _delta(linetable: bytes, at: int, kind: int) -> tuple[int, int]:
    """Lines that an entry goes on by, and where its rest begins."""
    if kind in (_LONG, _NO_COLUMNS):
        value = shift = 0
        while at < len(linetable):
            byte = linetable[at]
            value |= (byte & 63) << shift
            shift += 6
            at += 1
            if not byte & 64:
                break
        return (-(value >> 1) if value & 1 else value >> 1), at
    return (kind - _ONE_LINE if _ONE_LINE <= kind < _NO_COLUMNS else 0), at


def _checked(line: int) -> int | None:
    return line if 0 < line <= _MAX_LINE else None


def _number(memory: Readable, address: int, form: struct.Struct) -> int | None:
    raw = memory.read(address, form.size)
    return int(form.unpack(raw)[0]) if raw is not None else None


class Readable(Protocol):
    """Memory of a process, or what was copied of it."""

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes from ``address`` on; None: they cannot all be read."""


class Copied:
    """Parts of a process's memory that were copied.

    Args:
        parts: Each with its address.
    """

    def __init__(self, parts: Sequence[tuple[int, bytes]]) -> None:
        self._parts = parts

    def read(self, address: int, size: int) -> bytes | None:
        """What lies there; None: that was not copied, or not all of it."""
        for start, content in self._parts:
            if start <= address and address + size <= start + len(content):
                return content[address - start : address - start + size]
        return None


class CodeReader:
    """Reads code objects of one Python.

    Args:
        interpreter: The Python.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._at = interpreter.offsets.code

    def read(self, memory: Readable, address: int, mark: int) -> Code | None:
        """The code object at ``address``.

        Args:
            memory: Where it lies.
            address: Of it.
            mark: What told it from others that have lain there, when it was seen.

        Returns:
            It; None: another is there, or none, it cannot be read, or it makes no sense.
        """
        at = self._at
        parts = memory.read(address, at.last + 8)
        if parts is None or _U64.unpack_from(parts, at.type)[0] != self._interpreter.code_type:
            return None
        file, name, table = (
            _U64.unpack_from(parts, part)[0] for part in (at.filename, at.shown_name, at.linetable)
        )
        if self.mark(memory, name, file) != mark:
            return None
        texts = self._text(memory, file), self._text(memory, name)
        lines = self._bytes(memory, table)
        if texts[0] is None or texts[1] is None or lines is None:
            return None
        first_line = struct.unpack_from("<i", parts, at.first_line)[0]
        start = address + at.code if at.code else 0
        return Code(texts[1], texts[0], first_line, lines, start, self._interpreter.offsets.layout)

    def mark(self, memory: Readable, name: int, file: int) -> int:
        """What ``stacks.bpf.c`` makes of the hashes of a name and a file."""
        hashes = [_number(memory, text + self._at.text_hash, _U64) or 0 for text in (name, file)]
        return hashes[0] + 3 * hashes[1] & (1 << 64) - 1

    def is_none(self, address: int) -> bool:
        """Whether None lies there, which a frame of the interpreter's own has for code."""
        return address == self._interpreter.none

    def _bytes(self, memory: Readable, address: int) -> bytes | None:
        size = _number(memory, address + self._at.bytes_size, _U64)
        if size is None or size > MAX_BYTES:
            return None
        size = min(size, _MAX_TABLE)
        return memory.read(address + self._at.bytes_value, size) if size else b""

    def _text(self, memory: Readable, address: int) -> str | None:
        at = self._at
        length = _number(memory, address + at.text_length, _U64)
        state = _number(memory, address + at.text_state, _U32)
        if length is None or state is None:
            return None
        state >>= at.kind_shift
        kind, is_compact, is_ascii = state & 7, state >> 3 & 1, state >> 4 & 1
        if kind not in _CODECS or not is_compact:
            return None
        if not length:
            return ""
        start = address + (at.text_ascii if is_ascii else at.text_other)
        raw = memory.read(start, min(length, _MAX_TEXT) * kind)
        if raw is None:
            return None
        try:
            # Surrogates stand for bytes of a path that are no UTF-8; no file may hold them.
            text = raw.decode(_CODECS[kind], "surrogatepass" if kind > 1 else "strict")
        except UnicodeDecodeError:
            return None
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text if length <= _MAX_TEXT else text + "…"
