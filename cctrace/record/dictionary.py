"""Names: from each process's dictionary log to the strings of the run's columns.

A record carries a key; a key stands for message, domain, category and colour.
Processes number their keys by themselves; here every distinct combination of the
run gets one index, so that decoding an event is an array look-up. Python runs
once per distinct name of a process, never per event.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record import layout

_ENTRY: Final = struct.Struct("<8I")
_UNKNOWN: Final = 0  # index of the key without attributes

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class KeyColumns:
    """Columns of a set of events, made from their keys.

    Attributes:
        name: Dictionary column of messages.
        domain: Dictionary column of domain names.
        category: Dictionary column of category names.
        color: Column of ARGB values.
    """

    name: pa.DictionaryArray
    domain: pa.DictionaryArray
    category: pa.DictionaryArray
    color: pa.Array


@dataclass(frozen=True)
class _Key:
    name: str | None
    domain: str | None
    category: str | None
    color: int | None


class RunKeys:
    """Every distinct key of the run; index 0 is the key without attributes."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._index: dict[_Key, int] = {}
        self.index_of(_Key(None, None, None, None))

    def index_of(self, key: _Key) -> int:
        """Index of ``key``, a new one where it was not known."""
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self._keys)
            self._keys.append(key)
        return index

    def columns(self, keys: Ints) -> KeyColumns:
        """Make the columns of events with the run-wide keys ``keys``.

        Each dictionary holds just the strings that occur, in the order of their
        first index, so a part does not carry the names of the whole run.
        """
        used = np.zeros(len(self._keys), bool)
        used[keys] = True
        present = np.flatnonzero(used)
        compact = np.zeros(len(self._keys), np.int32)
        compact[present] = np.arange(len(present), dtype=np.int32)
        rows = pa.array(compact[keys])
        chosen = [self._keys[i] for i in present]
        return KeyColumns(
            name=_strings([k.name for k in chosen], rows),
            domain=_strings([k.domain for k in chosen], rows),
            category=_strings([k.category for k in chosen], rows),
            color=_colors([k.color for k in chosen], rows),
        )


def _strings(values: list[str | None], rows: pa.Array) -> pa.DictionaryArray:
    index: dict[str, int] = {}
    codes = [None if v is None else index.setdefault(v, len(index)) for v in values]
    indices = pa.array(codes, pa.int32()).take(rows)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(index), pa.string()))


def _colors(values: list[int | None], rows: pa.Array) -> pa.Array:
    if all(v is None for v in values):
        return pa.nulls(len(rows), pa.uint32())
    return pa.array(values, pa.uint32()).take(rows)


@dataclass
class ProcessKeys:
    """The dictionary of one process image, read as it grows.

    Attributes:
        run: Keys of the whole run.
        bad: Entries that made no sense, since the last time this was taken.
        thread_names: Names given to threads, by tid.
        offset: Bytes of the log read so far.
    """

    run: RunKeys
    bad: int = 0
    thread_names: dict[int, str] = field(default_factory=dict)
    offset: int = 0
    _broken: bool = False
    _domains: dict[int, str] = field(default_factory=dict)
    _categories: dict[tuple[int, int], str] = field(default_factory=dict)
    _raw: list[tuple[str | None, int, int, int | None]] = field(default_factory=list)
    _renamed: set[tuple[int, int]] = field(default_factory=set)
    _of_category: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _map: list[int] = field(default_factory=lambda: [_UNKNOWN])
    _array: Ints | None = None

    def feed(self, log: bytes) -> None:
        """Parse further bytes of the log, which begin where the last ones ended.

        An entry that makes no sense ends the reading for good, since the next
        one cannot be found any more; it is counted in ``bad``.
        """
        if self._broken:
            self.offset += len(log)  # not to be copied again at every call
            return
        at = 0
        while at + _ENTRY.size <= len(log):
            kind, ident, domain, category, color, flags, size, _ = _ENTRY.unpack_from(log, at)
            begin = at + _ENTRY.size
            after = begin + (size + 7 & ~7)
            if kind not in _TYPES or size > layout.TEXT_MAX or after > len(log):
                break
            text = log[begin : begin + size].decode("utf-8", "replace")
            if kind == layout.DICT_KEY:
                if ident != len(self._map):
                    break
                self._add_key(
                    text if flags & layout.DICT_HAS_TEXT else None,
                    domain,
                    category,
                    color if flags & layout.DICT_HAS_COLOR else None,
                )
            elif kind == layout.DICT_DOMAIN:
                self._domains[ident] = text
            elif kind == layout.DICT_CATEGORY:
                self._categories[domain, ident] = text
                self._renamed.add((domain, ident))
            else:
                self.thread_names[ident] = text
            at = after
        self.offset += len(log)
        if at != len(log):
            self._broken = True
            self.bad += 1
        self._rename_keys()
        self._array = None

    def run_keys(self, keys: npt.NDArray[np.uint32]) -> tuple[Ints, int]:
        """Translate the process's keys to the run's.

        Returns:
            The indices, and how many keys were in no entry (they become 0).
        """
        if self._array is None:
            self._array = np.array(self._map, np.int32)
        known = self._array
        if not len(keys) or int(keys.max()) < len(known):
            return known[keys], 0
        unknown = keys >= len(known)
        return known[np.where(unknown, np.uint32(0), keys)], int(np.count_nonzero(unknown))

    def _add_key(self, name: str | None, domain: int, category: int, color: int | None) -> None:
        self._raw.append((name, domain, category, color))
        if category:
            self._of_category.setdefault((domain, category), []).append(len(self._map))
        self._map.append(self._resolve(len(self._raw) - 1))

    def _resolve(self, raw: int) -> int:
        name, domain, category, color = self._raw[raw]
        return self.run.index_of(
            _Key(
                name,
                self._domains.get(domain, f"domain {domain}") if domain else None,
                self._categories.get((domain, category), str(category)) if category else None,
                color,
            )
        )

    def _rename_keys(self) -> None:
        # Keys that were used before their category had a name are renamed for
        # the events to come; those already written keep the number. Once for all
        # the names that came, or a program could make this quadratic.
        for category in self._renamed:
            for key in self._of_category.get(category, ()):
                self._map[key] = self._resolve(key - 1)
        self._renamed.clear()


_TYPES: Final = frozenset(
    {layout.DICT_KEY, layout.DICT_DOMAIN, layout.DICT_CATEGORY, layout.DICT_THREAD}
)
