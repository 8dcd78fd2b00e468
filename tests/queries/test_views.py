"""Views and reports over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from query_rows import BATCH, Row, lines, span, table, vllm_step
from runs import make_run

import cctrace
from cctrace.store.connection import library, relations

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.store.library import ParamValue


SELF = "SELECT name, level, self_ns FROM nvtx_self ORDER BY ts_ns, level, name"


def test_self_time_is_what_no_range_inside_covers(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            span(300, 100, "second"),
            span(100, 97, "first"),
            span(110, 30, "child", depth=1),
            span(115, 10, "grandchild", depth=2),
            span(150, 7, "child", depth=1),
            span(120, 50, "elsewhere", tid=101),
            span(120, 50, "other process", pid=101),
            {"ts_ns": 130, "kind": "mark", "name": "mark"},
            {"ts_ns": 105, "dur_ns": 80, "kind": "start_end", "name": "start_end"},
        ],
    )
    assert table(run, SELF) == lines("""
        first,0,60
        child,1,20
        grandchild,2,10
        elsewhere,0,50
        other process,0,50
        child,1,7
        second,0,100
    """)


def test_self_time_counts_children_of_other_domains(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 100, "step", domain="cctrace"),
            span(10, 50, "forward"),
            span(20, 13, "launch", domain="nccl"),
        ],
    )
    assert table(run, SELF) == "step,0,50\nforward,1,37\nlaunch,2,13\n"


def test_self_time_at_equal_moments(tmp_path: Path) -> None:
    # GIVEN children that start with their parent, end with it, touch, or are as long
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 100, "outer"),
            span(0, 100, "same", depth=1),
            span(0, 40, "left", depth=2),
            span(40, 60, "right", depth=2),
            span(100, 23, "next"),
            span(40, 0, "empty", depth=2),
        ],
    )
    assert table(run, SELF) == lines("""
        outer,0,0
        same,1,0
        left,2,40
        right,2,60
        empty,,0
        next,0,23
    """)


def test_self_time_of_open_ranges_is_not_known(tmp_path: Path) -> None:
    # GIVEN two ranges still open at the end, and closed ones inside and before
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 5, "before"),
            span(10, None, "main"),
            span(20, 50, "child", depth=1),
            span(30, 11, "grandchild", depth=2),
            span(80, None, "last", depth=1),
        ],
    )
    assert table(run, SELF) == lines("""
        before,0,5
        main,0,
        child,1,39
        grandchild,2,11
        last,1,
    """)


def test_an_open_range_holds_what_starts_with_it(tmp_path: Path) -> None:
    # GIVEN a range that starts at the same moment as the open one around it
    run = make_run(tmp_path, nvtx=[span(10, 50, "inside", depth=1), span(10, None, "main")])
    assert table(run, SELF) == "main,0,\ninside,1,50\n"


def test_self_time_is_not_known_where_ranges_cross(tmp_path: Path) -> None:
    # GIVEN ranges of two domains that overlap without one holding the other
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 30, "around"),
            span(5, 10, "a", domain="a"),
            span(10, 10, "b", domain="b"),
            span(6, 2, "inside a", domain="a", depth=1),
        ],
    )
    # THEN theirs is NULL, and that of the others is right
    assert table(run, SELF) == "around,0,15\na,1,\ninside a,2,2\nb,2,\n"


def test_a_crossing_that_is_made_up_for_is_not_seen(tmp_path: Path) -> None:
    # GIVEN a range crossed twice: one that began before it ends inside it, and another
    # that begins inside it outlives it, so that as many end as begin
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 8, "early", domain="a"),
            span(5, 5, "crossed", domain="b"),
            span(7, 8, "late", domain="c"),
        ],
    )
    # THEN its self time is told though it should not be, as the view's header says
    assert table(run, SELF) == "early,0,\ncrossed,1,4\nlate,2,\n"


def test_self_time_after_a_loss(tmp_path: Path) -> None:
    # GIVEN a parent that was lost: its children stand alone, at their recorded depth
    run = make_run(
        tmp_path,
        nvtx=[span(10, 20, "child", depth=1), span(15, 3, "grandchild", depth=2)],
        losses=[{"count": 1}],
    )
    query = "SELECT name, depth, level, self_ns FROM nvtx_self ORDER BY ts_ns"
    assert table(run, query) == "child,1,0,17\ngrandchild,2,1,3\n"


@st.composite
def _nested(draw: st.DrawFn) -> list[Row]:
    """Properly nested ranges on one thread, with the self time of each in `payload`."""
    rows: list[Row] = []

    def grow(start: int, end: int, depth: int) -> int:
        covered = 0
        while depth < 4 and start < end and draw(st.booleans()):
            begin = draw(st.integers(start, end))
            stop = draw(st.integers(begin, end))
            inner = grow(begin, stop, depth + 1)
            rows.append(
                span(
                    begin,
                    stop - begin,
                    f"n{len(rows)}",
                    depth=depth,
                    payload=stop - begin - inner,
                    domain=draw(st.sampled_from([None, "a"])) if depth == 0 else None,
                )
            )
            covered += stop - begin
            start = stop
        return covered

    grow(0, draw(st.integers(0, 60)), 0)
    return rows


@settings(deadline=None, max_examples=60)  # opening a run takes as long as it takes
@given(_nested())
def test_self_time_of_any_nesting(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    run = make_run(tmp_path_factory.mktemp("nested"), nvtx=rows)
    with cctrace.open(run) as session:
        found = dict(session.sql("SELECT name, self_ns FROM nvtx_self").fetchall())
    assert found == {row["name"]: row["payload"] for row in rows}


SUMMARY_ROWS = [
    span(0, 100, "step", domain="d"),
    span(10, 20, "copy", domain="d", depth=1),
    span(40, 30, "copy", domain="d", depth=1),
    span(200, None, "step", domain="d"),
    {"ts_ns": 5, "dur_ns": 77, "kind": "start_end", "name": "request"},
    {"ts_ns": 6, "kind": "mark", "name": "tick"},
    {"ts_ns": 8, "kind": "mark", "name": "tick"},
]


def test_nvtx_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=SUMMARY_ROWS)
    assert table(run, "nvtx_summary") == lines("""
        run,d,step,push_pop,2,100,50,100,100,100
        run,d,copy,push_pop,2,50,50,20,30,30
        run,,request,start_end,1,77,,77,77,77
        run,,tick,mark,2,,,,,
    """)


def test_nvtx_summary_by_parameters(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=SUMMARY_ROWS)
    only: dict[str, ParamValue] = {"domain": "d", "min_calls": 2, "top": 1}
    assert table(run, "nvtx_summary", only) == "run,d,step,push_pop,2,100,50,100,100,100\n"
    assert table(run, "nvtx_summary", {"min_calls": 3}) == ""


def test_several_runs_do_not_mix(tmp_path: Path) -> None:
    # GIVEN two runs of the same pids and times
    rows = [*vllm_step(100, 50, "decode", BATCH), *vllm_step(200, 50, "decode", BATCH)]
    one = make_run(tmp_path, "one", nvtx=rows, losses=[{"count": 5}])
    two = make_run(tmp_path, "two", nvtx=rows)
    assert table([one, two], "itl") == lines("""
        one,vllm,decode,1,100,100,100,100,100
        two,vllm,decode,1,100,100,100,100,100
    """)
    assert table([one, two], "losses") == "one,nvtx,ring_full,5,1,,\n"
    assert [row.split(",")[:2] for row in table([one, two], "steps").splitlines()] == [
        ["one", "1"],
        ["one", "2"],
        ["two", "1"],
        ["two", "2"],
    ]
    top: dict[str, ParamValue] = {"top": 1}
    assert table([one, two], "nvtx_summary", top) == lines("""
        one,cctrace,vllm.step,push_pop,2,100,100,50,50,50
        two,cctrace,vllm.step,push_pop,2,100,100,50,50,50
    """)
    query = "SELECT run, name, sum(self_ns) FROM nvtx_self GROUP BY ALL ORDER BY ALL"
    assert table([one, two], query) == "one,vllm.step,100\ntwo,vllm.step,100\n"


def test_losses(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        losses=[
            {"count": 3, "tid": 1, "first_ns": 50, "last_ns": 60},
            {"count": 4, "tid": 2, "first_ns": 40, "last_ns": 45},
            {"count": 11, "tid": None, "reason": "disk_full", "source": "recorder"},
            {"count": 2, "tid": 2, "reason": "truncated_string"},
        ],
    )
    assert table(run, "losses") == lines("""
        run,recorder,disk_full,11,0,,
        run,nvtx,ring_full,7,2,40,60
        run,nvtx,truncated_string,2,1,,
    """)


def test_processes(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        processes=[
            {"ts_ns": 9, "pid": 100, "start_ns": 5, "end_ns": None, "exit_code": None, "ppid": 1},
            {"ts_ns": 9, "pid": 101, "start_ns": 8, "end_ns": 19, "exit_code": 137, "ppid": 100},
        ],
        threads=[{"tid": 100}, {"tid": 102}, {"pid": 101, "tid": 101}],
        nvtx=[span(1, 1, "a"), span(2, 1, "b"), span(3, 1, "c")],
        losses=[{"pid": 101, "count": 13}, {"pid": None, "tid": None, "count": 17}],
    )
    assert table(run, "processes") == lines("""
        run,100,1,5,,,2,3,0,/bin/true,true
        run,101,100,8,11,137,1,0,13,/bin/true,true
    """)


def test_processes_of_several_runs_do_not_mix(tmp_path: Path) -> None:
    # GIVEN two runs with a process of the same pid, all that it did different
    def process(name: str, count: int) -> Path:
        return make_run(
            tmp_path,
            name,
            processes=[{"pid": 100}],
            threads=[{"tid": 100 + i} for i in range(count)],
            nvtx=[span(i, 1, "a") for i in range(count + 4)],
            losses=[{"count": count + 10}],
        )

    runs = [process("one", 3), process("two", 7)]
    found = [line.split(",") for line in table(runs, "processes").splitlines()]
    # THEN each has its own counts
    assert [(row[0], *row[6:9]) for row in found] == [
        ("one", "3", "7", "13"),
        ("two", "7", "11", "17"),
    ]


def test_threads_of_the_same_id_are_counted_each(tmp_path: Path) -> None:
    # GIVEN two processes in namespaces of their own, each with a thread 7
    run = make_run(
        tmp_path,
        losses=[{"pid": 1, "tid": 7, "count": 2}, {"pid": 2, "tid": 7, "count": 3}],
    )
    assert table(run, "losses") == "run,nvtx,ring_full,5,2,,\n"


def test_runs(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        manifest={
            "command": ["vllm", "serve", "a b"],
            "exit_code": 130,
            "host": {"tee": {"kind": "tdx"}, "gpu": {"cc_state": "on"}},
        },
        processes=[{"pid": 1}, {"pid": 2}],
        nvtx=[span(1, 1, "a")],
        losses=[{"count": 19}],
    )
    size_bytes = sum(p.stat().st_size for p in run.rglob("*.parquet"))
    expected = "run,vllm serve 'a b',2025-06-15 15:06:40,2500000000,clean,130,2,1,19"
    assert table(run, "runs") == f"{expected},{size_bytes},tdx,on\n"


@pytest.mark.parametrize("name", [*library().reports])
def test_of_an_empty_run_a_report_has_no_rows_or_says_why(tmp_path: Path, name: str) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
        found = session.report(name)
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    if "answer" in found.columns:
        assert found.columns[:3] == ["run", "answer", "evidence"]
        assert rows
        assert {row["run"] for row in rows} == {"run"}
        assert all(row["answer"] in {"no", "unknown"} and row["evidence"] for row in rows)
    else:
        assert len(rows) == (name == "runs")


@pytest.mark.parametrize("view", library().views, ids=lambda v: v.name)
def test_the_header_of_a_view_is_what_it_gives(tmp_path: Path, view: Any) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
        session.materialize([view.name])
        found = session.sql(f"DESCRIBE {view.name}").fetchall()
        comments = session.sql(
            "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = $name",
            {"name": view.name},
        ).fetchall()
    assert [row[:2] for row in found] == [(c.name, c.type) for c in view.columns]
    assert comments == [(c.name, c.doc) for c in view.columns]


@pytest.mark.parametrize("report", library().reports.values(), ids=lambda r: r.name)
def test_the_header_of_a_report_is_what_it_gives(tmp_path: Path, report: Any) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
        result = session.report(report.name)
    expected = [(c.name, c.type) for c in report.columns]
    assert list(zip(result.columns, result.types, strict=True)) == expected
    # The last clause of the whole; what is indented is within one.
    clauses = [line for line in report.sql.splitlines() if line[:1].isalpha()]
    assert clauses[-1].startswith("ORDER BY")


@pytest.mark.parametrize("relation", relations().values(), ids=lambda r: r.name)
def test_the_documented_columns_of_a_table_are_what_it_gives(tmp_path: Path, relation: Any) -> None:
    with cctrace.open(make_run(tmp_path, nvtx=[{}], losses=[{}])) as session:
        result = session.sql(f"FROM {relation.name}")
    expected = [(c.name, c.type.replace('"', "")) for c in relation.columns]
    found = zip(result.columns, (t.replace('"', "") for t in result.types), strict=True)
    assert list(found) == expected
