"""Which NVTX ranges a thread is in, and the crossings made there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from query_rows import Row, lines, span, table
from runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

PATHS = "SELECT tid, ts_ns, path FROM _nvtx_paths ORDER BY run, pid, tid, ts_ns"


def call(ts_ns: int, **more: Any) -> Row:
    """A launch."""
    row: Row = {"api": "cudaLaunchKernel", "class": "launch", "layer": "runtime", "dur_ns": 1}
    return {"ts_ns": ts_ns, **row, **more}


def paths(run: Path) -> str:
    """Rows of the view, with `-` for a path that is not known."""
    return table(run, PATHS.replace(" path ", " coalesce(path, '-') "))


def test_ranges_of_all_domains_nest(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            span(10, 100, "step", domain="mine"),
            span(20, 30, "forward", domain="torch"),
            span(25, 10, "mm", domain="mine", depth=1),
            span(60, 20, "readback", domain="mine", depth=1),
        ],
    )
    assert paths(run) == lines("""
        100,10,step
        100,20,step/forward
        100,25,step/forward/mm
        100,35,step/forward
        100,50,step
        100,60,step/readback
        100,80,step
        100,110,
    """)


def test_threads_processes_and_runs_keep_apart(tmp_path: Path) -> None:
    one = make_run(
        tmp_path, "one", nvtx=[span(10, 20, "a"), span(15, 20, "b", tid=7), span(17, 3, "c", pid=9)]
    )
    two = make_run(tmp_path, "two", nvtx=[span(11, 20, "d")])
    query = "SELECT run, pid, tid, ts_ns, path FROM _nvtx_paths ORDER BY run, pid, tid, ts_ns"
    assert table([one, two], query) == lines("""
        one,9,100,17,c
        one,9,100,20,
        one,100,7,15,b
        one,100,7,35,
        one,100,100,10,a
        one,100,100,30,
        two,100,100,11,d
        two,100,100,31,
    """)


def test_several_changes_at_one_moment_are_one_row(tmp_path: Path) -> None:
    # GIVEN ranges that start together, end together, and follow each other at once
    run = make_run(
        tmp_path,
        nvtx=[
            span(10, 20, "inner", depth=1),
            span(10, 30, "outer"),
            span(30, 10, "other", depth=1),
            span(40, 5, "next"),
        ],
    )
    assert paths(run) == lines("""
        100,10,outer/inner
        100,30,outer/other
        100,40,next
        100,45,
    """)


def test_open_ranges_stay_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=[span(10, None, "serve"), span(20, 5, "step", depth=1)])
    assert paths(run) == "100,10,serve\n100,20,serve/step\n100,25,serve\n"


def test_what_is_no_stack_is_left_out(tmp_path: Path) -> None:
    # GIVEN a range of no length, one that may end on another thread, and a mark
    run = make_run(
        tmp_path,
        nvtx=[
            span(10, 10, "a"),
            span(12, 0, "zero", depth=1),
            span(13, 50, "start_end", kind="start_end"),
            {"ts_ns": 14, "kind": "mark", "name": "mark"},
        ],
    )
    assert paths(run) == "100,10,a\n100,20,\n"


def test_ranges_that_cross_are_not_guessed_at(tmp_path: Path) -> None:
    # GIVEN b of another domain, which outlives the range it started in
    run = make_run(
        tmp_path,
        nvtx=[span(10, 20, "a", domain="x"), span(20, 30, "b", domain="y"), span(60, 5, "c")],
    )
    assert paths(run) == lines("""
        100,10,a
        100,20,a/b
        100,30,-
        100,50,
        100,60,c
        100,65,
    """)


def test_a_call_site_has_one_path(tmp_path: Path) -> None:
    # GIVEN names that count, and names whose numbers tell one from another
    names = {
        "ProfilerStep#17": "ProfilerStep#*",
        "iteration 23": "iteration *",
        "Step_5": "Step_*",
        "aten::mm, op_id = 317, sizes = [[2, 3]]": "aten::mm",
        "MmBackward0, seq = 12": "MmBackward0",
        "h2d/block.10.layer.1": "h2d|block.10.layer.1",
        "[Executor] _forward_step 7: 1 ctx reqs, 2 gen reqs": (
            "[Executor] _forward_step *: * ctx reqs, * gen reqs"
        ),
        "execute_context_1(5)_generation_2(2)": "execute_context_*(*)_generation_*(*)",
        "x" * 150: "x" * 120,
    }
    rows = [span(10 * i, 5, name) for i, name in enumerate(names)]
    run = make_run(tmp_path, nvtx=[*rows, {**span(500, 5, ""), "name": None}])
    query = "SELECT path FROM _nvtx_paths WHERE path <> '' ORDER BY ts_ns"
    with_commas = query.replace("path FROM", "replace(path, ',', ';') FROM")
    expected = [name.replace(",", ";") for name in names.values()]
    assert table(run, with_commas).splitlines() == [*expected, "?"]


def test_a_path_has_sixteen_names(tmp_path: Path) -> None:
    rows = [span(i, 100 - 2 * i, f"n{chr(97 + i)}", depth=i) for i in range(19)]
    run = make_run(tmp_path, nvtx=rows)
    sixteen = "/".join(f"n{chr(97 + i)}" for i in range(16))
    found = paths(run).splitlines()
    assert found[15] == f"100,15,{sixteen}"
    assert found[16:21] == [f"100,{ts_ns},{sixteen}" for ts_ns in (16, 17, 18, 82, 83)]
    assert found[22] == f"100,85,{sixteen.rpartition('/')[0]}"
    assert found[-1] == "100,100,"


def test_crossings_have_the_path_at_their_start(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[span(10, 20, "step"), span(15, 5, "forward", depth=1)],
        cuda_api=[
            call(9),
            call(10),
            call(15),
            call(19, dur_ns=7),
            call(20),
            call(30),
            call(17, tid=7),
            call(18, depth=1),
            call(16, **{"class": "free"}),
        ],
    )
    query = "SELECT tid, ts_ns, path FROM call_paths ORDER BY tid, ts_ns"
    assert table(run, query) == lines("""
        7,17,
        100,9,
        100,10,step
        100,15,step/forward
        100,19,step/forward
        100,20,step
        100,30,
    """)


def test_a_path_that_is_not_known_is_not_empty(tmp_path: Path) -> None:
    ranges = [span(10, 20, "a", domain="x"), span(20, 30, "b", domain="y")]
    run = make_run(tmp_path, nvtx=ranges, cuda_api=[call(5), call(35), call(55)])
    query = "SELECT ts_ns, path IS NULL FROM call_paths ORDER BY ts_ns"
    assert table(run, query) == "5,False\n35,True\n55,False\n"


def test_sizes_fall_into_classes(tmp_path: Path) -> None:
    sizes = [0, 64, 65, 4096, 4097, 65536, 65537, 2**20, 2**20 + 1, 2**24, 2**24 + 1, None]
    rows = [
        call(i, **{"class": "copy", "copy_kind": "h2d", "size_bytes": size})
        for i, size in enumerate(sizes)
    ]
    run = make_run(tmp_path, cuda_api=rows)
    classes = ["<=64 B", "<=4 KiB", "<=64 KiB", "<=1 MiB", "<=16 MiB", ">16 MiB"]
    expected = [classes[0], *[c for c in classes[:5] for _ in range(2)][1:], classes[5], ""]
    found = table(run, "SELECT size_class FROM call_paths ORDER BY ts_ns").splitlines()
    assert found == ["<=64 B", *expected[1:]]


def test_runs_without_ranges_or_calls(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", cuda_api=[call(5)])
    two = make_run(tmp_path, "two", nvtx=[span(10, 5, "a")])
    assert table([one, two], "SELECT run, ts_ns, path FROM call_paths") == "one,5,\n"
