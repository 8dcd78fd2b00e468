"""Reports on CUDA calls over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from query_rows import BATCH, Row, lines, span, table, vllm_step
from runs import make_run

import cctrace

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
CLASSES = {
    "cudaMemcpyAsync": "copy",
    "cuMemcpyHtoDAsync": "copy",
    "cuMemcpyDtoHAsync": "copy",
    "cudaLaunchKernel": "launch",
    "cuLaunchKernel": "launch",
    "cudaGraphLaunch": "graph",
    "cuGraphLaunch": "graph",
    "cudaStreamSynchronize": "sync",
    "cudaFree": "free",
    "cudaEventRecord": "event",
    "cudaMallocHost": "alloc",
    "ncclAllReduce": "collective",
}


def call(ts_ns: int, dur_ns: int | None, api: str, **more: Any) -> Row:
    """One row of cuda_api."""
    return {
        "ts_ns": ts_ns,
        "dur_ns": dur_ns,
        "api": api,
        "layer": "runtime" if api.startswith(("cuda", "nccl")) else "driver",
        "class": CLASSES[api],
        "result": None if dur_ns is None else 0,
        **more,
    }


def copy(ts_ns: int, dur_ns: int | None, size: int | None, kind: str, **more: Any) -> Row:
    """A copy of the runtime's."""
    return call(ts_ns, dur_ns, "cudaMemcpyAsync", size_bytes=size, copy_kind=kind, **more)


def counted(ts_ns: int, window_ns: int, api: str, calls: int, dur_ns: int, **more: Any) -> Row:
    """A row of cuda_launches, its calls all of one length."""
    histogram = [0] * 40
    histogram[dur_ns.bit_length() - 1] = calls
    return {
        "ts_ns": ts_ns,
        "window_ns": window_ns,
        "api": api,
        "calls": calls,
        "total_ns": calls * dur_ns,
        "max_ns": dur_ns,
        "histogram": histogram,
        "stream": 7,
        **more,
    }


def stands_for(ts_ns: int, value: int) -> Row:
    """What a sampled window stands for."""
    return {
        "ts_ns": ts_ns,
        "pid": None,
        "tid": None,
        "name": "cuda_launches.represents",
        "value": float(value),
        "unit": "ns",
    }


def test_cuda_summary(tmp_path: Path) -> None:
    # GIVEN runtime calls with the driver's inside, at the same moment too, an open one, one that
    # failed, and a second process
    run = make_run(
        tmp_path,
        cuda_api=[
            copy(100, 50, 1000, "h2d"),
            call(100, 40, "cuMemcpyHtoDAsync", size_bytes=1000, copy_kind="h2d", depth=1),
            copy(200, 30, 500, "h2d"),
            call(201, 20, "cuMemcpyHtoDAsync", size_bytes=500, copy_kind="h2d", depth=1),
            call(300, 10, "cuMemcpyHtoDAsync", size_bytes=7, copy_kind="h2d"),
            call(400, None, "cudaStreamSynchronize"),
            call(500, 5, "cudaStreamSynchronize", result=600, pid=200),
            copy(600, 1, 2**63 - 1, "d2d", pid=200),
            copy(601, 1, 2**63 - 1, "d2d", pid=200),
        ],
    )
    assert table(run, "cuda_summary") == lines("""
        run,100,runtime,copy,cudaMemcpyAsync,True,2,80,30,50,50,1500,0,0
        run,100,driver,copy,cuMemcpyHtoDAsync,True,1,10,10,10,10,7,0,0
        run,200,runtime,sync,cudaStreamSynchronize,True,1,5,5,5,5,,1,0
        run,200,runtime,copy,cudaMemcpyAsync,True,2,2,1,1,1,9223372036854775807,0,0
        run,100,runtime,sync,cudaStreamSynchronize,True,1,,,,,,0,1
        run,100,driver,copy,cuMemcpyHtoDAsync,False,2,60,20,40,40,1500,0,0
    """)
    assert table(run, "cuda_summary", {"pid": 100, "layer": "driver", "top": 1}) == lines("""
        run,100,driver,copy,cuMemcpyHtoDAsync,True,1,10,10,10,10,7,0,0
    """)


