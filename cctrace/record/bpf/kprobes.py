"""Kernel functions: which there are, and probes on their entry and return.

Hardened kernels and some guests refuse kprobes altogether, and which functions exist
differs with the version: sources ask here, and refuse with what they are told.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend, layout, syscalls
from cctrace.record.bpf.probes import Probes
from cctrace.record.clock import now_ns
from cctrace.record.losses import LossLedger

_KALLSYMS: Final = Path("/proc/kallsyms")
_PMU: Final = Path("/sys/bus/event_source/devices/kprobe")

# (program's descriptor, function, is_return) -> descriptor; closing it detaches.
Attacher = Callable[[int, str, bool], int]

# address, type (t, T: code), name, and for a module's [module]; those anybody here asks for
_FUNCTION: Final = re.compile(
    rb"^\S+ [tT] "
    rb"((?:(?:__)?swiotlb_|set_memory_|uvm_conf_|nvUvm|nvidia_unlocked_|tdx_)\w+)(?=\s)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Site:
    """A kernel function to probe, under any of its names.

    Attributes:
        program: ``on_PROGRAM_entry`` runs at its entry, ``on_PROGRAM_return`` at its return.
        names: Names it has had, newest first; the first that can be probed is.
        at_return: Whether there is a program for the return, of this name or another.
        at_entry: Whether there is one for the entry.
    """

    program: str
    names: tuple[str, ...]
    at_entry: bool = True
    at_return: bool | str = True


def _attach(program: int, function: str, is_return: bool) -> int:  # noqa: FBT001 - an Attacher
    return syscalls.attach_kprobe(program, function, is_return=is_return)


class KernelFunctions:
    """Which of the functions that anybody here asks for this kernel has.

    Args:
        kallsyms: Where the kernel lists them; addresses may be hidden there, names are
            not. Some megabytes, read when somebody asks, and once.
    """

    def __init__(self, kallsyms: Path = _KALLSYMS) -> None:
        self._kallsyms = kallsyms

    @cached_property
    def names(self) -> frozenset[str]:
        """Their names; none where the list cannot be read."""
        try:
            text = self._kallsyms.read_bytes()
        except OSError:
            return frozenset()
        return frozenset(match[1].decode() for match in _FUNCTION.finditer(text))


class Kprobes:
    """The kprobes of one family.

    Args:
        kernel: What functions there are; families that share it read the list once.
        pmu: What the kernel has in sysfs where it can open kprobes.
        attacher: Attaches a program; another than the kernel's in tests.

    Attributes:
        functions: Those attached to.
        missing: Those that could not be, and why.
    """

    def __init__(
        self,
        kernel: KernelFunctions | None = None,
        pmu: Path = _PMU,
        attacher: Attacher = _attach,
    ) -> None:
        self._kernel = kernel if kernel is not None else KernelFunctions()
        self._pmu = pmu
        self._attach = attacher
        self._entries: list[int] = []
        self._returns: list[int] = []
        self.functions: list[str] = []
        self.missing: dict[str, str] = {}

    def known(self, names: Iterable[str]) -> set[str]:
        """Which of ``names`` this kernel has a function of."""
        return set(names) & self._kernel.names

    def require(self, names: Sequence[str], *, absent: str, hint: str | None) -> None:
        """Check, before anything is compiled, that any of ``names`` could be probed.

        Args:
            names: Functions, any of which will do.
            absent: What to say where there is none of them.
            hint: What would help then.

        Raises:
            CctraceError: None is there, or the kernel has no kprobes.
        """
        if not self.known(names):
            raise CctraceError(absent, hint, EXIT_UNSUPPORTED)
        if not self._pmu.exists():
            raise CctraceError(
                "this kernel was built without kprobes",
                "it needs CONFIG_KPROBE_EVENTS",
                EXIT_UNSUPPORTED,
            )

    def attach(self, probes: Probes, site: Site) -> bool:
        """Attach to the first name of ``site`` that can be probed; tells whether one could.

        The entry is probed first: a return always has its entry, unless it was missed.
        Where none could, ``missing`` says why.
        """
        known = self.known(site.names)
        why = "not in this kernel"
        for name in site.names:
            if name not in known:
                continue
            try:
                self._attach_one(probes, site, name)
            except OSError as error:
                why = error.strerror or str(error)
            else:
                self.functions.append(name)
                return True
        self.missing[site.names[0]] = why
        return False

    def require_attached(self) -> None:
        """Check that something is attached.

        Raises:
            CctraceError: Nothing is; says why for each function.
        """
        if not self.functions:
            raise self.refusal()

    def refusal(self) -> CctraceError:
        """Why the functions that are missing could not be probed."""
        why = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
        hint = None
        if os.strerror(errno.EPERM) in self.missing.values():
            hint = "the kernel may be locked down: boot without lockdown=, where acceptable"
        return CctraceError(f"cannot probe {why}", hint, EXIT_UNSUPPORTED)

    def detach(self) -> None:
        """Take the probes away, entries first: what is under way may still return."""
        for events in (self._entries, self._returns):
            syscalls.close_all(events)
            events.clear()

    def detail(self) -> dict[str, Any]:
        """What is probed and what could not be, for the manifest."""
        return {"functions": list(self.functions), "missing": dict(self.missing)}

    def _attach_one(self, probes: Probes, site: Site, name: str) -> None:
        entry = self._probe(probes, f"on_{site.program}_entry", name) if site.at_entry else None
        try:
            if site.at_return:
                program = site.program if site.at_return is True else site.at_return
                event = self._probe(probes, f"on_{program}_return", name, is_return=True)
                self._returns.append(event)
        except OSError:
            if entry is not None:
                os.close(entry)
            raise
        if entry is not None:
            self._entries.append(entry)

    def _probe(self, probes: Probes, program: str, name: str, *, is_return: bool = False) -> int:
        descriptor = probes.module.load(program, frontend.KPROBE)
        return self._attach(descriptor, name, is_return)


def arm_calls(probes: Probes, kind: layout.Kind) -> None:
    """Tell the programs that all probes of ``kind`` are attached: record from now on."""
    table = probes.module.table("calls_since")
    table[table.Key(int(kind))] = table.Leaf(now_ns())


def count_missed_returns(
    probes: Probes | None, kind: layout.Kind, ledger: LossLedger, source: str
) -> None:
    """Count calls of ``kind`` as lost that never returned; call when all is detached."""
    missed = missed_returns(probes, kind) if probes is not None else 0
    if missed:
        ledger.add(source, layout.LOSS_REASONS[layout.Loss.RETURN], missed)


def missed_returns(probes: Probes, kind: layout.Kind) -> int:
    """Calls of ``kind`` whose return was never seen; to be asked for when all is detached."""
    since = probes.module.table("calls_since")
    armed_ns = int(since[since.Key(int(kind))].value)
    if not armed_ns:
        return 0
    return sum(
        1
        for key, frame in probes.module.table("calls").items()
        if key.site >> 8 == int(kind) and frame.ts_ns >= armed_ns
    )
