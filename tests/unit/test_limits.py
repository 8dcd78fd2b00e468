"""Limits of the traced process and our own: what is asked for stays within them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import pytest

from cctrace.record import limits
from cctrace.record.layout import Geometry

MIB = 1 << 20


def with_limit(size_bytes: int) -> subprocess.Popen[bytes]:
    """A process that may have so much address space, waiting for its stdin to close."""
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({size_bytes}, {size_bytes}))\n"
        "print(flush=True); sys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_without_a_limit_sizes_are_as_they_were() -> None:
    """The usual case, a process that is gone included."""
    assert limits.fitting(Geometry(), os.getpid()) == Geometry()
    assert limits.fitting(Geometry(), 2**22 + 1) == Geometry()


@pytest.mark.parametrize("limit_mib", [4096, 1024, 512])
def test_a_segment_takes_a_sixteenth_of_the_room(limit_mib: int) -> None:
    """Rings and dictionary are halved until it fits; slots and stacks stay."""
    with with_limit(limit_mib * MIB) as process:
        assert process.stdout is not None
        process.stdout.readline()
        geometry = limits.fitting(Geometry(), process.pid)
        further = limits.fitting(Geometry(dict_bytes=0), process.pid)
        process.communicate()
    assert geometry.segment_bytes <= limit_mib * MIB // 16
    assert geometry.slots == Geometry().slots
    assert geometry.stack_frames == Geometry().stack_frames
    assert further.dict_bytes == 0


def test_the_smallest_is_still_of_use() -> None:
    """Where nothing fits, rings keep 4,096 records and the dictionary 1 MiB."""
    with with_limit(64 * MIB) as process:
        assert process.stdout is not None
        process.stdout.readline()
        geometry = limits.fitting(Geometry(), process.pid)
        process.communicate()
    assert (geometry.ring_records, geometry.dict_bytes) == (4096, MIB)


def test_threads_by_the_numbers_the_process_knows() -> None:
    """Ours are there with our own ids; a process that is gone has none to tell."""
    tids = limits.live_tids(os.getpid())
    assert tids is not None
    assert {thread.native_id for thread in threading.enumerate()} <= tids
    assert limits.live_tids(2**22 + 1) is None


def test_descriptors_near_the_limit_are_not_for_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty-two are kept for the recorder's own files."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    assert limits.leaves_descriptors(991)
    assert not limits.leaves_descriptors(992)
