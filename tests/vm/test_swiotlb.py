"""SWIOTLB in a real kernel: what `cctrace record` says of direct I/O in a guest.

The truth comes from elsewhere: the program's own count of what it moved, the block
layer's statistics, and ftrace's histograms, which no BPF has a part in (truth.sh).

What a virtio-blk request maps, measured in the guest and read in drivers/block/
virtio_blk.c and drivers/virtio/virtio_ring.c of Linux 6.1: its header (16 bytes, to the
device), each data segment, its status (1 byte, from the device), and the table of
descriptors for all these (16 bytes each, to the device). Every mapping is copied to its
bounce buffer when it is made, whatever its direction, and from there when it ends if the
device may have written (kernel/dma/swiotlb.c). So R requests with S data segments of N
bytes in all, N_read of them read, are

    maps                    S + 3 R
    copied to the device    N + 16 R + 1 R + 16 (S + 2 R) bytes
    copied from it          N_read + 1 R bytes
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from guest import Guest, GuestResult
from recording import CCTRACE, environment, losses, rows

pytestmark = pytest.mark.vm

HEADER_BYTES = 16  # struct virtio_blk_outhdr, include/uapi/linux/virtio_blk.h
STATUS_BYTES = 1
DESCRIPTOR_BYTES = 16  # struct vring_desc, include/uapi/linux/virtio_ring.h
LARGEST_MAPPING_BYTES = 256 << 10  # IO_TLB_SEGSIZE slots of 2 KiB, include/linux/swiotlb.h

SETUP = """
set -u
. /src/tests/vm/truth.sh
traced() {
	mkdir "$1.truth"
	truth_start
	cctrace record -q -o "$1" --sources swiotlb -- \\
		python3 /src/tests/vm/direct_io.py "$1.json" "${@:2}"
	echo $? >"$1.status"
	truth_stop "$1.truth"
}
"""

# Prime numbers of requests. A page is one segment, a larger buffer is as many as memory
# is scattered into.
PAGES = ("data0:read:101:4096", "data0:write:97:4096")
LARGE = ("data1:read:13:1048576", "data1:write:7:1048576")
# 8 at once of 512 KiB each do not fit into 2 MiB. The disks are slow, so that even a guest
# that hardly gets a processor has that many in flight: some 5 s in all.
TINY_POOL = Guest(swiotlb="1024,force", data_iops=5)
STORM = ("data1:write:23:524288:8", "data0:read:3:4096")


@dataclass(frozen=True)
class Recorded:
    """One recording of direct_io.py, with its truth."""

    run: Path

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return rows(self.run, "swiotlb")

    @cached_property
    def io(self) -> dict[str, Any]:
        """The program's log: its pid, its time, each disk's statistics."""
        told: dict[str, Any] = json.loads(self.run.with_suffix(".json").read_text())
        return told

    def disk(self, serial: str) -> dict[str, Any]:
        disk: dict[str, Any] = self.io["disks"][serial]
        return disk

    def histogram(self, name: str) -> dict[str, tuple[int, int]]:
        """A histogram of ftrace: hits and bytes by key."""
        text = (self.run.with_suffix(".truth") / name).read_text()
        found = re.findall(
            r"^\{ \w+:\s*(\S+)\s*\} hitcount:\s*(\d+)(?:\s+size:\s*(\d+))?", text, re.MULTILINE
        )
        assert "Dropped: 0" in text, text
        return {key: (int(hits), int(size or 0)) for key, hits, size in found}

    @property
    def refused(self) -> int:
        """Attempts that found no room, as ftrace counted them."""
        return sum(hits for hits, _ in self.histogram("refused").values())

    def of(self, op: str, device: str | None = None, **more: str) -> list[dict[str, Any]]:
        wanted = {"op": op, **more} | ({} if device is None else {"device": device})
        return [row for row in self.rows if wanted.items() <= row.items()]


def size_of(some: list[dict[str, Any]]) -> int:
    return sum(row["size_bytes"] for row in some)


def recorded(guest: GuestResult, name: str) -> Recorded:
    status = guest.results / f"{name}.status"
    assert status.exists(), guest.output
    assert status.read_text().strip() == "0", guest.output
    return Recorded(guest.results / name)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Direct I/O with a pool of 32 MiB, in which there is always room."""
    script = f"{SETUP}traced io {' '.join(PAGES + LARGE)}\n"
    done = Guest().run(script, tmp_path_factory.mktemp("roomy") / "results")
    return recorded(done, "io")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """More I/O at once than a pool of 2 MiB has room for."""
    script = f"{SETUP}traced io {' '.join(STORM)}\n"
    done = TINY_POOL.run(script, tmp_path_factory.mktemp("crowded") / "results")
    return recorded(done, "io")


def test_truth_is_what_was_asked_for(roomy: Recorded) -> None:
    """The block layer did the I/O as it was asked for, so the truth can be trusted."""
    pages, large = roomy.disk("data0"), roomy.disk("data1")
    assert (pages["reads"], pages["writes"], pages["other"]) == (101, 97, 0)
    assert (pages["read_bytes"], pages["write_bytes"]) == (101 * 4096, 97 * 4096)
    assert (large["read_bytes"], large["write_bytes"]) == (13 << 20, 7 << 20)
    assert roomy.histogram("mapped").keys() == {pages["device"], large["device"]}
    assert roomy.refused == 0


