"""Source ``tdx``: exits of a TDX guest, by reason, as counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.counters import Sample, counter_rows
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.kprobes import Kprobes, Site
from cctrace.record.bpf.probes import Events, Probes, Rows

_SITE: Final = Site("tdx_exit", ("tdx_handle_virt_exception",), at_return=False)
_CPUINFO: Final = Path("/proc/cpuinfo")
_OTHER: Final = 95  # TDX_REASONS - 1 of tdx.bpf.c
# Those a TDX guest's kernel handles (virt_exception_kernel and _user in
# arch/x86/coco/tdx/tdx.c); numbers: arch/x86/include/uapi/asm/vmx.h.
_REASONS: Final = {
    10: "cpuid",
    12: "hlt",
    30: "io",
    31: "msr_read",
    32: "msr_write",
    48: "ept_violation",
    _OTHER: "other",
}


class Tdx:
    """Virtualization exceptions of this guest.

    Args:
        kprobes: Attaches; this machine's if not said.
        cpuinfo: Where the processor's flags are.
    """

    name = "tdx"
    kinds = (layout.Kind.TDX,)
    files = ("tdx.bpf.c",)

    def __init__(self, kprobes: Kprobes | None = None, cpuinfo: Path = _CPUINFO) -> None:
        self._kprobes = kprobes if kprobes is not None else Kprobes()
        self._cpuinfo = cpuinfo
        self._probes: Probes | None = None
        self._before: dict[int, int] = {}

    def prepare(self, tracefs: TraceFs) -> list[str]:
        """Check that this is a TDX guest and the handler can be probed; no flags."""
        del tracefs
        if not self._is_guest():
            raise CctraceError(
                "this is no TDX guest",
                "its exits are counted from inside, in the trust domain itself",
                EXIT_UNSUPPORTED,
            )
        self._kprobes.require(
            _SITE.names,
            absent=f"this kernel has no function {_SITE.names[0]}",
            hint="it needs CONFIG_INTEL_TDX_GUEST, Linux 5.19 or later",
        )
        return []

    def attach(self, probes: Probes) -> None:
        """Attach to the handler."""
        self._probes = probes
        self._kprobes.attach(probes, _SITE)
        self._kprobes.require_attached()

    def decode(self, events: Events) -> Rows:
        """Nothing comes through the ring."""
        del events
        return []

    def poll(self) -> Rows:
        """Exits since the recording began, of the reasons that have grown."""
        if self._probes is None:
            return []
        table = self._probes.module.table("tdx_exits")
        samples = []
        for reason in range(_OTHER + 1):
            count = int(sum(table[table.Key(reason)]))
            if count != self._before.get(reason, 0):
                self._before[reason] = count
                name = _REASONS.get(reason, f"reason_{reason}")
                samples.append(Sample(f"tdx_ve.{name}", count, "exits"))
        return counter_rows(samples)

    def finish(self) -> Rows:
        """The last counts."""
        rows = self.poll()
        self._probes = None
        return rows

    def detail(self) -> dict[str, Any]:
        """What is probed."""
        return {"scope": "machine", **self._kprobes.detail()}

    def detach(self) -> None:
        """Take the probe away."""
        self._kprobes.detach()

    def _is_guest(self) -> bool:
        try:
            text = self._cpuinfo.read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
        return "tdx_guest" in flags.split()
