"""Records of CUDA calls to rows of the table ``cuda_api``, in bulk.

A record is one call, with its length and nesting in it, so nothing is paired here.
What a symbol is comes from the symbol table, by the record's site; what a copy's
addresses are from the ranges learnt (memory.py). Arguments are whatever the program
passed: they are checked, and what makes no sense is counted and left NULL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.memory import SOURCE, Changes, MemoryMap, Place, by_process
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

if TYPE_CHECKING:
    from cctrace.record.bpf.cuda.symbols import SymbolTable

Events = npt.NDArray[np.void]
Rows = list[tuple[str, pa.Table]]
StackColumn = Callable[[npt.NDArray[np.uint64], str], pa.Array]
_Codes = npt.NDArray[np.int8]
_Mask = npt.NDArray[np.bool_]
_Indices = npt.NDArray[np.intp]

# Indices of copy kinds, those of enum cudaMemcpyKind (cuda_runtime_api.h) first.
_KINDS: Final = pa.array(["h2h", "h2d", "d2h", "d2d", "p2p", "unknown"], pa.string())
_H2H, _H2D, _D2H, _D2D, _P2P, _UNKNOWN = range(6)
_DEFAULT: Final = 4  # cudaMemcpyDefault: told by the addresses
_NO_COPY: Final = -1
# In the table of symbols only: what has to be asked for call by call.
_BY_ARGUMENT: Final = 6
_BY_ADDRESSES: Final = 7
_KIND_OF_SYMBOL: Final = {
    None: _NO_COPY,
    "h2h": _H2H,
    "h2d": _H2D,
    "d2h": _D2H,
    "d2d": _D2D,
    "p2p": _P2P,
    "argument": _BY_ARGUMENT,
    "addresses": _BY_ADDRESSES,
}

_HOST_MEMORY: Final = pa.array(
    [place.name.lower() for place in Place if place is not Place.DEVICE], pa.string()
)
_NO_HOST: Final = -1
# Index into _HOST_MEMORY of each Place; a copy's host side in device memory is none known.
_HOST_OF_PLACE: Final = np.array([0, 0, 1, 2, 3, 4], np.int8)

# Which side an address is. Managed memory is the host's where the other side is the
# device's own, and the device's where the other side is the host's own: pages move, and
# the calls do not say which way.
_SIDE_OF_PLACE: Final = np.array([0, 1, 2, 2, 2, 3], np.int8)
# Copy kind by side of the source, and of the destination: unknown, device, host, managed.
_KIND_OF_SIDES: Final = np.array(
    [
        [_UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN],
        [_UNKNOWN, _D2D, _D2H, _D2H],
        [_UNKNOWN, _H2D, _H2H, _H2D],
        [_UNKNOWN, _H2D, _D2H, _D2D],
    ],
    np.int8,
)

_ALLOCATED: Final = {
    "pinned_alloc": Place.PINNED,
    "managed_alloc": Place.MANAGED,
    "device_alloc": Place.DEVICE,
    "register": Place.REGISTERED,
}
_FREES: Final = ("free", "unregister")
_FREE: Final = -1
_NO_CHANGE: Final = -2

_SIZE_LIMIT: Final = 1 << 63  # BIGINT
_TIME_LIMIT: Final = 1 << 62


class CallDecoder:
    """Turns records into rows; remembers nothing but the ranges.

    Args:
        table: What each site is.
        memory: Ranges learnt; this decoder is the only one to change them.
        ledger: Takes what is dropped or left NULL, and why.
        stacks: Makes the column ``stack_id`` of the kernel's numbers; None: there are none.
    """

    def __init__(
        self,
        table: SymbolTable,
        memory: MemoryMap,
        ledger: LossLedger,
        stacks: StackColumn | None = None,
    ) -> None:
        self._stacks = stacks or _no_stacks
        self._memory = memory
        self._ledger = ledger
        symbols = table.symbols
        self._sites = len(symbols)
        self._api, self._apis = _encode([symbol.api for symbol in symbols])
        self._layer, self._layers = _encode([symbol.layer for symbol in symbols])
        self._class, self._classes = _encode([symbol.cls for symbol in symbols])
        self._kind = np.array([_KIND_OF_SYMBOL[s.copy_kind] for s in symbols], np.int8)
        self._change = np.array([_change_of(s.memory) for s in symbols], np.int8)
        self._has_event = np.array([symbol.event > 0 for symbol in symbols], np.bool_)
        self._own_host = np.array([_own_host_of(s.memory) for s in symbols], np.int8)

    def rows(self, events: Events) -> Rows:
        """Decode records.

        Args:
            events: Records, n of ``layout.CUDA_EVENT``, in the order of the ring.

        Returns:
            At most n rows of ``cuda_api`` in the same order; nothing for no records.
        """
        events = self._without_bad(events)
        if not len(events):
            return []
        site = events["what"]
        flags = events["flags"]
        is_open = (flags & layout.CudaFlag.OPEN) != 0
        size = events["size_bytes"]
        no_size = (flags & layout.CudaFlag.HAS_SIZE) == 0
        absurd = ~no_size & (size >= _SIZE_LIMIT)
        self._count("bad_argument", events, absurd)
        self._count("partial_size", events, (flags & layout.CudaFlag.SIZE_PARTIAL) != 0)
        no_size |= absurd
        self._learn(events, is_open, no_size)
        kind, host = self._copies(events, is_open, no_size)
        self._memory.prune()
        no_host = host == _NO_HOST
        no_stream = (flags & layout.CudaFlag.HAS_STREAM) == 0
        no_event = ~self._has_event[site] | ((flags & layout.CudaFlag.HAS_ADDRESS) == 0)
        columns: list[Any] = [
            events["ts_ns"].astype(np.int64),
            events["pid"].astype(np.int32),
            events["tid"].astype(np.int32),
            pa.array(events["dur_ns"].astype(np.int64), mask=is_open),
            pa.DictionaryArray.from_arrays(self._api[site], self._apis),
            pa.DictionaryArray.from_arrays(self._layer[site], self._layers),
            pa.DictionaryArray.from_arrays(self._class[site], self._classes),
            _dictionary(kind, kind == _NO_COPY, _KINDS),
            pa.array(size.astype(np.int64), mask=no_size),
            # Handles: all 64 bits of them, whatever their sign.
            pa.array(events["stream"].astype(np.int64), mask=no_stream),
            pa.array(events["dst"].astype(np.int64), mask=no_event),
            _dictionary(host, no_host, _HOST_MEMORY),
            pa.array(events["result"].astype(np.int32), mask=is_open),
            events["depth"].astype(np.int32),
            pa.nulls(len(events), pa.int64()),  # correlation_id: CUPTI's, and there is none
            self._stacks(events["stack_id"], SOURCE),
        ]
        return [("cuda_api", pa.Table.from_arrays(columns, schema=TABLES["cuda_api"].arrow))]

    def _without_bad(self, events: Events) -> Events:
        """Drop records of no known symbol, or of impossible times."""
        bad = events["what"] >= self._sites
        bad |= events["ts_ns"] >= _TIME_LIMIT
        bad |= events["dur_ns"] >= _TIME_LIMIT
        if not bad.any():
            return events
        self._count("bad_record", events, bad)
        return events[~bad]

    def _learn(self, events: Events, is_open: _Mask, no_size: _Mask) -> None:
        """Tell the ranges what was allocated and freed."""
        change = self._change[events["what"]]
        told = change != _NO_CHANGE
        if not told.any():
            return
        told &= (events["result"] == 0) & ~is_open & ((change == _FREE) | ~no_size)
        told &= (events["flags"] & layout.CudaFlag.HAS_ADDRESS) != 0
        rows = np.flatnonzero(told)
        place = change[rows]
        at_ns = events["ts_ns"][rows].astype(np.int64)
        at_ns += np.where(place == _FREE, 0, events["dur_ns"][rows].astype(np.int64))
        self._memory.learn(
            Changes(
                events["pid"][rows].astype(np.int32),
                events["dst"][rows],
                events["size_bytes"][rows],
                at_ns,
                place,
            )
        )

    def _copies(self, events: Events, is_open: _Mask, no_size: _Mask) -> tuple[_Codes, _Codes]:
        """Copy kind and host memory of each call, as indices; -1: none."""
        site = events["what"]
        kind = self._kind[site]
        host = self._own_host[site]
        copies = np.flatnonzero(kind != _NO_COPY)
        if not len(copies):
            return kind, host
        asked = self._take_argument(kind[copies], events, copies)
        ask_src = (asked == _BY_ADDRESSES) | (asked == _H2D) | (asked == _H2H)
        ask_dst = (asked == _BY_ADDRESSES) | (asked == _D2H)
        size = np.where(no_size, np.uint64(0), events["size_bytes"])
        src = self._places(events, "src", copies, ask=ask_src, size=size, is_open=is_open)
        dst = self._places(events, "dst", copies, ask=ask_dst, size=size, is_open=is_open)
        by_sides = _KIND_OF_SIDES[_SIDE_OF_PLACE[src], _SIDE_OF_PLACE[dst]]
        # A prefetch has one address, of managed memory, which may go either way.
        by_sides[(events["src"][copies] == 0) & (dst == Place.MANAGED)] = _UNKNOWN
        asked = np.where(asked == _BY_ADDRESSES, by_sides, asked)
        kind[copies] = asked
        # Between two places of the host, the source's memory is told.
        from_host = (asked == _H2D) | (asked == _H2H)
        own = np.where(from_host, _HOST_OF_PLACE[src], np.int8(_NO_HOST))
        host[copies] = np.where(asked == _D2H, _HOST_OF_PLACE[dst], own)
        return kind, host

    def _take_argument(self, asked: _Codes, events: Events, copies: _Indices) -> _Codes:
        """Kinds, where an argument tells them by that argument."""
        by_argument = asked == _BY_ARGUMENT
        if not by_argument.any():
            return asked
        passed = events["detail"][copies]
        none = passed == layout.NO_COPY_KIND
        absurd = by_argument & ~none & (passed > _DEFAULT)
        if absurd.any():
            self._count("bad_argument", events, np.isin(np.arange(len(events)), copies[absurd]))
        told = np.where(passed == _DEFAULT, np.uint8(_BY_ADDRESSES), passed)
        told = np.where(passed > _DEFAULT, np.uint8(_UNKNOWN), told)
        return np.where(by_argument, told.astype(np.int8), asked)

    def _places(
        self,
        events: Events,
        side: str,
        copies: _Indices,
        *,
        ask: _Mask,
        size: npt.NDArray[np.uint64],
        is_open: _Mask,
    ) -> _Codes:
        """What one side of each copy lies in, for those asked about."""
        places = np.full(len(copies), Place.UNKNOWN, np.int8)
        ask = ask & ((events["flags"][copies] & layout.CudaFlag.HAS_ADDRESS) != 0)
        which = np.flatnonzero(ask)
        if not len(which):
            return places
        # Columns, not records: taking whole ones out costs as much as the search.
        rows = copies[which]
        address = events[side][rows]
        found = self._memory.lookup(
            events["pid"][rows].astype(np.int32),
            address,
            size[rows],
            events["ts_ns"][rows].astype(np.int64),
        )
        # A call that never returned may be told long after its memory was freed.
        found[is_open[rows] & (found == Place.PAGEABLE)] = Place.UNKNOWN
        # No address, but an array or a symbol: those are the device's.
        found[address == 0] = Place.DEVICE
        places[which] = found
        return places

    def _count(self, reason: str, events: Events, which: _Mask) -> None:
        if not which.any():
            return
        chosen = events[which]
        for pid, rows in by_process(chosen["pid"].astype(np.int32)):
            ts_ns = chosen["ts_ns"][rows]
            honest = ts_ns[ts_ns < _TIME_LIMIT]
            self._ledger.add(
                SOURCE,
                reason,
                len(rows),
                pid=pid,
                first_ns=int(honest.min()) if len(honest) else None,
                last_ns=int(honest.max()) if len(honest) else None,
            )


def _no_stacks(numbers: npt.NDArray[np.uint64], _: str) -> pa.Array:
    return pa.nulls(len(numbers), pa.int64())


def _encode(values: list[str]) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Each value's place among the distinct ones, and those."""
    distinct = sorted(set(values))
    places = {value: place for place, value in enumerate(distinct)}
    return np.array([places[v] for v in values], np.int32), pa.array(distinct, pa.string())


def _change_of(memory: str | None) -> int:
    if memory is None:
        return _NO_CHANGE
    return _FREE if memory in _FREES else int(_ALLOCATED[memory])


def _own_host_of(memory: str | None) -> int:
    """Host memory that the call itself makes: index into ``_HOST_MEMORY``."""
    place = _ALLOCATED.get(memory or "", Place.DEVICE)
    return _NO_HOST if place is Place.DEVICE else int(_HOST_OF_PLACE[place])


def _dictionary(codes: _Codes, null: _Mask, values: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=null), values)
