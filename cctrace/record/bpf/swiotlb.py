"""Source ``swiotlb``: what passes through the kernel's bounce buffers, and how full they are.

One of three bounce paths, never to be added to the others: copies of a GPU in CC mode do
not pass here (see ``uvm_crypto`` and ``user_crypto``); disks, networks and other DMA do.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.counters import SwiotlbPool, counter_rows
from cctrace.record.bpf.io_rows import devices, head, io_events, named, sizes
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import Kprobes, Site, arm_calls, count_missed_returns
from cctrace.record.bpf.probes import Events, Probes, Rows, tracepoint_flags
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

_TRACEPOINT: Final = "swiotlb:swiotlb_bounced"
_FIELDS: Final = ("dev_name", "dev_addr", "size")
# A map without its bounces (or the other way round) would tell half the truth.
_REQUIRED: Final = (
    Site("swiotlb_map", ("swiotlb_map",)),
    Site("swiotlb_bounce", ("swiotlb_bounce",)),
)
_MORE: Final = (
    Site("swiotlb_unmap", ("__swiotlb_tbl_unmap_single", "swiotlb_tbl_unmap_single")),
    Site("swiotlb_sync", ("__swiotlb_sync_single_for_device", "swiotlb_sync_single_for_device")),
    Site("swiotlb_sync", ("__swiotlb_sync_single_for_cpu", "swiotlb_sync_single_for_cpu")),
)
# enum swiotlb_mode of swiotlb.bpf.c
_MODE_TRACEPOINT: Final = 1
_MODE_KPROBES: Final = 2
_OPS: Final = {
    int(op): op.name.lower()
    for op in (
        layout.IoOp.MAP,
        layout.IoOp.BOUNCE,
        layout.IoOp.UNMAP,
        layout.IoOp.SYNC,
        layout.IoOp.FULL,
    )
}
_DIRECTIONS: Final = {
    int(direction): direction.name.lower()
    for direction in layout.Direction
    if direction is not layout.Direction.UNKNOWN
}


class Swiotlb:
    """The bounce buffers, by kprobes where the kernel lets, else by its tracepoint.

    Args:
        ledger: Takes returns that were missed.
        kprobes: Attaches; this machine's if not said.
        pool: What is sampled; this machine's if not said.
    """

    name = "swiotlb"
    kinds = (layout.Kind.SWIOTLB,)
    files = ("calls.bpf.c", "swiotlb.bpf.c")

    def __init__(
        self,
        ledger: LossLedger,
        kprobes: Kprobes | None = None,
        pool: SwiotlbPool | None = None,
    ) -> None:
        self._ledger = ledger
        self._kprobes = kprobes if kprobes is not None else Kprobes()
        self._pool = pool
        self._probes: Probes | None = None
        self._refused: CctraceError | None = None
        self._pool_reason: str | None = None
        self._mode = 0

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Offsets of the tracepoint's fields."""
        if tracefs.fields(_TRACEPOINT) is None:
            raise CctraceError(
                f"this kernel has no tracepoint {_TRACEPOINT}",
                "it needs CONFIG_SWIOTLB; without, nothing is bounced",
                EXIT_UNSUPPORTED,
            )
        return tracepoint_flags(tracefs, _TRACEPOINT, _FIELDS)

    def attach(self, probes: Probes) -> None:
        """Attach to the functions, or where that is refused to the tracepoint alone."""
        self._probes = probes
        if self._pool is None:
            self._pool = SwiotlbPool()
        self._pool_reason = self._pool.reason
        probes.tracepoint(_TRACEPOINT)
        self._mode = _MODE_KPROBES if self._attach_functions(probes) else _MODE_TRACEPOINT
        if self._mode == _MODE_KPROBES:
            arm_calls(probes, layout.Kind.SWIOTLB)
        table = probes.module.table("swiotlb_mode")
        table[table.Key(0)] = table.Leaf(self._mode)

    def decode(self, events: Events) -> Rows:
        """Rows of ``swiotlb``."""
        records = io_events(events)
        start = head(records)
        table = pa.Table.from_arrays(
            [
                *start,
                named(records["what"], _OPS),
                devices(records),
                named(records["detail"], _DIRECTIONS),
                sizes(records),
            ],
            schema=TABLES["swiotlb"].arrow,
        )
        return [("swiotlb", table)]

    def poll(self) -> Rows:
        """How full the pool is."""
        return counter_rows(self._pool.sample()) if self._pool is not None else []

    def finish(self) -> Rows:
        """Count what never returned."""
        if self._mode == _MODE_KPROBES:
            count_missed_returns(self._probes, layout.Kind.SWIOTLB, self._ledger, self.name)
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        return []

    def detail(self) -> dict[str, Any]:
        """How it is attached, and what that leaves unknown."""
        detail: dict[str, Any] = {"scope": "machine"}
        if self._mode == _MODE_KPROBES:
            detail |= {"attached": "kprobes", **self._kprobes.detail()}
        elif self._mode == _MODE_TRACEPOINT:
            detail |= {
                "attached": "tracepoint",
                "missing": "direction, duration, copies, failures: "
                + (str(self._refused) if self._refused is not None else "not probed"),
            }
        if self._pool_reason is not None:
            detail["pool"] = self._pool_reason
        return detail

    def detach(self) -> None:
        """Take the probes away."""
        self._kprobes.detach()

    def _attach_functions(self, probes: Probes) -> bool:
        names = [name for site in _REQUIRED for name in site.names]
        try:
            self._kprobes.require(
                names[:1], absent=f"this kernel has no function {names[0]}", hint=None
            )
        except CctraceError as error:
            self._refused = error
            return False
        if all(self._kprobes.attach(probes, site) for site in _REQUIRED):
            for site in _MORE:
                self._kprobes.attach(probes, site)
            return True
        self._kprobes.detach()
        self._refused = self._kprobes.refusal()
        return False
