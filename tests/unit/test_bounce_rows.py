"""Records of the bounce paths as rows, without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cctrace.record.bpf import io_rows, layout
from cctrace.record.bpf.counters import Sample, SwiotlbPool, counter_rows
from cctrace.record.bpf.ioctl import Ioctl
from cctrace.record.bpf.kernelfs import KernelFs
from cctrace.record.bpf.page_conversion import PageConversion
from cctrace.record.bpf.swiotlb import Swiotlb
from cctrace.record.bpf.user_crypto import UserCrypto
from cctrace.record.bpf.uvm_crypto import UvmCrypto
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.record.bpf.probes import Events, Rows

TIMED = io_rows.HAS_DURATION


def events(kind: layout.Kind, *rows: dict[str, Any]) -> Events:
    """Records as the ring has them."""
    records = np.zeros(len(rows), layout.IO_EVENT)
    for record, row in zip(records, rows, strict=True):
        filled = {"kind": kind, "pid": 7, "tid": 11, "detail": layout.Direction.UNKNOWN, **row}
        for name, value in filled.items():
            record[name] = value
    return records.view(layout.CUDA_EVENT)


def only_table(rows: Rows, name: str) -> list[dict[str, Any]]:
    """Rows of the one table there is, which has the schema's columns and types."""
    ((found, table),) = rows
    assert found == name
    assert table.schema == TABLES[name].arrow
    table.validate(full=True)
    told: list[dict[str, Any]] = table.to_pylist()
    return told


def test_bounces() -> None:
    source = Swiotlb(LossLedger())
    rows = source.decode(
        events(
            layout.Kind.SWIOTLB,
            {
                "ts_ns": 100,
                "what": layout.IoOp.MAP,
                "detail": layout.Direction.FROM_DEVICE,
                "flags": TIMED,
                "dur_ns": 13,
                "size_bytes": 4096,
                "device": b"0000:00:04.0",
            },
            # By the tracepoint: no direction, no duration. No name, no process: an interrupt.
            {"ts_ns": 200, "pid": 0, "tid": 0, "what": layout.IoOp.MAP, "size_bytes": 1},
            {
                "what": layout.IoOp.FULL,
                "detail": layout.Direction.BIDIRECTIONAL,
                "flags": TIMED,
                "size_bytes": 2 << 20,
                # As long as a name can be: without its end
                "device": b"x" * layout.DEVICE_BYTES,
            },
        )
    )
    assert only_table(rows, "swiotlb") == [
        {
            "ts_ns": 100,
            "pid": 7,
            "tid": 11,
            "dur_ns": 13,
            "op": "map",
            "device": "0000:00:04.0",
            "direction": "from_device",
            "size_bytes": 4096,
        },
        {
            "ts_ns": 200,
            "pid": 0,
            "tid": 0,
            "dur_ns": None,
            "op": "map",
            "device": None,
            "direction": None,
            "size_bytes": 1,
        },
        {
            "ts_ns": 0,
            "pid": 7,
            "tid": 11,
            "dur_ns": 0,
            "op": "full",
            "device": "x" * layout.DEVICE_BYTES,
            "direction": "bidirectional",
            "size_bytes": 2 << 20,
        },
    ]


def test_every_operation_and_direction_has_its_name() -> None:
    operations = ["map", "bounce", "unmap", "sync", "full"]
    directions = ["bidirectional", "to_device", "from_device", None]
    numbered = [{"what": op, "detail": way} for op in range(5) for way in range(4)]
    rows = only_table(
        Swiotlb(LossLedger()).decode(events(layout.Kind.SWIOTLB, *numbered)), "swiotlb"
    )
    assert [(row["op"], row["direction"]) for row in rows] == [
        (op, way) for op in operations for way in directions
    ]


def test_conversions_that_failed_are_told_apart() -> None:
    source = PageConversion(LossLedger())
    done = {"what": layout.IoOp.TO_SHARED, "flags": TIMED, "dur_ns": 17, "size_bytes": 512}
    failed = {**done, "result": -22}
    rows = source.decode(
        events(layout.Kind.PAGES, done, failed, {**done, "what": layout.IoOp.TO_PRIVATE}, failed)
    )
    assert [
        (row["to"], row["pages"], row["dur_ns"]) for row in only_table(rows, "page_conversion")
    ] == [("shared", 512, 17), ("private", 512, 17)]
    assert source.detail()["failed"] == 2


