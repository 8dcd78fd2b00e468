"""Names of code that a process made itself: /tmp/perf-PID.map.

Lines of START SIZE NAME, numbers in hexadecimal; the file only grows, and where two
lines cover an address the later one holds.

Source: tools/perf/Documentation/jit-interface.txt in the kernel; CPython's entries
``py::FUNCTION:FILE``: Python/perf_trampoline.c.
"""

from __future__ import annotations

import bisect
import os
import re
from typing import Final

from cctrace.record.symbols.demangle import demangle
from cctrace.record.symbols.frame import cut

MAX_BYTES: Final = 256 << 20
_MAX_ENTRIES: Final = 2_000_000
_LINE: Final = re.compile(
    rb"^(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) ([^\n]{1,16384})", re.MULTILINE
)
_PYTHON: Final = "py::"

Named = tuple[str, "str | None", str]
"""Function, file and kind (``python`` or ``native``)."""


class PerfMap:
    """The entries of one file.

    Args:
        text: Its content, which may be garbage: lines that make no sense are left out.
    """

    def __init__(self, text: bytes) -> None:
        found: dict[int, tuple[int, bytes]] = {}
        for line in _LINE.finditer(text):
            start, size = int(line[1], 16), int(line[2], 16)
            if size and start + size <= 1 << 64:
                found.pop(start, None)  # a later one of the same start is also later in order
                found[start] = (start + size, line[3])
                if len(found) >= _MAX_ENTRIES:
                    break
        self._order = {start: number for number, start in enumerate(found)}
        self._starts = sorted(found)
        self._entries = found
        # How far anything before reaches: where a search may stop.
        self._reach: list[int] = []
        reach = 0
        for start in self._starts:
            reach = max(reach, found[start][0])
            self._reach.append(reach)

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._starts)

    def find(self, address: int) -> Named | None:
        """What the entry that holds ``address`` says; None: none does."""
        at = bisect.bisect_right(self._starts, address) - 1
        best: int | None = None
        for number in range(at, max(at - 64, -1), -1):
            if self._reach[number] <= address:
                break
            start = self._starts[number]
            if address < self._entries[start][0] and (
                best is None or self._order[start] > self._order[best]
            ):
                best = start
        return None if best is None else _named(self._entries[best][1])


def _named(raw: bytes) -> Named:
    text = raw.decode("utf-8", "replace").rstrip("\r")
    if text.startswith(_PYTHON):
        function, colon, file = text.removeprefix(_PYTHON).partition(":")
        if colon and function:
            return cut(function), cut(file) or None, "python"
    return demangle(text), None, "native"


def read(fd: int, uid: int, not_before_s: float) -> PerfMap | None:
    """The map that an open regular file holds.

    Args:
        fd: Descriptor, for reading.
        uid: Owner of the process; root and it alone may name its code.
        not_before_s: Start of the process, seconds of CLOCK_REALTIME: an older file
            is that of an earlier process of the same pid.

    Returns:
        None where the file is another's, older, or too large.
    """
    status = os.fstat(fd)
    if status.st_uid not in (0, uid) or status.st_mtime < not_before_s:
        return None
    if status.st_size > MAX_BYTES:
        return None
    parts = []
    left = MAX_BYTES
    while left > 0 and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return PerfMap(b"".join(parts))
