"""Records of calls to rows, on a small table of symbols and rows checked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.decode import CallDecoder
from cctrace.record.bpf.cuda.memory import MemoryMap
from cctrace.record.bpf.cuda.symbols import Symbol, SymbolTable, symbol_table
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

FLAG = layout.CudaFlag
ALL = FLAG.HAS_SIZE | FLAG.HAS_STREAM | FLAG.HAS_ADDRESS
COPY = FLAG.HAS_SIZE | FLAG.HAS_ADDRESS
H2H, H2D, D2H, D2D, DEFAULT = range(5)

_SYMBOLS: list[tuple[str, str, str, str | None, str | None]] = [
    ("cudaMemcpyAsync", "cudart", "copy", "argument", None),
    ("cuMemcpyHtoDAsync_v2", "cuda", "copy", "h2d", None),
    ("cuMemcpyDtoHAsync_v2_ptsz", "cuda", "copy", "d2h", None),
    ("cuMemcpyAsync", "cuda", "copy", "addresses", None),
    ("cuMemcpyPeer", "cuda", "copy", "p2p", None),
    ("cuMemcpyDtoD_v2", "cuda", "copy", "d2d", None),
    ("cudaMallocHost", "cudart", "alloc", None, "pinned_alloc"),
    ("cuMemAllocManaged", "cuda", "alloc", None, "managed_alloc"),
    ("cuMemAlloc_v2", "cuda", "alloc", None, "device_alloc"),
    ("cuMemHostRegister_v2", "cuda", "alloc", None, "register"),
    ("cuMemFree_v2", "cuda", "free", None, "free"),
    ("cuMemHostUnregister", "cuda", "free", None, "unregister"),
    ("cudaLaunchKernel", "cudart", "launch", None, None),
    ("cuLaunchKernel", "cuda", "launch", None, None),
    ("cudaStreamSynchronize", "cudart", "sync", None, None),
    ("ncclAllReduce", "nccl", "collective", None, None),
    ("cudaEventRecord", "cudart", "event", None, None),
    ("cudaEventSynchronize", "cudart", "sync", None, None),
]
ON_EVENTS = ("cudaEventRecord", "cudaEventSynchronize")
TABLE = SymbolTable(
    tuple(
        Symbol(
            site=site,
            name=name,
            api=name.split("_")[0],
            library=library,
            cls=cls,
            copy_kind=copy_kind,
            memory=memory,
            event=int(name in ON_EVENTS),
        )
        for site, (name, library, cls, copy_kind, memory) in enumerate(_SYMBOLS)
    )
)
SITE = {symbol.api: symbol.site for symbol in TABLE.symbols}


def call(api: str, ts_ns: int, dur_ns: int = 10, **fields: Any) -> dict[str, Any]:
    """One record as a dictionary; addresses, size and stream are there unless flags say other."""
    given_fields: dict[str, Any] = {
        "ts_ns": ts_ns,
        "pid": 100,
        "tid": 101,
        "kind": layout.Kind.CUDA,
        "what": SITE[api],
        "detail": layout.NO_COPY_KIND,
        "flags": ALL,
        "dur_ns": dur_ns,
    }
    return given_fields | fields


def records(*calls: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Records of calls."""
    events = np.zeros(len(calls), layout.CUDA_EVENT)
    for event, fields in zip(events, calls, strict=True):
        for name, value in fields.items():
            event[name] = value
    return events


