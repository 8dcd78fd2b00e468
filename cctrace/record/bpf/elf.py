"""Functions of an ELF file: where in the file they begin, so that they can be probed.

Reads x86-64 files only as far as that needs, from section headers or, in a file
stripped of them, from the dynamic section. The file is the engine's: every offset is
checked against its size before it is used, and it is read rather than mapped, so that
one that is cut short meanwhile is an error, and not the end of the process (SIGBUS).

Source: System V ABI (gABI) chapters 4 and 5, and its AMD64 supplement; Linux uapi elf.h.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("align", "<u8"),
        ("entry_size", "<u8"),
    ]
)
_SEGMENT: Final = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("address", "<u8"),
        ("physical", "<u8"),
        ("file_size", "<u8"),
        ("memory_size", "<u8"),
        ("align", "<u8"),
    ]
)
_SYMBOL: Final = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_DYNAMIC: Final = np.dtype([("tag", "<i8"), ("value", "<u8")])

_CLASS_64, _LITTLE_ENDIAN = 2, 1
_MACHINE_X86_64: Final = 62
_MACHINES: Final = {3: "32-bit x86", 40: "32-bit ARM", 183: "AArch64", 243: "RISC-V", 21: "POWER"}
_COMPRESSED: Final = struct.Struct("<IIQQ")  # Elf64_Chdr
_SHT_SYMTAB, _SHT_NOBITS, _SHT_DYNSYM = 2, 8, 11
_SHF_COMPRESSED: Final = 0x800
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_PF_X: Final = 1
_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SONAME = 5, 6, 10, 14
_DT_HASH, _DT_GNU_HASH = 4, 0x6FFFFEF5
_STT_NOTYPE, _STT_FUNC = 0, 2
_NT_GNU_BUILD_ID: Final = 3
_ENDBR64: Final = b"\xf3\x0f\x1e\xfa"
_MAX_NAME: Final = 256
# What more than any real file has of them: hostile ones have all refer to one place.
_MAX_NOTES, _MAX_NOTE_BYTES = 64, 1 << 16
_MAX_DYNAMIC: Final = 1 << 16


@dataclass(frozen=True)
class Function:
    """One function that a file defines.

    Attributes:
        name: Symbol.
        offset: Where a probe goes, bytes from the start of the file: the first
            instruction, or the one after it where that is ``endbr64``, which the
            kernel would have to single-step (some 3 us a call).
    """

    name: str
    offset: int


@dataclass(frozen=True)
class Load:
    """A part of the file that is mapped when it runs.

    Attributes:
        offset: Where it begins, bytes from the start of the file.
        address: Where that lies, in the file's own addresses.
        size_bytes: Its length in the file.
        executable: Whether code lies in it.
    """

    offset: int
    address: int
    size_bytes: int
    executable: bool


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
        offset: Where it begins, bytes from the start of the file.
        size_bytes: Its length in the file; 0 where it has none there.
        full_bytes: Its length when unpacked.
    """

    offset: int
    size_bytes: int
    full_bytes: int


