"""What a traced process, and we ourselves, may take of memory and descriptors.

A segment is large address space of which little is used, so it must not be the
reason why a program under a limit (``ulimit -v``) gets no memory any more.
"""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Final

from cctrace.record.layout import Geometry

_SHARE: Final = 16  # a segment takes at most this part of the room that is left
_LEAST_RECORDS: Final = 1 << 12
_LEAST_DICT_BYTES: Final = 1 << 20
# Kept for what the recorder needs while it works: parts, the manifest, /proc.
_SPARE_DESCRIPTORS: Final = 32


def fitting(geometry: Geometry, pid: int) -> Geometry:
    """Sizes of a segment for ``pid``: smaller ones where its address space is limited.

    Args:
        geometry: Sizes without a limit.
        pid: Process that is going to map the segment.

    Returns:
        ``geometry`` with shorter rings and dictionary, each halved until the segment
        is one sixteenth of the room left, or they are as small as is of use.
    """
    try:
        limit_bytes, _ = resource.prlimit(pid, resource.RLIMIT_AS)
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[0])
    except (OSError, ValueError, IndexError):
        return geometry
    if limit_bytes == resource.RLIM_INFINITY:
        return geometry
    room_bytes = (limit_bytes - pages * resource.getpagesize()) // _SHARE
    while geometry.segment_bytes > room_bytes and geometry.ring_records > _LEAST_RECORDS:
        dict_bytes = max(geometry.dict_bytes // 2, min(geometry.dict_bytes, _LEAST_DICT_BYTES))
        geometry = replace(geometry, ring_records=geometry.ring_records // 2, dict_bytes=dict_bytes)
    return geometry


def leaves_descriptors(fd: int) -> bool:
    """Whether there are enough descriptors beyond ``fd`` to go on writing the run."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft == resource.RLIM_INFINITY or fd + _SPARE_DESCRIPTORS < soft


def live_tids(pid: int) -> set[int] | None:
    """Threads of ``pid`` as it numbers them itself.

    Returns:
        None where that cannot be told: it is gone, or lives in a pid namespace of
        its own, where its threads have other numbers than here.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        if len(numbers.split()) != 2:  # noqa: PLR2004 - the label, and one number
            return None
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}  # noqa: PTH208 - names
    except (OSError, StopIteration):
        return None
