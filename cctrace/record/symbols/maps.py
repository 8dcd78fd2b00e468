"""Where code lies in a process: the executable lines of /proc/PID/maps, over time.

Source: proc_pid_maps(5).
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

# Address range, permissions with x, offset, device, inode, path. Only what is longer
# than 64 bits could not come from a kernel.
_LINE: Final = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) [r-][w-]x[sp] ([0-9a-f]{1,16})"
    rb" ([0-9a-f]+:[0-9a-f]+) ([0-9]{1,20}) *([^\n]*)$",
    re.MULTILINE,
)
_DELETED: Final = b" (deleted)"
# What has an inode and yet holds what the process itself writes, as tools/perf has it
# (is_anon_memory in util/map.h): code there is named by the perf map, or not at all.
_MADE_HERE: Final = (b"/memfd:", b"/dev/zero", b"/anon_hugepage", b"/SYSV", b"//anon")


_MAX_BYTES: Final = 16 << 20  # of /proc/PID/maps: 65530 mappings (vm.max_map_count), in full
_MAX_VANISHED: Final = 4096


class Region(NamedTuple):
    """One executable mapping.

    Attributes:
        start: First address.
        end: Address after the last.
        offset: Offset in the file of the first byte.
        device: Device as the kernel writes it.
        inode: Inode; 0: no file.
        path: Path, or a name in brackets, without ``(deleted)``; empty: anonymous.
    """

    start: int
    end: int
    offset: int
    device: bytes
    inode: int
    path: bytes

    @property
    def is_file(self) -> bool:
        """Whether a file's own bytes lie there."""
        return self.inode != 0 and self.path[:1] == b"/" and not self.path.startswith(_MADE_HERE)

    @property
    def is_special(self) -> bool:
        """Whether the kernel made it: ``[vdso]``, ``[uprobes]``..."""
        return self.path[:1] == b"[" and not self.path.startswith((b"[heap", b"[stack", b"[anon"))


def read(pid: int) -> bytes:
    """Content of /proc/PID/maps, up to 16 MiB of whole lines; empty: gone, or not to be read."""
    return read_start(f"/proc/{pid}/maps", _MAX_BYTES)


def read_start(path: str, limit: int) -> bytes:
    """A file's first lines, whole, ``limit`` bytes at most; empty: it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts, size = [], 0
    try:
        while size <= limit and (part := os.read(fd, 1 << 16)):
            parts.append(part)
            size += len(part)
    except OSError:  # gone in between
        return b""
    finally:
        os.close(fd)
    text = b"".join(parts)
    return text if size <= limit else text[: text.rfind(b"\n", 0, limit) + 1]


def parse(text: bytes) -> list[Region]:
    """Executable mappings, in the order of their addresses; lines that make no sense are left out.

    Args:
        text: Content of /proc/PID/maps.
    """
    regions: list[Region] = []
    end = 0
    for found in _LINE.finditer(text):
        region = Region(
            int(found[1], 16),
            int(found[2], 16),
            int(found[3], 16),
            found[4],
            int(found[5]),
            found[6].removesuffix(_DELETED),
        )
        if end <= region.start < region.end:
            regions.append(region)
            end = region.end
    return regions


def merged(before: Iterable[Region], now: Iterable[Region]) -> list[Region]:
    """What is mapped now, and of what was before that on which nothing lies now.

    So a stack taken before a dlclose can be resolved after it, as long as the
    addresses were not used again. Of what has gone some thousand are kept, files first.

    Args:
        before: Regions in order, without overlaps.
        now: The same of a later time.

    Returns:
        All of ``now`` and the rest of ``before``, in order, without overlaps.
    """
    newer = list(now)
    starts = [region.start for region in newer]
    gone = []
    for old in before:
        at = bisect.bisect_left(starts, old.end) - 1  # the last that begins before its end
        if at < 0 or newer[at].end <= old.start:
            gone.append(old)
    if len(gone) > _MAX_VANISHED:
        gone.sort(key=lambda region: not region.is_file)
        del gone[_MAX_VANISHED:]
    return sorted([*newer, *gone])


class RegionMap:
    """Regions by address.

    Args:
        regions: In order, without overlaps.
    """

    def __init__(self, regions: list[Region]) -> None:
        self.regions = regions
        self._starts = [region.start for region in regions]

    def find(self, address: int) -> Region | None:
        """The region that holds ``address``."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0 and address < self.regions[at].end:
            return self.regions[at]
        return None
