"""Kernel functions that only a confidential guest with a GPU calls, from a stand-in module.

The module (tests/targets/kernel) makes known numbers of calls, in a real kernel that
lets kprobes in. The numbers below are those of its source.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from guest import Guest, image_directory

pytestmark = pytest.mark.vm

# standin_record.py
READS, READ_BYTES = 11, 4096


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the guest recorded, twice."""
    module = image_directory() / "standin"  # built with the image, for its kernel
    out = tmp_path_factory.mktemp("standin") / "results"
    python = "/usr/local/cctrace/bin/python"
    script = f"{python} /src/tests/vm/standin_record.py /src/standin/cctrace_standin.ko"
    done = Guest(carry={"standin": module}).run(script, out, time_limit_s=240)
    assert done.status == 0, done.output
    answer: dict[str, Any] = json.loads((out / "standin.json").read_text())
    return answer


def test_nothing_is_lost_or_refused_with_kprobes(told: dict[str, Any]) -> None:
    usual = told["usual"]
    assert (usual["losses"], usual["refused"], usual["warnings"]) == ({}, {}, {})


def test_pages_converted(told: dict[str, Any]) -> None:
    rows = [row for row in told["usual"]["rows"]["page_conversion"] if row["pid"] == told["pid"]]
    assert Counter((row["to"], row["pages"]) for row in rows) == {
        ("shared", 2): 3,
        ("private", 2): 3,
    }
    assert [row["to"] for row in rows] == ["shared", "private"] * 3
    ends = [row["ts_ns"] + row["dur_ns"] for row in rows]
    assert all(end <= row["ts_ns"] for end, row in zip(ends, rows[1:], strict=False))


def test_uvm_encryption_of_both_generations_of_the_driver(told: dict[str, Any]) -> None:
    rows = told["usual"]["rows"]["uvm_crypto"]
    assert Counter((row["direction"], row["size_bytes"]) for row in rows) == {
        ("encrypt", 4093): 2 * 7,
        ("decrypt", 4091): 2 * 5,
    }
    assert {row["pid"] for row in rows} == {told["pid"]}
    assert all(row["dur_ns"] > 0 for row in rows)


def test_uvm_encryption_by_the_interface_below(told: dict[str, Any]) -> None:
    fallback = told["fallback"]
    assert Counter(
        (row["direction"], row["size_bytes"]) for row in fallback["rows"]["uvm_crypto"]
    ) == {("encrypt", 4093): 7, ("decrypt", 4091): 5}
    assert fallback["detail"]["uvm_crypto"]["attached"] == "nvUvmInterfaceCsl"
    assert fallback["losses"] == {}


def test_uvm_staging_buffers(told: dict[str, Any]) -> None:
    # "new" and "old" each: 13 taken, 2 refused, 11 given back
    assert last_counters(told["usual"], "uvm.") == {
        "uvm.staging_buffers_taken": 2 * 13,
        "uvm.staging_buffers_used": 2 * (13 - 11),
    }


def test_exits_by_reason(told: dict[str, Any]) -> None:
    assert last_counters(told["usual"], "tdx_ve.") == {
        "tdx_ve.hlt": 19,
        "tdx_ve.io": 23,
        "tdx_ve.ept_violation": 29,
        "tdx_ve.other": 31,
    }


def test_requests_for_keys_at_the_driver(told: dict[str, Any]) -> None:
    detail = told["usual"]["detail"]["ioctl"]
    assert detail["attached"] == "kprobe"
    # Told before the last records were drained
    assert last_counters(told["usual"], "get_kmb") == {"get_kmb": 7}


def test_bounces_with_kprobes(told: dict[str, Any]) -> None:
    rows = told["usual"]["rows"]["swiotlb"]
    bytes_by = Counter[tuple[str, str]]()
    for row in rows:
        if row["size_bytes"] == READ_BYTES:
            bytes_by[row["op"], row["direction"]] += row["size_bytes"]
    moved = READS * READ_BYTES
    assert bytes_by["map", "from_device"] == moved
    assert bytes_by["bounce", "to_device"] == bytes_by["bounce", "from_device"] == moved
    assert bytes_by["unmap", "from_device"] == moved
    assert all(row["dur_ns"] > 0 and row["device"] for row in rows)


def test_bounces_by_the_tracepoint_alone(told: dict[str, Any]) -> None:
    fallback = told["fallback"]
    rows = fallback["rows"]["swiotlb"]
    assert {row["op"] for row in rows} == {"map"}
    assert {(row["dur_ns"], row["direction"]) for row in rows} == {(None, None)}
    usual = [row for row in told["usual"]["rows"]["swiotlb"] if row["op"] == "map"]
    # The same reads map the same segments: only what is known of them differs.
    assert Counter((row["device"], row["size_bytes"]) for row in rows) == Counter(
        (row["device"], row["size_bytes"]) for row in usual
    )
    detail = fallback["detail"]["swiotlb"]
    assert detail["attached"] == "tracepoint"
    assert "built without kprobes" in detail["missing"]
    assert fallback["refused"] == {
        "page_conversion": "this kernel was built without kprobes",
        "tdx": "this is no TDX guest",
    }


def test_the_pool_is_sampled(told: dict[str, Any]) -> None:
    assert last_counters(told["usual"], "swiotlb.")["swiotlb.capacity"] == 16384 * 2048


def last_counters(recording: dict[str, Any], prefix: str) -> dict[str, float]:
    return {
        row["name"]: row["value"]
        for row in recording["rows"]["counters"]
        if row["name"].startswith(prefix)
    }
