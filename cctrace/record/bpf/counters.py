"""Rows of ``counters``, and how full the bounce-buffer pool is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from cctrace.record.bpf.kernelfs import KernelFs, debug_fs
from cctrace.record.bpf.probes import Rows
from cctrace.record.clock import now_ns
from cctrace.record.host import SWIOTLB_SLOT_BYTES
from cctrace.schema import TABLES

# kernel/dma/swiotlb.c, swiotlb_create_debugfs_files: counts of slots. The high-water
# mark came with 6.4, transient pools with 6.6.
_POOL_FILES: Final = {
    "io_tlb_used": "swiotlb.used",
    "io_tlb_nslabs": "swiotlb.capacity",
    "io_tlb_used_hiwater": "swiotlb.used_hiwater",
    "io_tlb_transient_nslabs": "swiotlb.transient",
}


@dataclass(frozen=True)
class Sample:
    """One value of one counter.

    Attributes:
        name: The counter.
        value: In ``unit``.
        unit: Of the value.
        pid: Process it is about; None: the machine.
    """

    name: str
    value: float
    unit: str
    pid: int | None = None


def counter_rows(samples: Sequence[Sample], ts_ns: int | None = None) -> Rows:
    """Rows of ``counters``.

    Args:
        samples: Taken together.
        ts_ns: When, ns of CLOCK_MONOTONIC; now if not said.

    Returns:
        A table of one row per sample; nothing where there are none.
    """
    if not samples:
        return []
    when_ns = now_ns() if ts_ns is None else ts_ns
    schema = TABLES["counters"].arrow
    columns = {
        "ts_ns": [when_ns] * len(samples),
        "pid": [sample.pid for sample in samples],
        "tid": [None] * len(samples),
        "name": [sample.name for sample in samples],
        "value": [float(sample.value) for sample in samples],
        "unit": [sample.unit for sample in samples],
    }
    return [("counters", pa.table(columns, schema=schema))]


class SwiotlbPool:
    """How many bytes of the machine's bounce-buffer pool are mapped, from debugfs.

    Args:
        files: debugfs; this machine's if not said.
    """

    def __init__(self, files: KernelFs | None = None) -> None:
        self._files = files if files is not None else debug_fs()

    @property
    def reason(self) -> str | None:
        """Why there is nothing to sample; None: there is."""
        if self._files.root is None:
            return self._files.reason
        if self._files.read("swiotlb/io_tlb_used") is None:
            return "debugfs has no swiotlb/io_tlb_used: no pool, or CONFIG_DEBUG_FS is off"
        return None

    def sample(self) -> list[Sample]:
        """What the files say now, in bytes; those the kernel lacks are left out."""
        samples = []
        for file, name in _POOL_FILES.items():
            text = self._files.read(f"swiotlb/{file}")
            if text is not None and text.strip().isdecimal():
                samples.append(Sample(name, int(text) * SWIOTLB_SLOT_BYTES, "bytes"))
        return samples

    def close(self) -> None:
        """Give debugfs back."""
        self._files.close()
