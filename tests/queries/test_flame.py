"""What flamegraphs add up: rows small enough to check by hand, and totals of any rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flame_rows import CALLS, flame, fold, small_run
from hypothesis import given, settings
from hypothesis import strategies as st
from part_rows import SCHED, STEP_PARTS, call, copy, off_cpu
from query_rows import Row, span, table
from runs import make_run

import cctrace
from cctrace.errors import CctraceError
from cctrace.exporters.flame.frames import DEFAULT_LEVELS
from cctrace.exporters.flame.select import Selection, select

if TYPE_CHECKING:
    from pathlib import Path


def window(ts_ns: int, total_ns: int, api: str = "cudaLaunchKernel", calls: int = 5) -> Row:
    """Launches counted in the kernel over 100 ns."""
    row: Row = {"ts_ns": ts_ns, "window_ns": 100, "api": api, "calls": calls}
    return {**row, "total_ns": total_ns, "histogram": []}


COUNTED = [window(1100, 60), window(1100, 40, "cuLaunchKernel")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("flame"))


def test_wall_time_by_hand(run: Path) -> None:
    assert fold(run, "nvtx", "api") == (
        "cudaMemcpyAsync h2d pinned <=4 KiB [never returned] 200\n"
        "cudaStreamSynchronize 50\n"
        "host_compute 50\n"
        "step;cudaMemcpyAsync d2h pinned <=64 B 200\n"
        "step;cudaMemcpyAsync h2d pinned <=4 KiB [never returned] 300\n"
        "step;cudaStreamSynchronize 50\n"
        "step;forward;cudaLaunchKernel 50\n"
        "step;forward;host_compute 250\n"
        "step;host_compute 803\n"
        "step;lock_wait 40\n"
        "step;runnable 7\n"
    )


def test_stacks_are_below_their_call_and_outermost_first(run: Path) -> None:
    assert fold(run, "api", "stack", phase="prefill").splitlines()[:2] == [
        "cudaLaunchKernel;execute (vllm/model.py:12);launch (libtorch.so) 50",
        "cudaMemcpyAsync d2h pinned <=64 B;to (vllm/read.py:3);do_sys_poll_[k] 200",
    ]


def test_levels_change_places_and_go(run: Path) -> None:
    assert fold(run, "stack", "process", phase="prefill") == (
        "execute (vllm/model.py:12);launch (libtorch.so);python3 (100) 50\n"
        "python3 (100) 750\n"
        "to (vllm/read.py:3);do_sys_poll_[k];python3 (100) 200\n"
    )


def test_time_in_calls_on_all_threads(run: Path) -> None:
    # The call that never returned has no time, and the driver's call is within another.
    assert fold(run, "thread", "nvtx", "api", weight="blocked") == (
        "copier (101);cudaMemcpyAsync h2d pageable <=1 MiB 30\n"
        "copier (101);cudaMemcpyAsync h2d pinned 70\n"
        "main (100);cudaStreamSynchronize 100\n"
        "main (100);step;cudaMemcpyAsync d2h pinned <=64 B 200\n"
        "main (100);step;forward;cudaLaunchKernel 50\n"
    )


def test_bytes_and_calls(run: Path) -> None:
    assert fold(run, "thread", weight="bytes") == "copier (101) 1000003\nmain (100) 4160\n"
    assert fold(run, "thread", weight="count") == "copier (101) 2\nmain (100) 4\n"


def test_what_starts_in_a_step_is_the_steps(run: Path) -> None:
    chosen = {"weight": "count", "first_step": 2, "last_step": 2}
    assert fold(run, "thread", **chosen) == "copier (101) 1\nmain (100) 1\n"
    assert fold(run, "thread", weight="blocked", phase="prefill") == (
        "copier (101) 30\nmain (100) 350\n"
    )


def test_a_call_in_steps_of_two_threads_is_in_either(tmp_path: Path) -> None:
    # GIVEN a short step of another thread within the first step of the main one
    spans = [
        *(span(at, 900, "step", domain="a", category="decode") for at in (0, 1000, 2000)),
        span(200, 50, "step", domain="b", tid=101, category="prefill"),
    ]
    calls = [copy(150, 10, 64), copy(210, 7, 64), copy(500, 200, 64), copy(1500, 100, 64)]
    run = small_run(tmp_path, nvtx=spans, cuda_api=calls, cuda_launches=[window(500, 13)])
    # THEN what comes behind the short step is still in the long one
    chosen = {"weight": "blocked", "first_step": 1, "last_step": 1}
    assert fold(run, "thread", **chosen) == "main (100) 230\n"
    assert fold(run, "thread", weight="blocked", phase="decode") == "main (100) 330\n"
    assert fold(run, "thread", weight="blocked", phase="prefill") == "main (100) 7\n"


_AT = st.integers(0, 400)
_STEPS_OF = st.lists(st.tuples(_AT, st.integers(0, 90)), max_size=7)


@settings(max_examples=31, deadline=None)
@given(
    steps=st.dictionaries(st.sampled_from([100, 101, 102]), _STEPS_OF, min_size=1),
    starts=st.lists(_AT, min_size=1, max_size=31),
    numbers=st.tuples(st.integers(1, 9), st.integers(1, 9)).map(sorted),
)
def test_any_steps_that_overlap(
    tmp_path_factory: pytest.TempPathFactory,
    steps: dict[int, list[tuple[int, int]]],
    starts: list[int],
    numbers: list[int],
) -> None:
    first, last = numbers
    spans = [
        span(at, dur_ns, "step", domain=f"d{tid}", tid=tid)
        for tid, own in steps.items()
        for at, dur_ns in own
    ]
    calls = [copy(at, 1, 64, tid=103) for at in starts]
    run = small_run(tmp_path_factory.mktemp("any"), nvtx=spans, cuda_api=calls)
    with cctrace.open(run) as session:
        found = session.sql(
            "SELECT step_id, ts_ns, ts_ns + coalesce(period_ns, dur_ns) FROM steps"
        ).fetchall()
        chosen = {"first_step": first, "last_step": last}
        rows = session.report("flame_crossings", chosen).arrow().to_pylist()
    within = [(start, end) for step_id, start, end in found if first <= step_id <= last]
    assert sum(int(row["calls"]) for row in rows) == sum(
        any(start <= at < end for start, end in within) for at in starts
    )


def test_sizes_that_are_absurd_are_added_up_exactly(tmp_path: Path) -> None:
    most = 2**63 - 1
    calls = [copy(500, 200, most), copy(750, 20, most), call(150, 50, "launch")]
    run = small_run(tmp_path, cuda_api=calls)
    assert fold(run, "thread", weight="bytes") == f"main (100) {2 * most}\n"
    assert fold(run, "thread", weight="blocked") == "main (100) 270\n"
    assert fold(run, "thread", weight="count") == "main (100) 3\n"


def test_threads_by_number_and_by_name(run: Path) -> None:
    for thread in ("101", "copier"):
        assert fold(run, "thread", weight="blocked", thread=thread) == "copier (101) 100\n"


def test_names_without_numbers(run: Path) -> None:
    found = fold(run, "process", "thread", weight="count", by_name=True)
    assert found == "python3;copier 2\npython3;main 4\n"


def test_parts_of_calls_are_those_of_step_parts(run: Path) -> None:
    with cctrace.open(run) as session:
        sums = ", ".join(f"CAST(sum({part}) AS BIGINT)" for part in STEP_PARTS)
        (expected,) = session.sql(f"SELECT {sums} FROM step_parts").fetchall()
    found = dict.fromkeys(STEP_PARTS, 0)
    for line in fold(run, "part").splitlines():
        part, dur_ns = line.rsplit(" ", 1)
        found[f"{part}_ns"] += int(dur_ns)
    assert tuple(found.values()) == expected


def test_launches_counted_in_the_kernel(tmp_path: Path) -> None:
    # GIVEN a window of 100 ns in step 2, 60 of them in launches by the runtime
    run = small_run(tmp_path, cuda_launches=COUNTED)
    # THEN of the layers the longer one counts, once
    blocked = fold(run, "nvtx", "api", weight="blocked").splitlines()
    assert "cudaLaunchKernel [counted] 60" in blocked
    assert not [line for line in blocked if "cuLaunchKernel" in line]
    assert "cudaLaunchKernel [counted] 5" in fold(run, "api", weight="count").splitlines()
    # AND they are taken from the time that the thread computes
    wall = fold(run, "nvtx", "api", first_step=2, last_step=2).splitlines()
    assert "step;launch [counted] 60" in wall
    assert "step;host_compute 390" in wall


def test_counted_launches_of_a_step_add_up_over_its_paths(tmp_path: Path) -> None:
    # GIVEN 7 ns of launches in a step whose computing is in paths of 10, 20 and 70 ns
    run = make_run(
        tmp_path,
        nvtx=[span(0, 100, "step"), span(10, 20, "a", depth=1), span(30, 70, "b", depth=1),
              span(100, 1, "step")],
        cuda_launches=[window(0, 7)],
    )  # fmt: skip
    # THEN each has its share, rounded so that they sum to 7
    assert fold(run, "nvtx", "api") == (
        "step;a;launch [counted] 2\n"
        "step;a;unattributed 18\n"
        "step;b;launch [counted] 5\n"
        "step;b;unattributed 65\n"
        "step;unattributed 10\n"
    )


def test_bubbles_are_of_the_call_whose_return_began_them(tmp_path: Path) -> None:
    # GIVEN a readback that waits for all work, and 43 ns later the next launch
    run = make_run(
        tmp_path,
        nvtx=[span(100, 500, "read")],
        cuda_api=[
            call(0, 10, "launch"),
            call(150, 50, "sync", stack_id=8),
            call(243, 10, "launch"),
            call(300, 20, "sync"),
            call(331, 10, "launch"),
        ],
    )
    assert table(run, "SELECT ts_ns, dur_ns FROM bubbles ORDER BY ts_ns") == "200,43\n320,11\n"
    assert fold(run, "nvtx", "api", weight="bubble") == "read;cudaStreamSynchronize 54\n"
    assert fold(run, "stack", "api", weight="bubble") == (
        "[stack 8 is missing];cudaStreamSynchronize 43\ncudaStreamSynchronize 11\n"
    )


def test_ranges_that_cross(tmp_path: Path) -> None:
    nvtx = [span(0, 30, "a", domain="a"), span(20, 30, "b", domain="b")]
    run = make_run(tmp_path, nvtx=nvtx, cuda_api=[call(35, 10, "launch")])
    assert fold(run, "nvtx", "api", weight="blocked") == "[ranges that cross];cudaLaunchKernel 10\n"


def test_calls_that_overlap_still_fill_the_step(tmp_path: Path) -> None:
    # GIVEN calls of one thread that overlap, which none should
    rows = [call(10, 50, "launch"), call(20, 10, "sync")]
    run = make_run(tmp_path, cuda_api=rows, nvtx=[span(0, 100, "step"), span(100, 1, "step")])
    assert fold(run, "api") == "cudaLaunchKernel 10\ncudaStreamSynchronize 10\nunattributed 80\n"


def test_two_engines_on_one_thread_count_each(tmp_path: Path) -> None:
    nvtx = [span(t, 50, "step", domain=domain) for domain in "ab" for t in (0, 100, 200)]
    run = make_run(tmp_path, nvtx=nvtx, cuda_api=[call(60, 10, "launch")])
    assert table(run, "SELECT CAST(sum(period_ns) AS BIGINT) FROM step_parts") == "400\n"
    assert flame(run).totals == (400,)
    assert "cudaLaunchKernel 20\n" in fold(run, "api")


@pytest.mark.parametrize(
    ("changes", "selection", "told"),
    [
        ({"nvtx": []}, {}, ("has no step of known length", "--weight blocked, bubble", 1)),
        ({}, {"phase": "verify"}, ("is of the phase 'verify'", "decode, prefill", 2)),
        ({}, {"first_step": 9}, ("is within these numbers", "numbered 1 to 3", 2)),
        ({}, {"thread": "x", "weight": "count"}, ("thread 'x'", "main (100), copier (101)", 2)),
        ({"cuda_api": []}, {"weight": "bytes"}, ("no copy of known size", "", 1)),
        ({"cuda_api": []}, {"weight": "blocked"}, ("no time in calls", "", 1)),
        ({"cuda_api": []}, {"weight": "bubble"}, ("no bubble", "", 1)),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, changes: Row, selection: Row, told: tuple[str, str, int]
) -> None:
    message, hint, code = told
    with pytest.raises(CctraceError) as caught:
        flame(small_run(tmp_path, **changes), **selection)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == code


def test_the_timeline_is_in_order_and_ends_where_it_is_too_long(run: Path) -> None:
    with cctrace.open(run) as session:
        query = {"first_step": 1, "last_step": 1}
        rows = session.report("flame_timeline", query).fetchall()
        none = session.report("flame_timeline", {**query, "most": len(rows) - 1}).fetchall()
    assert [(row[8], row[10] or row[13]) for row in rows] == [
        (0, "host_compute"), (100, "host_compute"), (150, "cudaLaunchKernel"),
        (200, "host_compute"), (400, "host_compute"), (500, "cudaMemcpyAsync"),
        (700, "host_compute"), (710, "lock_wait"), (750, "host_compute"), (760, "runnable"),
        (767, "host_compute"), (900, "host_compute"), (950, "cudaStreamSynchronize"),
    ]  # fmt: skip
    assert sum(row[-1] for row in rows) == 1000
    assert none == []


def test_two_runs_at_once_are_told_apart(tmp_path: Path) -> None:
    one = small_run(tmp_path, "one")
    two = small_run(tmp_path, "two", cuda_api=CALLS[:2])
    query = "SELECT run, CAST(sum(dur_ns) AS BIGINT) FROM _step_wall GROUP BY run ORDER BY run"
    assert table([one, two], query) == "one,2000\ntwo,2000\n"
    with cctrace.open(one, two) as session:
        rows = session.report("flame_crossings").arrow().to_pylist()
    assert sum(row["calls"] for row in rows if row["run"] == "one") == 6
    assert sum(row["calls"] for row in rows if row["run"] == "two") == 2


_TIMES = st.integers(0, 400)
_LENGTHS = st.integers(0, 150)
_ENDS = st.one_of(st.none(), _LENGTHS)


def _some(made: st.SearchStrategy[Row], most: int) -> st.SearchStrategy[list[Row]]:
    return st.lists(made, max_size=most)


# Rows of any times: ranges, calls and waits may overlap and cross, as none should.
_ROWS = st.fixed_dictionaries(
    {
        "nvtx": st.tuples(
            _some(st.builds(span, _TIMES, _LENGTHS, st.just("step"), domain=st.just("loop")), 5),
            _some(st.builds(span, _TIMES, _ENDS, st.sampled_from("ab")), 4),
        ).map(lambda both: both[0] + both[1]),
        "cuda_api": st.tuples(
            _some(st.builds(call, _TIMES, _ENDS, st.sampled_from(["launch", "sync", "free"])), 4),
            _some(st.builds(copy, _TIMES, _ENDS, st.integers(0, 9_000)), 4),
        ).map(lambda both: both[0] + both[1]),
        "sched": _some(
            st.builds(off_cpu, _TIMES, _ENDS, st.sampled_from(["blocked", "runnable"])), 4
        ),
        "cuda_launches": _some(st.builds(window, _TIMES, st.integers(0, 100)), 2),
    }
)

TOTALS = {
    "wall": "SELECT sum(period_ns) FROM step_parts",
    "blocked": "SELECT (SELECT coalesce(sum(dur_ns), 0) FROM crossings) "
    "+ (SELECT coalesce(sum(total_ns), 0) FROM _counted_once)",
    "bubble": "SELECT sum(dur_ns) FROM bubbles",
    "bytes": "SELECT sum(size_bytes) FROM cuda_api WHERE depth = 0 AND class = 'copy'",
    "count": "SELECT (SELECT count(*) FROM crossings) "
    "+ (SELECT coalesce(sum(calls), 0) FROM _counted_once)",
}


@settings(deadline=None, max_examples=12)  # opening a run takes as long as it takes
@given(_ROWS)
def test_any_rows_add_up(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Any]) -> None:
    run = make_run(tmp_path_factory.mktemp("any"), manifest=SCHED, **rows)
    with cctrace.open(run) as session:
        for weight, query in TOTALS.items():
            ((total,),) = session.sql(query).fetchall()
            for levels in (DEFAULT_LEVELS, *([("nvtx", "part")] if weight == "wall" else [])):
                try:
                    made = select(session, Selection(weight, levels)).flame
                except CctraceError:
                    assert not total
                    continue
                assert made.totals == (total,)
                assert min(min(values) for values in made.leaves.values()) > 0