def test_every_mapping_is_there(roomy: Recorded) -> None:
    """Count and bytes of maps by device are ftrace's; each map has its unmap and sync."""
    for device, (attempts, size_bytes) in roomy.histogram("mapped").items():
        maps = roomy.of("map", device)
        assert (len(maps), size_of(maps)) == (attempts, size_bytes)
        for ended in (roomy.of("unmap", device), roomy.of("sync", device)):
            assert Counter((row["size_bytes"], row["direction"]) for row in ended) == Counter(
                (row["size_bytes"], row["direction"]) for row in maps
            )
    assert not roomy.of("full")
    assert losses(roomy.run) == {}


def test_every_copy_is_there(roomy: Recorded) -> None:
    """Count and bytes of bounces by direction are ftrace's."""
    # enum dma_data_direction, include/linux/dma-direction.h
    names = {"1": "to_device", "2": "from_device"}
    told = {names[key]: value for key, value in roomy.histogram("copied").items()}
    seen = {
        direction: (len(roomy.of("bounce", direction=direction)), size_of(some))
        for direction in told
        if (some := roomy.of("bounce", direction=direction))
    }
    assert seen == told
    assert sum(hits for hits, _ in told.values()) == len(roomy.of("bounce"))


@pytest.mark.parametrize("serial", ["data0", "data1"])
def test_bytes_are_those_of_the_io(roomy: Recorded, serial: str) -> None:
    """By device and direction, to the byte, what the requests are known to move."""
    disk = roomy.disk(serial)
    device = disk["device"]
    requests = disk["reads"] + disk["writes"]
    moved = disk["read_bytes"] + disk["write_bytes"]
    segments = len(roomy.of("map", device)) - 3 * requests
    if serial == "data0":
        assert segments == requests
    else:
        assert segments >= moved // LARGEST_MAPPING_BYTES
    around = HEADER_BYTES + STATUS_BYTES
    table = DESCRIPTOR_BYTES * (segments + 2 * requests)
    to_device = size_of(roomy.of("bounce", device, direction="to_device"))
    from_device = size_of(roomy.of("bounce", device, direction="from_device"))
    assert to_device == moved + around * requests + table
    assert from_device == disk["read_bytes"] + STATUS_BYTES * requests
    # By direction of the mapping nothing is copied twice.
    mapped_out = size_of(roomy.of("map", device, direction="to_device"))
    assert mapped_out == disk["write_bytes"] + HEADER_BYTES * requests + table
    mapped_in = size_of(roomy.of("map", device, direction="from_device"))
    assert mapped_in == from_device


def test_times_are_those_of_the_io(roomy: Recorded) -> None:
    """All lies within the program's I/O, with its length; a map lasts longer than its copy."""
    assert len(roomy.rows) > 0
    for row in roomy.rows:
        assert row["dur_ns"] is not None
        assert row["dur_ns"] > 0
        assert roomy.io["start_ns"] <= row["ts_ns"]
        assert row["ts_ns"] + row["dur_ns"] <= roomy.io["end_ns"] + 50_000_000
    device = roomy.disk("data0")["device"]
    maps = roomy.of("map", device)
    for outer, inner in zip(maps, roomy.of("bounce", device, direction="to_device"), strict=True):
        assert outer["ts_ns"] <= inner["ts_ns"]
        assert inner["ts_ns"] + inner["dur_ns"] <= outer["ts_ns"] + outer["dur_ns"]


def test_reads_are_mapped_by_their_caller(roomy: Recorded) -> None:
    """Where the program itself is current, its pid is there."""
    device = roomy.disk("data0")["device"]
    own = [row for row in roomy.of("map", device) if row["pid"] == roomy.io["pid"]]
    read = [row for row in own if row["direction"] == "from_device" and row["size_bytes"] == 4096]
    assert len(read) == 101


def test_report_counts_nothing_twice(roomy: Recorded) -> None:
    """The named query has one row a device and direction, with bytes as mapped and as copied."""
    told = subprocess.run(
        [*CCTRACE, "query", roomy.run, "--name", "swiotlb_by_device", "--format", "json"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    report = json.loads(told.stdout)
    for serial in ("data0", "data1"):
        device = roomy.disk(serial)["device"]
        mine = [row for row in report if row["device"] == device]
        mapped = {row["direction"]: row["mapped_bytes"] for row in mine}
        assert mapped == {
            direction: size_of(roomy.of("map", device, direction=direction))
            for direction in ("to_device", "from_device")
        }
        assert sum(row["bounced_bytes"] for row in mine) == size_of(roomy.of("bounce", device))


def test_full_pool_is_told(crowded: Recorded) -> None:
    """An attempt that found no room is `full`, as often as ftrace saw it; the rest are maps."""
    assert crowded.refused > 0, "the pool never filled: the storm is too weak"
    full = crowded.of("full")
    assert len(full) == crowded.refused
    assert {row["device"] for row in full} == {crowded.disk("data1")["device"]}
    assert all(0 < row["size_bytes"] <= LARGEST_MAPPING_BYTES for row in full)
    assert all(row["dur_ns"] > 0 for row in full)
    attempts = sum(hits for hits, _ in crowded.histogram("mapped").values())
    assert len(crowded.of("map")) + len(full) == attempts
    assert losses(crowded.run) == {}


def test_io_succeeds_in_a_full_pool(crowded: Recorded) -> None:
    """The kernel tried again, and all was moved: cctrace harmed nothing."""
    assert crowded.disk("data1")["write_bytes"] == 23 * 524288
    assert crowded.disk("data0")["read_bytes"] == 3 * 4096