@pytest.mark.parametrize(
    ("source", "kind", "table"),
    [
        (UvmCrypto(LossLedger()), layout.Kind.UVM, "uvm_crypto"),
        (UserCrypto(LossLedger()), layout.Kind.CRYPTO, "user_crypto"),
    ],
)
def test_encryption(source: UvmCrypto | UserCrypto, kind: layout.Kind, table: str) -> None:
    encrypt = {"what": layout.IoOp.ENCRYPT, "flags": TIMED, "dur_ns": 5, "size_bytes": 4096}
    rows = source.decode(events(kind, encrypt, {**encrypt, "what": layout.IoOp.DECRYPT}))
    assert [
        (row["direction"], row["size_bytes"], row["dur_ns"], row["pid"], row["tid"])
        for row in only_table(rows, table)
    ] == [("encrypt", 4096, 5, 7, 11), ("decrypt", 4096, 5, 7, 11)]


def test_requests_for_keys_add_up_by_process() -> None:
    source = Ioctl()
    first = source.decode(
        events(layout.Kind.IOCTL, {"ts_ns": 10}, {"ts_ns": 30}, {"ts_ns": 20, "pid": 5})
    )
    second = source.decode(events(layout.Kind.IOCTL, {"ts_ns": 40}))
    assert [
        (row["pid"], row["ts_ns"], row["value"])
        for _, table in [*first, *second]
        for row in table.to_pylist()
    ] == [(5, 20, 1.0), (7, 30, 2.0), (7, 40, 3.0)]
    assert source.detail()["seen"] == [
        {"pid": 5, "first_ns": 20, "requests": 1},
        {"pid": 7, "first_ns": 10, "requests": 3},
    ]


@given(st.lists(st.binary(max_size=layout.DEVICE_BYTES), max_size=20))
def test_a_device_name_is_never_too_odd(names: list[bytes]) -> None:
    records = io_rows.io_events(events(layout.Kind.SWIOTLB, *({"device": name} for name in names)))
    expected = [name.rstrip(b"\0").decode("utf-8", "replace") or None for name in names]
    assert io_rows.devices(records).to_pylist() == expected


@given(st.lists(st.integers(0, 2**16 - 1), max_size=20))
def test_numbers_without_a_name_are_null(values: list[int]) -> None:
    names = {0: "zero", 3: "three", 65535: "last"}
    column = io_rows.named(np.array(values, np.uint16), names)
    assert column.to_pylist() == [names.get(value) for value in values]


def test_samples_are_rows_of_one_moment() -> None:
    samples = [Sample("swiotlb.used", 4096, "bytes"), Sample("get_kmb", 3, "requests", 7)]
    assert only_table(counter_rows(samples, 100), "counters") == [
        {
            "ts_ns": 100,
            "pid": None,
            "tid": None,
            "name": "swiotlb.used",
            "value": 4096.0,
            "unit": "bytes",
        },
        {
            "ts_ns": 100,
            "pid": 7,
            "tid": None,
            "name": "get_kmb",
            "value": 3.0,
            "unit": "requests",
        },
    ]
    assert counter_rows([]) == []


def pool_of(folder: Path, **files: str) -> SwiotlbPool:
    directory = folder / "debug" / "swiotlb"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return SwiotlbPool(KernelFs("debugfs", (str(folder / "debug"),)))


def test_the_pool_is_told_in_bytes(tmp_path: Path) -> None:
    pool = pool_of(
        tmp_path,
        io_tlb_nslabs="16384\n",
        io_tlb_used="252\n",
        io_tlb_used_hiwater="1021\n",
        io_tlb_transient_nslabs="0\n",
    )
    assert pool.reason is None
    assert {(sample.name, sample.value, sample.unit) for sample in pool.sample()} == {
        ("swiotlb.capacity", 32 << 20, "bytes"),
        ("swiotlb.used", 252 * 2048, "bytes"),
        ("swiotlb.used_hiwater", 1021 * 2048, "bytes"),
        ("swiotlb.transient", 0, "bytes"),
    }


def test_a_pool_of_an_older_kernel_lacks_what_it_lacks(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, io_tlb_nslabs="7\n", io_tlb_used="not a number\n")
    assert [sample.name for sample in pool.sample()] == ["swiotlb.capacity"]


def test_no_pool_says_why(tmp_path: Path) -> None:
    (tmp_path / "debug" / "other").mkdir(parents=True)
    pool = SwiotlbPool(KernelFs("debugfs", (str(tmp_path / "debug"),)))
    assert pool.sample() == []
    assert pool.reason is not None
    assert "io_tlb_used" in pool.reason
