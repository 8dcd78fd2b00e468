"""The BPF sources as one source of the recording: families, libraries, lifecycle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cctrace import resources
from cctrace.errors import CctraceError
from cctrace.record import libraries, lifecycle, program_file, server
from cctrace.record.attached import AttachedProcess
from cctrace.record.bpf.cuda.source import Cuda, LaunchMode
from cctrace.record.bpf.families import Wishes, make_families
from cctrace.record.bpf.frontend import find_bcc
from cctrace.record.bpf.layout import Kind
from cctrace.record.bpf.probes import Events, Family, Probes, require_bpf
from cctrace.record.bpf.stacks.collector import StackCollector, StackMode
from cctrace.record.bpf.user_crypto import UserCrypto
from cctrace.record.clock import now_ns
from cctrace.record.libraries import LibraryWatch, LoadedLibrary, Watched
from cctrace.record.losses import LossLedger
from cctrace.record.source import Rows
from cctrace.record.sources import DEFAULT_SOURCES
from cctrace.record.tree import ProcessTree
from cctrace.store import manifest as m

# File names, from their beginning; auditwheel puts a hash before ".so".
_CUDA_LIBRARIES: Final = {
    "cudart": r"libcudart(-[0-9a-f]+)?\.so(\.|$)",
    "cuda": r"libcuda(-[0-9a-f]+)?\.so(\.|$)",
    "nccl": r"libnccl(-[0-9a-f]+)?\.so(\.|$)",
}
_CRYPTO_LIBRARY: Final = r"libcrypto(-[0-9a-f]+)?\.so(\.|$)"
_DRIVER_CRYPTO: Final = r"libnvidia-pkcs11"
_CRYPTO_PREFIXES: Final = ("libcrypto", "libnvidia-pkcs11")


class BpfSource:
    """Everything recorded through BPF.

    Args:
        sources: Names of the sources asked for; those that are not BPF's are left alone.
        command: The target's arguments; empty where it runs already.
        ring_bytes: Size of the programs' ring, a power of two.
        launches: Of ``LAUNCH_MODES``.
        stacks: Of ``STACK_MODES``.
        ledger: Takes losses.

    Attributes:
        wanted: Whether any source asked for is BPF's.
        socket: Where programs announce libraries; set before ``attach``.
    """

    def __init__(
        self,
        sources: Sequence[str],
        command: Sequence[str],
        *,
        ring_bytes: int,
        launches: LaunchMode,
        stacks: StackMode,
        ledger: LossLedger,
    ) -> None:
        self._stacks = _collector(stacks, sources, ledger)
        asked = tuple(sources) != DEFAULT_SOURCES
        families = make_families(sources, Wishes(launches, ledger, asked, self._stacks))
        self.wanted = bool(families)
        self.socket: Path | None = None
        self._command = command
        self._probes = Probes(families, ring_bytes, ledger)
        self._cuda = _of(families, Cuda)
        self._crypto = _of(families, UserCrypto)
        self._watch = LibraryWatch(self._watched(), ledger, every_process=("driver_crypto",))
        self._told: set[str] = set()
        self._skipped = 0
        self._probes.on_life.append(self._forget_programs)
        self._warnings: list[str] = []

    @property
    def drained(self) -> int:
        """Events taken so far."""
        return self._probes.drained

    def attach(self, environment: dict[str, str]) -> None:
        """Compile and attach; have the target announce the libraries it loads."""
        self._probes.start()
        attached = self._probes.attached()
        if not self._watches(attached):
            return
        if self._command:
            self._watch.prescan(self._command, environment)
            if self._cuda in attached:
                self._attach_program(environment)
                # From here on whoever loads a library is announced, or found out as late.
                self._cuda.memory.watch_from_start()
        if self.socket is None:
            self._warnings.append("libraries that the target loads are probed late: no socket")
            return
        prefixes = libraries.PREFIXES if self._cuda in attached else ()
        if self._crypto in attached:
            prefixes = (*prefixes, *_CRYPTO_PREFIXES)
        try:
            audit = resources.native_library("libcctrace_audit.so")
            environment.update(
                libraries.environment(environment, self.socket, audit, self._command, prefixes)
            )
        except CctraceError as error:
            self._warnings.append(error.message)

    def _attach_program(self, environment: dict[str, str]) -> None:
        """Probe what the program has linked in, and say what it keeps from being seen."""
        program = program_file.find_program(self._command[0], environment)
        if program is None or self._cuda is None:
            return
        linked_in = True
        try:
            self._cuda.attach_library(program)
        except (CctraceError, OSError):  # it has none, as most have, or is no program of ours
            linked_in = False
        if program_file.is_32_bit(program):
            self._warnings.append(
                f"{program} is a 32-bit program: CUDA calls of its own are not recorded; "
                "run a 64-bit build of it"
            )
        elif not linked_in and program_file.is_static(program):
            self._warnings.append(
                f"{program} is linked statically and shows no function of CUDA: if it calls "
                "any, they are not recorded; link it dynamically, or do not strip it"
            )

    def library(self, peer: server.Peer, path: bytes, address: int) -> None:
        """Attach to a library that ``peer`` has mapped and waits to run."""
        looked = self._stacks.look_at(peer.pid) if self._stacks is not None else None
        self._watch.announced(peer.pid, path, address)
        if looked is not None:
            looked()

    def library_late(self, peer: server.Peer, path: bytes, address: int) -> None:
        """Note that ``peer`` went on before its library was attached to."""
        self._watch.missed(peer.pid, path, address)
        if self._cuda is not None:
            self._cuda.memory.distrust(peer.pid)

    @contextlib.contextmanager
    def spawning(self) -> Iterator[None]:
        """Trace what the calling thread starts within."""
        with self._probes.spawning():
            yield

    def trace(self, attached: AttachedProcess) -> None:
        """Trace a process that runs already, with all that it has started."""
        before: set[int] = set()
        # Threads made before a round are found by it; those made since by the
        # tracepoint, if their maker was traced by then. So until nothing is new.
        while fresh := set(attached.threads()) - before:
            self._probes.trace(fresh)
            before |= fresh
        for pid in attached.processes():
            looked = self._stacks.look_at(pid) if self._stacks is not None else None
            if self._watches(self._probes.attached()):
                self._watch.scan(pid)
            if looked is not None:
                looked()

    def process_ended(self, pid: int) -> None:
        """Forget what was kept of a process."""
        if self._cuda is not None:
            self._cuda.memory.forget(pid, now_ns())
        if self._stacks is not None:
            self._stacks.process_ended(pid)

    def drain(self) -> int:
        """Take what the rings hold."""
        taken = self._probes.drain()
        # After the events, so that those of theirs are there.
        if self._stacks is not None:
            self._stacks.drain()
        return taken

    def rows(self, tree: ProcessTree) -> Rows:
        """Rows of every family; lifecycle goes to ``tree``."""
        if self._watches(self._probes.attached()):
            self._watch.scan_all(tree.running())
            self._distrust_late()
        rows = self._probes.rows()
        skipped = self._probes.times_not_run("on_task_newtask")
        if skipped > self._skipped:
            self._skipped = skipped
            self._probes.adopt(tree.running_threads())
        lifecycle.apply(tree, self._probes.take_life())
        return rows

    def stop(self) -> None:
        """Detach; what the rings hold stays to be drained."""
        self._probes.detach()
        if self._stacks is not None:
            self._stacks.ending()

    def pending(self) -> bool:
        """Whether there is more; nothing is, after the drain that follows ``stop``."""
        return False

    def finish(self) -> Rows:
        """Calls that never returned, and the like."""
        self._watch.close()
        self._warn_of_sampling()
        return self._probes.finish()

    def name_stacks(self) -> Iterator[tuple[str, pa.Table]]:
        """The table ``stacks`` in parts, after ``finish``; naming them may take half a minute."""
        if self._stacks is not None:
            yield from self._stacks.rows()

    def hurry(self) -> None:
        """Have ``name_stacks`` come to its end, with addresses in place of names."""
        if self._stacks is not None:
            self._stacks.hurry()

    def close(self) -> None:
        """Give everything back."""
        if self._stacks is not None:
            self._stacks.close()
        self._probes.close()

    def entries(self) -> list[m.Source]:
        """How each family stands."""
        common: dict[str, Any] = {}
        if self._probes.headers is not None:
            common["headers"] = f"{self._probes.headers.kind} {self._probes.headers.tree}"
        found = []
        for family in self._probes.attached():
            detail = {**family.detail(), **common}
            if family is self._cuda:
                detail["loaded"] = [asdict(library) for library in self._loaded()]
            if self._stacks is not None and family.name == self._stacks.shown_by:
                detail["stacks"] = self._stacks.detail()
            found.append(m.Source(family.name, "attached", detail=detail))
        found += [
            m.Source(family.name, "refused", error.message, error.hint)
            for family, error in self._probes.refused()
        ]
        return found

    def _warn_of_sampling(self) -> None:
        if self._cuda is None or self._cuda not in self._probes.attached():
            return
        if self._cuda.detail()["launches"].get("mode") == "sample":
            self._warnings.append(
                "kernel launches were sampled, since recording each would have slowed the target: "
                "query --name launches estimates them; --launches full records them all"
            )

    def take_warnings(self) -> list[str]:
        """What went wrong since the last call."""
        found, self._warnings = self._warnings, []
        new = [text for text in self._probes.warnings.values() if text not in self._told]
        self._told.update(new)
        return found + new

    def _forget_programs(self, life: Events) -> None:
        if self._cuda is not None:
            for pid, ts_ns in lifecycle.execs([life]):
                self._cuda.memory.forget(pid, ts_ns)
            self._distrust_late()  # forgetting trusts again

    def _distrust_late(self) -> None:
        """Where an allocation may have been missed, nothing is known to be pageable."""
        if self._cuda is not None and Kind.CUDA in self._probes.incomplete:
            self._cuda.memory.distrust()
        for record in self._loaded():
            if self._cuda is not None and record.how == "late" and record.pid is not None:
                self._cuda.memory.distrust(record.pid)

    def _loaded(self) -> list[LoadedLibrary]:
        return [record for record in self._watch.records() if record.label in _CUDA_LIBRARIES]

    def _watches(self, attached: Sequence[Family]) -> bool:
        return any(family in attached for family in (self._cuda, self._crypto) if family)

    def _watched(self) -> list[Watched]:
        watched: list[Watched] = []
        if self._cuda is not None:
            for label, pattern in _CUDA_LIBRARIES.items():
                watched.append((label, pattern, self._attacher(self._cuda, label)))
        if self._crypto is not None:
            crypto = self._crypto
            watched.append(("crypto", _CRYPTO_LIBRARY, lambda path, _: crypto.attach_library(path)))
            watched.append(
                ("driver_crypto", _DRIVER_CRYPTO, lambda _, pid: _driver_loaded(crypto, pid))
            )
        return watched

    @staticmethod
    def _attacher(cuda: Cuda, label: str) -> libraries.Callback:
        def attach(path: Path, pid: int | None) -> None:
            del pid
            cuda.attach_library(path, label)

        return attach


def _driver_loaded(crypto: UserCrypto, pid: int | None) -> None:
    if pid is not None:
        crypto.driver_loaded(pid)


def _collector(
    mode: StackMode, sources: Sequence[str], ledger: LossLedger
) -> StackCollector | None:
    """What takes stacks, if any source has them and BPF can be used: it starts a process."""
    has_any = "cuda" in sources or (mode == "all" and "sched" in sources)
    if mode == "none" or not has_any:
        return None
    try:
        require_bpf()
        find_bcc()
    except (CctraceError, OSError):
        return None  # each source says so itself
    return StackCollector(mode, ledger)


def _of(families: Sequence[Family], kind: type[Any]) -> Any:
    return next((family for family in families if isinstance(family, kind)), None)
