"""What the kernel tells of a loaded program: how often it was not run.

The kernel does not run a program on a tracepoint or kprobe while another one runs on
that processor, or while a process there is in a map operation of bpf(2). It counts
the times; nothing else tells of them.
"""

from __future__ import annotations

import ctypes
from typing import Final

from cctrace.record.bpf import syscalls

# include/uapi/linux/bpf.h: enum bpf_cmd; recursion_misses in struct bpf_prog_info, there
# since Linux 5.12. Programs on tracepoints and kprobes count since 6.7.
_BPF_OBJ_GET_INFO_BY_FD: Final = 15
_RECURSION_MISSES_AT: Final = 208
_INFO_BYTES: Final = 216


class _Attr(ctypes.Structure):
    _fields_ = (
        ("bpf_fd", ctypes.c_uint32),
        ("info_len", ctypes.c_uint32),
        ("info", ctypes.c_uint64),
    )


def times_not_run(program_fd: int) -> int:
    """How often the program should have run and was not; 0 where the kernel does not count.

    Raises:
        OSError: The descriptor is no program's.
    """
    info = ctypes.create_string_buffer(_INFO_BYTES)
    attr = _Attr(program_fd, _INFO_BYTES, ctypes.addressof(info))
    syscalls.bpf(_BPF_OBJ_GET_INFO_BY_FD, attr)
    if attr.info_len < _INFO_BYTES:
        return 0
    return int(ctypes.c_uint64.from_buffer(info, _RECURSION_MISSES_AT).value)
