"""Files that traced processes have mapped, and their root directories, held to be read later.

Held by ``O_PATH`` descriptors: a file is found again when it was deleted, replaced or
its container has gone, and nothing of it is opened or read here.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cctrace.record import library_files
from cctrace.record.limits import leaves_descriptors
from cctrace.record.symbols.frame import decode
from cctrace.record.symbols.maps import Region

_MAX_FILES: Final = 16384
_MAX_HELD: Final = 2048
_HELD_SHARE: Final = 4  # at most one of so many descriptors that we may have
_MAX_ROOTS: Final = 64


@dataclass
class MappedFile:
    """One file.

    Attributes:
        number: Names it among the files of a run.
        path: Path as its process saw it, for people.
        stamp: Size and time of last change when it was seen; None: could not be looked at.
        fd: Descriptor (O_PATH); -1: not held.
        root: Descriptor of its process's root directory; -1: none.
        lines: Whether its debug information is to be read.
        failed: Why nothing more is asked of it; None: nothing failed.
        note: What was left out of it, for people.
        identity: Device and inode; None: could not be looked at.
    """

    number: int
    path: str
    stamp: tuple[int, int] | None
    fd: int
    root: int
    lines: bool = True
    failed: str | None = None
    note: str | None = None
    identity: tuple[int, int] | None = None

    @property
    def shown(self) -> str:
        """Its path as text that can be written."""
        return decode(os.fsencode(self.path))

    def open(self) -> int:
        """A descriptor of it that the caller closes.

        Raises:
            OSError: It is not held, and its path leads to another file or nowhere.
        """
        if self.fd >= 0:
            return os.dup(self.fd)
        if self.root < 0 or self.identity is None:
            raise OSError("gone")
        fd = library_files.open_in_root(self.root, self.path)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self.identity:
            os.close(fd)
            raise OSError("replaced")
        return fd


class Files:
    """Distinct files and roots seen so far."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = _MAX_HELD if soft == resource.RLIM_INFINITY else soft // _HELD_SHARE
        self._left_to_hold = min(_MAX_HELD, share)
        self._files: dict[tuple[bytes, int, bytes], MappedFile] = {}
        self._roots: dict[tuple[int, ...], int] = {}

    def __iter__(self) -> Iterator[MappedFile]:
        """All files, by number."""
        return iter(self._files.values())

    def of(self, pid: int, region: Region, root: int) -> MappedFile | None:
        """The file that ``pid`` has mapped; None: there have been too many.

        Args:
            pid: Process, which lives.
            region: Its mapping.
            root: From :meth:`root_of`.
        """
        key = (region.device, region.inode, region.path)
        found = self._files.get(key)
        if found is None and len(self._files) < _MAX_FILES:
            path = os.fsdecode(region.path)
            found = self._files[key] = MappedFile(len(self._files), path, None, -1, root)
        if found is not None and found.identity is None:
            # Also of one that was gone when another process was looked at.
            self._look(found, pid, region)
        return found

    def root_of(self, pid: int) -> int:
        """A descriptor of the root directory of ``pid``; -1: none to be had."""
        try:
            status = os.stat(f"/proc/{pid}/root")  # noqa: PTH116 - hot
            mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino  # noqa: PTH116 - as above
            key = (status.st_dev, status.st_ino, mounts)
            if key not in self._roots and len(self._roots) < _MAX_ROOTS:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                fd = os.open(f"/proc/{pid}/root", flags)
                if not leaves_descriptors(fd):
                    os.close(fd)
                    return -1
                self._roots[key] = fd
            return self._roots.get(key, -1)
        except OSError:
            return -1

    def close(self) -> None:
        """Let go of everything."""
        for fd in (*self._roots.values(), *(f.fd for f in self._files.values() if f.fd >= 0)):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._roots.clear()
        for file in self._files.values():  # images still name them
            file.fd = file.root = -1

    def _look(self, file: MappedFile, pid: int, region: Region) -> None:
        try:
            fd = _open(pid, region)
        except (OSError, ValueError):
            file.failed = "gone_file"
            return
        status = os.fstat(fd)
        file.stamp = (status.st_size, status.st_mtime_ns)
        file.identity, file.failed = (status.st_dev, status.st_ino), None
        if self._left_to_hold > 0 and leaves_descriptors(fd):
            self._left_to_hold -= 1
            file.fd = fd
        else:
            os.close(fd)


def _open(pid: int, region: Region) -> int:
    """The file that is mapped, by ``O_PATH``.

    Raises:
        OSError: It is not to be had: its path leads to another file by now, and the
            kernel does not let us go by /proc/PID/map_files.
    """
    try:
        return _open_mapped(pid, region)
    except PermissionError:  # it needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE
        found = library_files.open_named(pid, os.fsdecode(region.path))
        if os.fstat(found.fd).st_ino != region.inode:
            found.close()
            raise OSError("replaced") from None
        return found.fd


def _open_mapped(pid: int, region: Region) -> int:
    way = f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}"
    return os.open(way, os.O_PATH | os.O_CLOEXEC)
