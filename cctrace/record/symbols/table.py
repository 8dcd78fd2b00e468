"""Functions of an ELF file by address, from its symbol tables alone.

An address belongs to a function only if it lies between its start and its end: in a
stripped library the nearest exported symbol before an address is mostly another
function, and to name that one would be a lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf.elf import Load
from cctrace.record.symbols.demangle import demangle

SymbolTable = tuple[npt.NDArray[np.void], bytes]

# elf(5): st_info is binding << 4 | type; st_shndx from SHN_LORESERVE on is no section.
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_LOCAL, _STB_GLOBAL = 0, 1
_SHN_UNDEF, _SHN_LORESERVE = 0, 0xFF00
_MAX_NAME_BYTES: Final = 1 << 14
_MAX_ENCLOSING: Final = 64  # symbols looked at for one that encloses an address


class Functions:
    """Functions by address.

    Args:
        tables: Symbols (Elf64_Sym) with their strings, the best first.
        loads: What is mapped of the file.
    """

    def __init__(self, tables: Iterable[SymbolTable], loads: Iterable[Load]) -> None:
        self._strings: list[bytes] = []
        parts = []
        code = [(load.address, load.address + load.size_bytes) for load in loads if load.executable]
        for number, (symbols, strings) in enumerate(tables):
            parts.append(_functions(symbols, strings, code, number))
            self._strings.append(strings)
        empty = np.empty(0, np.uint64)
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else [empty] * 5
        starts, sizes, names, tables_of, worse = columns
        order = np.lexsort((worse, starts))
        starts, sizes, names, tables_of = (c[order] for c in (starts, sizes, names, tables_of))
        first = np.ones(len(starts), bool)
        first[1:] = starts[1:] != starts[:-1]
        heads = np.flatnonzero(first)
        # Of several names for one address the best, with the longest extent any of them has.
        longest = np.maximum.reduceat(sizes, heads) if len(heads) else sizes
        self._starts, self._names, self._tables = starts[heads], names[heads], tables_of[heads]
        self._ends = _ends(self._starts, longest, code)
        # How far anything before reaches: where a search for an enclosing one may stop.
        self._reach = np.maximum.accumulate(self._ends) if len(heads) else self._ends

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return sum(len(s) for s in self._strings) + 40 * len(self._starts)

    def __len__(self) -> int:
        """How many functions there are."""
        return len(self._starts)

    def find(self, address: int) -> tuple[str, int] | None:
        """Name, demangled, and start of the function that holds ``address``; None: none does."""
        at = self._holding(address)
        if at is None:
            return None
        strings, start = self._strings[int(self._tables[at])], int(self._names[at])
        end = strings.find(b"\0", start, start + _MAX_NAME_BYTES)
        raw = strings[start : end if end >= 0 else start + _MAX_NAME_BYTES]
        # Linkers write the version behind the name: malloc@@GLIBC_2.2.5.
        name = raw.decode("utf-8", "replace").partition("@")[0]
        return (demangle(name), int(self._starts[at])) if name else None

    def _holding(self, address: int) -> int | None:
        if not 0 <= address < 1 << 64:
            return None
        wanted = np.uint64(address)
        last = int(np.searchsorted(self._starts, wanted, "right")) - 1
        for at in range(last, max(last - _MAX_ENCLOSING, -1), -1):
            if wanted < self._ends[at]:
                return at
            if wanted >= self._reach[at]:
                return None
        return None


def _functions(
    symbols: npt.NDArray[np.void], strings: bytes, code: list[tuple[int, int]], table: int
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Starts, sizes, name offsets, the table's number and a rank (less is better)."""
    kinds, bindings = symbols["info"] & 15, symbols["info"] >> 4
    starts = symbols["value"]
    in_code = np.zeros(len(symbols), bool)
    for begin, end in code:
        in_code |= (starts >= min(begin, _MAX)) & (starts < min(end, _MAX))
    usable = in_code & (symbols["section"] != _SHN_UNDEF) & (symbols["section"] < _SHN_LORESERVE)
    usable &= np.isin(kinds, (_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC))
    usable &= (symbols["name"] > 0) & (symbols["name"] < len(strings))
    chosen = symbols[usable]
    kinds, bindings = kinds[usable], bindings[usable]
    underscored = np.frombuffer(strings, np.uint8)[chosen["name"]] == ord("_")
    # A function before a label, one with a size, a global one before weak and local ones
    # (malloc before __libc_malloc before __GI___libc_malloc).
    worse = (
        16 * (kinds == _STT_NOTYPE)
        + 8 * (chosen["size"] == 0)
        + 2 * np.where(bindings == _STB_GLOBAL, 0, np.where(bindings == _STB_LOCAL, 2, 1))
        + underscored
    )
    return (
        chosen["value"].astype(np.uint64),
        chosen["size"].astype(np.uint64),
        chosen["name"].astype(np.uint64),
        np.full(len(chosen), table, np.uint64),
        worse.astype(np.uint64),
    )


def _ends(
    starts: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64], code: list[tuple[int, int]]
) -> npt.NDArray[np.uint64]:
    """Where each function ends; one without a size, as in assembly, where the next begins."""
    limit = np.zeros(len(starts), np.uint64)
    for begin, end in code:
        inside = (starts >= min(begin, _MAX)) & (starts < min(end, _MAX))
        limit[inside] = min(end, _MAX)
    following = np.append(starts[1:], np.uint64(_MAX))[: len(starts)]
    sized = starts + np.minimum(sizes, limit - starts)  # no size reaches beyond the code
    ends: npt.NDArray[np.uint64] = np.where(sizes > 0, sized, np.minimum(following, limit))
    return ends


_MAX: Final = (1 << 64) - 1
