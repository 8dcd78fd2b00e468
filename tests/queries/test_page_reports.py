"""What the HTML page asks of a run: lengths over time, a choice of steps, their events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from query_rows import Row, lines, span, table
from runs import make_run

import cctrace

if TYPE_CHECKING:
    from pathlib import Path


def steps(*lengths: int, **more: Any) -> list[Row]:
    """Steps of those lengths, one after the other; the last one's length is not known."""
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [span(at, 1, "step", category="decode", **more) for at in starts]


def rows(run: Path, report: str, **params: Any) -> list[tuple[Any, ...]]:
    with cctrace.open(run) as session:
        return session.report(report, params).fetchall()


# -- itl_over_time ---------------------------------------------------------------------


def test_few_steps_have_a_bin_each(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=steps(10, 30, 20))
    assert table(run, "itl_over_time") == lines("""
        run,default,decode,0,1,0,10,1,10,10,10
        run,default,decode,1,2,10,40,1,30,30,30
        run,default,decode,2,3,40,60,1,20,20,20
    """)


def test_many_steps_share_bins(tmp_path: Path) -> None:
    # GIVEN seven steps for three bins: two hold two steps, one holds three
    run = make_run(tmp_path, nvtx=steps(10, 12, 14, 90, 16, 18, 11))
    assert table(run, "itl_over_time", {"bins": 3}) == lines("""
        run,default,decode,0,1,0,36,3,10,12,14
        run,default,decode,1,4,36,142,2,16,16,90
        run,default,decode,2,6,142,171,2,11,11,18
    """)


@pytest.mark.parametrize(("count", "bins"), [(2_003, 2_000), (10_007, 2_000), (1_999, 1_999)])
def test_no_step_is_left_out_of_the_bins(tmp_path: Path, count: int, bins: int) -> None:
    run = make_run(tmp_path, nvtx=steps(*(7 + i % 11 for i in range(count))))
    found = rows(run, "itl_over_time")
    assert len(found) == bins
    assert sum(row[7] for row in found) == count
    assert {row[7] for row in found} <= {count // bins, count // bins + 1}
    assert max(row[10] for row in found) == 17


def test_a_run_without_steps_has_no_bins(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[span(0, 5, "work")])
    for report in ("itl_over_time", "itl_histogram", "steps_to_show"):
        assert rows(run, report) == []


# -- itl_histogram ---------------------------------------------------------------------


def test_bins_of_equal_width_and_one_more(tmp_path: Path) -> None:
    # GIVEN 49 steps of 100 to 109 ns and one of 900: the 98th percentile is among the first
    run = make_run(tmp_path, nvtx=steps(*(100 + i % 10 for i in range(49)), 900))
    found = table(run, "itl_histogram", {"bins": 5})
    # THEN bins are (109 - 100) / 5 + 1 = 2 wide, and the long one is in the last
    assert found == lines("""
        run,default,decode,100,102,10
        run,default,decode,102,104,10
        run,default,decode,104,106,10
        run,default,decode,106,108,10
        run,default,decode,108,110,9
        run,default,decode,110,,1
    """)


def test_steps_of_one_length_are_one_bin(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=steps(*[10] * 13))
    assert table(run, "itl_histogram") == "run,default,decode,10,11,13\n"


# -- steps_to_show ---------------------------------------------------------------------


def test_which_steps_are_shown(tmp_path: Path) -> None:
    # GIVEN steps of 1 to 101 ns, the 7th as long as all others together
    run = make_run(tmp_path, nvtx=steps(*(9_999 if i == 7 else i for i in range(1, 102))))
    found = [(row[1], row[2], row[3]) for row in rows(run, "steps_to_show", examples="5, 77,5")]
    assert found == [
        ("median", 1, 52),
        ("example", 1, 5),
        ("example", 2, 77),
        ("p90", 1, 92),
        ("p99", 1, 101),
        ("slowest", 1, 7),
        ("slowest", 2, 101),
        ("slowest", 3, 100),
        ("slowest", 4, 99),
        ("slowest", 5, 98),
        ("first", 1, 1),
        ("first", 2, 2),
        ("first", 3, 3),
    ]


def test_an_example_that_is_no_step_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=steps(3, 5))
    # 3 has no known length, 999 is not there, and the rest are no numbers
    found = rows(run, "steps_to_show", examples="3,999,x,,1e9", slowest=0, first=0)
    assert {row[1] for row in found} == {"median", "p90", "p99"}


