"""``cctrace report --format html`` as a command: where the page goes, and what is said."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result
from page_runs import busy_run, document_of
from terminal import read_until_closed

from cctrace.cli import cli
from cctrace.errors import CctraceError

if TYPE_CHECKING:
    from pathlib import Path


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_a_page_goes_into_a_file(tmp_path: Path) -> None:
    run, page = busy_run(tmp_path, steps=7), tmp_path / "report.html"
    done = report(run, "--format", "html", "-o", page)
    assert (done.exit_code, done.stdout) == (0, "")
    warning, wrote = done.stderr.splitlines()
    assert warning.startswith("WARNING: 13 of ")
    assert re.fullmatch(rf"Wrote {re.escape(str(page))} \(4\.\d MB\)", wrote)
    assert document_of(page.read_text("utf-8"))["report"]["run"]["path"] == str(run)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_file_it_goes_to_standard_output(tmp_path: Path) -> None:
    run = busy_run(tmp_path, steps=7)
    done = report(run, "--format", "html")
    assert done.exit_code == 0
    assert done.stdout_bytes.startswith(b"<!doctype html>")
    assert "Wrote" not in done.stderr


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    run, page = busy_run(tmp_path, steps=7), tmp_path / "report.html"
    page.write_text("mine", "utf-8")
    done = report(run, "--format", "html", "-o", page)
    assert isinstance(done.exception, CctraceError) or done.exit_code == 2
    assert page.read_text("utf-8") == "mine"
    assert report(run, "--format", "html", "-o", page, "--force").exit_code == 0
    assert page.stat().st_size > 1_000_000


def test_a_terminal_gets_no_page(tmp_path: Path) -> None:
    # GIVEN a terminal as standard output
    run = busy_run(tmp_path, steps=7)
    leader, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "cctrace", "report", str(run), "--format", "html"],
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(terminal)
    # THEN nothing is shown on it, and the fix is named
    assert read_until_closed(leader) == b""
    assert done.returncode == 2
    assert "binary output is not for a terminal\nhint: name a file: -o FILE" in done.stderr
