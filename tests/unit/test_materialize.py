"""Views a session keeps as tables: computed once, and no query sees a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from runs import Row, make_run

import cctrace
from cctrace.errors import CctraceError
from cctrace.store import connection
from cctrace.store.library import Library, load_library, parse_item
from cctrace.store.session import Session

STEPS = 7


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Seven steps of 10 ns, of which the last has no length."""
    rows: list[Row] = [{"ts_ns": 10 * i, "dur_ns": 5, "name": "step"} for i in range(STEPS)]
    return make_run(tmp_path, nvtx=rows)


def kept_rows(session: Session) -> int:
    """Rows in the table that stands for ``steps``, without reading it."""
    [(rows,)] = session.sql(
        "SELECT estimated_size FROM duckdb_tables() WHERE table_name = 'steps'"
    ).fetchall()
    return int(rows)


def test_a_view_is_kept_when_rows_are_asked_for(run: Path) -> None:
    # GIVEN a report that reads a view which is to be kept
    with cctrace.open(run) as session:
        result = session.report("itl")
        # WHEN it is named THEN nothing is computed yet
        assert kept_rows(session) == 0
        # WHEN its rows are read THEN the view's are kept, and the report's are right
        assert result.fetchall()[0][3:6] == (STEPS - 1, 10, 10)
        assert kept_rows(session) == STEPS


def test_kept_views_are_the_same_for_every_query(run: Path) -> None:
    with cctrace.open(run) as session:
        plain = session.sql("SELECT * FROM nvtx").fetchall()
        described = session.sql("DESCRIBE steps").fetchall()
        # GIVEN a result that is half read while the view it reads is replaced
        batches = session.sql("SELECT step_id FROM steps ORDER BY step_id").batches(2)
        first = next(batches).column(0).to_pylist()
        session.report("steps").fetchall()
        # WHEN all is read again THEN neither rows, columns nor comments differ
        rest = [value for batch in batches for value in batch.column(0).to_pylist()]
        assert first + rest == list(range(1, STEPS + 1))
        assert session.sql("DESCRIBE steps").fetchall() == described
        comments = session.sql(
            "SELECT comment FROM duckdb_columns() WHERE table_name = 'steps' "
            "AND column_name = 'step_id'"
        ).fetchall()
        assert comments == [("number of the step within its run, from 1, by start",)]
        assert session.sql("SELECT * FROM nvtx").fetchall() == plain


def test_what_a_user_defined_reads_the_kept_view(run: Path) -> None:
    with cctrace.open(run) as session:
        made = "CREATE TABLE mine AS SELECT count(*) AS n FROM steps; "
        made += "CREATE VIEW more AS SELECT n + 1 AS n FROM mine; SELECT n FROM more"
        assert session.sql(made).fetchall() == [(STEPS + 1,)]
        assert session.sql("SELECT n FROM mine").fetchall() == [(STEPS,)]


def test_explain_computes_nothing(run: Path) -> None:
    with cctrace.open(run) as session:
        session.sql("EXPLAIN SELECT * FROM steps").fetchall()
        assert kept_rows(session) == 0


def test_a_view_that_fails_is_an_error_and_stays_a_view(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a library of one kept view, whose computation fails
    [steps] = [view for view in connection.library().views if view.name == "steps"]
    broken = dataclasses.replace(
        steps,
        requires=(),
        columns=steps.columns[:2],
        sql="CREATE VIEW steps AS\nSELECT error('it broke') AS run, 1 AS step_id",
    )
    monkeypatch.setattr(connection, "library", lambda: Library((broken,), {}))
    with cctrace.open(run) as session:
        # WHEN it is read, twice THEN each time the cause is told
        for _ in range(2):
            with pytest.raises(CctraceError, match="it broke"):
                session.sql("SELECT * FROM steps").fetchall()


HEADER = (
    "-- {name}: x\n-- requires: {requires}\n-- grain: x\n{more}-- columns:\n--   a  INTEGER  x\n"
)


def write(folder: Path, kind: str, name: str, requires: str = "", more: str = "") -> Path:
    """Write one object of a library."""
    path = folder / kind / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f"CREATE VIEW {name} AS SELECT 1 AS a" if kind == "views" else "SELECT 1 AS a"
    path.write_text(HEADER.format(name=name, requires=requires, more=more) + body)
    return path


@pytest.mark.parametrize(("more", "kept"), [("", False), ("-- materialize: yes\n", True)])
def test_the_header_says_whether_a_view_is_kept(tmp_path: Path, more: str, *, kept: bool) -> None:
    assert parse_item(write(tmp_path, "views", "v", more=more)).materialize is kept


def test_a_header_that_says_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "views", "v", more="-- materialize: often\n")
    with pytest.raises(CctraceError, match="materialize is yes or no, not 'often'"):
        parse_item(path)


def test_a_report_cannot_be_kept(tmp_path: Path) -> None:
    write(tmp_path, "views", "v")
    write(tmp_path, "reports", "r", more="-- materialize: yes\n")
    with pytest.raises(CctraceError, match="report r has materialize, which only a view can have"):
        load_library(["nvtx"], tmp_path)


def test_a_closure_has_all_that_is_needed_in_order(tmp_path: Path) -> None:
    # GIVEN a <- b <- c, a <- d, and e on its own
    for name, requires in (("a", "nvtx"), ("b", "a"), ("c", "b, nvtx"), ("d", "a"), ("e", "")):
        write(tmp_path, "views", name, requires)
    (tmp_path / "reports").mkdir()
    library = load_library(["nvtx"], tmp_path)
    # WHEN / THEN
    assert [v.name for v in library.closure(["c", "nvtx"])] == ["a", "b", "c"]
    assert [v.name for v in library.closure(["e"])] == ["e"]
    # what is given needs nothing any more
    assert {v.name for v in library.closure(["c", "d"], {"b"})} == {"a", "c", "d"}
    assert [v.name for v in library.closure(["c"], {"b"})] == ["c"]
