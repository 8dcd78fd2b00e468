"""A query reads its runs and does nothing else: the attacks that were thought of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runs import make_run

import cctrace
from cctrace.errors import CctraceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cctrace.store.library import ParamValue
    from cctrace.store.session import Session

SECRET = "the secret"

# {run}: the run; {part}: a part of it; {secret}: a file outside; {new}: one to make.
FORBIDDEN = {
    "read_csv": "SELECT * FROM read_csv('{secret}')",
    "read_text": "SELECT * FROM read_text('{secret}')",
    "read_blob": "SELECT * FROM read_blob('{secret}')",
    "read_json": "SELECT * FROM read_json('{secret}')",
    "read_duckdb": "SELECT * FROM read_duckdb('{secret}')",
    "read_parquet": "SELECT * FROM read_parquet('{secret}')",
    "read_parquet_own": "SELECT * FROM read_parquet('{part}')",
    "parquet_scan": "SELECT * FROM parquet_scan('{secret}')",
    "parquet_metadata": "SELECT * FROM parquet_metadata('{secret}')",
    "parquet_schema": "SELECT * FROM parquet_schema('{secret}')",
    "sniff_csv": "SELECT * FROM sniff_csv('{secret}')",
    "glob": "SELECT * FROM glob('/*')",
    "glob_run": "SELECT * FROM glob('{run}/**')",
    "bare_path": "SELECT * FROM '{secret}'",
    "bare_csv": "FROM '{run}/../secret.csv'",
    "dot_dot": "SELECT * FROM read_text('{run}/../secret.csv')",
    "proc": "SELECT * FROM read_text('/proc/self/environ')",
    "http": "SELECT * FROM read_csv('http://127.0.0.1:1/x')",
    "http_bare": "SELECT * FROM 'https://127.0.0.1:1/x.parquet'",
    "s3": "SELECT * FROM read_parquet('s3://bucket/x')",
    "nested": "SELECT (SELECT content FROM read_text('{secret}'))",
    "in_cte": "WITH x AS (SELECT * FROM read_text('{secret}')) SELECT * FROM x",
    "in_lateral": "SELECT * FROM nvtx, LATERAL (SELECT * FROM read_text('{secret}'))",
    "in_exists": "SELECT 1 WHERE EXISTS (FROM read_text('{secret}'))",
    "in_union": "SELECT '1' UNION ALL SELECT content FROM read_text('{secret}')",
    "query_function": "SELECT * FROM query('FROM read_text(''{secret}'')')",
    "query_copy": "SELECT * FROM query('WITH c AS (COPY nvtx TO ''{new}'') SELECT 1')",
    "serialized": "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "python_scan": "SELECT * FROM python_arrow_scan(1)",
    "pandas_scan": "SELECT * FROM pandas_scan(1)",
    "python_variable": "SELECT * FROM secret_table",
    "getenv": "SELECT getenv('CCTRACE_TEST_SECRET')",
    "copy_to": "COPY nvtx TO '{new}'",
    "copy_query_to": "COPY (SELECT 1) TO '{new}' (FORMAT csv)",
    "copy_into_run": "COPY (SELECT 1) TO '{run}/nvtx/part-000009.parquet'",
    "copy_over_part": "COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
    "copy_from": "COPY nvtx FROM '{secret}'",
    "copy_in_cte": "WITH c AS (COPY (SELECT 1) TO '{new}') SELECT 1",
    "copy_over_part_in_cte": (
        "WITH c AS (COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1"
    ),
    "copy_in_cte_of_cte": (
        "WITH a AS (WITH b AS (COPY (SELECT 1) TO '{part}') SELECT 1) SELECT * FROM a"
    ),
    "copy_in_subquery": "SELECT (WITH c AS (COPY (SELECT 1) TO '{new}') SELECT 1)",
    "copy_in_view": "CREATE VIEW v AS WITH c AS (COPY nvtx TO '{new}') SELECT 1; FROM v",
    "copy_in_table": "CREATE TABLE t AS WITH c AS (COPY nvtx TO '{new}') SELECT 1; FROM t",
    "copy_in_macro": (
        "CREATE MACRO m() AS TABLE WITH c AS (COPY nvtx TO '{new}') SELECT 1; FROM m()"
    ),
    "copy_in_macro_default": (
        "CREATE MACRO m(a := (WITH c AS (COPY nvtx TO '{new}') SELECT 1)) AS a; SELECT m()"
    ),
    "copy_in_second_macro": (
        "CREATE MACRO m(a) AS a, (a, b) AS (WITH c AS (COPY nvtx TO '{new}') SELECT 1); SELECT 1"
    ),
    "macro_as_function": (
        "CREATE MACRO read_text(x) AS TABLE SELECT 1; SELECT * FROM main.read_text('{secret}')"
    ),
    "explain_analyze_copy": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{new}'",
    "explain_options_copy": "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{new}'",
    "explain_analyze_cte": "EXPLAIN ANALYZE WITH c AS (COPY nvtx TO '{new}') SELECT 1",
    "export": "EXPORT DATABASE '{new}'",
    "import": "IMPORT DATABASE '{run}'",
    "attach": "ATTACH '{new}' AS other",
    "attach_memory": "ATTACH ':memory:' AS other",
    "attach_secret": "ATTACH '{secret}' AS other (READ_ONLY)",
    "detach": "DETACH memory",
    "use": "USE main",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "load_path": "LOAD '{secret}'",
    "update_extensions": "UPDATE EXTENSIONS",
    "set": "SET enable_external_access = true",
    "set_threads": "SET threads = 1",
    "set_variable": "SET VARIABLE x = 1",
    "reset": "RESET threads",
    "pragma": "PRAGMA enable_profiling",
    "pragma_value": "PRAGMA threads = 1",
    "call": "CALL enable_logging()",
    "call_in_from": "SELECT * FROM enable_logging(storage = 'file', storage_path = '{new}')",
    "checkpoint": "CHECKPOINT",
    "prepare": "PREPARE p AS SELECT 1",
    "execute": "EXECUTE p",
    "secret": "CREATE SECRET s (TYPE s3)",
    "persistent_secret": "CREATE PERSISTENT SECRET s (TYPE s3)",
    "create_schema": "CREATE SCHEMA s",
    "create_type": "CREATE TYPE t AS INT",
    "create_sequence": "CREATE SEQUENCE s",
    "create_empty": "CREATE TABLE t (a INT)",
    "insert": "INSERT INTO runs SELECT * FROM runs",
    "update": "UPDATE runs SET run = 'x'",
    "delete": "DELETE FROM runs",
    "insert_in_cte": "WITH x AS (DELETE FROM runs RETURNING run) SELECT * FROM x",
    "drop": "DROP VIEW nvtx",
    "alter": "ALTER TABLE runs RENAME TO other",
    "comment": "COMMENT ON TABLE runs IS 'x'",
    "begin": "BEGIN",
    "vacuum": "VACUUM",
    "second": "SELECT 1; COPY nvtx TO '{new}'",
    "first": "COPY nvtx TO '{new}'; SELECT 1",
    "hidden_second": "SELECT 1 -- \n; SET threads = 1; SELECT 2",
    "hidden_by_comment": "/* SELECT */ COPY nvtx TO '{new}'",
    "hidden_by_quotes": "SELECT ';' AS \";\"; COPY nvtx TO '{new}'",
    "empty": " ; -- nothing",
    "no_rows": "CREATE VIEW v AS SELECT 1",
    "no_sql": "hello there",
    "surrogate": "SELECT '\ud800'",
}

ALLOWED = {
    "select": "SELECT 1 AS a",
    "from": "FROM nvtx",
    "values": "VALUES (1), (2)",
    "table": "TABLE nvtx",
    "cte": "WITH a AS (SELECT 1 AS x) SELECT x FROM a",
    "recursive": (
        "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a WHERE x < 3) FROM a"
    ),
    "describe": "DESCRIBE nvtx",
    "show": "SHOW TABLES",
    "summarize": "SUMMARIZE nvtx",
    "explain": "EXPLAIN SELECT 1",
    "explain_analyze": "EXPLAIN ANALYZE SELECT * FROM nvtx",
    "explain_options": "EXPLAIN (FORMAT json) SELECT 1",
    "explain_parentheses": "EXPLAIN (SELECT 1)",
    "pivot": "PIVOT nvtx ON name IN ('a', 'b') USING count(*)",
    "asof": "SELECT * FROM nvtx AS a ASOF JOIN nvtx AS b ON a.ts_ns >= b.ts_ns",
    "unnest": "SELECT * FROM unnest([1, 2])",
    "range": "SELECT * FROM range(3)",
    "word_copy": "SELECT 'COPY x TO y' AS \"copy\", class FROM cuda_api",
    "catalog": "SELECT column_name, comment FROM duckdb_columns()",
    "temp_table": "CREATE TEMP TABLE t AS SELECT 1 AS a; SELECT a FROM t",
    "view": "CREATE OR REPLACE VIEW v (b) AS SELECT 1; SELECT b FROM v",
    "macro": "CREATE MACRO ms(a) AS a / 1e6; SELECT ms(dur_ns) FROM nvtx",
    "table_macro": (
        "CREATE MACRO longest(k) AS TABLE SELECT * FROM nvtx ORDER BY dur_ns LIMIT k;"
        "SELECT * FROM longest(3)"
    ),
    "comments": "/* é */ SELECT 1 -- the end",
    "semicolon": "SELECT 1;",
}


def digest(folder: Path) -> dict[str, str]:
    """Content of every file under ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run and a secret beside it."""
    folder = tmp_path_factory.mktemp("place")
    make_run(folder, nvtx=[{"name": "a", "dur_ns": 5}, {"name": "b'; DROP TABLE runs"}])
    (folder / "secret.csv").write_text(f"{SECRET}\n{SECRET}\n")
    return folder


@pytest.fixture
def session(place: Path) -> Iterator[Session]:
    with cctrace.open(place / "run") as opened:
        yield opened


@pytest.mark.parametrize("attack", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_is_more_than_reading_is_refused(
    place: Path, session: Session, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CCTRACE_TEST_SECRET", SECRET)
    secret_table = session.sql("SELECT 1").arrow()
    assert secret_table.num_rows == 1
    before = digest(place)
    sql = attack.format(
        run=place / "run",
        part=place / "run" / "nvtx" / "part-000000.parquet",
        secret=place / "secret.csv",
        new=place / "new",
    )
    with pytest.raises(CctraceError) as caught:
        session.sql(sql).fetchall()
    assert caught.value.exit_code == 2
    assert SECRET not in str(caught.value)
    assert digest(place) == before
    assert session.sql("SELECT count(*) FROM nvtx").fetchall() == [(2,)]


@pytest.mark.parametrize("query", ALLOWED.values(), ids=ALLOWED)
def test_what_reads_is_allowed(session: Session, query: str) -> None:
    session.sql(query).fetchall()


def test_a_refusal_names_the_statement(session: Session) -> None:
    for sql, name in (
        ("copy nvtx to 'x'", "COPY"),
        ("install httpfs", "INSTALL"),
        ("update extensions", "UPDATE"),
        ("create schema s", "CREATE SCHEMA"),
        ("explain analyze copy (select 1) to 'x'", "EXPLAIN COPY"),
    ):
        with pytest.raises(CctraceError) as caught:
            session.sql(sql)
        assert caught.value.message == f"{name} is not allowed in a query"
        assert "SELECT" in (caught.value.hint or "")


def test_a_link_inside_the_run_leads_nowhere(tmp_path: Path) -> None:
    # GIVEN a run with links to a file and to a directory outside
    run = make_run(tmp_path, nvtx=[{"name": "a"}])
    (tmp_path / "secret.csv").write_text(SECRET)
    (run / "link.csv").symlink_to(tmp_path / "secret.csv")
    (run / "up").symlink_to(tmp_path)
    with cctrace.open(run) as session:
        for path in (run / "link.csv", run / "up" / "secret.csv"):
            # THEN a query cannot follow them, not even past the guard
            with pytest.raises(CctraceError):
                session.sql(f"FROM '{path}'")
            with pytest.raises(Exception, match="disabled by configuration"):
                session._connection.execute(f"SELECT * FROM read_text('{path}')")


def test_the_connection_alone_is_closed_too(place: Path, session: Session) -> None:
    # The second line of defence, were the guard to miss a statement.
    for sql in (
        f"COPY (SELECT 1) TO '{place / 'new'}'",
        f"COPY (SELECT 1) TO '{place / 'run' / 'nvtx' / 'new'}'",
        f"SELECT * FROM read_text('{place / 'secret.csv'}')",
        f"ATTACH '{place / 'new'}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 1",
        "SET enable_external_access = true",
        "RESET allowed_paths",
    ):
        with pytest.raises(Exception, match=r"configuration|locked"):
            session._connection.execute(sql)
    assert not (place / "new").exists()


def test_labels_and_names_that_hold_sql_are_text(tmp_path: Path) -> None:
    # GIVEN a directory and an event whose names are SQL
    evil = "x' AS run; DROP TABLE runs; --\n\x1b[31m"
    run = make_run(tmp_path, evil, nvtx=[{"name": evil, "domain": '"'}], manifest={"cwd": evil})
    with cctrace.open(run) as session:
        assert session.sql("SELECT run, name, domain FROM nvtx").fetchall() == [(evil, evil, '"')]
        assert session.sql("SELECT run FROM runs").fetchall() == [(evil,)]
        assert session.report("nvtx_summary").fetchall()[0][:3] == (evil, '"', evil)


def test_parameters_are_values(session: Session) -> None:
    query = "SELECT count(*) FROM nvtx WHERE name = $name"
    assert session.sql(query, {"name": "b'; DROP TABLE runs"}).fetchall() == [(1,)]
    wrong: list[dict[str, ParamValue]] = [{}, {"name": "a", "other": 1}]
    for params in wrong:
        with pytest.raises(CctraceError) as caught:
            session.sql(query, params)
        assert caught.value.exit_code == 2


def test_what_was_created_stays_for_the_session_unless_temporary(session: Session) -> None:
    session.sql("CREATE VIEW kept AS SELECT 7 AS a; SELECT 1")
    assert session.sql("FROM kept").fetchall() == [(7,)]
    first = session.sql("CREATE TEMP VIEW gone AS SELECT 11 AS a; FROM gone")
    with pytest.raises(CctraceError):
        session.sql("FROM gone")
    assert first.fetchall() == [(11,)]


def test_results_are_read_side_by_side(session: Session) -> None:
    first = session.sql("SELECT range AS a FROM range(200_000)").batches(1000)
    second = session.sql("SELECT range AS a FROM range(200_000)").batches(1000)
    for a, b in zip(first, second, strict=True):
        assert a == b


def test_nothing_is_left_behind(place: Path) -> None:
    session = cctrace.open(place / "run")
    alive = session._finalizer.peek()
    assert alive
    folder = Path(alive[2][0])
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    session.close()
    assert not folder.exists()
