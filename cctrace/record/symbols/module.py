"""One ELF file made ready for looking addresses up; runs in the child process.

Functions come from the symbol tables, by :mod:`.table`. Where there is debug
information, and it is of a size that can be read within the time there is, lines and
inlined functions come from it, by symbolic's SymCache.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from symbolic.debuginfo import Archive
from symbolic.exceptions import SymbolicError

from cctrace.errors import CctraceError
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.symbols import debug_files
from cctrace.record.symbols.demangle import demangle
from cctrace.record.symbols.frame import cut
from cctrace.record.symbols.table import Functions, SymbolTable

# SymCache reads some 20 to 70 MB of debug sections a second and takes twice their size.
MAX_DEBUG_BYTES: Final = 192 << 20
_MAX_UNPACKED_BYTES: Final = 64 << 20  # of .gnu_debugdata; real ones have some 100 kB
_LZMA_MEMORY_BYTES: Final = 128 << 20
_MAX_INLINED: Final = 64  # frames of one address
_PAGE: Final = 4096

Place = tuple["str | None", "str | None", "int | None"]
"""Function, file and line."""

# What comes of files that make no sense.
BAD_FILE: Final = (
    CctraceError,
    OSError,
    ValueError,
    struct.error,
    OverflowError,
    IndexError,
    MemoryError,
    lzma.LZMAError,
)


class Module:
    """One file.

    Args:
        fd: Descriptor of a regular file, for reading.
        directory: Where it lies, as its process saw it.
        roots: Descriptors of root directories in which to look for debug files.
        lines: Whether to read debug information.

    Attributes:
        size_bytes: Memory it takes.
        note: What was left out, for people; None: nothing.

    Raises:
        CctraceError: It is no ELF file that makes sense (and others of ``BAD_FILE``).
    """

    def __init__(self, fd: int, directory: str, roots: Sequence[int], *, lines: bool) -> None:
        self.note: str | None = None
        self._lines: Any = None
        self._lines_base = 0
        with contextlib.ExitStack() as stack:
            elf = stack.enter_context(ElfFile(fd, "file"))
            # Code first: two parts may share a page of the file.
            self._loads = sorted(elf.loads(), key=lambda load: not load.executable)
            sections = elf.sections()
            tables: list[SymbolTable] = []
            has_symtab = ".symtab" in sections
            debug = None
            if not has_symtab or ".debug_info" not in sections:
                debug = stack.enter_context(debug_files.opened(elf, directory, roots))
            if debug is not None:
                with contextlib.suppress(*BAD_FILE):
                    tables += debug.elf.symbol_tables()
                    has_symtab = has_symtab or ".symtab" in debug.elf.sections()
            tables += elf.symbol_tables()
            with contextlib.suppress(*BAD_FILE):
                tables += _mini_debug_info(elf)
            self._functions = Functions(tables, self._loads)
            # Then every function has its symbol, and an address without one has no function.
            self._all_named = has_symtab
            if lines and ".debug_info" in sections:
                self._read_lines(fd, elf)
            elif lines and debug is not None:
                self._read_lines(debug.fd, debug.elf)
        self.size_bytes = self._functions.size_bytes + self._line_bytes()

    def frames(self, offset: int, back: int) -> tuple[list[Place], bool]:
        """What lies at an offset of the file.

        Args:
            offset: Offset in the file, bytes.
            back: 1 for a return address, else 0.

        Returns:
            Places, innermost first, and whether the function is known; if not, the
            one place has the address in the words of the package's docstring.
        """
        address = self._address(offset - back)
        if address is None:
            return [(f"file+{offset:#x}", None, None)], False
        function = self._functions.find(address)
        if self._lines is not None and (function is not None or not self._all_named):
            places = self._places(address, function)
            if places:
                return places, True
        if function is None:
            return [(f"{address + back:#x}", None, None)], False
        return [(function[0], None, None)], True

    def _places(self, address: int, function: tuple[str, int] | None) -> list[Place]:
        try:
            found = self._lines.lookup(address - self._lines_base)[:_MAX_INLINED]
        except SymbolicError:
            return []
        # Symbols without lines are in a SymCache too, but it knows no ends of them.
        if not any(place.full_path for place in found):
            return []
        places: list[Place] = [
            (
                demangle(place.symbol) or None,
                cut(place.full_path) if place.full_path else None,
                place.line if 0 < place.line < 1 << 31 else None,
            )
            for place in found
        ]
        # Of several names of a function our own choice, which a SymCache does not make;
        # but its name without what the compiler hung on (.constprop.0).
        start = found[-1].sym_addr + self._lines_base
        theirs = places[-1][0]
        if function is not None and (theirs is None or start == function[1]):
            name = theirs if theirs and function[0].startswith(theirs) else function[0]
            places[-1] = (name, *places[-1][1:])
        return places

    def _address(self, offset: int) -> int | None:
        # The kernel maps whole pages.
        for load in self._loads:
            if load.offset & -_PAGE <= offset < load.offset + load.size_bytes:
                return offset - load.offset + load.address
        return None

    def _read_lines(self, fd: int, elf: ElfFile) -> None:
        sections = elf.sections()
        size = sum(s.full_bytes for n, s in sections.items() if n.startswith((".debug", ".zdebug")))
        if size > MAX_DEBUG_BYTES:
            self.note = f"debug information of {size >> 20} MiB not read: functions, no lines"
            return
        try:
            archive = Archive.open(f"/proc/self/fd/{fd}")
            self._lines = next(iter(archive.iter_objects())).make_symcache()
            # A SymCache counts from where the first part lies (not 0 without PIE).
            self._lines_base = next((load.address for load in elf.loads()), 0)
        except (SymbolicError, StopIteration) as error:
            first_line = str(error).partition("\n")[0]
            self.note = cut(f"debug information cannot be read: {first_line}")

    def _line_bytes(self) -> int:
        if self._lines is None:
            return 0
        with contextlib.closing(self._lines.open_stream()) as stream:
            return int(stream.raw.size)


def _mini_debug_info(elf: ElfFile) -> list[SymbolTable]:
    """Symbols of .gnu_debugdata, a packed ELF file within (Fedora's MiniDebugInfo).

    Source: https://sourceware.org/gdb/current/onlinedocs/gdb.html/MiniDebugInfo.html
    """
    section = elf.sections().get(".gnu_debugdata")
    if section is None:
        return []
    unpacker = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)
    content = unpacker.decompress(elf.content(section), _MAX_UNPACKED_BYTES)
    fd = os.memfd_create("debugdata")
    try:
        Path(f"/proc/self/fd/{fd}").write_bytes(content)
        with ElfFile(fd, "debugdata") as inner:
            return inner.symbol_tables()
    finally:
        os.close(fd)
