"""Source ``sched``: when traced threads were off the CPU, why, and who woke them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.probes import Events, Probes, Rows, tracepoint_flags
from cctrace.schema import TABLES

_SWITCH_FIELDS: Final = ("prev_pid", "prev_state", "next_pid")
_STATES: Final = pa.array([state.name.lower() for state in layout.SchedState], pa.string())


class Sched:
    """The scheduler's tracepoints."""

    name = "sched"
    kinds = (layout.Kind.SCHED,)
    files = ("sched.bpf.c",)

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Offsets of the fields of the switch and wake-up records."""
        return [
            *tracepoint_flags(tracefs, "sched:sched_switch", _SWITCH_FIELDS),
            *tracepoint_flags(tracefs, "sched:sched_waking", ("pid",)),
        ]

    def attach(self, probes: Probes) -> None:
        """Attach to the switch and to the wake-up."""
        probes.tracepoint("sched:sched_waking")
        probes.tracepoint("sched:sched_switch")

    def decode(self, events: Events) -> Rows:
        """Rows of ``sched``."""
        records = events.view(layout.SCHED_EVENT)
        waker = records["waker_tid"]
        table = pa.Table.from_arrays(
            [
                records["ts_ns"].astype(np.int64),
                records["pid"].astype(np.int32),
                records["tid"].astype(np.int32),
                records["dur_ns"].astype(np.int64),
                pa.DictionaryArray.from_arrays(records["what"].astype(np.int32), _STATES),
                pa.array(waker.astype(np.int32), mask=waker == 0),
                pa.nulls(len(records), pa.int64()),
            ],
            schema=TABLES["sched"].arrow,
        )
        return [("sched", table)]

    def poll(self) -> Rows:
        """Nothing beyond the ring."""
        return []

    def finish(self) -> Rows:
        """Nothing is left over."""
        return []

    def detail(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    def detach(self) -> None:
        """Its links are closed with the others."""
