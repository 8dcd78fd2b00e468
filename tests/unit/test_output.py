"""How results look on a terminal: tables that fit, and those that are too wide."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_run
from terminal import read_until_closed

from cctrace.cli.units import count

START = [sys.executable, "-c", "from cctrace.cli import main; main()"]


def on_terminal(run: Path, sql: str, columns: int = 80) -> list[str]:
    """Lines that `cctrace query` shows on a terminal of that width."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*START, "query", run, sql], stdout=slave, env={**os.environ, "COLUMNS": str(columns)}
    ) as process:
        os.close(slave)
        shown = read_until_closed(master)
    assert process.returncode == 0
    return shown.decode().splitlines()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, nvtx=[{"name": "a"}])


NUMBERS = ", ".join(f"{10**12} AS column_{i}" for i in range(7))  # 7 * 13 + 6 * 2 = 103 wide


def test_a_row_too_wide_for_the_terminal_is_shown_a_column_a_line(run: Path) -> None:
    # GIVEN two rows of 7 figures and a text, with a control character in it
    sql = f"SELECT {NUMBERS}, 'be\x07ll' AS t UNION ALL SELECT {NUMBERS}, 'text' ORDER BY t"
    # WHEN the terminal is too narrow THEN there are two blocks
    block = [f"column_{i}  1000000000000" for i in range(7)]
    blocks = [*block, "t         be\\x07ll", "", *block, "t         text"]
    assert on_terminal(run, sql) == blocks
    # AND WHEN it is wide enough THEN a table
    assert len(on_terminal(run, sql, columns=120)) == 4


def test_many_wide_rows_stay_a_table(run: Path) -> None:
    shown = on_terminal(run, f"SELECT {NUMBERS}, i FROM range(101) AS t(i) ORDER BY i")
    assert len(shown) == 103
    assert shown[-1].split() == ["1000000000000"] * 7 + ["100"]


def test_long_text_beside_figures_is_folded(run: Path) -> None:
    # GIVEN a table that is too wide only for its text THEN the text takes several lines
    shown = on_terminal(run, "SELECT 17 AS n, repeat('x', 97) AS text")
    assert shown[0].split() == ["n", "text"]
    assert all(len(line) <= 80 for line in shown)
    assert "".join(shown).count("x") == 97 + 1  # and one of the heading


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "event", "0 events"),
        (1, "event", "1 event"),
        (1, "process", "1 process"),
        (1009, "process", "1,009 processes"),
    ],
)
def test_a_number_has_its_noun(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text
