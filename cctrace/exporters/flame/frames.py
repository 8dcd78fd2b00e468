"""The frames of a flamegraph: from a row of a report to a path, outermost frame first.

A row names a process, a thread, an NVTX path, a call or a part of a step, and a stack;
each of these is a level, and a level is no frame, one frame or several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = Mapping[str, Any]

PROCESS, THREAD, NVTX, CALL, PART = "process", "thread", "nvtx", "call", "part"
PYTHON, NATIVE, KERNEL, NOTE = "python", "native", "kernel", "note"
# What can be the kind of a frame; the order is that of a legend.
KINDS: Final = (PROCESS, THREAD, NVTX, CALL, PART, PYTHON, NATIVE, KERNEL, NOTE)

LEVELS: Final = ("process", "thread", "nvtx", "api", "part", "stack")
DEFAULT_LEVELS: Final = ("process", "thread", "nvtx", "api", "stack")

_UNKNOWN: Final = "?"
_TAIL: Final = 2  # components of a file's path in a frame's name
_STACK_KINDS: Final = frozenset({PYTHON, NATIVE, KERNEL})


class Frame(NamedTuple):
    """One frame.

    Attributes:
        name: What it is called; may hold anything the target wrote.
        kind: One of ``KINDS``.
        file: Source file, or the library of a frame without one; None: not known.
        line: Line in it, from 1; None: not known.
    """

    name: str
    kind: str
    file: str | None = None
    line: int | None = None

    @property
    def text(self) -> str:
        """Name and place: ``function (dir/file.py:12)``, ``function (libx.so)``."""
        if self.kind not in _STACK_KINDS or not self.file:
            return self.name
        place = "/".join(self.file.rsplit("/", _TAIL)[-_TAIL:]).lstrip("/")
        return f"{self.name} ({place}:{self.line})" if self.line else f"{self.name} ({place})"

    def marked(self, text: str) -> str:
        """``text`` with the mark of a frame of the kernel, as flamegraph.pl knows it."""
        return f"{text}_[k]" if self.kind == KERNEL else text


Path = tuple[Frame, ...]


@dataclass(frozen=True)
class Naming:
    """How rows become paths.

    Attributes:
        levels: Of ``LEVELS``, outermost first.
        by_name: Processes, and threads, of one name are one frame; else each has its
            number in its name.
        stacks: Frames by ``stack_id``, outermost first.
    """

    levels: Sequence[str]
    by_name: bool
    stacks: Mapping[int, Path]

    def path(self, row: Row) -> Path:
        """The frames of ``row``, outermost first; at least one."""
        found = tuple(frame for level in self.levels for frame in _LEVEL[level](self, row))
        return found or (Frame("[none]", NOTE),)

    def process(self, row: Row) -> Path:
        """The program, with the process's number."""
        exe = row["exe"]
        name = (exe and PurePosixPath(exe).name) or _UNKNOWN
        return (Frame(name if self.by_name else f"{name} ({row['pid']})", PROCESS),)

    def thread(self, row: Row) -> Path:
        """The thread's name and number; none where no thread is known."""
        if row["tid"] is None:
            return ()
        name = row["thread"] or _UNKNOWN
        return (Frame(name if self.by_name else f"{name} ({row['tid']})", THREAD),)

    def nvtx(self, row: Row) -> Path:
        """The ranges around it."""
        if row["path"] is None:
            return (Frame("[ranges that cross]", NOTE),)
        return tuple(Frame(name, NVTX) for name in row["path"].split("/")) if row["path"] else ()

    def api(self, row: Row) -> Path:
        """The call with what it copies; outside of calls the part of the step."""
        if row["api"] is not None:
            return (Frame(_call(row), CALL),)
        if row.get("part") is not None:
            return (_part(row),)
        return (Frame("[no call recorded]", NOTE),)

    def part(self, row: Row) -> Path:
        """What the time in the call was for; outside of calls ``api`` has it already."""
        if row["api"] is None and "api" in self.levels:
            return ()
        return (_part(row),)

    def stack(self, row: Row) -> Path:
        """The stack at the call; none where none was taken."""
        stack_id = row["stack_id"]
        if stack_id is None:
            return ()
        missing = (Frame(f"[stack {stack_id} is missing]", NOTE),)
        return self.stacks.get(stack_id, missing)


_LEVEL: Final[dict[str, Callable[[Naming, Row], Path]]] = {
    "process": Naming.process,
    "thread": Naming.thread,
    "nvtx": Naming.nvtx,
    "api": Naming.api,
    "part": Naming.part,
    "stack": Naming.stack,
}


def _call(row: Row) -> str:
    words = [row["api"], row["copy_kind"]]
    words.append(None if row["host_memory"] == "unknown" else row["host_memory"])
    words.append(row["size_class"])
    words.append("[never returned]" if row.get("is_open") else None)
    words.append("[counted]" if row.get("is_counted") else None)
    return " ".join(word for word in words if word)


def _part(row: Row) -> Frame:
    counted = row["part"] == "launch" and row["api"] is None
    return Frame("launch [counted]" if counted else row["part"], PART)


def stack_frame(
    function: str | None, module: str | None, file: str | None, line: int | None, kind: str | None
) -> Frame:
    """A frame of the table ``stacks``."""
    known = kind if kind in _STACK_KINDS else NATIVE
    return Frame(
        function or _UNKNOWN, known or NATIVE, file or module or None, line if file else None
    )
