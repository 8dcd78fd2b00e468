"""Windows of a run: which rows a view sees, and what outlives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Row, make_run, write_part

from cctrace.store.excerpt import Excerpt, Window, row_groups
from cctrace.store.run import Run

# A range over everything, one still open, and ten of 6 ns each from 100 on.
LONG: Row = {"ts_ns": 10, "dur_ns": 1_000, "name": "all"}
OPEN: Row = {"ts_ns": 40, "dur_ns": None, "name": "open"}
SHORT: list[Row] = [{"ts_ns": 100 + 10 * i, "dur_ns": 6, "name": f"s{i}"} for i in range(10)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Ranges in two parts."""
    path = make_run(tmp_path, nvtx=[LONG, OPEN, *SHORT[:4]])
    write_part(path / "nvtx" / "part-000001.parquet", "nvtx", SHORT[4:])
    return Run(path)


def names(excerpt: Excerpt) -> list[str]:
    """Names of the ranges in view, by start."""
    return [name for (name,) in excerpt.sql("SELECT name FROM nvtx ORDER BY ts_ns").fetchall()]


def test_row_groups_are_those_of_the_footers(run: Run) -> None:
    groups = row_groups(run, "nvtx")
    assert [(g.path.name, g.first_ns, g.last_ns, g.rows) for g in groups] == [
        ("part-000000.parquet", 10, 130, 6),
        ("part-000001.parquet", 140, 190, 6),
    ]
    assert row_groups(run, "sched") == []


def test_a_window_has_what_starts_in_it(run: Run) -> None:
    with Excerpt(run) as excerpt:
        assert len(names(excerpt)) == 12
        excerpt.focus([Window(110, 150)])
        assert names(excerpt) == ["s1", "s2", "s3", "s4"]
        excerpt.focus([Window(0, 40), Window(120, 121), Window(190, 10_000)])
        assert names(excerpt) == ["all", "s2", "s9"]
        excerpt.focus([])
        assert names(excerpt) == []
        excerpt.focus(None)
        assert len(names(excerpt)) == 12


def test_long_and_open_rows_are_in_every_window_they_reach(run: Run) -> None:
    with Excerpt(run) as excerpt:
        excerpt.cut_long(6)  # longer than 6 ns: not the short ones
        excerpt.focus([Window(110, 130)])
        assert names(excerpt) == ["all", "open", "s1", "s2"]
        excerpt.focus([Window(20, 30)])
        assert names(excerpt) == ["all"]  # the open one starts later
        excerpt.focus([Window(1_010, 2_000)])
        assert names(excerpt) == ["open"]  # the long one ends where the window begins
        excerpt.focus([Window(1_009, 2_000)])
        assert names(excerpt) == ["all", "open"]
        excerpt.focus([Window(0, 50), Window(105, 111)])
        assert names(excerpt) == ["all", "open", "s1"]  # each once


def steps(count: int) -> list[Row]:
    """Steps of 10 ns each."""
    return [{"ts_ns": 10 * i, "dur_ns": 9, "name": "step"} for i in range(count)]


def test_kept_rows_stand_in_for_their_view(tmp_path: Path) -> None:
    # GIVEN steps that are kept over the whole run
    run = Run(make_run(tmp_path, nvtx=steps(11)))
    with Excerpt(run) as excerpt:
        excerpt.keep("steps")
        # WHEN only some of the run is in view
        excerpt.focus([Window(30, 60)])
        # THEN they are cut, and still know what came after
        rows = excerpt.sql("SELECT step_id, period_ns FROM steps ORDER BY step_id").fetchall()
        assert rows == [(4, 10), (5, 10), (6, 10)]
        assert len(names(excerpt)) == 3
        # and they may be cut otherwise than the tables
        excerpt.focus([Window(0, 90)], [Window(30, 40)])
        assert excerpt.sql("SELECT step_id FROM steps").fetchall() == [(4,)]
        assert len(names(excerpt)) == 9


def test_rows_are_collected_window_by_window(tmp_path: Path) -> None:
    # GIVEN a view that is computed anew in each of three windows with margins
    run = Run(make_run(tmp_path, nvtx=steps(11)))
    with Excerpt(run) as excerpt:
        whole = excerpt.sql("SELECT ts_ns, dur_ns FROM steps ORDER BY ts_ns").fetchall()
        excerpt.collect("steps")
        for core in (Window(0, 30), Window(30, 70), Window(70, 101)):
            excerpt.focus([Window(core.first_ns - 20, core.end_ns + 20)])
            excerpt.add_rows("steps", core)
        excerpt.focus(None)
        # WHEN what was collected stands in THEN it is the whole, each row once
        excerpt.give("steps")
        found = excerpt.sql("SELECT ts_ns, dur_ns FROM steps ORDER BY ts_ns").fetchall()
        assert found == whole
        assert len(found) == 11


def test_what_one_excerpt_has_kept_another_begins_with(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path, nvtx=[LONG, *steps(11)]))
    with Excerpt(run) as first, Excerpt(run, "256MiB", threads=1) as second:
        # GIVEN one that has kept all steps, some of their stats, and long rows
        first.keep("steps")
        first.cut_long(100)
        first.collect("_step_stats")
        kept = first.kept()
        assert set(kept.tables) == {"steps", "_step_stats", "long nvtx"}
        assert (kept.given, kept.long_ns) == (("steps",), 100)
        # WHEN another one adopts them
        second.adopt(kept)
        second.focus([Window(30, 60)])
        # THEN it sees the steps of its window, and the long row that reaches into it
        rows = second.sql("SELECT step_id, period_ns FROM steps ORDER BY step_id").fetchall()
        assert rows == [(4, 10), (5, 10), (6, 10)]
        assert names(second) == ["all", "step", "step", "step"]
        assert second.sql("SELECT current_setting('threads')").fetchall() == [(1,)]
        # and what is collected apart is one whole again
        first.focus(None)
        first.adopt_rows("nvtx_self", [kept.tables["steps"].slice(0, 4)] * 2)
        found = first.sql("SELECT count(*) FROM kept.nvtx_self").fetchall()
        assert found == [(8,)]


def test_calls_inside_calls_can_be_left_out(tmp_path: Path) -> None:
    rows: list[Row] = [
        {
            "ts_ns": 10 * i,
            "dur_ns": 1,
            "api": "a",
            "layer": "driver",
            "class": "sync",
            "depth": i % 3,
        }
        for i in range(12)
    ]
    run = Run(make_run(tmp_path, cuda_api=rows))
    with Excerpt(run) as excerpt:
        excerpt.focus([Window(0, 10_000)], outermost=True)
        assert excerpt.sql("SELECT count(*) FROM cuda_api").fetchall() == [(4,)]
        excerpt.focus([Window(0, 10_000)])
        assert excerpt.sql("SELECT count(*) FROM cuda_api").fetchall() == [(12,)]


def test_memory_is_limited_as_asked(run: Run) -> None:
    with Excerpt(run, memory_limit="512MiB") as excerpt:
        rows = excerpt.sql(
            "SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'"
        ).fetchall()
        assert rows == [("512.0 MiB",)]