def test_lengths_are_compared_within_a_phase(tmp_path: Path) -> None:
    made = steps(10, 20, 30)
    made[1]["category"] = "prefill"
    run = make_run(tmp_path, nvtx=made)
    found = rows(run, "steps_to_show", engine="default", phase="prefill", first=1)
    assert [(row[1], row[3]) for row in found] == [
        ("median", 2), ("p90", 2), ("p99", 2), ("slowest", 2), ("first", 1),
    ]  # fmt: skip


# -- steps_around ----------------------------------------------------------------------


def test_the_steps_beside_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=steps(*[10] * 7))
    found = rows(run, "steps_around", steps="5,1", before=2, after=1)
    assert [row[1:3] for row in found] == [(1, 1), (1, 2), (5, 3), (5, 4), (5, 5), (5, 6)]
    assert found[2][3:] == (100, 100, 20, 10, "decode")


def test_no_step_beyond_a_pause(tmp_path: Path) -> None:
    # GIVEN four steps, another call of generate, and four more
    later = [row | {"ts_ns": row["ts_ns"] + 60} for row in steps(10, 10, 10)]
    run = make_run(tmp_path, nvtx=[*steps(10, 10, 10), span(45, 99, "generate"), *later])
    known = rows(run, "steps_to_show", first=99, slowest=0)
    first = rows(run, "steps_around", steps="5", before=9, after=9)
    # THEN the step before the pause has no length, and those beyond it are not beside it
    assert 4 not in {row[3] for row in known}
    assert [row[2] for row in first] == [5, 6, 7]


# -- step_timeline ---------------------------------------------------------------------

CALL: Row = {"api": "cudaMemcpyAsync", "layer": "runtime", "class": "copy", "copy_kind": "h2d",
             "size_bytes": 8, "host_memory": "pinned", "depth": 0}  # fmt: skip


def test_what_reaches_into_a_step_is_shown(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            *steps(100, 100, 100),
            span(0, None, "serve", depth=0, tid=101),
            span(99, 1, "before", tid=101),  # ends as the step begins
            span(200, 5, "after", tid=101),
            span(150, 0, "mark", kind="mark"),
        ],
        cuda_api=[
            CALL | {"ts_ns": 90, "dur_ns": 20},
            CALL | {"ts_ns": 120, "dur_ns": 5, "depth": 1},  # inside another one
            CALL | {"ts_ns": 150, "dur_ns": 7, "tid": 103},
        ],
        sched=[
            {"ts_ns": 160, "dur_ns": 30, "state": "blocked"},
            {"ts_ns": 160, "dur_ns": 30, "state": "blocked", "tid": 999},  # does nothing else
        ],
        gpu_activity=[{"ts_ns": 95, "dur_ns": 50, "class": "kernel", "name": "k", "device": 1,
                       "stream": 7}],
    )  # fmt: skip
    found = rows(run, "step_timeline", steps="2")
    shown = [(row[2], row[4], row[7], row[8], row[10], row[15]) for row in found]
    assert shown == [
        ("range", 101, 0, None, "serve", 0),
        ("call", 100, 90, 20, "cudaMemcpyAsync", 0),
        ("device", 100, 95, 50, "k", 0),
        ("range", 100, 100, 1, "step", 0),
        ("call", 103, 150, 7, "cudaMemcpyAsync", 0),
        ("off_cpu", 100, 160, 30, "blocked", 0),
    ]


def test_the_longest_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    calls = [CALL | {"ts_ns": 100 + i, "dur_ns": i + 1} for i in range(17)]
    run = make_run(tmp_path, nvtx=steps(100, 100, 100), cuda_api=calls)
    found = rows(run, "step_timeline", steps="2,1", most=5)
    assert [(row[1], row[8], row[15]) for row in found] == [
        (1, 1, 0), (2, 13, 13), (2, 14, 13), (2, 15, 13), (2, 16, 13), (2, 17, 13),
    ]  # fmt: skip