def test_time_of_outermost_calls_is_the_time_in_cuda(tmp_path: Path) -> None:
    # GIVEN three levels of calls
    run = make_run(
        tmp_path,
        cuda_api=[
            call(0, 100, "ncclAllReduce"),
            call(10, 50, "cudaLaunchKernel", depth=1),
            call(20, 30, "cuLaunchKernel", depth=2),
            call(200, 23, "cudaLaunchKernel"),
            call(205, 11, "cuLaunchKernel", depth=1),
        ],
    )
    with cctrace.open(run) as session:
        result = session.report("cuda_summary")
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    assert sum(row["total_ns"] for row in rows if row["outermost"]) == 123
    assert sum(row["calls"] for row in rows) == 5


def test_crossings_are_the_outermost_calls_that_cross(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        cuda_api=[
            call(i, 5, api, depth=depth)
            for i, (api, depth) in enumerate(
                [*((api, 0) for api in CLASSES), ("cuLaunchKernel", 1), ("cuGraphLaunch", 2)]
            )
        ],
    )
    found = table(run, "SELECT class, count(*) FROM crossings GROUP BY class ORDER BY class")
    assert found == lines("""
        alloc,1
        collective,1
        copy,3
        graph,2
        launch,2
        sync,1
    """)


def test_copies_by_kind_memory_and_size(tmp_path: Path) -> None:
    # GIVEN copies on both sides of the borders of the classes
    run = make_run(
        tmp_path,
        cuda_api=[
            copy(1, 10, 0, "h2d", host_memory="pinned"),
            copy(2, 30, 4095, "h2d", host_memory="pinned"),
            copy(3, 20, 4096, "h2d", host_memory="pinned"),
            copy(4, 20, 4096, "h2d", host_memory="pageable"),
            copy(5, 40, 64 * KIB - 1, "h2d", host_memory="pageable"),
            copy(6, 100, 64 * KIB, "d2h", host_memory="pinned"),
            copy(7, 100, MIB, "d2h", host_memory="pinned"),
            copy(8, 1000, 16 * MIB, "d2h", host_memory="pinned"),
            copy(9, 1000, 256 * MIB, "d2h", host_memory="pinned"),
            copy(10, 1000, 2**62, "d2h", host_memory="pinned"),
            copy(11, 0, 100, "d2d"),
            copy(12, None, 100, "p2p"),
            copy(13, 9, None, "unknown"),
            call(13, 8, "cuMemcpyDtoHAsync", copy_kind="d2h", depth=1, size_bytes=3),
            call(14, 9, "cudaFree"),
        ],
    )
    large = 2**62 + 256 * MIB
    assert table(run, "copies") == lines(f"""
        run,d2d,,0,1,100,0,0,0,
        run,d2h,pinned,65536,1,65536,100,100,100,{64 * KIB / 100e-9}
        run,d2h,pinned,1048576,1,1048576,100,100,100,{1e9 * MIB / 100}
        run,d2h,pinned,16777216,1,16777216,1000,1000,1000,{1e9 * 16 * MIB / 1000}
        run,d2h,pinned,268435456,2,{large},2000,1000,1000,{large / 2e-6}
        run,h2d,pageable,4096,2,69631,60,20,40,{round(1e9 * 69631 / 60)}.0
        run,h2d,pinned,0,2,4095,40,10,30,{1e9 * 4095 / 40}
        run,h2d,pinned,4096,1,4096,20,20,20,{1e9 * 4096 / 20}
        run,p2p,,0,1,100,,,,
        run,unknown,,,1,,9,9,9,
    """)  # fmt: skip
    assert table(run, "copies", {"pid": 5}) == ""


def test_an_open_copy_does_not_count_for_the_bandwidth(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=[copy(1, 10, 10, "h2d"), copy(2, None, 4000, "h2d")])
    assert table(run, "copies") == "run,h2d,,0,2,4010,10,10,10,1000000000.0\n"


