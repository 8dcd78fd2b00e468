"""What steps took their time for, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from part_rows import CALL_PARTS, CC, SCHED, US, call, copy, off_cpu, parts, steps
from query_rows import lines, span, table
from runs import make_run

import cctrace
from cctrace.store.manifest import Source

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_step_of_every_part(tmp_path: Path) -> None:
    rows = [
        copy(2 * US, 31 * US, 11_100),  # 10 toll, 1 transfer, 20 wait
        call(35 * US, 7 * US, "launch"),
        call(43 * US, 3 * US, "alloc"),
        call(47 * US, 5670, "sync"),  # 1.67 toll, 4 wait
        call(60 * US, 2 * US, "free"),
        call(63 * US, 1 * US, "event"),
        call(64 * US, 500, "other"),
    ]
    waits = [
        off_cpu(70 * US, 11 * US, "blocked"),
        off_cpu(82 * US, 3 * US, "io"),
        off_cpu(86 * US, 5 * US, "runnable"),
        off_cpu(36 * US, 2 * US, "runnable"),  # within the launch
    ]
    run = make_run(tmp_path, manifest=CC, cuda_api=rows, sched=waits, nvtx=steps(0, 100 * US))
    assert parts(run) == [
        {
            "queue_wait_ns": 20 * US,
            "bridge_toll_ns": 11_670,
            "bridge_transfer_ns": US,
            "launch_ns": 6 * US,
            "alloc_ns": 5 * US,
            "sync_wait_ns": 4 * US,
            "lock_wait_ns": 14 * US,
            "runnable_ns": 7 * US,
            "unattributed_ns": 500,
            "host_compute_ns": 30_830,
        }
    ]
    query = "SELECT engine, phase, crossings, is_estimate FROM step_parts"
    assert table(run, query) == "loop,,4,False\n"


def test_without_the_scheduler_time_outside_of_calls_is_not_known(tmp_path: Path) -> None:
    rows = [call(10, 20, "launch")]
    manifest = {"sources": [Source("sched", "refused"), Source("cuda", "attached")]}
    run = make_run(tmp_path, manifest=manifest, cuda_api=rows, nvtx=steps(0, 100))
    assert parts(run) == [{"launch_ns": 20, "unattributed_ns": 80}]


def test_a_step_without_calls(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        manifest=SCHED,
        sched=[off_cpu(10, 60), off_cpu(80, 5, "runnable")],
        nvtx=steps(0, 100),
    )
    assert parts(run) == [{"lock_wait_ns": 60, "runnable_ns": 5, "host_compute_ns": 35}]


def test_no_steps_and_one(tmp_path: Path) -> None:
    rows = [call(10, 20, "launch")]
    assert parts(make_run(tmp_path, cuda_api=rows)) == []
    assert parts(make_run(tmp_path, "one", cuda_api=rows, nvtx=steps(0))) == []


def test_only_the_driving_thread_counts(tmp_path: Path) -> None:
    rows = [call(10, 20, "launch", tid=101), call(40, 30, "launch", pid=101)]
    waits = [off_cpu(10, 60, tid=101)]
    run = make_run(tmp_path, manifest=SCHED, cuda_api=rows, sched=waits, nvtx=steps(0, 100))
    assert parts(run) == [{"host_compute_ns": 100}]


def test_a_call_that_reaches_into_later_steps_is_cut(tmp_path: Path) -> None:
    # GIVEN a copy over three steps: 1 without a CPU, 39 waiting, 10 toll (in us)
    rows = [copy(90 * US, 50 * US)]
    waits = [off_cpu(91 * US, US, "runnable")]
    run = make_run(
        tmp_path,
        manifest=CC,
        cuda_api=rows,
        sched=waits,
        nvtx=steps(0, 100 * US, 110 * US, 135 * US, 200 * US),
    )
    assert parts(run) == [
        {"runnable_ns": US, "queue_wait_ns": 9 * US, "host_compute_ns": 90 * US},
        {"queue_wait_ns": 10 * US},
        {"queue_wait_ns": 20 * US, "bridge_toll_ns": 5 * US},
        {"bridge_toll_ns": 5 * US, "host_compute_ns": 60 * US},
    ]
    assert table(run, "SELECT crossings FROM step_parts ORDER BY step_id") == "1\n0\n0\n0\n"


def test_what_began_before_the_first_step_or_in_a_pause_counts_within(tmp_path: Path) -> None:
    rows = [call(90, 30, "launch"), call(390, 15, "launch")]
    nvtx = [*steps(100, 200), span(300, 1, "generate", domain="loop"), *steps(400, 500)]
    run = make_run(tmp_path, manifest=SCHED, cuda_api=rows, nvtx=nvtx)
    # The step at 200 has no period: the loop paused after it.
    assert parts(run) == [
        {"launch_ns": 20, "host_compute_ns": 80},
        {"launch_ns": 5, "host_compute_ns": 95},
    ]


def test_waits_reach_over_ends_of_calls_and_steps(tmp_path: Path) -> None:
    waits = [off_cpu(95, 25), off_cpu(150, 60, "runnable")]
    rows = [call(140, 20, "launch")]
    run = make_run(
        tmp_path, manifest=SCHED, cuda_api=rows, sched=waits, nvtx=steps(0, 100, 200, 300)
    )
    assert parts(run) == [
        {"lock_wait_ns": 5, "host_compute_ns": 95},
        {"lock_wait_ns": 20, "launch_ns": 10, "runnable_ns": 50, "host_compute_ns": 20},
        {"runnable_ns": 10, "host_compute_ns": 90},
    ]


def test_a_call_that_never_returned_is_not_known_to_the_steps_end(tmp_path: Path) -> None:
    rows = [call(10, 20, "launch"), copy(60, None)]
    run = make_run(tmp_path, manifest=SCHED, cuda_api=rows, nvtx=steps(0, 100, 200))
    assert parts(run) == [
        {"launch_ns": 20, "host_compute_ns": 40, "unattributed_ns": 40},
        {"host_compute_ns": 100},
    ]


def test_calls_at_the_moment_a_step_starts_are_the_steps(tmp_path: Path) -> None:
    rows = [
        call(80, 20, "launch"),
        call(100, 0, "launch"),
        call(100, 30, "launch"),
        call(130, 10, "launch"),
    ]
    run = make_run(tmp_path, manifest=SCHED, cuda_api=rows, nvtx=steps(0, 100, 200))
    assert parts(run) == [
        {"launch_ns": 20, "host_compute_ns": 80},
        {"launch_ns": 40, "host_compute_ns": 60},
    ]
    assert table(run, "SELECT crossings FROM step_parts ORDER BY step_id") == "1\n3\n"


def test_calls_that_overlap_do_not_outgrow_the_step(tmp_path: Path) -> None:
    rows = [call(10, 80, "launch"), call(20, 80, "launch", tid=100), copy(30, 60)]
    run = make_run(tmp_path, manifest=SCHED, cuda_api=rows, nvtx=steps(0, 100))
    assert parts(run) == [{"bridge_toll_ns": 60, "launch_ns": 40}]


def test_losses_make_the_hosts_own_time_unknown(tmp_path: Path) -> None:
    # GIVEN three steps, and events lost in the second, of one source or another
    def with_loss(name: str, **loss: Any) -> list[dict[str, Any]]:
        row = {"source": "sched", "first_ns": 150, "last_ns": 160, **loss}
        run = make_run(
            tmp_path,
            name,
            manifest=SCHED,
            cuda_api=[call(110, 20, "launch")],
            losses=[row],
            nvtx=steps(0, 100, 200, 300),
        )
        return parts(run)

    known, whole = {"launch_ns": 20, "host_compute_ns": 80}, {"host_compute_ns": 100}
    unknown = {"launch_ns": 20, "unattributed_ns": 80}
    assert with_loss("sched") == [whole, unknown, whole]
    assert with_loss("anywhere", tid=None, pid=None, source="bpf") == [whole, unknown, whole]
    assert with_loss("elsewhere", tid=101) == [whole, known, whole]
    assert with_loss("other", source="swiotlb") == [whole, known, whole]
    assert with_loss("kept", source="nvtx", reason="truncated_string") == [whole, known, whole]
    assert with_loss("timeless", first_ns=None, last_ns=None) == [whole, known, whole]
    everywhere = with_loss("long", first_ns=0, last_ns=299)
    assert everywhere == [{"unattributed_ns": 100}, unknown, {"unattributed_ns": 100}]


def test_few_losses_among_many_steps_make_an_estimate(tmp_path: Path) -> None:
    # GIVEN 1 event lost over 101 of 103 steps, then 2
    for count, host_ns in ((1, 10), (2, 0)):
        run = make_run(
            tmp_path,
            f"{count}",
            manifest=SCHED,
            nvtx=steps(*range(0, 1040, 10)),
            losses=[{"source": "cuda", "first_ns": 15, "last_ns": 1015, "count": count}],
        )
        query = """
            SELECT host_compute_ns, unattributed_ns, is_estimate, count(*), min(step_id)
            FROM step_parts GROUP BY ALL ORDER BY min(step_id)
        """
        assert table(run, query) == lines(f"""
            10,0,False,2,1
            {host_ns},{10 - host_ns},True,101,2
        """)


def test_launches_counted_in_the_kernel_take_their_share(tmp_path: Path) -> None:
    # GIVEN a window of 100 ns with 30 ns in launches, over two steps and half of a third
    window = {
        "ts_ns": 50,
        "window_ns": 100,
        "api": "cudaLaunchKernel",
        "calls": 3,
        "total_ns": 30,
        "max_ns": 20,
        "histogram": [0],
        "stream": 7,
    }
    driver = {**window, "api": "cuLaunchKernel", "total_ns": 20}
    run = make_run(
        tmp_path, manifest=SCHED, cuda_launches=[window, driver], nvtx=steps(0, 60, 100, 200)
    )
    assert parts(run) == [
        {"launch_ns": 3, "host_compute_ns": 57},
        {"launch_ns": 12, "host_compute_ns": 28},
        {"launch_ns": 15, "host_compute_ns": 85},
    ]
    query = "SELECT is_estimate, crossings FROM step_parts"
    assert table(run, query) == "True,0\nTrue,0\nTrue,0\n"


def test_engines_on_one_thread_each_have_the_calls(tmp_path: Path) -> None:
    nvtx = [*steps(0, 100), *steps(20, 70, depth=1)]
    for row in nvtx[2:]:
        row["domain"] = "inner"
    run = make_run(tmp_path, manifest=SCHED, cuda_api=[call(30, 11, "launch")], nvtx=nvtx)
    query = "SELECT engine, period_ns, launch_ns FROM step_parts ORDER BY engine"
    assert table(run, query) == "inner,50,11\nloop,100,11\n"


def test_runs_do_not_mix(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path,
            name,
            manifest=SCHED,
            cuda_api=[call(10, length, "launch")],
            nvtx=steps(0, 100),
        )
        for name, length in (("one", 20), ("two", 30))
    ]
    query = "SELECT run, launch_ns, host_compute_ns FROM step_parts ORDER BY run"
    assert table(runs, query) == "one,20,80\ntwo,30,70\n"


TIME = st.integers(0, 60)
LENGTH = st.one_of(st.none(), st.integers(0, 50))


@st.composite
def _mess(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of any kind at any time, overlapping as they like, on three threads."""
    thread = st.fixed_dictionaries({"tid": st.sampled_from([100, 100, 101, 102])})
    calls = draw(
        st.lists(
            st.builds(
                lambda ts, dur, cls, of, size, depth: {
                    **(copy(ts, dur, size) if cls == "copy" else call(ts, dur, cls)),
                    **of,
                    "depth": depth,
                },
                TIME,
                LENGTH,
                st.sampled_from(
                    ["copy", "sync", "launch", "alloc", "free", "event", "memset", "other"]
                ),
                thread,
                st.integers(0, 10**6),
                st.sampled_from([0, 0, 0, 1]),
            ),
            max_size=12,
        )
    )
    waits = draw(
        st.lists(
            st.builds(
                lambda ts, dur, state, of: {**off_cpu(ts, dur, state), **of},
                TIME,
                LENGTH,
                st.sampled_from(["runnable", "blocked", "io"]),
                thread,
            ),
            max_size=8,
        )
    )
    starts = draw(st.lists(TIME, max_size=6))
    windows = draw(
        st.lists(
            st.builds(
                lambda ts, window, total: {
                    "ts_ns": ts,
                    "window_ns": window,
                    "total_ns": total,
                    "max_ns": total,
                    "calls": 1,
                    "api": "cuLaunchKernel",
                    "histogram": [1],
                    "stream": 7,
                },
                TIME,
                st.integers(1, 40),
                st.integers(0, 10**9),
            ),
            max_size=2,
        )
    )
    lost = draw(
        st.lists(
            st.builds(
                lambda first, length, source: {
                    "first_ns": first,
                    "last_ns": first + length,
                    "source": source,
                },
                TIME,
                st.integers(0, 30),
                st.sampled_from(["cuda", "sched", "swiotlb"]),
            ),
            max_size=2,
        )
    )
    return {
        "cuda_api": calls,
        "sched": waits,
        "nvtx": steps(*starts),
        "cuda_launches": windows,
        "losses": lost,
    }


@settings(deadline=None, max_examples=30)  # opening a run takes as long as it takes
@given(_mess(), st.sampled_from([CC, SCHED, {}]))
def test_parts_of_anything_sum_to_it(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Any], manifest: dict[str, Any]
) -> None:
    run = make_run(tmp_path_factory.mktemp("mess"), manifest=manifest, **rows)
    starts = sorted(row["ts_ns"] for row in rows["nvtx"])
    assert len(parts(run)) == max(len(starts) - 1, 0)
    with cctrace.open(run) as session:
        found = session.sql("SELECT * FROM crossing_costs").arrow().to_pylist()
    outer = [row for row in rows["cuda_api"] if row["depth"] == 0]
    assert sorted((row["ts_ns"], row["class"]) for row in found) == sorted(
        (row["ts_ns"], row["class"]) for row in outer
    )
    for row in found:
        if row["dur_ns"] is None:
            assert {row[part] for part in CALL_PARTS} == {None}
        else:
            assert sum(row[part] for part in CALL_PARTS) == row["dur_ns"], row
            assert min(row[part] for part in CALL_PARTS) >= 0, row
