"""The documents and the tree keep their own rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cctrace.cli import cli

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = cli.list_commands(click.Context(cli))
MAX_LINES = 500
# Bracketed, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:w[o]rk|r[o]ot|o[p]t)/\w")
REGISTRY = re.compile(r"p[y]pi\.org|p[y]thonhosted\.org|n[p]mjs\.org|download\.p[y]torch")
CODE = {".py", ".c", ".h", ".sql", ".sh"}


def _files() -> list[str]:
    """Files of the project: tracked, or new and not ignored."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: no list of the project's files", allow_module_level=True)
    return sorted(name for name in listed if name and (ROOT / name).is_file())


FILES = _files()


def _text(name: str) -> str:
    try:
        return (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return ""  # binary: a golden run's Parquet parts


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name in FILES
        for number, line in enumerate(_text(name).splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_and_an_example(name: str) -> None:
    # GIVEN a command
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    # WHEN / THEN its help says what it does, shows how, and explains every option
    assert command.help
    shown = command.get_help(click.Context(command, terminal_width=80))
    assert f"\n  Example:\n    cctrace {name}" in shown  # lines of its own, not one paragraph
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_cli_document_is_current() -> None:
    # GIVEN the script that writes it, in a process of its own: click remembers
    # the help option of whoever asked first
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gen_cli_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # WHEN / THEN what it would write is what is there
    assert (done.returncode, done.stderr) == (0, "")


def test_no_paths_of_one_machine() -> None:
    assert _lines_with(MACHINE_PATH) == []


def test_no_package_registry_is_named() -> None:
    assert _lines_with(REGISTRY) == []


def test_no_file_is_too_long() -> None:
    lengths = {n: len(_text(n).splitlines()) for n in FILES if Path(n).suffix in CODE}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_suppressions_have_a_code_and_a_reason() -> None:
    # GIVEN every suppression of ruff, mypy and coverage in the tree
    suppression = re.compile(r"#\s*(?:n[o]qa|type:\s*i[g]nore)(?![\w`])")
    reasoned = re.compile(
        r"#\s*(?:n[o]qa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|type: i[g]nore\[[\w, -]+\]) +[-#] ?\S"
    )
    found = [line for line in _lines_with(suppression) if line.split(":")[0].endswith(".py")]
    # WHEN / THEN each names what it silences and why
    assert [line for line in found if not reasoned.search(line)] == []


@pytest.mark.parametrize("name", [n for n in FILES if Path(n).suffix in {".c", ".h"}])
def test_c_files_name_their_licence(name: str) -> None:
    # The kernel lends some helpers to GPL-compatible programs only.
    in_kernel = name.startswith(("probes/bpf/", "tests/targets/kernel/")) or ".bpf." in name
    licence = "(GPL-2.0-only OR Apache-2.0)" if in_kernel else "Apache-2.0"
    assert f"SPDX-License-Identifier: {licence}" in _text(name).splitlines()[0]


def test_readme_names_real_make_targets() -> None:
    # GIVEN the targets of the Makefile and those that the documents name
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    documents = [n for n in FILES if n.endswith(".md")]
    named = {t for n in documents for t in re.findall(r"`make ([a-z-]+)`", _text(n))}
    # WHEN / THEN
    assert named <= targets
