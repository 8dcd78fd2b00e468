"""Stacks out of their ring into the table ``stacks``, and their numbers into the events.

The kernel numbers a stack by a hash of its addresses, for each program anew. The run
numbers it by what it consists of: places in files, and Python functions with their
lines. So one stack has one number whichever process it was seen in, and the same number
in another run of the same programs.

Python frames are named by what the kernel copied of their code objects while they ran,
and where that was too long by the process's memory; native ones and the kernel's at the
end of the run, from files.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.ring import Ring
from cctrace.record.bpf.stacks.code_objects import Code, Copied
from cctrace.record.bpf.stacks.kernel_maps import KernelStacks, ProcessTable
from cctrace.record.bpf.stacks.memory import Memory
from cctrace.record.bpf.stacks.programs import Program, Programs
from cctrace.record.losses import LossLedger
from cctrace.record.symbols import Frame, Symbolizer
from cctrace.schema import TABLES

if TYPE_CHECKING:
    from cctrace.record.bpf.probes import Probes

Rows = list[tuple[str, pa.Table]]
_CodeKey = tuple[int, int, int]
StackMode = Literal["none", "crossings", "all"]

_RING_BYTES: Final = 4 << 20  # over a thousand stacks that are new
_PAGE: Final = 4096
_MAX_STACKS: Final = 1 << 16
_MAX_CODES: Final = 1 << 16
# The kernel's trampolines: what a call returns to whose return is probed (stacks.bpf.c).
_TRAMPOLINES: Final = 0x7FFFFFFF0000
_SOURCES: Final = {int(layout.Kind.CUDA): "cuda", int(layout.Kind.SCHED): "sched"}
_TRUNCATED: Final = Frame("[truncated]", None, None, None, "native")


@dataclass(frozen=True)
class _Stack:
    """One distinct stack.

    Attributes:
        program: Of the process it was first seen in, what the symbolizer calls it.
        kernel: The kernel's addresses, innermost first.
        native: The program's addresses, innermost first, below those.
        python: Frames of Python, innermost first, below those.
        is_cut: It goes on.
    """

    program: int | None
    kernel: tuple[int, ...]
    native: tuple[int, ...]
    python: tuple[Frame, ...]
    is_cut: bool


class StackCollector:
    """Takes the stacks that programs walk; any thread may call it.

    Use: ``flags`` and ``attach`` from each family that has stacks walked, ``drain``
    often, ``look_at`` a process that is about to run something new, ``column`` for each
    batch of events, ``finish`` and ``close``.

    Args:
        mode: ``crossings``: of calls alone; ``all``: also of waits.
        ledger: Takes losses.
        symbolizer: Names addresses; made if not given.

    Attributes:
        shown_by: Source in whose part of the manifest ``detail`` goes; None: none has
            had stacks walked.
    """

    def __init__(
        self, mode: StackMode, ledger: LossLedger, symbolizer: Symbolizer | None = None
    ) -> None:
        self.mode = mode
        self._ledger = ledger
        self._symbolizer = symbolizer or Symbolizer()
        self._lock = threading.RLock()
        self._ring: Ring | None = None
        self._code_ring: Ring | None = None
        # By program, address, and what tells codes of one address apart; not yet read.
        self._copies: dict[_CodeKey, Copied] = {}
        self._codes: dict[_CodeKey, Code] = {}
        self._kernels: KernelStacks | None = None
        self._programs: Programs | None = None
        self._numbers: dict[int, int] = {}  # of the run, by the kernel's
        self._stacks: dict[int, _Stack] = {}
        self._refused: dict[str, str] = {}
        self._error: str | None = None
        self.shown_by: str | None = None

    def flags(self, define: str) -> list[str]:
        """Compiler flags of a family that has stacks walked.

        Args:
            define: What makes its part of the programs be there.
        """
        return ["-DCCT_STACKS", f"-DCCT_STACK_RING_PAGES={_RING_BYTES // _PAGE}", f"-D{define}"]

    def attach(self, probes: Probes, source: str, *, waits: bool = False) -> None:
        """Open the maps of the compiled programs.

        Args:
            probes: Whose programs they are.
            source: Who has stacks walked.
            waits: The maps of waits as well.

        Raises:
            OSError: The kernel refuses.
        """
        with self._lock:
            self.shown_by = self.shown_by or source
            if self._ring is None:
                fd = probes.module.map_fd("stack_ring")
                self._ring = Ring(fd, _RING_BYTES, layout.STACK)
                self._programs = Programs(ProcessTable(probes.module), self._symbolizer)
                codes = probes.module.map_fd("stack_code_ring")
                self._code_ring = Ring(codes, _RING_BYTES, layout.CODE)
            if waits:
                self._kernels = KernelStacks(probes.module)

    def refuse(self, source: str, error: OSError) -> None:
        """Note that a source's stacks cannot be walked; it goes on without."""
        self.shown_by = self.shown_by or source
        self._refused[source] = error.strerror or str(error)

    def look_at(self, pid: int) -> None:
        """Take note of what a process runs, while it waits or runs."""
        with self._lock, self._harmless():
            if self._programs is not None:
                self._programs.current(pid)

    def drain(self) -> None:
        """Take the stacks that are new."""
        with self._lock:
            if self._ring is None or self._code_ring is None or self._programs is None:
                return
            # What a stack consists of is written down before it is.
            stacks = self._ring.drain()
            for record in self._code_ring.drain():
                self._take_code(record)
            for record in stacks:
                with self._harmless():
                    self._take(self._programs, record)

    def column(self, numbers: npt.NDArray[np.uint64], source: str) -> pa.Array:
        """The column ``stack_id`` of a batch of events.

        Args:
            numbers: The kernel's, as in the records; 0: none was taken.
            source: Whose events they are.

        Returns:
            The run's numbers; null where no stack was taken, or it has not come through.
        """
        taken = numbers != 0
        if not taken.any():
            return pa.nulls(len(numbers), pa.int64())
        distinct, places = np.unique(numbers, return_inverse=True)
        wanted = distinct.tolist()
        with self._lock:
            if any(number and number not in self._numbers for number in wanted):
                self.drain()
            found = np.array([self._numbers.get(number, 0) for number in wanted], np.int64)
        values = found[places]
        self._ledger.add(source, "stack_unknown", int((taken & (values == 0)).sum()))
        return pa.array(values, mask=values == 0)

    def finish(self) -> Rows:
        """The table ``stacks``, by ``stack_id``."""
        self.drain()
        with self._lock, self._harmless():
            if self._stacks:
                numbers = sorted(self._stacks)
                frames = self._frames([self._stacks[number] for number in numbers])
                columns = {"stack_id": numbers, "frames": frames}
                return [("stacks", pa.table(columns, schema=TABLES["stacks"].arrow))]
        return []

    def detail(self) -> dict[str, Any]:
        """What the manifest says of stacks."""
        with self._lock:
            found: dict[str, Any] = {"mode": self.mode, "distinct": len(self._stacks)}
            if self._programs is not None:
                found |= self._programs.detail()
            if self._error is not None:
                found["error"] = self._error
            if self._refused:
                found["refused"] = dict(self._refused)
            unresolved = self._symbolizer.unresolved()
            if unresolved:
                found["unresolved"] = unresolved
            return found

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            for ring in (self._ring, self._code_ring):
                if ring is not None:
                    ring.close()
            self._ring = self._code_ring = None
            self._symbolizer.close()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong with a stack, its events are recorded all the same."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - counted and shown
            self._ledger.add(self.shown_by or "cuda", "stack_failed", 1)
            self._error = repr(error)

    def _take(self, programs: Programs, record: np.void) -> None:
        number, source = int(record["id"]), _SOURCES.get(int(record["family"]), "cuda")
        if number in self._numbers:
            return
        flags, pid = int(record["flags"]), int(record["pid"])
        looked_at = int(record["looked_at"])
        program = programs.of(pid, int(record["image"]), looked_at)
        if not looked_at and not program.looked_at:
            programs.look_again(program)
        natives = record["native"][: int(record["natives"])].tolist()
        native = self._native(programs, program, natives)
        pythons = record["python"][: int(record["pythons"])].tolist()
        python = self._python(program, pythons, source)
        kernel: tuple[int, ...] = ()
        if int(record["kernel"]) >= 0 and self._kernels is not None:
            kernel = self._kernels.addresses(int(record["kernel"]))
        is_cut = bool(flags & layout.StackFlag.CUT)
        if is_cut:
            self._ledger.add(source, "stack_truncated", 1, pid=pid)
        if flags & layout.StackFlag.UNREADABLE:
            self._ledger.add(source, "stack_unreadable", 1, pid=pid)
        stack = _Stack(program.symbols, kernel, native, python, is_cut)
        own = _content_number(program, stack)
        if own not in self._stacks:
            if len(self._stacks) >= _MAX_STACKS:
                self._ledger.add(source, "stack_map_full", 1, pid=pid)
                return
            self._stacks[own] = stack
        self._numbers[number] = own

    def _native(
        self, programs: Programs, program: Program, addresses: Sequence[int]
    ) -> tuple[int, ...]:
        """Addresses as far as they lie in code; a walk that goes astray ends there."""
        kept = [address for address in addresses if address < _TRAMPOLINES]
        strange = _first_outside(program, kept)
        if strange is not None and programs.look_again(program):
            strange = _first_outside(program, kept)
        # Of a program that was gone nothing is known, and nothing can be told astray.
        if strange is not None and program.regions.regions:
            kept = kept[:strange]
        return tuple(kept)

    def _take_code(self, record: np.void) -> None:
        """Keep what was copied of a code object; which Python's it is, its stack tells."""
        addresses = [int(record[name]) for name in ("code", "name", "file", "lines")]
        parts = [record[f"{name}_object"].tobytes() for name in ("code", "name", "file", "lines")]
        key = (int(record["image"]), addresses[0], int(record["mark"]))
        if len(self._copies) < _MAX_CODES:
            self._copies[key] = Copied(list(zip(addresses, parts, strict=True)))

    def _python(
        self, program: Program, frames: Iterable[tuple[int, int, int]], source: str
    ) -> tuple[Frame, ...]:
        found = []
        unnamed = 0
        for address, place, mark in frames:
            code = self._code(program, address, mark)
            if code is not None:
                if not code.is_shim:
                    line = code.line(place)
                    found.append(Frame(code.function, None, code.file, line, "python"))
            elif program.python is None or not program.python.reader.is_none(address):
                unnamed += 1
                found.append(Frame(f"<python {address:#x}>", None, None, None, "python"))
        self._ledger.add(source, "stack_unresolved", unnamed, pid=program.pid)
        return tuple(found)

    def _code(self, program: Program, address: int, mark: int) -> Code | None:
        """A code object, as it was copied; what is too long for that from memory."""
        key = (program.image, address, mark)
        code = self._codes.get(key)
        if code is not None or program.python is None:
            return code
        reader = program.python.reader
        copy = self._copies.pop(key, None)
        if copy is not None:
            code = reader.read(copy, address, mark)
        if code is None:
            code = reader.read(Memory(program.pid), address, mark)
        if code is not None and len(self._codes) < _MAX_CODES:
            self._codes[key] = code
        return code

    def _frames(self, stacks: Sequence[_Stack]) -> list[list[dict[str, Any]]]:
        """Frames of each stack, named: the kernel's, native ones, Python's."""
        by_program: dict[int | None, set[int]] = {}
        for stack in stacks:
            by_program.setdefault(stack.program, set()).update(stack.native)
        native: dict[tuple[int | None, int], list[Frame]] = {}
        for program, addresses in by_program.items():
            ordered = sorted(addresses)
            named = self._symbolizer.native(program, ordered)
            native |= {
                (program, address): frames for address, frames in zip(ordered, named, strict=True)
            }
        kernels = sorted({address for stack in stacks for address in stack.kernel})
        named_kernels = self._symbolizer.kernel(kernels) if kernels else []
        kernel = dict(zip(kernels, named_kernels, strict=True))
        rows = []
        for stack in stacks:
            frames = [kernel[address] for address in stack.kernel]
            for address in stack.native:
                frames += native[stack.program, address]
            frames += stack.python
            if stack.is_cut:
                frames.append(_TRUNCATED)
            rows.append([frame._asdict() for frame in frames])
        return rows


def _first_outside(program: Program, addresses: Sequence[int]) -> int | None:
    for number, address in enumerate(addresses):
        if program.regions.find(address - 1) is None:
            return number
    return None


def _content_number(program: Program, stack: _Stack) -> int:
    """A number made of what a stack consists of: 63 bits, never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for address in stack.kernel:
        digest.update(b"k%x;" % address)
    for address in stack.native:
        region = program.regions.find(address - 1)
        if region is not None and (region.is_file or region.is_special):
            digest.update(b"n%s+%x;" % (region.path, address - region.start + region.offset))
        else:  # code that a program made for itself is its own
            digest.update(b"a%d.%d.%x;" % (program.pid, program.image, address))
    for frame in stack.python:
        text = f"p{frame.function}\0{frame.file}\0{frame.line}\0"
        if frame.file is None:
            text += f"{program.pid}.{program.image}"
        digest.update(text.encode("utf-8", "surrogatepass"))
    digest.update(b"+" if stack.is_cut else b".")
    return int.from_bytes(digest.digest(), "little") & ((1 << 63) - 1) or 1
