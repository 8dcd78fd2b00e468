"""Source ``ioctl``: did libcuda fetch the keys to encrypt copies by itself?"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.counters import Sample, counter_rows
from cctrace.record.bpf.io_rows import io_events
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import Kprobes, Site
from cctrace.record.bpf.probes import Events, Probes, Rows, tracepoint_flags

_TRACEPOINT: Final = "syscalls:sys_enter_ioctl"
# kernel-open/nvidia/nv.c: what the file operations of NVIDIA's devices point to.
_SITE: Final = Site("ioctl_nvidia", ("nvidia_unlocked_ioctl",), at_return=False)


class Ioctl:
    """The request for a channel's keys (GET_KMB), by process.

    Args:
        kprobes: Attaches; this machine's if not said.
        asked: Asked for by name: then also by a way that costs the whole machine.
    """

    name = "ioctl"
    kinds = (layout.Kind.IOCTL,)
    files = ("ioctl.bpf.c",)

    def __init__(self, kprobes: Kprobes | None = None, *, asked: bool = True) -> None:
        self._asked = asked
        self._kprobes = kprobes if kprobes is not None else Kprobes()
        self._attached = ""
        self._seen: Counter[int] = Counter()
        self._first_ns: dict[int, int] = {}

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Offsets of the fields of the system call's record, where there is one."""
        try:
            return tracepoint_flags(tracefs, _TRACEPOINT, ("cmd", "arg"))
        except CctraceError:
            if self._kprobes.known(_SITE.names):
                return []
            raise

    def attach(self, probes: Probes) -> None:
        """Attach to the driver where that can be probed, else to the system call.

        The driver first: a tracepoint of system calls sends every one of the machine
        down the kernel's slower path, so it has to be asked for.

        Raises:
            CctraceError: The driver cannot be probed, and nobody asked for more.
        """
        if self._kprobes.attach(probes, _SITE):
            self._attached = "kprobe"
        elif not self._asked:
            raise CctraceError(
                "without kprobes on the driver it would slow every system call",
                "ask for it by name: --sources ioctl,...",
                EXIT_UNSUPPORTED,
            )
        else:
            probes.tracepoint(_TRACEPOINT)
            self._attached = "tracepoint"

    def decode(self, events: Events) -> Rows:
        """One sample per process that asked: how often it has, when it last did."""
        records = io_events(events)
        rows: Rows = []
        for pid in np.unique(records["pid"]).tolist():
            times = records["ts_ns"][records["pid"] == pid]
            self._seen[pid] += len(times)
            self._first_ns.setdefault(pid, int(times.min()))
            sample = Sample("get_kmb", self._seen[pid], "requests", pid)
            rows += counter_rows([sample], int(times.max()))
        return rows

    def poll(self) -> Rows:
        """Nothing beyond the ring."""
        return []

    def finish(self) -> Rows:
        """Nothing is left over."""
        return []

    def detail(self) -> dict[str, Any]:
        """Whether libcuda encrypts by itself, as far as was seen."""
        return {
            "attached": self._attached,
            "libcuda_encrypts": bool(self._seen),
            "seen": [
                {"pid": pid, "first_ns": self._first_ns[pid], "requests": count}
                for pid, count in sorted(self._seen.items())
            ],
        }

    def detach(self) -> None:
        """Take the probe away; a tracepoint's link is closed with the others."""
        self._kprobes.detach()
