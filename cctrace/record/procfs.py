"""What /proc and pidfds tell of processes: one small function for each question."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shlex
from dataclasses import dataclass
from typing import Final

from cctrace.errors import EXIT_SIGNAL_BASE
from cctrace.record.clock import ticks_to_monotonic_ns
from cctrace.store.manifest import Anchor

_CMDLINE_MAX_BYTES: Final = 16384

# include/uapi/linux/pidfd.h: struct pidfd_info (first published size, 64 bytes),
# PIDFD_GET_INFO = _IOWR(0xFF, 11, struct pidfd_info), PIDFD_INFO_EXIT.
_PIDFD_INFO_BYTES: Final = 64
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO_BYTES << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_EXIT_CODE_AT: Final = 60


def exit_code_of(pidfd: int) -> int | None:
    """Exit status of an ended process, 128 + n for signal n; None: not to be had."""
    info = bytearray(_PIDFD_INFO_BYTES)
    info[0:8] = _PIDFD_INFO_EXIT.to_bytes(8, "little")
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # an older kernel, or not reaped yet
        return None
    if not int.from_bytes(info[0:8], "little") & _PIDFD_INFO_EXIT:
        return None
    status = ctypes.c_int32.from_buffer(info, _PIDFD_EXIT_CODE_AT).value
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else EXIT_SIGNAL_BASE - code


def list_tids(pid: int) -> list[int]:
    """Threads of ``pid``; none where it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - hot
    except OSError:
        return []


def children(pid: int, tid: int) -> list[int]:
    """Processes that thread ``tid`` of ``pid`` has started."""
    return [int(word) for word in (_read(f"/proc/{pid}/task/{tid}/children") or b"").split()]


def parent(pid: int) -> int | None:
    """Parent of ``pid``; None where it is gone."""
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(b")") + 2 :].split()[1]) if stat else None


def thread_start_ns(pid: int, tid: int, anchor: Anchor) -> int | None:
    """When a thread started, ns of CLOCK_MONOTONIC to 10 ms; None where it is gone."""
    stat = _read(f"/proc/{pid}/task/{tid}/stat")
    if not stat:
        return None
    return ticks_to_monotonic_ns(int(stat[stat.rindex(b")") + 2 :].split()[19]), anchor)


def comm(pid: int, tid: int) -> str | None:
    """Name of a thread; None where it is gone."""
    name = _read(f"/proc/{pid}/task/{tid}/comm")
    return name.rstrip(b"\n").decode("utf-8", "replace") if name else None


@dataclass(frozen=True)
class Program:
    """What a process runs; None: cannot be told.

    Attributes:
        exe: Path of the program.
        cmdline: Its arguments, quoted for a shell.
        uid: Who its entry in /proc belongs to; root also for one that may not be dumped.
    """

    exe: str | None
    cmdline: str | None
    uid: int | None


def read_program(pid: int) -> Program:
    """Read what ``pid`` runs now."""
    exe = cmdline = uid = None
    with contextlib.suppress(OSError):
        link = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - hot
        exe = os.fsencode(link).decode("utf-8", "replace")
    with contextlib.suppress(OSError):
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - hot
    raw = _read(f"/proc/{pid}/cmdline", _CMDLINE_MAX_BYTES)
    if raw:
        words = raw.rstrip(b"\0").decode("utf-8", "replace").split("\0")
        cmdline = shlex.join(words)
    return Program(exe, cmdline, uid)


def _read(path: str, limit: int = 65536) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, limit)
    except OSError:
        return None
    finally:
        os.close(fd)
