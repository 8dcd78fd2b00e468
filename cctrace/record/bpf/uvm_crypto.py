"""Source ``uvm_crypto``: what nvidia-uvm encrypts on the CPU for a GPU in CC mode.

The path of memory from cudaHostAlloc and of managed memory; pageable copies are
encrypted by libcuda in the program itself and are not seen here.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.counters import Sample, counter_rows
from cctrace.record.bpf.io_rows import head, io_events, named, sizes
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import Kprobes, Site, arm_calls, count_missed_returns
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

_SITES: Final = (
    Site("uvm_encrypt", ("uvm_conf_computing_cpu_encrypt",)),
    Site("uvm_decrypt", ("uvm_conf_computing_cpu_decrypt",)),
)
# What the above call; the size is elsewhere, so programs of their own for the entry.
_FALLBACK: Final = (
    Site("uvm_csl_encrypt", ("nvUvmInterfaceCslEncrypt",), at_return="uvm_encrypt"),
    Site("uvm_csl_decrypt", ("nvUvmInterfaceCslDecrypt",), at_return="uvm_decrypt"),
)
_POOL: Final = (
    Site("uvm_buffer_taken", ("uvm_conf_computing_dma_buffer_alloc",), at_entry=False),
    Site("uvm_buffer_given_back", ("uvm_conf_computing_dma_buffer_free",), at_return=False),
)
_DIRECTIONS: Final = {
    int(layout.IoOp.ENCRYPT): "encrypt",
    int(layout.IoOp.DECRYPT): "decrypt",
}
# Slots of uvm_buffers in uvm_crypto.bpf.c
_TAKEN: Final = 0
_GIVEN_BACK: Final = 1


class UvmCrypto:
    """Encryption by the NVIDIA memory manager.

    Args:
        ledger: Takes returns that were missed.
        kprobes: Attaches; this machine's if not said.
    """

    name = "uvm_crypto"
    kinds = (layout.Kind.UVM,)
    files = ("calls.bpf.c", "uvm_crypto.bpf.c")

    def __init__(self, ledger: LossLedger, kprobes: Kprobes | None = None) -> None:
        self._ledger = ledger
        self._kprobes = kprobes if kprobes is not None else Kprobes()
        self._probes: Probes | None = None
        self._buffers = (0, 0)
        self._attached = ""

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Check that the driver is there and can be probed; no flags."""
        del tracefs
        self._kprobes.require(
            [name for site in (*_SITES, *_FALLBACK) for name in site.names],
            absent="nvidia_uvm is not loaded, or knows no confidential computing",
            hint="load it first: modprobe nvidia-uvm (driver 535 or later)",
        )
        return []

    def attach(self, probes: Probes) -> None:
        """Attach to encryption and decryption, and to the pool of staging buffers."""
        self._probes = probes
        if all(self._kprobes.attach(probes, site) for site in _SITES):
            self._attached = "uvm_conf_computing"
        else:
            # Not one direction here and the other there: they time different things.
            self._kprobes.detach()
            self._kprobes.functions.clear()
            for site in _FALLBACK:
                self._kprobes.attach(probes, site)
            self._attached = "nvUvmInterfaceCsl"
        self._kprobes.require_attached()
        for site in _POOL:
            self._kprobes.attach(probes, site)
        arm_calls(probes, layout.Kind.UVM)

    def decode(self, events: Events) -> Rows:
        """Rows of ``uvm_crypto``."""
        records = io_events(events)
        table = pa.Table.from_arrays(
            [*head(records), named(records["what"], _DIRECTIONS), sizes(records)],
            schema=TABLES["uvm_crypto"].arrow,
        )
        return [("uvm_crypto", table)]

    def poll(self) -> Rows:
        """Staging buffers taken since the recording began, and how many more than given back."""
        if self._probes is None:
            return []
        table = self._probes.module.table("uvm_buffers")
        taken, given_back = (int(sum(table[table.Key(slot)])) for slot in (_TAKEN, _GIVEN_BACK))
        if (taken, given_back) == self._buffers:
            return []
        self._buffers = (taken, given_back)
        return counter_rows(
            [
                Sample("uvm.staging_buffers_taken", taken, "buffers"),
                Sample("uvm.staging_buffers_used", taken - given_back, "buffers"),
            ]
        )

    def finish(self) -> Rows:
        """Count what never returned."""
        count_missed_returns(self._probes, layout.Kind.UVM, self._ledger, self.name)
        rows = self.poll()
        self._probes = None
        return rows

    def detail(self) -> dict[str, Any]:
        """What is probed."""
        return {"scope": "machine", "attached": self._attached, **self._kprobes.detail()}

    def detach(self) -> None:
        """Take the probes away."""
        self._kprobes.detach()
