"""What each thread does in the loop, and whether the one that drives it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, lines, span, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

ROLES = """
    SELECT tid, name, role, calls, blocked_ns, steps, launches, copies, readbacks, waits
    FROM thread_roles ORDER BY pid, tid
"""
ANSWER = """SELECT DISTINCT answer, evidence"""


def call(ts_ns: int, kind: str, dur_ns: int | None = 1, **more: Any) -> Row:
    """A call of one class; h2d and d2h are copies."""
    is_copy = kind in ("h2d", "d2h")
    row: Row = {"api": f"cuda_{kind}", "class": "copy" if is_copy else kind, "layer": "runtime"}
    if is_copy:
        row["copy_kind"] = kind
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, **row, **more}


def steps(*starts: int, **more: Any) -> list[Row]:
    """Steps of 10 ns each."""
    return [span(ts_ns, 10, "step", **more) for ts_ns in starts]


def test_each_thread_has_the_role_of_what_it_does_most(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=steps(100, 200, tid=1),
        cuda_api=[
            *[call(110 + i, "launch", tid=1) for i in range(3)],
            call(120, "graph", tid=1),
            call(130, "h2d", tid=1),
            call(140, "sync", 17, tid=2),
            call(160, "d2h", 13, tid=2),
            call(180, "d2h", None, tid=2),
            *[call(110 + i, "launch", tid=3) for i in range(2)],
            call(115, "h2d", tid=3),
            call(116, "sync", 7, tid=3),
            *[call(110 + i, "collective", tid=4) for i in range(2)],
            call(115, "launch", tid=4),
            *[call(110 + i, "h2d", tid=5) for i in range(2)],
            call(115, "d2h", tid=5),
            call(115, "alloc", tid=6),
            call(115, "free", tid=7),
            call(115, "d2h", depth=1, tid=8),
        ],
        threads=[
            {"ts_ns": 1, "tid": 1, "name": "python"},
            {"ts_ns": 2, "tid": 2, "name": "old"},
            {"ts_ns": 3, "tid": 2, "name": "reader"},
        ],
    )
    assert table(run, ROLES) == lines("""
        1,python,driver,5,0,2,4,1,0,0
        2,reader,readback,3,30,0,0,2,2,1
        3,,submitter,4,7,0,2,1,0,1
        4,,collective,3,0,0,1,0,0,0
        5,,uploader,3,1,0,0,3,1,0
        6,,host,1,0,0,0,0,0,0
    """)


def test_launches_counted_in_the_kernel_count(tmp_path: Path) -> None:
    # GIVEN 7 launches in a window of 10 ns that stands for 30, counted in both layers
    window = {"ts_ns": 100, "window_ns": 10, "total_ns": 7, "max_ns": 1, "histogram": []}
    run = make_run(
        tmp_path,
        cuda_launches=[
            {**window, "api": "cudaLaunchKernel", "calls": 7},
            {**window, "api": "cuLaunchKernel", "calls": 7},
        ],
        counters=[{"ts_ns": 100, "name": "cuda_launches.represents", "value": 30.0, "unit": "ns"}],
    )
    assert table(run, ROLES) == "100,,submitter,21,0,0,21,0,0,0\n"


def answer(run: Path, **params: float) -> list[str]:
    """The answer and the evidence of the report, one line."""
    rows = table(run, "thread_roles", dict(params) or None).splitlines()
    answers = {row.split(",")[1] for row in rows}
    assert len(answers) == 1
    return [answers.pop(), rows[0]]


def test_a_loop_that_waits_itself(tmp_path: Path) -> None:
    # GIVEN two steps of 100 ns and 10 ns, of which the driving thread waits for 55
    run = make_run(
        tmp_path,
        nvtx=steps(100, 200),
        cuda_api=[call(110, "launch"), call(120, "d2h", 50), call(210, "sync", 5)],
        threads=[{"ts_ns": 1, "name": "engine"}],
    )
    assert table(run, "thread_roles") == (
        "run,yes,thread 100 (engine) drives the loop and spends 0.000 ms in copies to the "
        "host and waits, 50.0% of the loop's time, and no other thread waits,"
        "100,100,engine,driver,2,3,1,1,1,1,55,0.5\n"
    )
    assert answer(run, min_ratio=0.51)[0] == "no"


def test_a_loop_whose_worker_thread_waits(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=steps(1_000_000, 11_000_000, tid=101),
        cuda_api=[
            call(1_100_000, "launch", tid=101),
            call(1_200_000, "sync", 100_000, tid=101),
            call(1_100_000, "d2h", 8_000_000, tid=102),
        ],
        threads=[{"ts_ns": 1, "tid": 102, "name": "reader"}],
    )
    found, row = answer(run)
    assert found == "no"
    assert "thread 101 drives the loop and spends 0.100 ms" in row
    assert "1.0% of the loop's time, and thread 102 (reader) 8.000 ms, 80.0%" in row


def test_workers_of_other_processes_stand_for_a_driver_without_calls(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=steps(100, 200),
        cuda_api=[
            call(110, "launch", pid=7, tid=7),
            call(120, "d2h", 22, pid=7, tid=7),
            call(110, "launch", pid=8, tid=8),
            call(120, "d2h", 33, pid=8, tid=8),
        ],
    )
    found, row = answer(run)
    assert found == "yes"
    assert "thread 8 submits for a driving thread that makes no CUDA call" in row
    assert "30.0% of the loop's time, and no other thread waits" in row


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "a_void"),
        make_run(tmp_path, "b_no_steps", cuda_api=[call(10, "launch")]),
        make_run(tmp_path, "c_no_calls", nvtx=steps(100, 200)),
        make_run(tmp_path, "d_open", nvtx=[span(5, None, "step")], cuda_api=[call(10, "launch")]),
        make_run(tmp_path, "e_one", nvtx=steps(100), cuda_api=[call(101, "launch")]),
    ]
    rows = [line.split(",", 3)[:3] for line in table(runs, "thread_roles").splitlines()]
    assert rows == [
        ["a_void", "unknown", "no steps were found"],
        ["b_no_steps", "unknown", "no steps were found"],
        ["c_no_calls", "unknown", "no crossings of a thread that drives or submits were recorded"],
        ["d_open", "unknown", "no step has a known length; it takes two"],
        [
            "e_one",
            "no",
            "thread 100 drives the loop and spends 0.000 ms in copies to the host and waits",
        ],
    ]
