"""tracefs and debugfs, read without mounting them where anybody else would see.

A container or a minimal guest often has neither mounted. Root can make a mount that
no directory leads to (fsopen, fsmount; Linux 5.2) and read it through its descriptor.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError

# x86-64 system calls, arch/x86/entry/syscalls/syscall_64.tbl
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_FIELD = re.compile(r"field:(?P<decl>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);")
_ARRAY_END = re.compile(r"\[[^]]*\]$")  # "char comm[16]", but "__data_loc char[] name"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Field:
    """One field of a tracepoint's record: byte offset and size, as ``format`` says."""

    offset: int
    size: int


class KernelFs:
    """A kernel file system: its usual mount if there is one, else one of our own.

    Args:
        kind: ``tracefs`` or ``debugfs``.
        places: Where it is usually mounted.

    Attributes:
        root: Directory to read it in; None where it cannot be had.
        reason: Why not.
    """

    def __init__(self, kind: str, places: tuple[str, ...]) -> None:
        self.root: Path | None = None
        self.reason: str | None = None
        self._fd = -1
        for place in places:
            try:
                if any(Path(place).iterdir()):
                    self.root = Path(place)
                    return
            except OSError:
                continue
        try:
            self._fd = _private_mount(kind)
        except OSError as error:
            self.reason = f"{kind} cannot be mounted: {error.strerror}"
            return
        self.root = Path(f"/proc/self/fd/{self._fd}")

    def read(self, path: str) -> str | None:
        """Text of the file at ``path`` below the root; None where there is none to be had."""
        if self.root is None:
            return None
        try:
            return (self.root / path).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def close(self) -> None:
        """Give a mount of our own back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.root = None


class TraceFs(KernelFs):
    """tracefs: the tracepoints there are, their numbers and their records' layout."""

    def __init__(self) -> None:
        super().__init__("tracefs", ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"))

    def require_events(self) -> None:
        """Check that there are tracepoints to be read.

        Raises:
            CctraceError: tracefs cannot be had, or the kernel keeps it empty.
        """
        if self.root is None:
            raise CctraceError(
                f"no tracepoints: {self.reason}",
                "mount -t tracefs tracefs /sys/kernel/tracing",
                EXIT_UNSUPPORTED,
            )
        if not (self.root / "events").is_dir():
            # Measured on Linux 6.1: under lockdown=confidentiality tracefs has no files.
            raise CctraceError(
                "no tracepoints: the kernel keeps tracefs empty, as lockdown=confidentiality does",
                "boot with lockdown=integrity, or none",
                EXIT_UNSUPPORTED,
            )

    def tracepoint_id(self, name: str) -> int | None:
        """Number of the tracepoint ``category:event``, for perf_event_open; None: no such."""
        text = self.read(f"events/{name.replace(':', '/')}/id")
        return int(text) if text is not None else None

    def fields(self, name: str) -> dict[str, Field] | None:
        """Fields of the record of ``category:event`` by name; None: no such tracepoint."""
        text = self.read(f"events/{name.replace(':', '/')}/format")
        return parse_format(text) if text is not None else None


def debug_fs() -> KernelFs:
    """Find debugfs of this machine."""
    return KernelFs("debugfs", ("/sys/kernel/debug",))


def parse_format(text: str) -> dict[str, Field]:
    """Read a tracepoint's ``format`` file.

    Source: Documentation/trace/events.rst, "Event formats".
    """
    fields: dict[str, Field] = {}
    for match in _FIELD.finditer(text):
        name = _ARRAY_END.sub("", match["decl"]).split()[-1].lstrip("*")
        fields[name] = Field(int(match["offset"]), int(match["size"]))
    return fields


def _private_mount(kind: str) -> int:
    """Descriptor of a mount of file system ``kind`` that has no place in any directory.

    Raises:
        OSError: Not root, or the kernel refuses (lockdown, an old kernel).
    """
    context = _call(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: bytes | int | None) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
