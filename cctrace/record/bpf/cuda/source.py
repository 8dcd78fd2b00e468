"""Source ``cuda``: calls of the driver, the runtime and NCCL, in every copy of them.

Libraries are attached one by one as they become known, by whoever finds them: before
the target starts, as it loads them, or late. One copy of a library is attached once,
however many processes use it: a probe belongs to the file.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend, layout, syscalls
from cctrace.record.bpf.cuda.decode import CallDecoder
from cctrace.record.bpf.cuda.frames import Frames
from cctrace.record.bpf.cuda.kernel_map import LaunchMap
from cctrace.record.bpf.cuda.launches import LaunchController
from cctrace.record.bpf.cuda.memory import MemoryMap
from cctrace.record.bpf.cuda.probe_cost import ProbeCost
from cctrace.record.bpf.cuda.symbols import LIBRARIES, Symbol, SymbolTable, symbol_table
from cctrace.record.bpf.elf import ElfFile, Function
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.bpf.stacks.kernel_maps import FILES, STEPS, go_on_in
from cctrace.record.bpf.uprobes import (
    Mode,
    Site,
    UprobeLink,
    UprobePrograms,
    close_links,
    stop_entries,
)
from cctrace.record.losses import LossLedger

LaunchMode = Literal["full", "aggregate", "auto"]

_MAX_LIBRARIES: Final = 1024  # the target decides how many copies there are
_MAX_LAUNCHES: Final = 16384  # CUDA_MAX_LAUNCHES of cuda.bpf.c
_SONAME_VERSION: Final = re.compile(r"\.so\.(\d+)")
# A launch under way when launches are detached is waited for, not for ever: its thread
# may be blocked behind a full queue.
_LAUNCHES_RETURN_S: Final = 0.05
_LAUNCHES_LOOK_S: Final = 0.001


@dataclass
class AttachedLibrary:
    """One file whose functions are probed.

    Attributes:
        path: As it was given.
        label: ``cuda``, ``cudart``, ``nccl``; ``program`` where all were looked for.
        mode: How its probes are attached.
        soname: Its own name; None: none.
        build_id: GNU build id, hexadecimal; None: none.
        attached: Functions probed.
        missing: Functions of the table that it has not.
        aliases: Names that share a place with one that is counted, and are shown as it.
        failed: Functions that the kernel refused to probe, with the reason.
        attach_ns: How long it took.
    """

    path: str
    label: str
    mode: Mode
    soname: str | None
    build_id: str | None
    attached: int
    missing: int
    aliases: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    attach_ns: int = 0


@dataclass
class _Copy:
    """What is attached to one file: launches apart, so that they can be let go alone."""

    info: AttachedLibrary
    fd: int
    calls: UprobeLink
    launch_sites: list[Site]
    launches: UprobeLink | None


class Cuda:
    """Uprobes on the functions of ``cuda_symbols.toml``.

    Args:
        launches: ``full``: a record for each launch; ``aggregate``: counted in the
            kernel; ``auto``: full while that is cheap.
        ledger: Takes losses.
        stacks: Takes the stacks of crossings; None: none are taken.
        table: Functions to probe; default: those that come with cctrace.
        mode: How to attach; None: the best this kernel has.
    """

    name = "cuda"
    kinds = (layout.Kind.CUDA,)

    def __init__(
        self,
        launches: LaunchMode,
        ledger: LossLedger,
        stacks: StackCollector | None = None,
        table: SymbolTable | None = None,
        mode: Mode | None = None,
    ) -> None:
        files = ("cuda_arguments.bpf.c", "cuda.bpf.c")
        self.files = files if stacks is None else (*FILES, *files, "cuda_stacks.bpf.c")
        self._stacks = stacks
        self._launch_mode: LaunchMode = launches
        self._ledger = ledger
        self._launches: LaunchController | None = None
        self._table = table or symbol_table()
        self._mode = mode
        self.memory = MemoryMap(ledger)
        self._decoder = CallDecoder(
            self._table,
            self.memory,
            ledger,
            stacks.column if stacks is not None else None,
        )
        self._cost = ProbeCost()
        self._lock = threading.Lock()
        self._frames: Frames | None = None
        self._set_config: Callable[[int, int], None] = lambda *_: None
        self._programs: UprobePrograms | None = None
        self._copies: dict[tuple[int, int], _Copy] = {}
        self._launches_attached = True
        self._is_ending = False
        self._detached = False

    def prepare(self, tracefs: TraceFs) -> list[str]:  # noqa: ARG002 - the Family's signature
        """Have core hand over the calls that an ending thread is in."""
        walks = self._stacks.flags("CCT_CALL_STACKS") if self._stacks is not None else ()
        return ["-DCCT_CUDA_CALLS", *walks]

    def attach(self, probes: Probes) -> None:
        """Load the two programs; libraries are attached as they are found."""
        self._set_config = probes.set_config
        self._frames = Frames(probes.module.map_fd("cuda_threads"))
        self._programs = UprobePrograms(
            probes.module, "on_call_entry", "on_call_return", self._mode
        )
        has_stacks = self._attach_stacks(probes, self._programs.mode)
        self._launches = LaunchController(
            self._launch_mode,
            table=self._table,
            kernel_map=LaunchMap(probes.module.map_fd("launches"), _MAX_LAUNCHES),
            set_config=probes.set_config,
            source=self,
            ledger=self._ledger,
            walk_ns=self._stacks.walk_ns if has_stacks and self._stacks is not None else None,
        )
        self._launches.start()
        self._cost.measure(probes, self._programs)

    def attach_library(self, path: Path, label: str | None = None) -> AttachedLibrary:
        """Probe the functions of one file; does nothing if that is done already.

        Any thread may call it, at any time.

        Args:
            path: The library, or a program that has it linked in.
            label: ``cuda``, ``cudart`` or ``nccl``; None: look for all of them.

        Raises:
            CctraceError: It is not there, is for another machine, or has none of them.
        """
        if label is not None and label not in LIBRARIES:
            raise ValueError(label)
        fd, identity = _open_regular(path)
        try:
            with self._lock:
                known = self._copies.get(identity)
                if known is not None:
                    return known.info
                copy = self._attach_file(fd, path, label)
                self._copies[identity] = copy
                fd = -1
                return copy.info
        finally:
            if fd >= 0:
                os.close(fd)

    def detach_launches(self) -> None:
        """Stop seeing launches, in all libraries; those under way are still recorded.

        Takes two grace periods of the kernel however many libraries there are: one for
        all entries, one for all returns.
        """
        with self._lock:
            if not self._launches_attached or self._is_ending:
                return
            self._launches_attached = False
            links = [copy.launches for copy in self._copies.values() if copy.launches]
            for copy in self._copies.values():
                copy.launches = None
        # Without the lock: a library that is being loaded must not wait for this.
        stop_entries(links)
        self._wait_for_launches()
        close_links(links)

    def attach_launches(self) -> None:
        """See launches again, in all libraries."""
        with self._lock:
            if self._launches_attached or self._programs is None or self._is_ending:
                return
            self._launches_attached = True
            for copy in self._copies.values():
                copy.launches = self._link(copy.fd, copy.launch_sites)

    def decode(self, events: Events) -> Rows:
        """Rows of ``cuda_api``."""
        events = self._cost.take(events)
        if self._launches is not None:
            self._launches.count(events)
        return self._decoder.rows(events)

    def poll(self) -> Rows:
        """Rows of ``cuda_launches``."""
        return self._launches.poll() if self._launches is not None else []

    def finish(self) -> Rows:
        """Launches counted last, and calls still open, whose threads were not seen to end."""
        rows = self._launches.finish() if self._launches is not None else []
        events = self._open_calls()
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        return rows + self._decoder.rows(events)

    def detail(self) -> dict[str, Any]:
        """Libraries attached, and how; what the probes of a call cost."""
        with self._lock:
            libraries = [asdict(copy.info) for copy in self._copies.values()]
        launches = self._launches.detail() if self._launches is not None else {}
        costs = {"probe_ns": self._cost.recorded_ns, "probe_call_ns": self._cost.call_ns}
        measured = {name: cost for name, cost in costs.items() if cost is not None}
        return {"launches": launches, "libraries": libraries, **measured}

    def detach(self) -> None:
        """Detach from every library."""
        with self._lock:
            # A sampler that stops leaves its probes for us to detach with all others.
            self._is_ending = True
        if self._launches is not None:
            self._launches.stop()
        with self._lock:
            self._detached = True
            copies = list(self._copies.values())
            links = [link for copy in copies for link in (copy.launches, copy.calls) if link]
            close_links(links, wait=False)
            for copy in copies:
                copy.launches = None
                if copy.fd >= 0:
                    os.close(copy.fd)
                    copy.fd = -1

    def _attach_stacks(self, probes: Probes, mode: Mode) -> bool:
        """Have calls go on to the walk of their stack; returns whether they do."""
        if self._stacks is None:
            return False
        attach_type = syscalls.BPF_TRACE_UPROBE_MULTI if mode == "uprobe_multi" else -1
        try:
            programs = [
                probes.module.load(f"on_call_stack{step}", frontend.KPROBE, attach_type)
                for step in STEPS
            ]
            self._stacks.attach(probes, self.name)
            go_on_in(probes.module, "call_stack_programs", programs)
        except OSError as error:
            self._stacks.refuse(self.name, error)
            return False
        return True

    def _attach_file(self, fd: int, path: Path, label: str | None) -> _Copy:
        programs = self._programs
        if programs is None or self._detached:
            raise CctraceError(f"{path}: CUDA calls are not being recorded", None, EXIT_UNSUPPORTED)
        if len(self._copies) >= _MAX_LIBRARIES:
            raise CctraceError(
                f"{path}: {_MAX_LIBRARIES} libraries are probed already", None, EXIT_UNSUPPORTED
            )
        start_ns = time.monotonic_ns()
        with ElfFile(fd, str(path)) as elf:
            match = _SONAME_VERSION.search(elf.soname or "")
            wanted = self._table.by_name(label, int(match[1]) if match else None)
            functions = elf.functions(wanted)
            soname, build_id = elf.soname, elf.build_id
        if not functions:
            raise CctraceError(
                f"{path} has no function of {label or 'CUDA or NCCL'} that is known",
                "name the library itself, with its symbols",
                EXIT_UNSUPPORTED,
            )
        places, aliases = _without_aliases(functions, wanted)
        launches = [(at, s.cookie) for at, s in places.items() if s.is_launch]
        others = [(at, s.cookie) for at, s in places.items() if not s.is_launch]
        # Returns are probed before entries: what returns in between was never promised.
        self._set_config(layout.CONFIG_ATTACHING, 1)
        try:
            calls = self._link(fd, others)
            launch_link = self._link(fd, launches) if self._launches_attached else None
        finally:
            self._set_config(layout.CONFIG_ATTACHING, 0)
        refused = [*calls.failed, *(launch_link.failed if launch_link else ())]
        if len(refused) == len(places):
            raise CctraceError(
                f"{path}: the kernel refuses its probes: {refused[0][1].strerror}",
                "cctrace doctor says whether uprobes work here",
                EXIT_UNSUPPORTED,
            )
        info = AttachedLibrary(
            path=str(path),
            label=label or "program",
            mode=programs.mode,
            soname=soname,
            build_id=build_id,
            attached=len(places) - len(refused),
            missing=len(wanted.keys() - {function.name for function in functions}),
            aliases=aliases,
            failed={places[site[0]].name: error.strerror for site, error in refused},
            attach_ns=time.monotonic_ns() - start_ns,
        )
        return _Copy(info, fd, calls, launches, launch_link)

    def _link(self, fd: int, sites: list[Site]) -> UprobeLink:
        if self._programs is None:
            raise RuntimeError("attach() comes first")
        # By descriptor: the path may mean another file by now.
        return self._programs.attach(f"/proc/self/fd/{fd}", sites)

    def _wait_for_launches(self) -> None:
        is_launch = np.array([symbol.is_launch for symbol in self._table.symbols])
        end = time.monotonic() + _LAUNCHES_RETURN_S
        while time.monotonic() < end:
            sites = self._open_calls()["what"]
            if not is_launch[sites[sites < len(is_launch)]].any():
                return
            time.sleep(_LAUNCHES_LOOK_S)

    def _open_calls(self) -> Events:
        """Calls that have begun and not returned, as records flagged as open."""
        if self._frames is None:
            return np.empty(0, layout.CUDA_EVENT)
        return self._frames.open_calls()


def _open_regular(path: Path) -> tuple[int, tuple[int, int]]:
    """Open a file that somebody else named; returns descriptor, and (device, inode)."""
    try:
        # Not to wait for whoever may be at the other end of a fifo.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CctraceError(f"{path}: {error.strerror}", None, EXIT_UNSUPPORTED) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise CctraceError(f"{path} is no regular file", None, EXIT_UNSUPPORTED)
    return fd, (status.st_dev, status.st_ino)


def _without_aliases(
    functions: list[Function], wanted: dict[str, Symbol]
) -> tuple[dict[int, Symbol], dict[str, str]]:
    """One symbol for each place; and which names are shown as which other.

    Where several names share a place nothing tells which one was called: the first of
    the table stands for all.
    """
    order = {name: position for position, name in enumerate(wanted)}
    places: dict[int, Symbol] = {}
    aliases: dict[str, str] = {}
    for function in sorted(functions, key=lambda f: order[f.name]):
        symbol = wanted[function.name]
        first = places.setdefault(function.offset, symbol)
        if first is not symbol:
            aliases[function.name] = first.name
    return places, aliases
