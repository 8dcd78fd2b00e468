"""Programs of traced processes, as far as the naming of their stacks needs them.

A program is one image of one process: from its fork or exec to the next. What is known
of it is taken while it runs: where its code lies, and whether it is Python.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from cctrace.record.bpf.stacks.code_objects import CodeReader
from cctrace.record.bpf.stacks.interpreter import (
    Interpreter,
    NoWalkError,
    candidates,
    find_interpreter,
    namespace,
    process_entry,
)
from cctrace.record.symbols import Symbolizer, maps

# How often a program is looked at again: one may be about to become a Python, or map
# code all the time.
_AGAIN_NS: Final = 20_000_000
_MAX_LOOKS: Final = 500
# So often whatever is found is looked for anew: libraries may be mapped half, threads
# be at their beginning. Later only where something new that may be a Python is mapped.
_TRIES: Final = 10
_MAX_REASONS: Final = 64  # that are told apart: a program's own words are in them
_NO_PYTHON: Final = 1  # what the kernel calls programs that are none
_MAX_PYTHONS: Final = 60_000  # it has 16 bits for them


class ProcessMap(Protocol):
    """The kernel's maps of programs by process."""

    def image(self, pid: int) -> int:
        """When the program of a process began; 0: before it was traced."""

    def put(self, pid: int, entry: np.void) -> None:
        """Set the entry (``layout.STACK_PROCESS``) of a process, used if its image is right."""


@dataclass(frozen=True)
class Python:
    """A Python, in one program and those forked from it.

    Attributes:
        number: What the kernel calls it.
        interpreter: What it is.
        reader: Reads its code objects.
        namespace: Of the process it was found in, as ``interpreter.namespace`` has it.
    """

    number: int
    interpreter: Interpreter
    reader: CodeReader
    namespace: tuple[int, int] | None = None


class Program:
    """One program.

    Attributes:
        pid: Its process.
        image: When it began, as the kernel's part says.
        symbols: What the symbolizer calls it; None: it was gone before it was looked at.
        regions: Where its code lies, as of the last look.
        looked_at: What the kernel was told that it is; 0: nothing yet.
        python: Its Python; None: none, or none that can be walked.
        seen_ns: When its mappings were last read, ns of CLOCK_MONOTONIC; 0: never.
        looked_ns: When that was last tried.
        looks: How often.
        tried: Mappings in which no Python that can be walked was found.
        refusal: Why its Python is not walked; None: there is no reason yet.
        is_told: Whether the kernel has been told of it, or of whom it was forked from.
    """

    def __init__(self, pid: int, image: int) -> None:
        self.pid = pid
        self.image = image
        self.symbols: int | None = None
        self.regions = maps.RegionMap([])
        self.looked_at = 0
        self.python: Python | None = None
        self.seen_ns = 0
        self.looked_ns = 0
        self.looks = 0
        self.tried: frozenset[maps.Region] | None = None
        self.refusal: str | None = None
        self.is_told = False


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
        image = self._table.image(pid)
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
        began_ns = program.looked_ns = time.monotonic_ns()
        if not self._is_current(program):
            return
        regions = maps.parse(maps.read(program.pid))
        symbols = self._symbolizer.observe(program.pid)
        if not regions or not self._is_current(program):
            return  # it ended, or became another, while we looked
        program.regions = maps.RegionMap(maps.merged(program.regions.regions, regions))
        program.symbols = symbols
        program.seen_ns = began_ns
        if program.python is None:
            self._look_for_python(program, regions)
        elif not program.is_told:
            self._take_namespace(program, program.python)

    def drop(self, pid: int) -> None:
        """Forget the programs of a process that has ended and whose stacks are taken."""
        for key in [key for key in self._programs if key[0] == pid]:
            del self._programs[key]
        self._latest.pop(pid, None)

    def detail(self) -> dict[str, object]:
        """Interpreters met, and why some were not walked, with how many programs."""
        count = Counter(
            (".".join(map(str, python.interpreter.version)), python.interpreter.path)
            for python in list(self._pythons.values())  # others may be added meanwhile
        )
        return {
            "python": [
                {"version": version, "path": path, "programs": programs}
                for (version, path), programs in sorted(count.items())
            ],
            "not_walked": {why: n for why, n in sorted(self._not_walked.items()) if n},
        }

    def _is_current(self, program: Program) -> bool:
        return self._table.image(program.pid) == program.image

    def _look_for_python(self, program: Program, regions: list[maps.Region]) -> None:
        found = frozenset(candidates(program.pid, regions))
        if program.looks > _TRIES and program.tried is not None and found <= program.tried:
            return
        program.tried = found
        interpreter = refusal = None
        try:
            interpreter = find_interpreter(program.pid, regions)
        except NoWalkError as error:
            refusal = str(error)
        if interpreter is not None and not interpreter.threads_head:
            program.tried = None  # it has not begun: the next new stack has us look again
            refusal, interpreter = "its Python had not begun when it was last looked at", None
        if interpreter is not None and len(self._pythons) >= _MAX_PYTHONS:
            refusal, interpreter = "too many programs of Python", None
        self._note(program, refusal)
        if interpreter is not None:
            number = _NO_PYTHON + 1 + len(self._pythons)
            program.python = Python(
                number, interpreter, CodeReader(interpreter), namespace(program.pid)
            )
            self._pythons[number] = program.python
            self._tell(program, number, interpreter)
        elif program.looked_at != _NO_PYTHON and program.tried is not None:
            self._tell(program, _NO_PYTHON, None)

    def _tell(self, program: Program, number: int, interpreter: Interpreter | None) -> None:
        """Tell the kernel; where another program has begun since, that does not count."""
        program.looked_at = number
        program.is_told = True
        entry = process_entry(interpreter, number, program.image, program.pid)
        self._table.put(program.pid, entry)

    def _take_namespace(self, program: Program, python: Python) -> None:
        """A process may have been made into another process namespace than its maker's."""
        if namespace(program.pid) != python.namespace:
            self._tell(program, python.number, python.interpreter)
        program.is_told = True

    def _note(self, program: Program, refusal: str | None) -> None:
        """Count each program by the last reason why its Python is not walked."""
        is_full = len(self._not_walked) >= _MAX_REASONS
        if refusal is not None and is_full and refusal not in self._not_walked:
            refusal = "other reasons"
        if program.refusal is not None:
            self._not_walked[program.refusal] -= 1
        if refusal is not None:
            self._not_walked[refusal] += 1
        program.refusal = refusal
