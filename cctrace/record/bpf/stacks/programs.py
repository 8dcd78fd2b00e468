"""Programs of traced processes, as far as the naming of their stacks needs them.

A program is one image of one process: from its fork or exec to the next. What is known
of it is taken while it runs: where its code lies, and whether it is Python.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from cctrace.record.bpf.stacks.code_objects import CodeReader
from cctrace.record.bpf.stacks.interpreter import (
    Interpreter,
    NoWalkError,
    find_interpreter,
    process_entry,
)
from cctrace.record.symbols import Symbolizer, maps

# How often a program is looked at again: one may be about to become a Python, or map
# code all the time.
_AGAIN_NS: Final = 20_000_000
_MAX_LOOKS: Final = 500
_NO_PYTHON: Final = 1  # what the kernel calls programs that are none
_MAX_PYTHONS: Final = 60_000  # it has 16 bits for them


class ProcessMap(Protocol):
    """The kernel's map of programs by process."""

    def get(self, pid: int) -> np.void | None:
        """The entry (``layout.STACK_PROCESS``) of a process."""

    def put(self, pid: int, entry: np.void) -> None:
        """Set it."""


@dataclass(frozen=True)
class Python:
    """A Python, in one program and those forked from it.

    Attributes:
        number: What the kernel calls it.
        interpreter: What it is.
        reader: Reads its code objects.
    """

    number: int
    interpreter: Interpreter
    reader: CodeReader


class Program:
    """One program.

    Attributes:
        pid: Its process.
        image: When it began, as the kernel's part says.
        symbols: What the symbolizer calls it; None: it was gone before it was looked at.
        regions: Where its code lies, as of the last look.
        looked_at: What the kernel was told that it is; 0: nothing yet.
        python: Its Python; None: none, or none that can be walked.
    """

    def __init__(self, pid: int, image: int) -> None:
        self.pid = pid
        self.image = image
        self.symbols: int | None = None
        self.regions = maps.RegionMap([])
        self.looked_at = 0
        self.python: Python | None = None
        self.looked_ns = 0
        self.looks = 0


class Programs:
    """All programs stacks came from; not for two threads at once.

    Args:
        table: The kernel's map.
        symbolizer: Told of each program while it runs.
    """

    def __init__(self, table: ProcessMap, symbolizer: Symbolizer) -> None:
        self._table = table
        self._symbolizer = symbolizer
        self._programs: dict[tuple[int, int], Program] = {}
        self._latest: dict[int, int] = {}
        self._pythons: dict[int, Python] = {}
        self._not_walked: Counter[str] = Counter()

    def of(self, pid: int, image: int, looked_at: int = 0) -> Program:
        """The program that a stack is of.

        Args:
            pid: Its process.
            image: When it began.
            looked_at: What the kernel had been told that it is.
        """
        program = self._programs.get((pid, image))
        if program is None:
            program = self._programs[pid, image] = Program(pid, image)
            if self._latest.get(pid, image) != image:
                self._symbolizer.forget(pid)
            self._latest[pid] = image
            self._take_over(program, looked_at)
            self.look(program)
        self._take_over(program, looked_at)
        return program

    def _take_over(self, program: Program, looked_at: int) -> None:
        """What is known of the program that this one was forked from holds for it."""
        if looked_at and not program.looked_at:
            program.looked_at = looked_at
            program.python = self._pythons.get(looked_at)

    def current(self, pid: int) -> Program:
        """The program that a process runs now, looked at just now."""
        entry = self._table.get(pid)
        image = int(entry["image"]) if entry is not None else 0
        is_new = (pid, image) not in self._programs
        program = self.of(pid, image)
        if not is_new:
            self.look(program)
        return program

    def look_again(self, program: Program) -> bool:
        """Look at a program once more, unless that was just done; returns whether it was."""
        due_ns = program.looked_ns + _AGAIN_NS
        if time.monotonic_ns() < due_ns or program.looks >= _MAX_LOOKS:
            return False
        self.look(program)
        return True

    def look(self, program: Program) -> None:
        """Take down where the program's code lies, and tell the kernel of its Python."""
        program.looks += 1
        program.looked_ns = time.monotonic_ns()
        if not self._is_current(program):
            return
        try:
            text = Path(f"/proc/{program.pid}/maps").read_bytes()
        except OSError:
            return
        regions = maps.parse(text)
        symbols = self._symbolizer.observe(program.pid)
        if not regions or not self._is_current(program):
            return  # it ended, or became another, while we looked
        program.regions = maps.RegionMap(maps.merged(program.regions.regions, regions))
        program.symbols = symbols
        if not program.looked_at:
            self._look_for_python(program, regions)

    def detail(self) -> dict[str, object]:
        """Interpreters met, and why some were not walked, with how many programs."""
        count = Counter(
            (".".join(map(str, python.interpreter.version)), python.interpreter.path)
            for python in self._pythons.values()
        )
        return {
            "python": [
                {"version": version, "path": path, "programs": programs}
                for (version, path), programs in sorted(count.items())
            ],
            "not_walked": dict(sorted(self._not_walked.items())),
        }

    def _is_current(self, program: Program) -> bool:
        entry = self._table.get(program.pid)
        return entry is None or int(entry["image"]) == program.image

    def _look_for_python(self, program: Program, regions: list[maps.Region]) -> None:
        interpreter = None
        try:
            interpreter = find_interpreter(program.pid, regions)
        except NoWalkError as error:
            self._not_walked[str(error)] += 1
        number = _NO_PYTHON
        if interpreter is not None and not interpreter.threads_head:
            if program.looks < _MAX_LOOKS:
                return  # it has not begun: the next new stack has us look again
            self._not_walked["its Python never began"] += 1
            interpreter = None
        if interpreter is not None:
            if len(self._pythons) >= _MAX_PYTHONS:
                self._not_walked["too many programs of Python"] += 1
                interpreter = None
            else:
                number += 1 + len(self._pythons)
                program.python = Python(number, interpreter, CodeReader(interpreter))
                self._pythons[number] = program.python
        program.looked_at = number
        if self._is_current(program):
            entry = process_entry(interpreter, number, program.image, program.pid)
            self._table.put(program.pid, entry)
