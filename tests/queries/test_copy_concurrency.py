"""Do copies of several streams overlap? As gpu_activity shows, or as calls that wait tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from query_rows import Row, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

MAIN, SIDE = 7, 8  # streams


def copy(ts_ns: int, dur_ns: int, kind: str, memory: str = "pinned", **more: Any) -> Row:
    """One copy of the runtime."""
    row = {"ts_ns": ts_ns, "dur_ns": dur_ns, "api": "cudaMemcpyAsync", "class": "copy"}
    row |= {"layer": "runtime", "depth": 0, "result": 0, "size_bytes": 64}
    return {**row, "copy_kind": kind, "host_memory": memory, **more}


def bus_copy(ts_ns: int, dur_ns: int, stream: int) -> Row:
    """What the device did for the copy ``given`` with the same first moment."""
    row = {"ts_ns": ts_ns, "dur_ns": dur_ns, "device": 0, "stream": stream, "class": "copy"}
    return {**row, "copy_kind": "h2d", "correlation_id": ts_ns}


def given(ts_ns: int, at_ns: int, stream: int) -> Row:
    return copy(at_ns, 5_000, "h2d", stream=stream, correlation_id=ts_ns)


@pytest.mark.parametrize(
    ("late_ns", "answer", "overlapped", "concurrency"),
    [(0, "no", 0, 1.0), (-80_000, "yes", 3, 1.25)],
)
def test_copies_that_were_seen(
    tmp_path: Path, late_ns: int, answer: str, overlapped: int, concurrency: float
) -> None:
    """Pairs on two streams, the second given while the first was under way."""
    copies, calls = [], []
    for pair in range(3):
        at_ns = 1_000_000 * (pair + 1)
        second_ns = at_ns + 200_000 + late_ns
        copies += [bus_copy(at_ns, 200_000, MAIN), bus_copy(second_ns, 200_000, SIDE)]
        calls += [given(at_ns, at_ns - 9_000, MAIN), given(second_ns, at_ns + 9_000, SIDE)]
    run = make_run(tmp_path, cuda_api=calls, gpu_activity=copies)
    [row] = table(run, "copy_concurrency", {"min_pairs": 3}).splitlines()
    assert row.split(",")[1] == answer
    assert row.split(",")[-4:-1] == ["observed", "3", str(overlapped)]
    assert float(row.split(",")[-1]) == pytest.approx(concurrency)
    # Too few by default, and none that are long enough.
    assert table(run, "copy_concurrency").split(",")[1] == "unknown"
    assert "only 3 pairs" in table(run, "copy_concurrency")
    assert "no copies" in table(run, "copy_concurrency", {"min_work_ns": 300_000})


@pytest.mark.parametrize(("second_end_ns", "answer"), [(2_000_000, "no"), (1_110_000, "yes")])
def test_copies_of_two_threads(tmp_path: Path, second_end_ns: int, answer: str) -> None:
    """Without gpu_activity: two that wait take as long together as they take in turn."""
    calls = []
    # 19,200,000 bytes at 19.2 GB/s, the published bandwidth: 1,000,000 ns on the device.
    for pair in range(4):
        at_ns = 10_000_000 * pair
        for tid, ts_ns, end_ns, stream in (
            (101, at_ns, at_ns + 1_005_000, MAIN),
            (102, at_ns + 100_000, at_ns + second_end_ns, SIDE),
        ):
            calls.append(
                copy(
                    ts_ns,
                    end_ns - ts_ns,
                    "d2h",
                    "pageable",
                    tid=tid,
                    stream=stream,
                    size_bytes=19_200_000,
                )
            )
    run = make_run(tmp_path, cuda_api=calls)
    row = table(run, "copy_concurrency", {"min_pairs": 4})
    assert row.split(",")[1] == answer, row
    assert table(make_run(tmp_path, "none"), "copy_concurrency").split(",")[1] == "unknown"
