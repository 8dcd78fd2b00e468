"""The map of counted launches, against one of the kernel's own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cctrace.record.bpf.cuda.kernel_map import (
    LAUNCH_KEY,
    LAUNCH_TOTAL,
    LaunchMap,
    wait_for_programs,
)


class RealMap:
    """A BPF hash map of the kernel, like that of the programs."""

    def __init__(self, max_entries: int) -> None:
        # BPF_MAP_CREATE of BPF_MAP_TYPE_HASH with BPF_F_NO_PREALLOC
        self.fd = self._bpf(
            0, [1, LAUNCH_KEY.itemsize, LAUNCH_TOTAL.itemsize, max_entries, 1], ctypes.c_uint32
        )

    @staticmethod
    def _bpf(command: int, words: list[int], kind: Any) -> int:
        attr = (ctypes.c_uint8 * 128)()
        content = bytes((kind * len(words))(*words))
        ctypes.memmove(attr, content, len(content))
        libc = ctypes.CDLL(None, use_errno=True)
        result: int = libc.syscall(ctypes.c_long(321), command, attr, 128)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def put(self, tid: int, window: int, calls: int) -> None:
        """BPF_MAP_UPDATE_ELEM."""
        key = np.zeros(1, LAUNCH_KEY)
        key["tid"], key["site"], key["window"], key["stream"] = tid, 1, window, tid * 3
        total = np.zeros(1, LAUNCH_TOTAL)
        total["calls"], total["pid"] = calls, 5
        total["histogram"][0, 39] = calls
        self._bpf(2, [self.fd, key.ctypes.data, total.ctypes.data, 0], ctypes.c_uint64)


@pytest.fixture
def real_map() -> Iterator[RealMap]:
    """A map with room for 4096 entries."""
    try:
        made = RealMap(4096)
    except OSError as error:
        pytest.skip(f"no BPF maps here: {error}")
    yield made
    os.close(made.fd)


def test_the_real_map_is_read_and_cleared_window_by_window(real_map: RealMap) -> None:
    # GIVEN 1,999 entries of two windows, and more of the one in use
    launch_map = LaunchMap(real_map.fd, 4096)
    for tid in range(1, 2_000):
        real_map.put(tid, 65_535 if tid % 2 else 0, tid)
    for tid in range(1, 1_010):
        real_map.put(tid, 1, 1)
    # WHEN the two are taken
    keys, totals = launch_map.take({65_535, 0})
    # THEN all of theirs is there, key by key, and a second time nothing is
    assert len(keys) == 1_999
    assert (totals["calls"] == keys["tid"]).all()
    assert (totals["histogram"][:, 39] == keys["tid"]).all()
    assert (keys["stream"] == keys["tid"] * 3).all()
    assert sorted(keys["tid"].tolist()) == list(range(1, 2_000))
    assert len(launch_map.take({65_535, 0})[0]) == 0
    # AND the window in use is still there
    assert len(launch_map.take({1})[0]) == 1_009


def test_an_empty_map_and_a_bad_one(real_map: RealMap) -> None:
    assert len(LaunchMap(real_map.fd, 4096).take({0})[0]) == 0
    with pytest.raises(OSError, match="map of launches"):
        LaunchMap(-1, 16).take({0})


def test_waiting_for_programs_ends() -> None:
    wait_for_programs()


def test_entries_have_the_size_of_the_programs_structures() -> None:
    # u32 u16 u16 u64, and 4 x u64, 2 x u32, 40 x u32
    assert (LAUNCH_KEY.itemsize, LAUNCH_TOTAL.itemsize) == (16, 200)