def test_launches_recorded_and_counted_together(tmp_path: Path) -> None:
    # GIVEN a thread whose launches are recorded first, and then counted in windows
    run = make_run(
        tmp_path,
        cuda_api=[
            call(10, 1000, "cudaLaunchKernel", stream=7),
            call(11, 900, "cuLaunchKernel", stream=7, depth=1),
            call(1100, 3000, "cudaLaunchKernel", stream=8),
            call(5000, None, "cudaLaunchKernel", stream=9),
            call(6000, 77, "cudaGraphLaunch", tid=101),
            call(7000, 13, "cudaStreamSynchronize"),
        ],
        cuda_launches=[
            counted(10_000, 1000, "cudaLaunchKernel", 5, 1500),
            counted(11_000, 1000, "cudaLaunchKernel", 6, 1500),
            counted(11_000, 1000, "cuLaunchKernel", 6, 1400),
        ],
    )
    assert table(run, "launches") == lines("""
        run,100,100,runtime,cudaLaunchKernel,14,14,False,3,20500,1577,2048,4096,3000
        run,100,100,driver,cuLaunchKernel,7,7,False,1,9300,1329,2048,2048,1400
        run,100,101,runtime,cudaGraphLaunch,1,1,False,0,77,77,128,128,77
    """)
    assert table(run, "launches", {"pid": 7}) == ""


def test_sampled_launches_are_estimated(tmp_path: Path) -> None:
    # GIVEN windows of which one stands for ten times its length, and one for itself
    run = make_run(
        tmp_path,
        cuda_launches=[
            counted(1000, 50, "cudaLaunchKernel", 7, 9),
            counted(1500, 50, "cudaLaunchKernel", 3, 9),
            counted(1600, 50, "cuLaunchKernel", 11, 9, tid=101),
        ],
        counters=[
            stands_for(1000, 500),
            stands_for(1500, 100),
            # Another counter at the same time.
            {**stands_for(1600, 5000), "name": "gpu.clock"},
        ],
    )
    assert table(run, "launches") == lines("""
        run,100,100,runtime,cudaLaunchKernel,10,76,True,1,90,9,16,16,9
        run,100,101,driver,cuLaunchKernel,11,11,False,1,99,9,16,16,9
    """)


@pytest.mark.parametrize(
    ("dur_ns", "below_ns"), [(0, 2), (1, 2), (2, 4), (1023, 1024), (1024, 2048), (2**45, 2**40)]
)
def test_launches_lie_below_a_power_of_two(tmp_path: Path, dur_ns: int, below_ns: int) -> None:
    run = make_run(tmp_path, cuda_api=[call(1, dur_ns, "cuLaunchKernel")])
    expected = f"run,100,100,driver,cuLaunchKernel,1,1,False,0,{dur_ns},{dur_ns}"
    assert table(run, "launches") == f"{expected},{below_ns},{below_ns},{dur_ns}\n"


def test_open_launches_have_no_length(tmp_path: Path) -> None:
    run = make_run(tmp_path, cuda_api=[call(1, None, "cuLaunchKernel")])
    assert table(run, "launches") == "run,100,100,driver,cuLaunchKernel,1,1,False,0,0,,,,\n"


STEPS = [
    *vllm_step(1000, 500, "decode", BATCH),
    *vllm_step(2000, 500, "decode", BATCH),
    *vllm_step(3000, 500, "prefill", BATCH),
    *vllm_step(4000, 500, "decode", BATCH),
]


