"""Addresses of files, of the vDSO and of code made at run time into frames.

Decides what is asked of the child process that does the reading, for how long, and
what to make of it when that process fails.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctrace.record.symbols.child import Child
from cctrace.record.symbols.files import MappedFile
from cctrace.record.symbols.frame import MAX_CHARACTERS, Frame
from cctrace.record.symbols.images import PerfMapPlace
from cctrace.record.symbols.limits import MAX_ADDRESSES

_MAX_CACHED: Final = 1 << 18  # answers that are remembered
_MAX_TEXT: Final = MAX_CHARACTERS + 1
_KINDS: Final = ("native", "python")

Address = tuple[int, int]
"""An offset in a file or an address, and 1 for a return address, else 0."""

Answer = tuple[list[Frame], "str | None"]
"""Frames of an address, innermost first; why they are no function, None: they are."""


@dataclass(frozen=True)
class Limits:
    """Time that may be spent on other people's files, seconds.

    Attributes:
        file_s: On one request: some thousand addresses of one file.
        lines_s: On files with debug information; then functions come without lines.
        total_s: On everything; then addresses stay addresses.
    """

    file_s: float = 20.0
    lines_s: float = 20.0
    total_s: float = 30.0


class Resolver:
    """Asks the child. Calls are for one thread at a time.

    Args:
        child: Does the reading.
        limits: Time that may be spent.
    """

    def __init__(self, child: Child, limits: Limits) -> None:
        self._child = child
        self._limits = limits
        self._spent_s = self._lines_spent_s = 0.0
        self._cache: dict[tuple[int, Address], Answer] = {}
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._own_root = os.open("/", flags)

    def close(self) -> None:
        """Let go of what it holds."""
        own_root, self._own_root = self._own_root, -1
        if own_root >= 0:
            os.close(own_root)

    def in_file(self, file: MappedFile, addresses: Sequence[Address]) -> list[Answer]:
        """Frames for offsets in a file."""
        wanted = [a for a in dict.fromkeys(addresses) if (file.number, a) not in self._cache]
        if len(self._cache) + len(wanted) > _MAX_CACHED:
            self._cache.clear()
            wanted = list(dict.fromkeys(addresses))
        found: dict[Address, Answer] = {}
        for start in range(0, len(wanted), MAX_ADDRESSES):
            part = wanted[start : start + MAX_ADDRESSES]
            answers = dict(zip(part, self._ask_file(file, part), strict=True))
            found.update(answers)
            if file.failed is None:  # a file that was gone may be seen again
                self._cache.update({(file.number, a): one for a, one in answers.items()})
        return [found.get(a) or self._cache[file.number, a] for a in addresses]

    def in_vdso(self, addresses: Sequence[Address]) -> list[Answer]:
        """Frames for offsets in the vDSO."""
        answers = self._ask({"op": "vdso"}, [], addresses, "[vdso]")
        if isinstance(answers, str):
            return [([_unknown(f"{a:#x}", "[vdso]")], answers) for a, _ in addresses]
        return answers

    def in_perf_map(
        self, place: PerfMapPlace | None, root: int, module: str, addresses: Sequence[Address]
    ) -> list[Answer]:
        """Frames for addresses of code that a process made itself."""
        answers: list[Answer] | str = "no_perf_map"
        if place is not None and root >= 0:
            request = {
                "op": "perf_map",
                "path": place.path,
                "uid": place.uid,
                "not_before_s": place.not_before_s,
            }
            answers = self._ask(request, [root], addresses, module)
        if isinstance(answers, str):
            return [([_unknown(f"{a:#x}", module)], answers) for a, _ in addresses]
        return [(frames, why and "no_perf_map") for frames, why in answers]

    def _ask_file(self, file: MappedFile, addresses: Sequence[Address]) -> list[Answer]:
        while file.failed is None:
            if self._lines_spent_s >= self._limits.lines_s and file.lines:
                file.lines, file.note = False, "functions only: no time left for its lines"
            before_s = time.monotonic()
            answers = self._ask_once(file, addresses)
            if file.lines:
                self._lines_spent_s += time.monotonic() - before_s
            if not isinstance(answers, str):
                return answers
            if answers == "too_long" and file.lines and not self._child.lost:
                file.lines, file.note = False, "functions only: its debug information was too much"
            else:
                file.failed = answers
        return [([_unknown(f"file+{o:#x}", file.shown)], file.failed) for o, _ in addresses]

    def _ask_once(self, file: MappedFile, addresses: Sequence[Address]) -> list[Answer] | str:
        try:
            fd = file.open()
        except OSError:
            return "gone_file"
        try:
            request = {
                "op": "file",
                "key": file.number,
                "directory": os.path.dirname(file.path),  # noqa: PTH120 - not ours to interpret
                "stamp": file.stamp,
                "lines": file.lines,
            }
            roots = [root for root in (file.root, self._own_root) if root >= 0]
            return self._ask(request, [fd, *roots], addresses, file.shown, file)
        finally:
            os.close(fd)

    def _ask(
        self,
        request: dict[str, Any],
        fds: list[int],
        addresses: Sequence[Address],
        module: str,
        file: MappedFile | None = None,
    ) -> list[Answer] | str:
        """Answers, or the reason why there are none."""
        seconds = min(self._limits.file_s, self._limits.total_s - self._spent_s)
        if seconds <= 0 or self._child.lost:
            return "too_long"
        columns = {"addresses": [a for a, _ in addresses], "backs": [b for _, b in addresses]}
        before_s = time.monotonic()
        reply = self._child.ask({**request, **columns}, fds, seconds)
        self._spent_s += time.monotonic() - before_s
        if reply is None:
            return "too_long"
        reason = reply.get("reason")
        if isinstance(reason, str):
            return reason if reason in ("changed_file", "bad_file", "no_perf_map") else "bad_file"
        note = reply.get("note")
        if file is not None and isinstance(note, str):
            file.note = note[:_MAX_TEXT]
        return _answers(reply, len(addresses), module)


def _answers(reply: dict[str, Any], count: int, module: str) -> list[Answer] | str:
    """The child may have been taken over by what it read: believe no shape of its answer."""
    frames, known = reply.get("frames"), reply.get("known")
    if not isinstance(frames, list) or not isinstance(known, list):
        return "too_long"
    if len(frames) != count or len(known) != count:
        return "too_long"
    try:
        return [
            ([_frame(place, module) for place in places], None if is_known else "no_symbol")
            for places, is_known in zip(frames, known, strict=True)
        ]
    except (TypeError, ValueError):
        return "too_long"


def _frame(place: Any, module: str) -> Frame:
    function, file, line, kind = place
    if kind not in _KINDS or not (line is None or (type(line) is int and 0 < line < 1 << 31)):
        raise ValueError(kind)
    return Frame(_text(function), module, _text(file), line, kind)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(value)
    # JSON can spell halves of surrogate pairs, which UTF-8 has no form for.
    return value[:_MAX_TEXT].encode("utf-8", "replace").decode()


def _unknown(function: str, module: str) -> Frame:
    return Frame(function, module, None, None, "native")
