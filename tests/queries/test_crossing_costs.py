"""What calls took their time for, over rows small enough to check by hand.

Of so few calls the model is the profile's: under CC on a B300 a pinned copy takes 10 us
and 1 us for 11,100 bytes; a wait takes 1.67 us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from part_rows import CALL_PARTS, CC, SCHED, US, call, copy, costs, off_cpu
from query_rows import table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path


def test_a_blocking_copy_is_toll_transfer_and_the_wait_for_what_was_before(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, manifest=CC, cuda_api=[copy(100, 50 * US, 11_100)])
    assert costs(run) == [
        {"ts_ns": 100, "toll_ns": 10 * US, "transfer_ns": US, "queue_wait_ns": 39 * US}
    ]


def test_a_copy_shorter_than_the_model_has_both_in_proportion(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest=CC, cuda_api=[copy(100, 5500, 11_100)])
    assert costs(run) == [{"ts_ns": 100, "toll_ns": 5000, "transfer_ns": 500}]


def test_on_an_idle_stream_a_copy_waits_for_nothing(tmp_path: Path) -> None:
    rows = [call(10, 10 * US, "sync"), copy(20 * US, 50 * US, 11_100, "h2d")]
    run = make_run(tmp_path, manifest=CC, cuda_api=[copy(0, 5, 0), *rows])
    *_, last = costs(run)
    assert last == {"ts_ns": 20 * US, "toll_ns": 49 * US, "transfer_ns": US}
    query = "SELECT stream_was_idle FROM crossing_costs ORDER BY ts_ns"
    assert table(run, query) == "False\nTrue\nTrue\n"


def test_a_copy_that_does_not_block_is_all_toll(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest=SCHED, cuda_api=[copy(100, 50 * US, 11_100)])
    assert costs(run) == [{"ts_ns": 100, "toll_ns": 50 * US}]


def test_absurd_sizes_do_no_harm(tmp_path: Path) -> None:
    rows = [copy(1, 5 * US, 2**62), copy(2 * US * US, 5 * US, size=None)]  # type: ignore[arg-type]  # NULL is what is tried
    run = make_run(tmp_path, manifest=CC, cuda_api=rows)
    first, second = costs(run)
    assert first["transfer_ns"] + first.get("toll_ns", 0) == 5 * US
    assert second == {"ts_ns": 2 * US * US, "toll_ns": 5 * US}


def test_waits_launches_and_allocations(tmp_path: Path) -> None:
    rows = [
        call(1 * US, 500, "sync"),
        call(2 * US, 5670, "sync"),
        call(10 * US, 5 * US, "sync", "cudaStreamQuery"),
        *(
            call(i * US, i, cls)
            for i, cls in enumerate(
                ("launch", "graph", "collective", "memset", "event", "alloc", "free", "other"), 20
            )
        ),
    ]
    run = make_run(tmp_path, manifest=CC, cuda_api=rows)
    assert costs(run) == [
        {"ts_ns": 1 * US, "toll_ns": 500},
        {"ts_ns": 2 * US, "toll_ns": 1670, "sync_wait_ns": 4 * US},
        {"ts_ns": 10 * US, "toll_ns": 5 * US},
        {"ts_ns": 20 * US, "launch_ns": 20},
        {"ts_ns": 21 * US, "launch_ns": 21},
        {"ts_ns": 22 * US, "launch_ns": 22},
        {"ts_ns": 23 * US, "launch_ns": 23},
        {"ts_ns": 24 * US, "launch_ns": 24},
        {"ts_ns": 25 * US, "alloc_ns": 25},
        {"ts_ns": 26 * US, "alloc_ns": 26},
        {"ts_ns": 27 * US, "unattributed_ns": 27},
    ]


def test_time_without_a_cpu_comes_off_first(tmp_path: Path) -> None:
    # GIVEN waits for a CPU in the call, of it, past its end, and one for something else
    waits = [
        off_cpu(110, 3 * US, "runnable"),
        off_cpu(7 * US, 2 * US, "blocked"),
        off_cpu(13 * US, 20 * US, "runnable"),
    ]
    run = make_run(
        tmp_path,
        manifest=CC,
        cuda_api=[copy(100, 14_900), call(90 * US, 5, "launch"), call(15 * US, 4, "launch")],
        sched=waits,
    )
    [first, *_] = costs(run)
    assert first == {"ts_ns": 100, "runnable_ns": 5 * US, "toll_ns": 9900}


def test_a_call_that_never_returned_has_no_parts(tmp_path: Path) -> None:
    rows = [copy(1, None), call(5, None, "launch"), call(9, None, "sync"), call(13, None, "free")]
    run = make_run(tmp_path, manifest=CC, cuda_api=rows)
    nothing = dict.fromkeys(CALL_PARTS)
    assert costs(run) == [{"ts_ns": row["ts_ns"], **nothing} for row in rows]


def test_calls_within_calls_are_left_out(tmp_path: Path) -> None:
    rows = [call(1, 9, "launch"), call(2, 5, "launch", "cuLaunchKernel", layer="driver", depth=1)]
    assert costs(make_run(tmp_path, cuda_api=rows)) == [{"ts_ns": 1, "launch_ns": 9}]