class Harness:
    """A decoder with its surroundings."""

    def __init__(self, *, watched: bool = True) -> None:
        self.ledger = LossLedger()
        self.memory = MemoryMap(self.ledger)
        if watched:
            self.memory.watch_from_start()
        self.decoder = CallDecoder(TABLE, self.memory, self.ledger)

    def rows(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one batch."""
        found = self.decoder.rows(records(*calls))
        if not found:
            return []
        [(name, table)] = found
        assert name == "cuda_api"
        assert table.schema.equals(TABLES["cuda_api"].arrow, check_metadata=True)
        table.validate(full=True)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def kinds(self, *calls: dict[str, Any]) -> list[tuple[str | None, str | None]]:
        """Copy kind and host memory of one batch."""
        return [(row["copy_kind"], row["host_memory"]) for row in self.rows(*calls)]


def test_every_column() -> None:
    rows = Harness().rows(
        call(
            "cuMemcpyDtoHAsync",
            1_000,
            37,
            depth=1,
            result=-3,
            size_bytes=4099,
            stream=2**64 - 2,
            dst=0x7000,
            src=0x9000,
        ),
        call("cudaLaunchKernel", 2_000, 11, flags=FLAG.HAS_STREAM, stream=7, pid=5, tid=6),
    )
    assert rows == [
        {
            "ts_ns": 1_000,
            "pid": 100,
            "tid": 101,
            "dur_ns": 37,
            "api": "cuMemcpyDtoHAsync",
            "layer": "driver",
            "class": "copy",
            "copy_kind": "d2h",
            "size_bytes": 4099,
            "stream": -2,
            "event": None,
            "host_memory": "pageable",
            "result": -3,
            "depth": 1,
            "correlation_id": None,
            "stack_id": None,
        },
        {
            "ts_ns": 2_000,
            "pid": 5,
            "tid": 6,
            "dur_ns": 11,
            "api": "cudaLaunchKernel",
            "layer": "runtime",
            "class": "launch",
            "copy_kind": None,
            "size_bytes": None,
            "stream": 7,
            "event": None,
            "host_memory": None,
            "result": 0,
            "depth": 0,
            "correlation_id": None,
            "stack_id": None,
        },
    ]


def test_an_event_stands_where_other_calls_have_an_address() -> None:
    rows = Harness().rows(
        # A handle: all its bits, whatever their sign, of calls that fail as well.
        call("cudaEventRecord", 1_000, dst=2**64 - 3, stream=7, result=400),
        call("cudaEventSynchronize", 2_000, dst=0x51, flags=FLAG.HAS_ADDRESS | FLAG.OPEN),
        # Not read.
        call("cudaEventSynchronize", 3_000, dst=0x53, flags=0),
        # Of other calls it is no event.
        call("cuMemcpyDtoHAsync", 4_000, dst=0x59, src=0x61, size_bytes=5),
        call("cudaStreamSynchronize", 5_000, dst=0x67),
    )
    assert [row["event"] for row in rows] == [-3, 0x51, None, None, None]
    assert [row["correlation_id"] for row in rows] == [None] * 5
    assert rows[1]["dur_ns"] is None


def test_no_records_are_no_rows() -> None:
    assert Harness().rows() == []


def test_a_call_that_never_returned_has_neither_length_nor_result() -> None:
    # GIVEN an open copy, an open allocation and an open free
    harness = Harness()
    rows = harness.rows(
        call("cudaMallocHost", 1, dst=0x1000, size_bytes=64),
        call("cuMemcpyHtoDAsync", 20, 0, flags=ALL | FLAG.OPEN, src=0x1000, size_bytes=8),
        call("cuMemcpyHtoDAsync", 20, 0, flags=ALL | FLAG.OPEN, src=0x5000, size_bytes=8),
        call("cudaMallocHost", 30, 0, flags=ALL | FLAG.OPEN, dst=0x2000, size_bytes=64),
        call("cuMemFree", 40, 0, flags=ALL | FLAG.OPEN, dst=0x1000),
    )
    assert [row["dur_ns"] for row in rows] == [10, None, None, None, None]
    assert [row["result"] for row in rows] == [0, None, None, None, None]
    # THEN what was never allocated is unknown, since the record may come late
    assert [row["host_memory"] for row in rows[1:3]] == ["pinned", "unknown"]
    # AND neither of the other two did anything
    late = [call("cuMemcpyHtoDAsync", 50, src=a, size_bytes=8) for a in (0x1000, 0x2000)]
    assert harness.kinds(*late) == [("h2d", "pinned"), ("h2d", "pageable")]


def test_copy_kind_by_argument_and_host_memory_by_range() -> None:
    harness = Harness()
    harness.rows(
        call("cudaMallocHost", 1, dst=0x1000, size_bytes=0x100),
        call("cuMemAllocManaged", 2, dst=0x2000, size_bytes=0x100),
        call("cuMemHostRegister", 3, dst=0x3000, size_bytes=0x100),
        call("cuMemAlloc", 4, dst=0x4000, size_bytes=0x100),
    )

    def copy(kind: int, dst: int, src: int) -> dict[str, Any]:
        return call("cudaMemcpyAsync", 50, detail=kind, dst=dst, src=src, size_bytes=16)

    assert harness.kinds(
        copy(H2D, 0x4000, 0x1000),
        copy(H2D, 0x4000, 0x2000),
        copy(H2D, 0x4000, 0x3000),
        copy(H2D, 0x4000, 0x5000),
        copy(D2H, 0x1080, 0x4000),
        copy(D2H, 0x5080, 0x4000),
        copy(D2H, 0x10F8, 0x4000),  # runs out of its range
        copy(D2D, 0x4000, 0x4080),
        copy(H2H, 0x5000, 0x1000),
        copy(H2D, 0x4000, 0x4080),  # says host, is device
    ) == [
        ("h2d", "pinned"),
        ("h2d", "managed"),
        ("h2d", "registered"),
        ("h2d", "pageable"),
        ("d2h", "pinned"),
        ("d2h", "pageable"),
        ("d2h", "unknown"),
        ("d2d", None),
        ("h2h", "pinned"),
        ("h2d", "unknown"),
    ]
    assert harness.ledger.by_reason() == {}


@pytest.mark.parametrize("api", ["cuMemcpyAsync", "cudaMemcpyAsync"])
def test_copy_kind_by_addresses(api: str) -> None:
    harness = Harness()
    harness.rows(
        call("cudaMallocHost", 1, dst=0x1000, size_bytes=0x100),
        call("cuMemAlloc", 4, dst=0x4000, size_bytes=0x100),
        call("cuMemAllocManaged", 2, dst=0x2000, size_bytes=0x100),
    )

    def copy(dst: int, src: int, **more: Any) -> dict[str, Any]:
        return call(api, 50, detail=DEFAULT, dst=dst, src=src, size_bytes=16, **more)

    asked = [
        copy(0x4000, 0x1000),
        copy(0x1000, 0x4000),
        copy(0x4000, 0x4080),
        copy(0x1000, 0x5000),
        copy(0x4000, 0x5000),
        copy(0x4000, 0x2000),
        copy(0x2000, 0x4000),
        copy(0x2000, 0x1000),
        copy(0x1000, 0x2000),
        copy(0x2000, 0x2080),
        copy(0, 0x1000),  # into an array
        copy(0x1000, 0),  # out of one
        copy(0x40F8, 0x1000),  # runs out of its range
        copy(0x2000, 0),  # a prefetch
        copy(0x4000, 0x1000, flags=FLAG.HAS_SIZE),  # addresses not read
    ]
    assert harness.kinds(*asked) == [
        ("h2d", "pinned"),
        ("d2h", "pinned"),
        ("d2d", None),
        ("h2h", "pageable"),
        ("h2d", "pageable"),
        ("h2d", "managed"),
        ("d2h", "managed"),
        ("h2d", "pinned"),
        ("d2h", "pinned"),
        ("d2d", None),
        ("h2d", "pinned"),
        ("d2h", "pinned"),
        ("unknown", None),
        ("unknown", None),
        ("unknown", None),
    ]
    # AND where the process was not watched from its start, what is in no range is not known
    harness.memory.distrust()
    assert harness.kinds(*asked[3:5]) == [("unknown", None), ("unknown", None)]


def test_memory_that_a_call_makes_itself() -> None:
    rows = Harness().kinds(
        call("cudaMallocHost", 1, dst=0x1000, size_bytes=64),
        call("cuMemAllocManaged", 2, dst=0x2000, size_bytes=64),
        call("cuMemHostRegister", 3, dst=0x3000, size_bytes=64),
        call("cuMemAlloc", 4, dst=0x4000, size_bytes=64),
        call("cuMemFree", 20, dst=0x4000),
    )
    assert rows == [
        (None, "pinned"),
        (None, "managed"),
        (None, "registered"),
        (None, None),
        (None, None),
    ]


def test_only_calls_that_succeeded_change_what_is_known() -> None:
    harness = Harness()
    harness.rows(
        call("cudaMallocHost", 1, dst=0x1000, size_bytes=64, result=2),
        call("cudaMallocHost", 2, dst=0x2000, size_bytes=64),
        call("cudaMallocHost", 3, dst=0x3000, size_bytes=64),
        call("cudaMallocHost", 4, dst=0x4000, size_bytes=64, flags=FLAG.HAS_SIZE),
        call("cudaMallocHost", 5, dst=0x5000, size_bytes=64, flags=FLAG.HAS_ADDRESS),
        call("cuMemFree", 20, dst=0x2000, result=1),
        call("cuMemHostUnregister", 21, dst=0x3000),
    )
    asked = [call("cuMemcpyHtoDAsync", 50, src=0x1000 * i, size_bytes=8) for i in range(1, 6)]
    assert [host for _, host in harness.kinds(*asked)] == [
        "pageable", "pinned", "pageable", "pageable", "pageable",
    ]  # fmt: skip


def test_a_copy_is_told_by_its_own_time_within_a_batch() -> None:
    # GIVEN copies around a free and a second allocation of one address, all in one batch
    def copy(ts_ns: int) -> dict[str, Any]:
        return call("cuMemcpyHtoDAsync", ts_ns, src=0x1000, size_bytes=8)

    rows = Harness().rows(
        call("cudaMallocHost", 100, 10, dst=0x1000, size_bytes=64),
        copy(110),
        call("cuMemFree", 200, 10, dst=0x1000),
        copy(205),
        call("cuMemHostRegister", 300, 10, dst=0x1000, size_bytes=64),
        copy(109),
        copy(310),
    )
    assert [row["host_memory"] for row in rows if row["class"] == "copy"] == [
        "pinned",
        "pageable",
        "pageable",
        "registered",
    ]


def test_what_makes_no_sense_is_counted_and_left_out() -> None:
    harness = Harness()
    rows = harness.rows(
        call("cudaMemcpyAsync", 10, detail=5, size_bytes=1),
        call("cudaMemcpyAsync", 11, detail=254, size_bytes=1, pid=200),
        call("cudaMemcpyAsync", 12, size_bytes=1),  # the kind was not read
        call("cuMemcpyHtoDAsync", 13, size_bytes=2**63, src=2**64 - 1),
        call("cuMemcpyHtoDAsync", 14, size_bytes=2**63 - 1, src=2**64 - 1),
        call("cuMemcpyHtoDAsync", 15, size_bytes=2**64 - 1, flags=FLAG.HAS_STREAM),
        call("cuMemcpyAsync", 16, size_bytes=64, flags=ALL | FLAG.SIZE_PARTIAL),
        call("cudaStreamSynchronize", 17, what=len(TABLE.symbols)),
        call("cudaStreamSynchronize", 18, what=65535),
        call("cudaStreamSynchronize", 2**62),
        call("cudaStreamSynchronize", 19, 2**64 - 1),
    )
    assert [row["ts_ns"] for row in rows] == [10, 11, 12, 13, 14, 15, 16]
    assert [row["copy_kind"] for row in rows[:3]] == ["unknown"] * 3
    assert [row["size_bytes"] for row in rows[3:]] == [None, 2**63 - 1, None, 64]
    assert harness.ledger.by_reason() == {"bad_argument": 3, "partial_size": 1, "bad_record": 4}
    counted = {(r["pid"], r["reason"]): r for r in harness.ledger.table().to_pylist()}
    assert counted[100, "bad_argument"]["count"] == 2
    assert counted[200, "bad_argument"]["first_ns"] == 11
    assert counted[100, "bad_record"]["last_ns"] == 19


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=40 * layout.EVENT_BYTES), st.binary(max_size=40))
def test_any_bytes_decode(content: bytes, sites: bytes) -> None:
    # GIVEN any bytes as records, some of them given known sites so that more is looked at
    events = np.zeros(-(-len(content) // layout.EVENT_BYTES), layout.CUDA_EVENT)
    events.view(np.uint8).reshape(-1)[: len(content)] = np.frombuffer(content, np.uint8)
    for event, site in zip(events, sites, strict=False):
        event["what"] = site % len(TABLE.symbols)
        event["ts_ns"] &= 0xFFFF
        event["dur_ns"] &= 0xFFFF
    harness = Harness()
    # WHEN they are decoded, twice
    rows = [
        row
        for _ in range(2)
        for _, table in harness.decoder.rows(events)
        for row in table.to_pylist()
    ]
    # THEN every record is a row or counted as lost
    assert len(rows) + harness.ledger.by_reason().get("bad_record", 0) == 2 * len(events)
    assert all(row["dur_ns"] is None or row["dur_ns"] >= 0 for row in rows)
    assert all(row["size_bytes"] is None or row["size_bytes"] >= 0 for row in rows)


def test_batches_can_be_written_one_after_the_other() -> None:
    # GIVEN batches with few and with many different calls
    harness = Harness()
    tables = [
        harness.decoder.rows(records(*(call(api, 10 + i) for i, api in enumerate(apis))))[0][1]
        for apis in (["cudaLaunchKernel"], list(SITE), ["cuMemcpyAsync"])
    ]
    # THEN their dictionaries are the same, so that the writer need not unify them
    joined = pa.concat_tables(tables)
    assert joined.num_rows == 2 + len(SITE)
    assert len({str(chunk.dictionary) for chunk in joined["api"].chunks}) == 1


def test_every_function_that_is_probed_decodes() -> None:
    # GIVEN one call of each function of the table that comes with cctrace
    table = symbol_table()
    ledger = LossLedger()
    events = np.zeros(len(table.symbols), layout.CUDA_EVENT)
    events["what"] = np.arange(len(table.symbols))
    events["detail"] = H2D
    events["flags"] = ALL
    [(_, rows)] = CallDecoder(table, MemoryMap(ledger), ledger).rows(events)
    # THEN each row says what the table says
    found = [(r["api"], r["layer"], r["class"], r["copy_kind"] is None) for r in rows.to_pylist()]
    assert found == [(s.api, s.layer, s.cls, s.copy_kind is None) for s in table.symbols]
    assert ledger.by_reason() == {}