def test_crossings_per_step(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_api=[
            copy(999, 5, 64, "d2h"),  # before the first
            copy(1000, 300, 64, "d2h"),  # at its very start, with the driver's inside
            call(1000, 290, "cuMemcpyDtoHAsync", copy_kind="d2h", size_bytes=64, depth=1),
            copy(1999, 100, 32, "d2h"),  # after its range, before the next step
            copy(2000, 10, 32, "d2h"),
            copy(2100, None, None, "h2d"),  # open
            call(2200, 20, "cudaLaunchKernel"),
            call(2300, 20, "cudaLaunchKernel"),
            call(2300, 20, "cudaFree"),  # no crossing
            call(2300, 20, "cudaLaunchKernel", tid=101),  # another thread's
            call(4500, 20, "cudaStreamSynchronize"),  # the last step ends with its range
        ],
    )
    third = 1 / 3
    assert table(run, "crossings_per_step") == lines(f"""
        run,vllm,decode,copy,d2h,3,3.0,1.0,2.0,137,43,False
        run,vllm,decode,launch,,3,2.0,{2 * third},2.0,13,,False
        run,vllm,decode,copy,h2d,3,1.0,{third},1.0,0,,False
        run,vllm,prefill,,,1,,,,,,False
    """)
    assert table(run, "crossings_per_step", {"phase": "prefill", "engine": "vllm"}) == lines("""
        run,vllm,prefill,,,1,,,,,,False
    """)
    assert table(run, "crossings_per_step", {"engine": "transformers"}) == ""


def test_counted_launches_are_spread_over_the_steps_of_their_window(tmp_path: Path) -> None:
    # GIVEN a window over the second half of one step and the first half of the next, counted in
    # both layers, and a sampled one that stands for the whole of the third step
    run = make_run(
        tmp_path,
        nvtx=STEPS,
        cuda_launches=[
            counted(1500, 1000, "cudaLaunchKernel", 42, 16),
            counted(1500, 1000, "cuLaunchKernel", 42, 8),
            counted(1500, 1000, "cudaGraphLaunch", 6, 16),
            counted(3000, 100, "cuLaunchKernel", 10, 16),
            counted(1500, 1000, "cudaLaunchKernel", 999, 16, tid=101),
        ],
        counters=[stands_for(3000, 1000)],
    )
    assert table(run, "crossings_per_step") == lines("""
        run,vllm,decode,launch,,3,42.0,14.0,21.0,224,,True
        run,vllm,decode,graph,,3,6.0,2.0,3.0,32,,True
        run,vllm,prefill,launch,,1,100.0,100.0,100.0,1600,,True
    """)


def test_two_engines_on_one_thread_each_have_their_crossings(tmp_path: Path) -> None:
    # GIVEN steps of a program's own around those of transformers
    run = make_run(
        tmp_path,
        nvtx=[
            span(1000, 900, "step", domain="app"),
            span(1100, 100, "transformers.forward", domain="cctrace", depth=1),
            span(2000, 900, "step", domain="app"),
        ],
        cuda_api=[call(1150, 3, "cudaLaunchKernel"), call(1950, 3, "cudaLaunchKernel")],
    )
    assert table(run, "crossings_per_step") == lines("""
        run,app,,launch,,2,2.0,1.0,2.0,3,,False
        run,transformers,,launch,,1,1.0,1.0,1.0,3,,False
    """)


def test_several_runs_do_not_mix(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path,
            name,
            nvtx=STEPS,
            cuda_api=[copy(1000 + i, 10, 8, "h2d") for i in range(count)],
            cuda_launches=[counted(1000, 100, "cuLaunchKernel", count, 16)],
            counters=[stands_for(1000, 100 * count)],
        )
        for name, count in (("one", 3), ("two", 5))
    ]
    found = table(runs, "SELECT run, count(*) FROM crossings GROUP BY run ORDER BY run")
    assert found == "one,3\ntwo,5\n"
    assert [row.split(",")[6] for row in table(runs, "launches").splitlines()] == ["9", "25"]
    assert [row.split(",")[4] for row in table(runs, "copies").splitlines()] == ["3", "5"]
    assert [row.split(",")[6] for row in table(runs, "cuda_summary").splitlines()] == ["3", "5"]
    per_step = [row.split(",") for row in table(runs, "crossings_per_step").splitlines()]
    assert [(row[0], row[6]) for row in per_step if row[3] == "copy"] == [
        ("one", "3.0"),
        ("two", "5.0"),
    ]
