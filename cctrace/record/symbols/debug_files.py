"""Where the symbols of a stripped file are: its debug file, found as gdb finds it.

By build id, ``/usr/lib/debug/.build-id/xx/yyyy.debug``; by the name and checksum in
``.gnu_debuglink``, beside the file, in ``.debug`` there, and under ``/usr/lib/debug``.
Nothing is fetched.

Source: https://sourceware.org/gdb/current/onlinedocs/gdb.html/Separate-Debug-Files.html
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cctrace.errors import CctraceError
from cctrace.record.bpf.elf import ElfFile
from cctrace.record.library_files import open_in_root

_PLACE: Final = "/usr/lib/debug"
_MAX_CHECKED_BYTES: Final = 1 << 30
_MIN_BUILD_ID: Final = 4  # hexadecimal digits: two for the folder, the rest for the file


@dataclass(frozen=True)
class DebugFile:
    """A debug file, open for reading."""

    fd: int
    elf: ElfFile


def open_regular(folder: int, path: str) -> int:
    """Open for reading what ``path`` leads to within a root, if it is a regular file.

    Nothing is opened for reading before it is known to be one: to open a FIFO or a
    device can wait or do things.

    Raises:
        OSError: It leads nowhere, or to something else.
    """
    found = open_in_root(folder, path)
    try:
        return reopen(found)
    finally:
        os.close(found)


def reopen(fd: int) -> int:
    """Open for reading what a descriptor (O_PATH) leads to, if it is a regular file.

    Raises:
        OSError: It is none, or may not be read.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError("not a regular file")
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


@contextlib.contextmanager
def opened(elf: ElfFile, directory: str, roots: Sequence[int]) -> Iterator[DebugFile | None]:
    """Find and open the debug file of ``elf``; None where there is none that is its own.

    Args:
        elf: The file itself.
        directory: Where it lies, as its process saw it.
        roots: Descriptors of root directories to look in.
    """
    with contextlib.ExitStack() as stack:
        yield _find(stack, elf, directory, roots)


def _find(
    stack: contextlib.ExitStack, elf: ElfFile, directory: str, roots: Sequence[int]
) -> DebugFile | None:
    name, checksum = _link(elf)
    places = []
    if elf.build_id is not None and len(elf.build_id) >= _MIN_BUILD_ID:
        places.append(f"{_PLACE}/.build-id/{elf.build_id[:2]}/{elf.build_id[2:]}.debug")
    if name:
        places += [f"{directory}/{name}", f"{directory}/.debug/{name}"]
        places.append(f"{_PLACE}{directory}/{name}")
    for root in roots:
        for place in places:
            try:
                fd = open_regular(root, place)
            except (OSError, ValueError):
                continue
            stack.callback(os.close, fd)
            with contextlib.suppress(CctraceError, ValueError, struct.error, OSError):
                found = stack.enter_context(ElfFile(fd, "debug file"))
                if _belongs(elf, found, fd, checksum):
                    return DebugFile(fd, found)
    return None


def _link(elf: ElfFile) -> tuple[str | None, int]:
    """Name and CRC-32 in .gnu_debuglink."""
    section = elf.sections().get(".gnu_debuglink")
    if section is None:
        return None, 0
    content = elf.content(section)
    raw = content[: max(content.find(b"\0"), 0)]
    if not raw or b"/" in raw or len(content) < (len(raw) + 4 & ~3) + 4:
        return None, 0
    (checksum,) = struct.unpack_from("<I", content, len(raw) + 4 & ~3)
    return os.fsdecode(raw), checksum


def _belongs(elf: ElfFile, debug: ElfFile, fd: int, checksum: int) -> bool:
    """Whether the build ids agree or, without them, the checksum."""
    if elf.build_id is not None and debug.build_id is not None:
        return elf.build_id == debug.build_id
    if os.fstat(fd).st_size > _MAX_CHECKED_BYTES:
        return False
    value = at = 0
    while part := os.pread(fd, 1 << 20, at):
        value, at = zlib.crc32(part, value), at + len(part)
    return value == checksum
