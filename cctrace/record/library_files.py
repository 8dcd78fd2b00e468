"""Which file a process has mapped, opened so that its name no longer matters.

A process may have its own root, mounts and working directory, and the file may have
been renamed or deleted since. /proc/PID/map_files leads to the file itself. Nothing
is read from the process but what the kernel says of it.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DELETED: Final = b" (deleted)"
# proc_pid_maps(5): range, permissions, offset, device, inode, path.
_MAPPING: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ (\S+) ([1-9][0-9]*) +(/.*)$", re.MULTILINE
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")

_SYS_OPENAT2: Final = 437  # x86-64
_OPEN_HOW: Final = struct.Struct("3Q")  # struct open_how: flags, mode, resolve (openat2(2))
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10

_libc = ctypes.CDLL(None, use_errno=True)

Identity = tuple[int, int]


@dataclass(frozen=True)
class Mapping:
    """One mapping of a file.

    Attributes:
        start: First address.
        end: Address after the last.
        key: Device, inode and path as the kernel writes them, for a look at whether
            it has been seen; two keys may be one file.
        path: As seen from the recorder's root where it can be; else the process's.
    """

    start: int
    end: int
    key: bytes
    path: str

    @property
    def basename(self) -> str:
        """Name of the file when it was mapped."""
        return self.path.rpartition("/")[2]


def file_mappings(pid: int, *, executable: bool) -> Iterator[Mapping]:
    """Mappings of files by a process, in the order of their addresses.

    Args:
        pid: Process; nothing comes of one that is gone or may not be looked at.
        executable: Only those that may be executed.
    """
    for found in _MAPPING.finditer(_maps(pid)):
        if not executable or b"x" in found[3]:
            yield _mapping(found)


def _maps(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return b""


def _mapping(found: re.Match[bytes]) -> Mapping:
    start, end, _, device, inode, path = found.groups()
    key = b" ".join((device, inode, path))
    return Mapping(int(start, 16), int(end, 16), key, os.fsdecode(path.removesuffix(_DELETED)))


def mapping_at(pid: int, address: int) -> Mapping | None:
    """The mapping of a file that holds ``address``."""
    # There may be thousands, in the order of their addresses, and a process waits.
    lines = _maps(pid).split(b"\n")[:-1]
    after = bisect.bisect_right(lines, address, key=lambda line: int(line.partition(b"-")[0], 16))
    found = _MAPPING.match(lines[after - 1]) if after > 0 else None
    mapping = _mapping(found) if found is not None else None
    return mapping if mapping is not None and address < mapping.end else None


class OpenedFile:
    """A regular file held by a descriptor (O_PATH: not read, and no device woken).

    Args:
        fd: Descriptor, which this object owns from now on.
        pid: Process whose file it is; None: the recorder's own view.
        other_path: Another path that leads to it.

    Attributes:
        fd: The descriptor.
        identity: Device and inode of the file itself: on an overlay those of the
            layer it lies in, since containers of one image share that file, and a
            probe in it fires for all of them.
        stamp: Size and time of last change, to tell a file that was replaced.

    Raises:
        OSError: Not a regular file, or it cannot be looked at.
    """

    def __init__(self, fd: int, pid: int | None, other_path: str | None = None) -> None:
        self.fd = fd
        self._pid = pid
        self._other_path = other_path
        self._stat = os.fstat(fd)
        if not stat.S_ISREG(self._stat.st_mode):
            shown = self.shown
            self.close()
            raise OSError(f"{shown} is not a regular file")
        self.stamp = (self._stat.st_size, self._stat.st_mtime_ns)
        self.identity = self._identity()

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def shown(self) -> str:
        """Its path as the kernel tells it, for people."""
        try:
            target = os.readlink(f"/proc/self/fd/{self.fd}")  # noqa: PTH115 - text, cut below
        except OSError:
            return "(unknown)"
        return target.removesuffix(_DELETED.decode())

    def path(self) -> Path:
        """A path that leads to this very file now: the plainest one that does.

        It holds as long as the object is not closed.
        """
        ways = [self.shown]
        if self._pid is not None:
            ways.append(f"/proc/{self._pid}/root{self.shown}")
        if self._other_path is not None:
            ways.append(self._other_path)
        for way in ways:
            with contextlib.suppress(OSError, ValueError):
                if os.path.samestat(os.stat(way), self._stat):  # noqa: PTH116 - text, and a stat result
                    return Path(way)
        return Path(f"/proc/self/fd/{self.fd}")

    def _identity(self) -> Identity:
        plain = (self._stat.st_dev, self._stat.st_ino)
        with contextlib.suppress(OSError, ValueError, StopIteration):
            mount = _Mount.of(self.fd, self._pid)
            if mount.kind == "overlay":
                for layer in mount.layers():
                    real = self._in_layer(mount, layer)
                    if real is not None:
                        return (real.st_dev, real.st_ino)
        return plain

    def _in_layer(self, mount: _Mount, layer: str) -> os.stat_result | None:
        inside = os.path.relpath(self.shown, mount.point)
        if inside.startswith(".."):
            inside = self.shown.lstrip("/")  # of another root: its own is the mount
        try:
            real = os.lstat(f"{layer}{mount.root.rstrip('/')}/{inside}")
        except OSError:
            return None
        # Upper layers hide lower ones; a whiteout or another file is not ours.
        same = (real.st_size, real.st_mtime_ns) == self.stamp and stat.S_ISREG(real.st_mode)
        return real if same else None


@dataclass(frozen=True)
class _Mount:
    """A line of proc_pid_mountinfo(5)."""

    root: str
    point: str
    kind: str
    options: str

    @classmethod
    def of(cls, fd: int, pid: int | None) -> _Mount:
        """The mount a descriptor's file was opened through."""
        number = next(
            line.split()[1]
            for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            if line.startswith("mnt_id:")
        )
        who = "self" if pid is None else str(pid)
        for place in (who, "self"):
            table = Path(f"/proc/{place}/mountinfo").read_text("utf-8", "surrogateescape")
            for line in table.splitlines():
                if line.startswith(f"{number} "):
                    words = line.split(" ")
                    tail = words.index("-")
                    return cls(
                        _unescape(words[3]), _unescape(words[4]), words[tail + 1], words[tail + 3]
                    )
        raise ValueError(f"mount {number} is in no table")

    def layers(self) -> list[str]:
        """Folders an overlay is made of, upper one first; none where they are not told."""
        upper: list[str] = []
        lower: list[str] = []
        for option in re.split(r"(?<!\\),", self.options):
            name, _, value = option.partition("=")
            if name == "upperdir":
                upper = [_unescape(value)]
            elif name == "lowerdir":
                lower = [_unescape(one) for one in re.split(r"(?<!\\):+", value)]
            elif name in ("lowerdir+", "datadir+"):
                lower.append(_unescape(value))
        # An engine that runs out of room for its options mounts from within their folder.
        above = os.path.dirname(os.path.dirname(upper[0])) if upper else "/"  # noqa: PTH120 - text
        return [os.path.join(above, one) for one in (*upper, *lower)]  # noqa: PTH118 - text


