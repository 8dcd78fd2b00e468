"""The commands query, info and export as a user sees them: stdout, stderr, status."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq
import pytest
from runs import make_run
from terminal import read_until_closed

from cctrace.cli.query import listing
from cctrace.cli.units import harmless
from cctrace.store.manifest import HookReport, Source

if TYPE_CHECKING:
    from conftest import Golden
EVIL = "\x1b[31m\x07red\u202e[bold]|<b>\n"

START = [sys.executable, "-c", "from cctrace.cli import main; main()"]


def cctrace(
    *arguments: str | Path, stdin: bytes = b"", **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line to its end."""
    return subprocess.run(
        [*START, *map(str, arguments)], input=stdin, capture_output=True, check=False, **more
    )


def answer(*arguments: str | Path, **more: Any) -> str:
    """Standard output of a command that must succeed."""
    done = cctrace(*arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def refusal(code: int, *arguments: str | Path, **more: Any) -> str:
    """Standard error of a command that must fail with ``code``."""
    done = cctrace(*arguments, **more)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a few events, one of them with a hostile name."""
    return make_run(
        tmp_path,
        nvtx=[
            {"ts_ns": 10, "dur_ns": 5, "name": "a"},
            {"ts_ns": 2**53 + 1, "dur_ns": None, "name": EVIL},
        ],
    )


ROWS = "SELECT ts_ns, dur_ns, name FROM nvtx ORDER BY ts_ns"


def test_table(run: Path) -> None:
    found = answer("query", run, ROWS).splitlines()
    assert [line.split() for line in found if "─" not in line] == [
        ["ts_ns", "dur_ns", "name"],
        ["10", "5", "a"],
        ["9007199254740993", "\\x1b[31m\\x07red\\u202e[bold]|<b>\\n"],
    ]
    # A pipe has no width: nothing is cut or wrapped.
    wide = "SELECT repeat('x', 997) AS a, repeat('y', 991) AS b"
    assert answer("query", run, wide).splitlines()[-1].split() == ["x" * 997, "y" * 991]


def test_an_answer_stands_above_its_table_once_a_run(run: Path) -> None:
    select = "SELECT run, answer, 'as \x1b seen' AS evidence, n FROM (VALUES {}) v(run, answer, n)"
    one = answer("query", run, select.format("('a', 'yes', 1.25), ('a', 'yes', 1 / 3)"))
    assert one.splitlines()[:2] == ["a: yes: as \\x1b seen", ""]
    assert [line.strip() for line in one.splitlines()[2:] if "─" not in line] == [
        "n", "1.25", "0.333333"
    ]  # fmt: skip
    two = answer("query", run, select.format("('a', 'no', 2), ('b', 'unknown', NULL)"))
    assert two.splitlines()[:3] == ["a: no: as \\x1b seen", "b: unknown: as \\x1b seen", ""]
    assert [line.split() for line in two.splitlines()[3:] if "─" not in line] == [
        ["run", "n"],
        ["a", "2"],
    ]
    none = answer("query", run, select.format("('a', 'unknown', NULL)"))
    assert none == "a: unknown: as \\x1b seen\n"


def test_csv(run: Path) -> None:
    found = answer("query", run, ROWS, "--format", "csv")
    assert list(csv.reader(io.StringIO(found, newline=""))) == [
        ["ts_ns", "dur_ns", "name"],
        ["10", "5", "a"],
        ["9007199254740993", "", EVIL],
    ]


def test_json(run: Path) -> None:
    found = answer("query", run, ROWS, "--format", "json")
    assert json.loads(found) == [
        {"ts_ns": 10, "dur_ns": 5, "name": "a"},
        {"ts_ns": 9007199254740993, "dur_ns": None, "name": EVIL},
    ]
    assert "\x1b" not in found
    assert json.loads(answer("query", run, "FROM nvtx LIMIT 0", "--format", "json")) == []


def test_json_of_every_kind_of_value(run: Path) -> None:
    query = (
        "SELECT sum(ts_ns) AS s, 1.25::DECIMAL(9,2) AS d, 'nan'::DOUBLE AS n, [1, NULL] AS l, "
        "{'a': 1} AS st, 'x'::BLOB AS b, TIMESTAMP '2025-01-02 03:04:05' AS t, true AS s "
        "FROM nvtx"
    )
    assert json.loads(answer("query", run, query, "--format", "json")) == [
        {
            "s": 2**53 + 11,
            "d": 1.25,
            "n": None,
            "l": [1, None],
            "st": {"a": 1},
            "b": "78",
            "t": "2025-01-02 03:04:05",
            "s_2": True,
        }
    ]


def test_markdown(run: Path) -> None:
    assert answer("query", run, ROWS, "--format", "markdown") == (
        "| ts\\_ns | dur\\_ns | name |\n"
        "| ---: | ---: | --- |\n"
        "| 10 | 5 | a |\n"
        "| 9007199254740993 |  | \\x1b\\[31m\\x07red\\u202e\\[bold\\]\\|\\<b\\>  |\n"
    )


def test_parquet(run: Path, tmp_path: Path) -> None:
    done = cctrace("query", run, ROWS, "--format", "parquet")
    assert done.returncode == 0
    table = pq.read_table(io.BytesIO(done.stdout))
    assert table.to_pylist()[1] == {"ts_ns": 2**53 + 1, "dur_ns": None, "name": EVIL}
    output = tmp_path / "out.parquet"
    assert answer("query", run, ROWS, "--format", "parquet", "-o", output) == ""
    assert pq.read_table(output).equals(table)


def test_a_terminal_gets_no_control_characters_and_no_parquet(run: Path) -> None:
    def on_terminal(*arguments: str) -> tuple[int, bytes]:
        master, slave = pty.openpty()
        with subprocess.Popen(
            [*START, "query", str(run), ROWS, *arguments], stdout=slave, stderr=subprocess.PIPE
        ) as process:
            os.close(slave)
            shown = read_until_closed(master)
        return process.returncode, shown

    for kind in ("table", "csv", "json", "markdown"):
        code, shown = on_terminal("--format", kind)
        assert code == 0
        assert b"red" in shown
        assert not any(c in shown for c in (b"\x1b", b"\x07", "\u202e".encode()))
    assert on_terminal("--format", "parquet") == (2, b"")


def test_harmless_text_has_no_control_characters() -> None:
    assert harmless("a\tb\x00\x9b\u2028é\U0001f600") == "a\\tb\\x00\\x9b\\u2028é\U0001f600"


def test_what_is_not_seen_in_a_text_is_written_out() -> None:
    """Every code point: by its category, and as the Unicode database lists what is ignorable."""
    for code in range(sys.maxunicode + 1):
        text = chr(code)
        if unicodedata.category(text) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            assert harmless(text).isascii(), hex(code)
    ignorable = "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180e\u180f\u200b\u200f\u202a\u2060"
    ignorable += "\u2065\u206f\u3164\ufe00\ufe0f\ufeff\uffa0\ufff0\ufff8\U0001bca0\U0001d173"
    ignorable += "\U000e0000\U000e0001\U000e007f\U000e0100\U000e01ef\U000e0fff"
    assert all(harmless(character).isascii() for character in ignorable)
    assert harmless("a\xad\u3164\U000e0041") == "a\\xad\\u3164\\U000e0041"
    # AND letters of all scripts, marks on them and symbols are as they were
    letters = "größe e\u0301 日本語 עברית हिन्दी 한국어 \U0001f600 \u3000 ⠿"
    assert harmless(letters) == letters


def test_a_variation_selector_stays_behind_a_symbol_alone() -> None:
    assert harmless("\u2764\ufe0f \xa9\ufe0e") == "\u2764\ufe0f \xa9\ufe0e"
    assert harmless("a\ufe0fb \u2764\ufe0f\ufe0f") == "a\\ufe0fb \u2764\ufe0f\\ufe0f"
    assert harmless("\ufe0f") == "\\ufe0f"


def test_an_output_is_not_overwritten_unless_forced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    assert answer("query", run, "SELECT 1 AS a", "--format", "csv", "-o", output) == ""
    assert output.read_text() == "a\n1\n"
    said = refusal(2, "query", run, "SELECT 2 AS a", "--format", "csv", "-o", output)
    assert f"{output} exists" in said
    assert "--force" in said
    answer("query", run, "SELECT 2 AS a", "--format", "csv", "-o", output, "--force")
    assert output.read_text() == "a\n2\n"
    # A query that fails leaves what was there, and nothing beside it.
    refusal(1, "query", run, "SELECT error('x')", "--format", "csv", "-o", output, "--force")
    assert output.read_text() == "a\n2\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "run"]
    assert "cannot write" in refusal(1, "query", run, "SELECT 1", "-o", tmp_path / "no" / "x")


def test_sql_from_a_file_and_from_standard_input(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "q.sql"
    file.write_text("SELECT 7 AS a")
    for arguments, stdin in (
        (["--file", str(file)], b""),
        (["--file", "-"], b"SELECT 7 AS a"),
        (["-"], b"SELECT 7 AS a"),
    ):
        assert answer("query", run, *arguments, "--format", "csv", stdin=stdin) == "a\n7\n"
    assert "not UTF-8" in refusal(2, "query", run, "-", stdin=b"SELECT '\xff'")


def test_reports_and_parameters(run: Path) -> None:
    report = ["query", str(run), "--name", "nvtx_summary", "--format", "csv"]
    assert len(answer(*report).splitlines()) == 4
    assert len(answer(*report, "--param", "top=1").splitlines()) == 2
    assert "takes a BIGINT, not 'x'" in refusal(2, *report, "--param", "top=x")
    assert "has no parameter other" in refusal(2, *report, "--param", "other=1")
    assert "NAME=VALUE" in refusal(2, *report, "--param", "top")
    assert "no report is named 'x'" in refusal(2, "query", run, "--name", "x")
    sql = ["query", str(run), "SELECT $a + 1 AS b, $c AS d", "--format", "csv"]
    assert answer(*sql, "--param", "a=2", "--param", "c=x") == "b,d\n3,x\n"
    assert answer(*sql, "--param", "a=NULL", "--param", "c=0.5") == "b,d\n,0.5\n"
    assert "no value for c" in refusal(2, *sql, "--param", "a=2")


def test_several_runs(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one", nvtx=[{"name": "a"}])
    two = make_run(tmp_path, "two words", nvtx=[{"name": "b"}])
    query = "SELECT run, name FROM nvtx ORDER BY ALL"
    found = answer("query", one, two, query, "--format", "csv")
    assert found == "run,name\none,a\ntwo words,b\n"
    # A run whose name holds a space is a run.
    assert answer("query", one, two, "--name", "steps", "--format", "csv").count("\n") == 1


def test_what_is_neither_a_run_nor_sql_is_told(run: Path, tmp_path: Path) -> None:
    assert f"no run at {tmp_path}/nothing" in refusal(4, "query", tmp_path / "nothing", "SELECT 1")
    said = refusal(4, "query", run, "steps")
    assert "no run at steps" in said
    assert "--name" in said
    assert "no run at SELECT 1" in refusal(4, "query", "SELECT 1")
    assert "name one query" in refusal(2, "query", run)
    assert "no run was named" in refusal(2, "query", "--name", "steps")
    assert "no run at SELECT 1" in refusal(4, "query", run, "SELECT 1", "--name", "steps")


def test_a_refused_or_wrong_query_is_told(run: Path) -> None:
    said = refusal(2, "query", run, "COPY nvtx TO 'x'")
    assert said.startswith("cctrace: COPY is not allowed in a query\nhint: ")
    assert 'Referenced column "nope"' in refusal(2, "query", run, "SELECT nope FROM nvtx")
    assert "the query failed" in refusal(1, "query", run, "SELECT error('no')")
    # DuckDB's lines that point at the place stay lines, and are not ours to mistake.
    lines = refusal(2, "query", run, "SELEC 1").splitlines()
    assert lines[0].startswith("cctrace: the query is not SQL: ")
    assert lines[1:3] == ["  LINE 1: SELEC 1", "          ^^^^^"]


def test_losses_are_told_on_stderr(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        nvtx=[{"name": "a"}] * 7,
        losses=[{"count": 1204}, {"count": 3, "reason": "truncated_string"}],
    )
    done = cctrace("query", run, "SELECT 1 AS a", "--format", "csv")
    assert done.stdout == b"a\n1\n"
    assert done.stderr.decode() == (
        "WARNING: 1,204 of 1,211 events lost (ring_full); "
        f"incomplete: truncated_string 3 in {run}\n"
    )
    other = make_run(tmp_path, "other", losses=[{"count": 2}, {"count": 1, "reason": "no_slot"}])
    said = cctrace("query", other, "SELECT 1").stderr.decode()
    assert said == f"WARNING: 3 of 3 events lost (ring_full 2, no_slot 1) in {other}\n"


def test_a_long_table_ends_and_says_so(run: Path) -> None:
    done = cctrace("query", run, "SELECT range AS a FROM range(10_007)")
    assert done.stdout.decode().splitlines()[-1].strip() == "9999"
    assert "only the first 10,000 rows" in done.stderr.decode()
    found = answer("query", run, "SELECT range AS a FROM range(10_007)", "--format", "csv")
    assert found.splitlines()[-1] == "10006"


def test_a_closed_pipe_ends_the_command_quietly(run: Path) -> None:
    query = "SELECT range AS a FROM range(1_000_000)"
    with subprocess.Popen(
        [*START, "query", str(run), query, "--format", "csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"a\n"
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("kind", ["table", "csv"])
def test_an_interrupt_ends_a_query_with_130(tmp_path: Path, kind: str) -> None:
    # GIVEN a query that is known to run: its loss warning is out, and it never ends
    run = make_run(tmp_path, losses=[{"count": 1}])
    endless = "SELECT count(*) FROM range(1_000_000) AS a, range(1_000_000) AS b WHERE a < b"
    # A shell starts what it puts into the background with SIGINT ignored, and that
    # is inherited; without this the query would not end there.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with subprocess.Popen(
        [START[0], "-c", f"{heed}; {START[2]}", "query", str(run), endless, "--format", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr
        assert process.stderr.readline().startswith(b"WARNING")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert (process.wait(60), said) == (130, b"cctrace: interrupted\n")


def test_help_needs_no_duckdb_and_no_arrow() -> None:
    code = (
        "import sys; from cctrace.cli import cli\n"
        "for name in ('', 'query', 'info', 'export'):\n"
        "    cli([*name.split(), '--help'], standalone_mode=False)\n"
        "sys.exit(' '.join(m for m in ('duckdb', 'pyarrow', 'numpy', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr == b"\n"
    assert done.stdout.count(b"Example:") >= 4


def test_list(golden: Golden) -> None:
    found = answer("query", "--list")
    assert found == listing()
    golden("query_list.txt", found)


def full_run(folder: Path) -> Path:
    """A run with something in every section of info."""
    return make_run(
        folder,
        nvtx=[{"name": f"{i}"} for i in range(1009)],
        processes=[{"pid": 1}, {"pid": 2}],
        losses=[{"count": 17}, {"count": 3, "reason": "truncated_string"}],
        manifest={
            "command": ["python", "serve it.py", EVIL],
            "ended": "target_signal",
            "exit_code": 137,
            "host": {"kernel": "6.1.0", "tee": {"kind": "tdx"}, "gpu": {"cc_state": "on"}},
            "sources": [
                Source("nvtx", "attached"),
                Source("sched", "refused", "no CAP_BPF", "run as root"),
            ],
            "adapters": [HookReport(1, "vllm", "0.32.0", ["a", "b"], ["c"], "old engine")],
            "warnings": ["a name was cut"],
        },
    )


def test_info(tmp_path: Path, golden: Golden) -> None:
    run = full_run(tmp_path)
    found = answer("info", run).replace(str(run), "RUN")
    # The size of a part is the Arrow version's business.
    sizes = "".join(c for c in found if not c.isdigit())
    assert "kB" in sizes
    golden("info.txt", "\n".join(_without_sizes(line) for line in found.splitlines()) + "\n")


def _without_sizes(line: str) -> str:
    words = line.split()
    if len(words) > 1 and words[-2] == "kB":
        return line.replace(words[-3], "?" * len(words[-3]))
    return line


def test_info_json(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    found = json.loads(answer("info", run, "--json"))
    assert found["path"] == str(run)
    assert found["ended"] == "target_signal"
    assert found["duration_ns"] == 2_500_000_000
    assert found["events"] == 1009
    assert found["lost"] == 17
    assert found["losses"] == {
        "events_lost": {"ring_full": 17},
        "events_incomplete": {"truncated_string": 3},
    }
    assert {name: table["rows"] for name, table in found["tables"].items()} == {
        "processes": 2,
        "nvtx": 1009,
        "losses": 2,
    }
    assert found["sources"][1]["hint"] == "run as root"
    assert found["adapters"][0]["missing"] == ["c"]


def test_info_of_a_killed_recorder(tmp_path: Path) -> None:
    run = make_run(tmp_path, manifest={"ended": "recording", "stop": None, "exit_code": None})
    found = answer("info", run)
    assert "recorder_killed: the recorder was killed" in found
    assert "Losses: none" in found


def test_info_of_what_is_no_run(tmp_path: Path) -> None:
    assert "no run at" in refusal(4, "info", tmp_path)


def test_export_is_whole_without_the_run(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        "it's [a] run",
        nvtx=[
            {"ts_ns": 10, "dur_ns": 5, "name": "step", "domain": "mine"},
            {"ts_ns": 20, "dur_ns": 5, "name": "step", "domain": "mine"},
        ],
        losses=[{"count": 1}],
    )
    output = tmp_path / "out.duckdb"
    done = cctrace("export", run, "--format", "duckdb", "-o", output)
    assert done.returncode == 0
    # Behind a checksum and "DUCK": storage version 64, that of DuckDB 1.0.
    assert output.read_bytes()[8:20] == b"DUCK" + (64).to_bytes(8, "little")
    assert done.stdout == b""
    said = done.stderr.decode().splitlines()
    assert said[0].startswith("WARNING: 1 of 3 events lost (ring_full)")
    assert said[1].startswith(f"Wrote {output} (2 events, ")
    # GIVEN that the run is gone
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    # THEN any client has the tables, the views and what they mean
    with duckdb.connect(str(output), read_only=True) as client:
        rows = client.sql("SELECT run, step_id, period_ns FROM steps ORDER BY step_id").fetchall()
        assert rows == [("it's [a] run", 1, 10), ("it's [a] run", 2, None)]
        assert client.sql("SELECT lost FROM runs").fetchall() == [(1,)]
        comment = "SELECT comment FROM duckdb_columns() WHERE table_name = $t AND column_name = $c"
        for table, column in (("nvtx", "ts_ns"), ("steps", "period_ns"), ("runs", "ended")):
            assert client.sql(comment, params={"t": table, "c": column}).fetchall() != [(None,)]


def test_an_export_is_not_overwritten_unless_forced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.duckdb"
    output.write_text("mine")
    arguments = ["export", str(run), "--format", "duckdb", "-o", str(output)]
    assert f"{output} exists" in refusal(2, *arguments)
    assert output.read_text() == "mine"
    answer(*arguments, "--force")
    assert output.stat().st_size > 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.duckdb", "run"]
    nowhere = ["export", str(run), "--format", "duckdb", "-o", str(tmp_path / "no" / "x")]
    assert "cannot write" in refusal(1, *nowhere)
