"""Source ``sched``: when traced threads were off the CPU, why, where, and who woke them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from cctrace.record.bpf import frontend, layout
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.probes import Events, Probes, Rows, tracepoint_flags
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.bpf.stacks.kernel_maps import FILES, STEPS, go_on_in
from cctrace.schema import TABLES

_SWITCH_FIELDS: Final = ("prev_pid", "prev_state", "next_pid")
_STATES: Final = pa.array([state.name.lower() for state in layout.SchedState], pa.string())


class Sched:
    """The scheduler's tracepoints.

    Args:
        stacks: Takes the stacks of waits, if its mode is ``all``; None: none are taken.
    """

    name = "sched"
    kinds = (layout.Kind.SCHED,)

    def __init__(self, stacks: StackCollector | None = None) -> None:
        self._stacks = stacks if stacks is not None and stacks.mode == "all" else None
        self.files = ("sched.bpf.c",) if self._stacks is None else (*FILES, "sched.bpf.c")

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Offsets of the fields of the switch and wake-up records."""
        return [
            *(self._stacks.flags("CCT_WAIT_STACKS") if self._stacks is not None else ()),
            *tracepoint_flags(tracefs, "sched:sched_switch", _SWITCH_FIELDS),
            *tracepoint_flags(tracefs, "sched:sched_waking", ("pid",)),
        ]

    def attach(self, probes: Probes) -> None:
        """Attach to the switch and to the wake-up."""
        probes.tracepoint("sched:sched_waking")
        probes.tracepoint("sched:sched_switch")
        if self._stacks is not None:
            try:
                programs = [
                    probes.module.load(f"on_wait_stack{step}", frontend.TRACEPOINT)
                    for step in STEPS
                ]
                self._stacks.attach(probes, self.name, waits=True)
                go_on_in(probes.module, "wait_stack_programs", programs)
            except OSError as error:
                self._stacks.refuse(self.name, error)

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
                self._stack_ids(records),
            ],
            schema=TABLES["sched"].arrow,
        )
        return [("sched", table)]

    def _stack_ids(self, records: Events) -> pa.Array:
        if self._stacks is None:
            return pa.nulls(len(records), pa.int64())
        return self._stacks.column(records["stack_id"], self.name)

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
