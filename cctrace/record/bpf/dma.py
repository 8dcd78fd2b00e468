"""Source ``dma``: DMA mappings by device and direction, as counters (opt-in).

The one source that sees the devices' traffic on kernels that refuse kprobes, and the
check that copies of a GPU in CC mode do not bounce.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.counters import Sample, counter_rows
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.probes import Events, Probes, Rows, tracepoint_flags

_IOMMU_GROUPS: Final = Path("/sys/kernel/iommu_groups")
_ONE: Final = ("device", "phys_addr", "dma_addr", "size", "dir")
# Tracepoints by name, each with the fields its program reads. include/trace/events/dma.h:
# map_page and map_resource until map_phys replaced both.
_FIELDS: Final = {
    "dma_map_phys": _ONE,
    "dma_map_page": _ONE,
    "dma_map_resource": ("device", "size", "dir"),
    "dma_map_sg": ("device", "phys_addrs", "dma_addrs", "lengths", "dir"),
    "dma_alloc": ("device", "size"),
}
_OPTIONAL: Final = {"dma_map_sg": ("truncated",)}
_DIRECTIONS: Final = {
    0: "bidirectional",
    1: "to_device",
    2: "from_device",
    3: "none",
    4: "coherent",
}


class Dma:
    """The DMA API's tracepoints, added up in the kernel.

    Args:
        iommu_groups: Where the kernel lists what is behind an IOMMU, and how.
    """

    name = "dma"
    kinds = (layout.Kind.DMA,)
    files = ("dma.bpf.c",)

    def __init__(self, iommu_groups: Path = _IOMMU_GROUPS) -> None:
        self._iommu_groups = iommu_groups
        self._probes: Probes | None = None
        self._there: list[str] = []
        self._before: dict[tuple[str, str], int] = {}
        self._translated = False
        self._cut_short = 0

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Offsets of the fields of the tracepoints this kernel has."""
        flags = []
        for event, wanted in _FIELDS.items():
            fields = tracefs.fields(f"dma:{event}")
            if fields is None or not set(wanted) <= set(fields):
                continue
            optional = [name for name in _OPTIONAL.get(event, ()) if name in fields]
            flags += tracepoint_flags(tracefs, f"dma:{event}", [*wanted, *optional])
            self._there.append(event)
        if not self._there:
            raise CctraceError(
                "this kernel has no dma tracepoints", "they came with Linux 6.12", EXIT_UNSUPPORTED
            )
        self._translated = self._behind_iommu()
        return flags

    def attach(self, probes: Probes) -> None:
        """Attach to those there are."""
        self._probes = probes
        for event in self._there:
            probes.tracepoint(f"dma:{event}")

    def decode(self, events: Events) -> Rows:
        """Nothing comes through the ring."""
        del events
        return []

    def poll(self) -> Rows:
        """Totals since the recording began, of devices and directions that have grown."""
        if self._probes is None:
            return []
        cut = self._probes.module.table("dma_cut_short")
        self._cut_short = int(sum(cut[cut.Key(0)]))
        samples: list[Sample] = []
        for key, totals in self._probes.module.table("dma_totals").items():
            device = bytes(key.device).split(b"\0", 1)[0].decode("utf-8", "replace")
            direction = _DIRECTIONS.get(int(key.direction), "unknown")
            if self._before.get((device, direction)) == totals.mappings:
                continue
            self._before[device, direction] = int(totals.mappings)
            name = f"dma.{device}.{direction}"
            samples += [
                Sample(f"{name}.mappings", totals.mappings, "mappings"),
                Sample(f"{name}.bytes", totals.bytes, "bytes"),
            ]
            if not self._translated and direction not in {"coherent", "none"}:
                samples.append(Sample(f"{name}.bounced_bytes", totals.bounced_bytes, "bytes"))
        return counter_rows(samples)

    def finish(self) -> Rows:
        """The last totals."""
        rows = self.poll()
        self._probes = None
        return rows

    def detail(self) -> dict[str, Any]:
        """Which tracepoints, and whether bounces can be told."""
        detail: dict[str, Any] = {"scope": "machine", "tracepoints": list(self._there)}
        if self._translated:
            detail["missing"] = "bounced bytes: devices are behind an IOMMU"
        if self._cut_short:
            detail["lists_cut_short"] = self._cut_short
        return detail

    def detach(self) -> None:
        """Its links are closed with the others."""

    def _behind_iommu(self) -> bool:
        # Documentation/ABI/testing/sysfs-kernel-iommu_groups: "identity" maps 1:1.
        for file in self._iommu_groups.glob("*/type"):
            try:
                if file.read_text().strip() != "identity":
                    return True
            except OSError:
                continue
        return False