class ElfFile:
    """An x86-64 ELF file; use as a context manager.

    Args:
        fd: Descriptor of the file, which stays the caller's.
        label: What errors call it.

    Attributes:
        soname: Its DT_SONAME; None: none.
        build_id: Its GNU build id, hexadecimal; None: none.

    Raises:
        CctraceError: It is no ELF file for x86-64, or makes no sense.
    """

    def __init__(self, fd: int, label: str) -> None:
        self._label = label
        self._size = os.fstat(fd).st_size
        if self._size < _HEADER.size:
            raise self._bad("is no ELF file")
        self._fd = os.dup(fd)
        try:
            self._parse()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ElfFile:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def functions(self, wanted: Collection[str]) -> list[Function]:
        """Functions of the given names, in the order of the file's symbol tables.

        A name may have several (versions of a symbol), and several names one place.
        """
        found: dict[Function, None] = {}
        for symbols, strings in self.symbol_tables():
            for name, address in self._named(symbols, strings, wanted):
                offset = self._file_offset(address)
                if offset is None:
                    continue
                if self._bytes(offset, len(_ENDBR64)) == _ENDBR64:
                    offset += len(_ENDBR64)
                found[Function(name, offset)] = None
        return list(found)

    def loads(self) -> list[Load]:
        """What is mapped when it runs, in the order of its headers."""
        return [
            Load(
                int(segment["offset"]),
                int(segment["address"]),
                int(segment["file_size"]),
                bool(segment["flags"] & _PF_X),
            )
            for segment in self._segments
            if segment["type"] == _PT_LOAD
        ]

    def sections(self) -> dict[str, Section]:
        """Its sections by name; none where it was stripped of them."""
        if self._names_at >= len(self._sections):
            return {}
        table = self._sections[self._names_at]
        names = self._bytes(int(table["offset"]), int(table["size"]))
        found = {}
        for section in self._sections:
            start = int(section["name"])
            name = names[start : max(names.find(b"\0", start, start + _MAX_NAME), start)]
            size = int(section["size"]) if section["type"] != _SHT_NOBITS else 0
            full = size
            if section["flags"] & _SHF_COMPRESSED and size >= _COMPRESSED.size:
                full = _COMPRESSED.unpack(self._bytes(int(section["offset"]), _COMPRESSED.size))[2]
            found[name.decode("utf-8", "replace")] = Section(int(section["offset"]), size, full)
        return found

    def content(self, section: Section) -> bytes:
        """The bytes of a section as they are in the file."""
        return self._bytes(section.offset, section.size_bytes)

    def _parse(self) -> None:
        fields = _HEADER.unpack_from(self._bytes(0, _HEADER.size))
        ident, _, machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum = fields[
            :-1
        ]
        self._names_at = fields[-1]
        if ident[:4] != b"\x7fELF":
            raise self._bad("is no ELF file")
        if ident[4] != _CLASS_64 or machine != _MACHINE_X86_64 or ident[5] != _LITTLE_ENDIAN:
            kind = _MACHINES.get(machine, f"machine {machine}")
            bits = "" if ident[4] == _CLASS_64 or "32" in kind else "32-bit "
            raise self._bad(f"is for {bits}{kind}; only x86-64 can be probed")
        if (phnum and phentsize != _SEGMENT.itemsize) or (shnum and shentsize != _SECTION.itemsize):
            raise self._bad("has headers of an unknown size")
        self._segments = self._array(_SEGMENT, phoff, phnum)
        # Section headers may have been cut off; the file runs without them.
        self._sections = (
            self._array(_SECTION, shoff, shnum)
            if shoff + shnum * _SECTION.itemsize <= self._size
            else np.empty(0, _SECTION)
        )
        self._dynamic = self._dynamic_entries()
        self.soname = self._soname()
        self.build_id = self._build_id()

    def symbol_tables(self) -> list[tuple[npt.NDArray[np.void], bytes]]:
        """Each table of symbols (Elf64_Sym) with its strings."""
        tables = []
        texts: dict[tuple[int, int], bytes] = {}
        left = self._size
        for section in self._sections:
            if section["type"] not in (_SHT_DYNSYM, _SHT_SYMTAB):
                continue
            if section["link"] >= len(self._sections):
                raise self._bad("has a symbol table without strings")
            text = self._sections[int(section["link"])]
            place = (int(text["offset"]), int(text["size"]))
            count = int(section["size"]) // _SYMBOL.itemsize
            left -= count * _SYMBOL.itemsize + (0 if place in texts else place[1])
            if left < 0:
                raise self._bad("has symbol tables that overlap")
            if place not in texts:
                texts[place] = self._bytes(*place)
            tables.append((self._array(_SYMBOL, int(section["offset"]), count), texts[place]))
        return tables or self._dynamic_symbols()

    def _dynamic_symbols(self) -> list[tuple[npt.NDArray[np.void], bytes]]:
        """The table that the dynamic linker uses."""
        symbols = self._file_offset(self._dynamic.get(_DT_SYMTAB, 0))
        strings = self._file_offset(self._dynamic.get(_DT_STRTAB, 0))
        if not symbols or not strings:
            return []
        text = self._bytes(strings, self._dynamic.get(_DT_STRSZ, 0))
        return [(self._array(_SYMBOL, symbols, self._dynamic_count()), text)]

    def _dynamic_count(self) -> int:
        """How many dynamic symbols there are; only the hash tables tell."""
        plain = self._file_offset(self._dynamic.get(_DT_HASH, 0))
        if plain:
            return int(self._array(np.dtype("<u4"), plain, 2)[1])
        at = self._file_offset(self._dynamic.get(_DT_GNU_HASH, 0))
        if not at:
            return 0
        # Header, Bloom filter, buckets, chains: the last chain ends with an odd hash.
        buckets, first, bloom, _ = (int(word) for word in self._array(np.dtype("<u4"), at, 4))
        starts_at = at + 16 + bloom * 8
        starts = self._array(np.dtype("<u4"), starts_at, buckets)
        last = int(starts.max(initial=0))
        if last < first:
            return first
        chain_at = starts_at + buckets * 4 + (last - first) * 4
        left = (self._size - chain_at) // 4
        if left <= 0:
            raise self._bad("has a hash table that ends beyond its end")
        hashes = np.frombuffer(self._bytes(chain_at, left * 4), "<u4")
        ends = np.flatnonzero(hashes & 1)
        if not len(ends):
            raise self._bad("has a hash table without an end")
        return last + int(ends[0]) + 1

    def _named(
        self, symbols: npt.NDArray[np.void], strings: bytes, wanted: Collection[str]
    ) -> list[tuple[str, int]]:
        """(name, address) of the defined functions among ``symbols`` that are wanted."""
        kinds = symbols["info"] & 15
        usable = (symbols["section"] != 0) & ((kinds == _STT_FUNC) | (kinds == _STT_NOTYPE))
        usable &= (symbols["value"] != 0) & (symbols["name"] < max(len(strings) - 2, 0))
        candidates = symbols[usable]
        # A program has symbols by the hundred thousand: look at the first bytes at once.
        text = np.frombuffer(strings, "u1")
        starts = candidates["name"].astype(np.int64)
        if len(starts):
            heads = text[starts].astype(np.uint16) << 8 | text[starts + 1]
            wanted_heads = np.array(
                sorted({(ord(n[0]) << 8) | ord(n[1]) for n in wanted}), np.uint16
            )
            chosen = np.isin(heads, wanted_heads)
            candidates, starts = candidates[chosen], starts[chosen]
        names = {name.encode(): name for name in wanted}
        found = []
        for start, address in zip(starts.tolist(), candidates["value"].tolist(), strict=True):
            end = strings.find(b"\0", start, start + _MAX_NAME)
            name = names.get(strings[start:end])
            if name is not None and end > start:
                found.append((name, address))
        return found

    def _file_offset(self, address: int) -> int | None:
        """Where in the file ``address`` comes from; None: from nowhere in it."""
        for segment in self._segments:
            start = int(segment["address"])
            if segment["type"] == _PT_LOAD and start <= address < start + int(segment["file_size"]):
                return address - start + int(segment["offset"])
        return None

    def _dynamic_entries(self) -> dict[int, int]:
        for segment in self._segments:
            if segment["type"] == _PT_DYNAMIC:
                count = min(int(segment["file_size"]) // _DYNAMIC.itemsize, _MAX_DYNAMIC)
                entries = self._array(_DYNAMIC, int(segment["offset"]), count)
                return dict(zip(entries["tag"].tolist(), entries["value"].tolist(), strict=True))
        return {}

    def _soname(self) -> str | None:
        strings = self._file_offset(self._dynamic.get(_DT_STRTAB, 0))
        if strings is None or _DT_SONAME not in self._dynamic:
            return None
        at = strings + self._dynamic[_DT_SONAME]
        if at >= self._size:
            return None
        name, end, _ = self._bytes(at, min(_MAX_NAME, self._size - at)).partition(b"\0")
        return name.decode("utf-8", "replace") if name and end else None

    def _build_id(self) -> str | None:
        notes = [segment for segment in self._segments if segment["type"] == _PT_NOTE]
        for segment in notes[:_MAX_NOTES]:
            start = int(segment["offset"])
            size = min(int(segment["file_size"]), _MAX_NOTE_BYTES, max(self._size - start, 0))
            found = _build_id_in(self._bytes(start, size)) if size else None
            if found is not None:
                return found
        return None

    def _array(
        self, dtype: np.dtype[np.void] | np.dtype[np.uint32], offset: int, count: int
    ) -> npt.NDArray[np.void]:
        return np.frombuffer(self._bytes(offset, count * dtype.itemsize), dtype)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise self._bad(f"ends before byte {offset + size}, which it refers to")
        parts, at, end = [], offset, offset + size
        while at < end:  # one read is of two gigabytes at most
            part = b""
            with contextlib.suppress(OSError):
                part = os.pread(self._fd, end - at, at)
            if not part:
                raise self._bad("cannot be read any more")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _bad(self, what: str) -> CctraceError:
        return CctraceError(
            f"{self._label} {what}", "probe a whole 64-bit x86 library", EXIT_UNSUPPORTED
        )


def _build_id_in(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = at + 12
        data = name + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name : name + 4] == b"GNU\0":
            return notes[data : data + size].hex()
        at = data + (size + 3 & ~3)
    return None
