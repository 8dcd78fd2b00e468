"""Runs in the guest: direct I/O on data disks, and a log of what the kernel did for it.

    direct_io.py LOG JOB...     a JOB is SERIAL:read|write:COUNT:BYTES[:THREADS]

Each job does COUNT transfers of BYTES at rising offsets, from one thread or, shared
out, from several. The log is JSON: this process, its time (ns of CLOCK_MONOTONIC),
and for each disk its name on the bus and the difference of its ``stat`` file in
/sys/block, which the block layer keeps and no tracer has a part in.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512  # unit of /sys/block/*/stat, Documentation/block/stat.rst


def disks() -> dict[str, Path]:
    """Directories in /sys/block by serial number.

    Not from their files ``serial``: reading one is a request to the disk.
    """
    links = Path("/dev/disk/by-id").glob("virtio-*")
    return {
        link.name.partition("-")[2]: Path("/sys/block") / link.readlink().name for link in links
    }


def counts(block: Path) -> dict[str, int]:
    """Requests and bytes a disk has completed since boot."""
    stat = [int(word) for word in (block / "stat").read_text().split()]
    return {
        "reads": stat[0],
        "read_bytes": stat[2] * SECTOR_BYTES,
        "writes": stat[4],
        "write_bytes": stat[6] * SECTOR_BYTES,
        "other": stat[11] + stat[15],  # discards and flushes
    }


def transfer(device: Path, kind: str, first: int, count: int, size_bytes: int) -> None:
    """``count`` transfers, one after the other, each of ``size_bytes`` at its place."""
    descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size_bytes) as buffer:  # page-aligned, as O_DIRECT wants it
            buffer.write(os.urandom(size_bytes))
            move = os.preadv if kind == "read" else os.pwritev
            for number in range(first, first + count):
                moved = move(descriptor, [buffer], number * size_bytes)
                if moved != size_bytes:
                    raise OSError(f"{device}: {kind} moved {moved} of {size_bytes} bytes")
    finally:
        os.close(descriptor)


def run_job(device: Path, kind: str, count: int, size_bytes: int, threads: int) -> None:
    """One job; where it has several threads, all of them at once."""
    failures: list[OSError] = []

    def work(first: int, share: int) -> None:
        try:
            transfer(device, kind, first, share, size_bytes)
        except OSError as error:
            failures.append(error)

    shares = [count // threads + (index < count % threads) for index in range(threads)]
    workers = [
        threading.Thread(target=work, args=(sum(shares[:index]), share))
        for index, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def main(log: str, *jobs: str) -> None:
    """Do the jobs in their order and write the log."""
    blocks = disks()
    used = sorted({job.split(":")[0] for job in jobs})
    before = {serial: counts(blocks[serial]) for serial in used}
    start_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for job in jobs:
        serial, kind, count, size_bytes, *threads = job.split(":")
        device = Path("/dev") / blocks[serial].name
        run_job(device, kind, int(count), int(size_bytes), int(threads[0]) if threads else 1)
    end_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    moved: dict[str, Any] = {}
    for serial in used:
        after = counts(blocks[serial])
        moved[serial] = {key: after[key] - before[serial][key] for key in after}
        # .../0000:00:04.0/virtio3/block/vdd: the PCI device is what DMA is done for.
        moved[serial]["device"] = (blocks[serial] / "device").resolve().parent.name
    told = {"pid": os.getpid(), "start_ns": start_ns, "end_ns": end_ns, "disks": moved}
    Path(log).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