def _unescape(text: str) -> str:
    plain = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
    return plain.replace("\\:", ":").replace("\\,", ",")


def open_mapped(pid: int, mapping: Mapping) -> OpenedFile:
    """Open the very file that a process has mapped.

    Raises:
        OSError: The mapping is gone, or the kernel does not let us (map_files needs
            CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), and its path leads nowhere.
    """
    way = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        fd = os.open(way, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        return open_named(pid, mapping.path)
    return OpenedFile(fd, pid, way)


def open_named(pid: int | None, path: str) -> OpenedFile:
    """Open a file by the path a process has for it, whose links stay in its root.

    Args:
        pid: Process, or None for the recorder's own view.
        path: Absolute, or relative to the process's working directory; not trusted.

    Raises:
        OSError: It leads nowhere, or to no regular file.
    """
    if pid is None:
        return OpenedFile(os.open(path, os.O_PATH | os.O_CLOEXEC), None)
    at_root = path.startswith("/")
    place = f"/proc/{pid}/{'root' if at_root else 'cwd'}"
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if at_root:
            fd = open_in_root(folder, path)
        else:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    return OpenedFile(fd, pid)


def open_in_root(folder: int, path: str) -> int:
    """Open (O_PATH) what ``path`` leads to with ``folder`` as its root.

    Raises:
        OSError: It leads nowhere.
    """
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    number = ctypes.c_long(_SYS_OPENAT2)
    fd = int(_libc.syscall(number, folder, name, how, ctypes.c_size_t(len(how))))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd
