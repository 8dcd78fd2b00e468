"""What the command's own program is, by its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cctrace.record.program_file import find_program, is_32_bit, is_static


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_programs_are_found_as_the_shell_does(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "tool").mkdir(parents=True)  # a folder of that name is no program
    second.mkdir()
    tool = put(second / "tool", b"#!/bin/sh\n")
    environment = {"PATH": f"/nonexistent:{first}:{second}"}
    assert find_program("tool", environment) == tool
    assert find_program(str(tool), {}) == tool
    for word in ("absent", str(first / "tool"), "", "a\0b"):
        assert find_program(word, environment) is None


@pytest.mark.parametrize("flags", [("-static",), ("-static-pie",), ("-no-pie",), ("-pie", "-fPIE")])
def test_static_programs_are_told_from_dynamic_ones(tmp_path: Path, flags: tuple[str, ...]) -> None:
    source = put(tmp_path / "main.c", b"int main(void) { return 0; }\n")
    program = tmp_path / "main"
    done = subprocess.run(["cc", *flags, source, "-o", program], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cc cannot link with {flags[0]}: {done.stderr.decode()[-200:]}")
    assert is_static(program) == flags[0].startswith("-static")
    assert not is_32_bit(program)


def test_what_is_no_program_is_neither(tmp_path: Path) -> None:
    files = [
        put(tmp_path / "script", b"#!/bin/sh\n"),
        put(tmp_path / "empty", b""),
        put(tmp_path / "cut", b"\x7fELF\x02"),
        put(tmp_path / "absurd", b"\x7fELF\x02" + b"\xff" * 200),
        tmp_path / "absent",
        None,
    ]
    assert [is_32_bit(file) for file in files] == [False] * len(files)
    assert [is_static(file) for file in files] == [False] * len(files)
    assert is_32_bit(put(tmp_path / "old", b"\x7fELF\x01" + b"\0" * 60))
    assert not is_static(tmp_path / "old")
    assert not is_static(Path(os.path.realpath(sys.executable)))
