"""bpf(2) and perf_event_open(2), for what BCC has no call for.

Layouts and numbers: include/uapi/linux/bpf.h (union bpf_attr),
include/uapi/linux/perf_event.h (struct perf_event_attr), x86-64 system call table.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_SYS_BPF: Final = 321
_SYS_PERF_EVENT_OPEN: Final = 298

_BPF_LINK_CREATE: Final = 28
BPF_PERF_EVENT: Final = 41
BPF_TRACE_UPROBE_MULTI: Final = 48
_F_UPROBE_MULTI_RETURN: Final = 1

_PERF_TYPE_TRACEPOINT: Final = 2
_PERF_FLAG_FD_CLOEXEC: Final = 8
_PERF_EVENT_IOC_ENABLE: Final = 0x2400
_PERF_EVENT_IOC_SET_BPF: Final = 0x40042408
_PERF_ATTR_BYTES: Final = 112  # PERF_ATTR_SIZE_VER5
_CLOSERS: Final = 64
_KPROBE_PMU: Final = Path("/sys/bus/event_source/devices/kprobe")
_UPROBE_PMU: Final = Path("/sys/bus/event_source/devices/uprobe")

_libc = ctypes.CDLL(None, use_errno=True)


class _UprobeMulti(ctypes.Structure):
    """bpf_attr.link_create with uprobe_multi, as of Linux 6.6."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("cnt", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _PerfLink(ctypes.Structure):
    """bpf_attr.link_create with perf_event.bpf_cookie, as of Linux 5.15."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("bpf_cookie", ctypes.c_uint64),
    )


class _PerfAttr(ctypes.Structure):
    """struct perf_event_attr, its first 112 bytes."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 40),
    )


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def bpf(command: int, attr: ctypes.Structure) -> int:
    """Give the kernel a BPF command.

    Args:
        command: Of ``enum bpf_cmd``.
        attr: The member of ``union bpf_attr`` that goes with it; the kernel may write to it.

    Returns:
        What it returns, never negative.

    Raises:
        OSError: The kernel refuses.
    """
    number = ctypes.c_long(_SYS_BPF)
    return _check(_libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr)))


def link_uprobe_multi(
    program_fd: int, path: str, sites: list[tuple[int, int]], *, is_return: bool
) -> int:
    """Attach one program to many places of one file.

    Args:
        program_fd: Program loaded with expected attach type BPF_TRACE_UPROBE_MULTI.
        path: The file; every process that maps it hits the probe.
        sites: (file offset, cookie) of each place.
        is_return: Probe the return of the function there.

    Returns:
        Descriptor of the link; closing it detaches.

    Raises:
        OSError: The kernel refuses, or has no such link (before 6.6).
    """
    count = len(sites)
    name = ctypes.create_string_buffer(os.fsencode(path))
    offsets = (ctypes.c_uint64 * count)(*(offset for offset, _ in sites))
    cookies = (ctypes.c_uint64 * count)(*(cookie for _, cookie in sites))
    attr = _UprobeMulti(
        prog_fd=program_fd,
        attach_type=BPF_TRACE_UPROBE_MULTI,
        path=ctypes.addressof(name),
        offsets=ctypes.addressof(offsets),
        cookies=ctypes.addressof(cookies),
        cnt=count,
        multi_flags=_F_UPROBE_MULTI_RETURN if is_return else 0,
    )
    return bpf(_BPF_LINK_CREATE, attr)


def link_uprobe(
    program_fd: int, path: str, offset: int, cookie: int, *, is_return: bool
) -> tuple[int, int]:
    """Attach a program to one place of a file, with a cookie (Linux 5.15).

    Returns:
        Descriptors of the perf event and of the link; close both to detach.

    Raises:
        OSError: The kernel refuses.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    # The PMU's "retprobe" format file names the bit: config:0.
    attr = _PerfAttr(
        type=int((_UPROBE_PMU / "type").read_text()),
        size=_PERF_ATTR_BYTES,
        config=1 if is_return else 0,
        config1=ctypes.addressof(name),
        config2=offset,
    )
    event = _perf_event_open(attr)
    try:
        link = _PerfLink(program_fd, event, BPF_PERF_EVENT, 0, cookie)
        return event, bpf(_BPF_LINK_CREATE, link)
    except OSError:
        os.close(event)
        raise


def attach_tracepoint(program_fd: int, tracepoint_id: int) -> int:
    """Attach a program of type BPF_PROG_TYPE_TRACEPOINT, for every CPU and process.

    Returns:
        Descriptor of the perf event; closing it detaches.

    Raises:
        OSError: The kernel refuses.
    """
    return _attach_event(
        program_fd,
        _PerfAttr(
            type=_PERF_TYPE_TRACEPOINT, size=_PERF_ATTR_BYTES, config=tracepoint_id, sample_period=1
        ),
    )


def _attach_event(program_fd: int, attr: _PerfAttr) -> int:
    event = _perf_event_open(attr)
    try:
        fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event


def attach_kprobe(program_fd: int, function: str, *, is_return: bool) -> int:
    """Attach a program of type BPF_PROG_TYPE_KPROBE to a kernel function.

    Returns:
        Descriptor of the perf event; closing it detaches.

    Raises:
        OSError: There is no such function, or the kernel refuses.
    """
    name = ctypes.create_string_buffer(function.encode())
    return _attach_event(
        program_fd,
        _PerfAttr(
            type=int((_KPROBE_PMU / "type").read_text()),
            size=_PERF_ATTR_BYTES,
            config=1 if is_return else 0,
            config1=ctypes.addressof(name),
        ),
    )


def close_all(descriptors: Sequence[int]) -> None:
    """Close links and perf events, many at a time.

    Detaching waits for running programs to end (an RCU grace period, some tens of
    milliseconds each); waits that run side by side cost little more than one.
    """
    if not descriptors:
        return
    with ThreadPoolExecutor(min(len(descriptors), _CLOSERS)) as pool:
        list(pool.map(os.close, descriptors))


def _perf_event_open(attr: _PerfAttr) -> int:
    # For every process, on CPU 0: a program on a tracepoint or uprobe runs on any CPU.
    number = ctypes.c_long(_SYS_PERF_EVENT_OPEN)
    pid, cpu, group = ctypes.c_int(-1), ctypes.c_int(0), ctypes.c_int(-1)
    return _check(
        _libc.syscall(
            number, ctypes.byref(attr), pid, cpu, group, ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
        )
    )
