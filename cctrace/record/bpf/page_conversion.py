"""Source ``page_conversion``: pages handed from private to shared and back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.io_rows import head, io_events, named, sizes
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import Kprobes, Site, arm_calls, count_missed_returns
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

_SITES: Final = (
    Site("pages_shared", ("set_memory_decrypted",)),
    Site("pages_private", ("set_memory_encrypted",)),
)
_TO: Final = {int(layout.IoOp.TO_SHARED): "shared", int(layout.IoOp.TO_PRIVATE): "private"}


class PageConversion:
    """Calls of the kernel that convert memory.

    Outside a confidential guest the same calls return at once and convert nothing; they
    are recorded all the same, with the few nanoseconds they take.

    Args:
        ledger: Takes returns that were missed.
        kprobes: Attaches; this machine's if not said.
    """

    name = "page_conversion"
    kinds = (layout.Kind.PAGES,)
    files = ("calls.bpf.c", "page_conversion.bpf.c")

    def __init__(self, ledger: LossLedger, kprobes: Kprobes | None = None) -> None:
        self._ledger = ledger
        self._kprobes = kprobes if kprobes is not None else Kprobes()
        self._probes: Probes | None = None
        self._failed = 0

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Check that the functions can be probed; no flags."""
        del tracefs
        self._kprobes.require(
            [name for site in _SITES for name in site.names],
            absent="this kernel cannot convert pages: it has no set_memory_decrypted",
            hint="it needs CONFIG_INTEL_TDX_GUEST or CONFIG_AMD_MEM_ENCRYPT",
        )
        return []

    def attach(self, probes: Probes) -> None:
        """Attach to both directions."""
        self._probes = probes
        for site in _SITES:
            self._kprobes.attach(probes, site)
        self._kprobes.require_attached()
        arm_calls(probes, layout.Kind.PAGES)

    def decode(self, events: Events) -> Rows:
        """Rows of ``page_conversion``; conversions that failed are only counted."""
        records = io_events(events)
        done = records["result"] == 0
        self._failed += int(np.count_nonzero(~done))
        records = records[done]
        table = pa.Table.from_arrays(
            [*head(records), named(records["what"], _TO), sizes(records)],
            schema=TABLES["page_conversion"].arrow,
        )
        return [("page_conversion", table)]

    def poll(self) -> Rows:
        """Nothing beyond the ring."""
        return []

    def finish(self) -> Rows:
        """Count what never returned."""
        count_missed_returns(self._probes, layout.Kind.PAGES, self._ledger, self.name)
        return []

    def detail(self) -> dict[str, Any]:
        """What is probed, and how many conversions failed."""
        return {"scope": "machine", "failed": self._failed, **self._kprobes.detail()}

    def detach(self) -> None:
        """Take the probes away."""
        self._kprobes.detach()
