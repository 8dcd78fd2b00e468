"""Programs that say where they are, built and run for the tests of symbols."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TARGETS = Path(__file__).resolve().parent / "targets"


@dataclass(frozen=True)
class Place:
    """A place by the program's own word: ``return`` (a call), ``entry``, ``caller``..."""

    kind: str
    name: str
    address: int
    line: int


@dataclass(frozen=True)
class Running:
    """A program that has said all and waits."""

    pid: int
    places: list[Place]
    process: subprocess.Popen[str]

    def of(self, name: str, kind: str = "return") -> Place:
        """The place of that name and kind."""
        return next(p for p in self.places if p.name == name and p.kind == kind)

    def end(self) -> None:
        """Let it end."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate("\n", timeout=20)


def tool(name: str) -> str:
    """Path of a tool, or a skip that says what to install."""
    package = {"gcc": "gcc libc6-dev", "g++": "g++"}.get(name, "binutils")
    return shutil.which(name) or pytest.skip(f"no {name}: apt-get install {package}")


def build(folder: Path, name: str, source: str, *flags: str) -> Path:
    """Compile a file of ``tests/targets`` (its name) or a text into ``folder/name``."""
    path = TARGETS / source
    if "\n" in source:
        path = folder / f"{name}.c"
        path.write_text(source)
    compiler = tool("g++" if path.suffix == ".cc" else "gcc")
    program = folder / name
    words = [compiler, "-O1", "-fno-omit-frame-pointer", *flags, str(path), "-o", str(program)]
    subprocess.run(words, check=True)
    return program


@contextlib.contextmanager
def running(command: Sequence[str | Path]) -> Iterator[Running]:
    """Run a program until its line ``end``; it ends after the block."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    places = []
    try:
        for line in process.stdout:
            if line == "end\n":
                break
            kind, name, address, number = line.split()
            places.append(Place(kind, name, int(address, 16), int(number)))
        program = Running(process.pid, places, process)
        yield program
        program.end()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
