"""Views and reports over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import make_run

import cctrace
from cctrace.store.connection import library, relations

if TYPE_CHECKING:
    from pathlib import Path

    from cctrace.store.library import ParamValue

Row = dict[str, Any]

BATCH = 2**32  # one request in the upper half of a payload


def span(ts_ns: int, dur_ns: int | None, name: str, **more: Any) -> Row:
    """One push/pop range."""
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "name": name, **more}


def table(path: Path | list[Path], query: str, params: dict[str, ParamValue] | None = None) -> str:
    """Rows of a report, or of SQL where ``query`` holds a space, as CSV without header."""
    paths = path if isinstance(path, list) else [path]
    with cctrace.open(*paths) as session:
        run = session.sql if " " in query else session.report
        rows = run(query, params).fetchall()
    return "".join(
        ",".join("" if value is None else str(value) for value in row) + "\n" for row in rows
    )


def lines(text: str) -> str:
    """``text`` less its indentation and first line break."""
    return "".join(line.strip() + "\n" for line in text.strip().splitlines())


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


def vllm_step(ts_ns: int, dur_ns: int | None, phase: str, batch: int, **more: Any) -> list[Row]:
    """A step of vLLM that scheduled something."""
    return [
        span(ts_ns, dur_ns, "vllm.step", domain="cctrace", **more),
        {
            "ts_ns": ts_ns + 3,
            "kind": "mark",
            "name": "vllm.scheduled",
            "domain": "cctrace",
            "category": phase,
            "payload": batch,
            **more,
        },
    ]


def test_steps_of_vllm(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            *vllm_step(100, 50, "prefill", 3 * BATCH + 29),
            *vllm_step(200, 50, "decode", 3 * BATCH + 3),
            # Nothing scheduled: no step.
            span(260, 5, "vllm.step", domain="cctrace"),
            *vllm_step(300, 50, "mixed", 2 * BATCH + 11),
            # An idle wait ends the sequence.
            span(360, 500, "vllm.wait_for_requests", domain="cctrace"),
            *vllm_step(900, 50, "prefill", BATCH + 7),
            # Killed inside the last step.
            *vllm_step(1000, None, "decode", BATCH + 1),
            # A mark outside of any step, and another domain's names.
            {"ts_ns": 270, "kind": "mark", "name": "vllm.scheduled", "domain": "cctrace"},
            span(1, 1, "vllm.step"),
            span(2, 1, "step", domain="cctrace"),
        ],
        losses=[{"count": 1, "first_ns": 250, "last_ns": 260}],
    )
    assert table(run, "steps") == lines("""
        run,1,vllm,100,100,100,50,100,prefill,3,29
        run,2,vllm,100,100,200,50,100,decode,3,3
        run,3,vllm,100,100,300,50,,mixed,2,11
        run,4,vllm,100,100,900,50,100,prefill,1,7
        run,5,vllm,100,100,1000,,,decode,1,1
    """)
    assert table(run, "itl") == lines("""
        run,vllm,decode,1,100,100,100,100,100
        run,vllm,prefill,2,100,100,100,100,100
    """)


def test_steps_of_several_engine_threads_and_processes(tmp_path: Path) -> None:
    # GIVEN two threads and a second process, their steps interleaved
    run = make_run(
        tmp_path,
        nvtx=[
            *vllm_step(100, 50, "decode", BATCH, tid=101),
            *vllm_step(110, 50, "decode", BATCH, tid=102),
            *vllm_step(120, 50, "decode", BATCH, pid=200, tid=101),
            *vllm_step(207, 50, "decode", BATCH, tid=101),
            *vllm_step(221, 50, "decode", BATCH, tid=102),
        ],
    )
    query = "SELECT step_id, pid, tid, ts_ns, period_ns FROM steps ORDER BY step_id"
    assert table(run, query) == lines("""
        1,100,101,100,107
        2,100,102,110,111
        3,200,101,120,
        4,100,101,207,
        5,100,102,221,
    """)


def test_steps_of_transformers(tmp_path: Path) -> None:
    def forward(ts_ns: int, phase: str, tokens: int) -> Row:
        name = "transformers.forward"
        return span(
            ts_ns, 20, name, domain="cctrace", category=phase, payload=BATCH + tokens, depth=1
        )

    def generate(ts_ns: int) -> Row:
        return span(ts_ns, 100, "transformers.generate", domain="cctrace")

    run = make_run(
        tmp_path,
        nvtx=[
            generate(0),
            forward(10, "prefill", 5),
            forward(41, "decode", 1),
            generate(200),
            forward(200, "prefill", 7),
            forward(237, "decode", 1),
        ],
    )
    assert table(run, "steps") == lines("""
        run,1,transformers,100,100,10,20,31,prefill,1,5
        run,2,transformers,100,100,41,20,,decode,1,1
        run,3,transformers,100,100,200,20,37,prefill,1,7
        run,4,transformers,100,100,237,20,,decode,1,1
    """)


def test_steps_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[
            span(0, 1000, "generate", domain="mine"),
            span(10, 20, "step", domain="mine", category="prefill", payload=BATCH + 5),
            span(40, 20, "step", domain="mine", category="decode", payload=BATCH + 1),
            # Another domain's break is none of ours.
            span(50, 3, "generate", domain="other"),
            span(71, 20, "step", domain="mine"),
            # Payloads that were not meant as a batch must not break the query.
            span(100, 20, "step", payload=-1),
            span(150, 20, "step", payload_double=0.5),
            span(160, 3, "generate"),
            {"ts_ns": 200, "dur_ns": 9, "kind": "start_end", "name": "step"},
            {"ts_ns": 210, "kind": "mark", "name": "step"},
        ],
    )
    assert table(run, "steps") == lines("""
        run,1,mine,100,100,10,20,30,prefill,1,5
        run,2,mine,100,100,40,20,31,decode,1,1
        run,3,mine,100,100,71,20,,,,
        run,4,default,100,100,100,20,50,,,
        run,5,default,100,100,150,20,,,,
        run,6,default,100,100,200,9,,,,
    """)
    assert table(run, "steps", {"engine": "mine", "phase": "decode"}) == lines(
        "run,2,mine,100,100,40,20,31,decode,1,1"
    )


def test_one_step_has_no_period(tmp_path: Path) -> None:
    run = make_run(tmp_path, nvtx=vllm_step(7, 3, "decode", BATCH))
    assert table(run, "steps") == "run,1,vllm,100,100,7,3,,decode,1,0\n"
    assert table(run, "itl") == ""


def test_itl_is_the_distribution_of_periods(tmp_path: Path) -> None:
    # GIVEN 101 decode steps whose periods are 1 to 100, and 3 of prefill elsewhere
    rows, ts_ns = [], 0
    for period in [*range(1, 101), 0]:
        rows.append(span(ts_ns, 1, "step", category="decode"))
        ts_ns += period
    rows += [span(10 * i, 1, "step", category="prefill", tid=7) for i in range(4)]
    run = make_run(tmp_path, nvtx=rows)
    # THEN n, mean, p50, p90, p99 and max are those of the numbers 1 to 100
    assert table(run, "itl", {"phase": "decode"}) == "run,default,decode,100,51,50,90,99,100\n"
    assert table(run, "itl") == lines("""
        run,default,decode,100,51,50,90,99,100
        run,default,prefill,3,10,10,10,10,10
    """)
    assert table(run, "itl", {"engine": "vllm"}) == ""


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
def test_every_report_of_an_empty_run_is_empty(tmp_path: Path, name: str) -> None:
    assert len(table(make_run(tmp_path), name).splitlines()) == (name == "runs")


@pytest.mark.parametrize("view", library().views, ids=lambda v: v.name)
def test_the_header_of_a_view_is_what_it_gives(tmp_path: Path, view: Any) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
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
    assert "ORDER BY" in report.sql.splitlines()[-1]


@pytest.mark.parametrize("relation", relations().values(), ids=lambda r: r.name)
def test_the_documented_columns_of_a_table_are_what_it_gives(tmp_path: Path, relation: Any) -> None:
    with cctrace.open(make_run(tmp_path, nvtx=[{}], losses=[{}])) as session:
        result = session.sql(f"FROM {relation.name}")
    expected = [(c.name, c.type.replace('"', "")) for c in relation.columns]
    found = zip(result.columns, (t.replace('"', "") for t in result.types), strict=True)
    assert list(found) == expected
