"""Reports on the bounce paths, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, lines, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

DISK = "0000:00:04.0"


def bounce(op: str, direction: str | None, size_bytes: int, **more: Any) -> Row:
    return {
        "ts_ns": 100,
        "dur_ns": 10,
        "op": op,
        "device": DISK,
        "direction": direction,
        "size_bytes": size_bytes,
        **more,
    }


def test_a_read_is_mapped_once_and_copied_twice(tmp_path: Path) -> None:
    # GIVEN a read of 4096 bytes with its request of 16, as the kernel does them
    run = make_run(
        tmp_path,
        swiotlb=[
            bounce("bounce", "to_device", 16, dur_ns=3),
            bounce("map", "to_device", 16, dur_ns=7),
            bounce("bounce", "to_device", 4096, dur_ns=50),
            bounce("map", "from_device", 4096, dur_ns=60),
            bounce("bounce", "from_device", 4096, dur_ns=70),
            bounce("sync", "from_device", 4096, dur_ns=75),
            bounce("unmap", "from_device", 4096, dur_ns=5),
            bounce("sync", "to_device", 16),
            bounce("unmap", "to_device", 16),
        ],
    )
    assert table(run, "swiotlb_by_device") == lines(f"""
        run,{DISK},from_device,1,4096,1,4096,60,70,70,0,0
        run,{DISK},to_device,1,16,2,4112,7,53,50,0,0
    """)


def test_a_full_pool_and_a_mapping_too_large_are_told_apart(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        swiotlb=[
            bounce("full", "to_device", 256 << 10),
            bounce("full", "to_device", 4096),
            bounce("full", "to_device", 2 << 20),
        ],
    )
    assert table(run, "swiotlb_by_device") == f"run,{DISK},to_device,0,0,0,0,,,,2,1\n"


def test_bounces_by_the_tracepoint_alone(tmp_path: Path) -> None:
    # GIVEN rows without direction or duration, one of a device nobody named
    run = make_run(
        tmp_path,
        swiotlb=[
            bounce("map", None, 4096, dur_ns=None),
            bounce("map", None, 13, dur_ns=None),
            bounce("map", None, 7, dur_ns=None, device=None),
        ],
    )
    assert table(run, "swiotlb_by_device") == lines(f"""
        run,{DISK},,2,4109,0,0,,,,0,0
        run,,,1,7,0,0,,,,0,0
    """)


def test_page_conversions(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        page_conversion=[
            {"ts_ns": 10, "dur_ns": 100, "to": "shared", "pages": 512},
            {"ts_ns": 30, "dur_ns": 300, "to": "shared", "pages": 1},
            {"ts_ns": 20, "dur_ns": 200, "to": "shared", "pages": 3},
            {"ts_ns": 40, "dur_ns": None, "to": "private", "pages": 2},
        ],
    )
    assert table(run, "page_conversions") == lines(f"""
        run,private,1,{2 * 4096},,,,40,40
        run,shared,3,{516 * 4096},600,200,300,10,30
    """)


def test_encryption_paths_stay_apart(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        uvm_crypto=[
            {"ts_ns": 10, "dur_ns": 1000, "direction": "encrypt", "size_bytes": 4096},
            {"ts_ns": 20, "dur_ns": 3000, "direction": "encrypt", "size_bytes": 4096},
            {"ts_ns": 30, "dur_ns": 2000, "direction": "decrypt", "size_bytes": 64},
        ],
        user_crypto=[
            {"ts_ns": 10, "dur_ns": 500, "direction": "encrypt", "size_bytes": 1000},
            # Open at the end: counted, with no part in the bandwidth.
            {"ts_ns": 10, "dur_ns": None, "direction": "encrypt", "size_bytes": 7},
            {"ts_ns": 10, "dur_ns": None, "direction": "decrypt", "size_bytes": 7, "pid": 200},
        ],
    )
    assert table(run, "crypto_by_path") == lines("""
        run,libcrypto,100,encrypt,2,1007,500,500,500,2000000000.0
        run,libcrypto,200,decrypt,1,7,,,,
        run,uvm,100,encrypt,2,8192,4000,1000,3000,2048000000.0
        run,uvm,100,decrypt,1,64,2000,2000,2000,32000000.0
    """)


def test_counters(tmp_path: Path) -> None:
    def sample(ts_ns: int, name: str, value: float, **more: Any) -> Row:
        return {"ts_ns": ts_ns, "name": name, "value": value, "unit": "bytes", "pid": None, **more}

    run = make_run(
        tmp_path,
        counters=[
            sample(30, "swiotlb.used", 5),
            sample(10, "swiotlb.used", 7),
            sample(20, "swiotlb.used", 11),
            sample(20, "get_kmb", 3, pid=7, unit="requests"),
            sample(20, "get_kmb", 2, pid=5, unit="requests"),
        ],
    )
    assert table(run, "counter_summary") == lines("""
        run,get_kmb,5,requests,1,2.0,2.0,2.0,20
        run,get_kmb,7,requests,1,3.0,3.0,3.0,20
        run,swiotlb.used,,bytes,3,5.0,11.0,5.0,30
    """)
    assert table(run, "counter_summary", {"prefix": "swiotlb."}) == (
        "run,swiotlb.used,,bytes,3,5.0,11.0,5.0,30\n"
    )


def test_nothing_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[{"ts_ns": 1}])
    for report in ("swiotlb_by_device", "page_conversions", "crypto_by_path", "counter_summary"):
        assert table(run, report) == ""
