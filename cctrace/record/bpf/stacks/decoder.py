"""What the kernel wrote of a stack made into places and Python functions.

Runs in a thread of its own: files and memory of the traced processes are read here, and
nothing but their stacks may wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from cctrace.record.bpf import layout
from cctrace.record.bpf.stacks.bounded import Bounded
from cctrace.record.bpf.stacks.code_objects import Code, Copied
from cctrace.record.bpf.stacks.kernel_maps import KernelStacks
from cctrace.record.bpf.stacks.memory import Memory
from cctrace.record.bpf.stacks.programs import Program, Programs
from cctrace.record.bpf.stacks.stack import Stack, content_number, first_outside
from cctrace.record.losses import LossLedger
from cctrace.record.symbols import Frame

_CodeKey = tuple[int, int, int]

_COPIES_BYTES: Final = 32 << 20
_CODES_BYTES: Final = 64 << 20
_MAX_FRAMES: Final = 1 << 16  # Python frames that are remembered, named
# The kernel's trampolines: what a call returns to whose return is probed (stacks.bpf.c).
_TRAMPOLINES: Final = 0x7FFFFFFF0000
_SOURCES: Final = {int(layout.Kind.CUDA): "cuda", int(layout.Kind.SCHED): "sched"}


def source_of(record: np.void) -> str:
    """The source for whose event a stack was taken first."""
    return _SOURCES.get(int(record["family"]), "cuda")


def _key(image: int, pid: int, address: int, mark: int) -> _CodeKey:
    # Programs that began before they were traced have no image that tells them apart.
    return image or -pid, address, mark


class Decoder:
    """Decodes records of stacks and of code objects; for one thread.

    Args:
        programs: The programs that stacks are of.
        ledger: Takes losses.

    Attributes:
        kernels: The kernel's parts of stacks; None: there are none.
    """

    def __init__(self, programs: Programs, ledger: LossLedger) -> None:
        self.kernels: KernelStacks | None = None
        self._programs = programs
        self._ledger = ledger
        # By program, address, and what tells codes of one address apart; not yet read.
        self._copies: Bounded[_CodeKey, Copied] = Bounded(_COPIES_BYTES)
        self._codes: Bounded[_CodeKey, Code] = Bounded(_CODES_BYTES)
        # By that and the instruction; None: a frame that is not shown.
        self._frames: Bounded[tuple[_CodeKey, int], tuple[Frame | None]] = Bounded(_MAX_FRAMES)

    def take_code(self, record: np.void) -> None:
        """Keep what was copied of a code object; which Python's it is, its stack tells."""
        addresses = [int(record[name]) for name in ("code", "name", "file", "lines")]
        parts = [record[f"{name}_object"].tobytes() for name in ("code", "name", "file", "lines")]
        key = _key(int(record["image"]), int(record["pid"]), addresses[0], int(record["mark"]))
        self._copies.put(
            key, Copied(list(zip(addresses, parts, strict=True))), layout.CODE.itemsize
        )

    def take(self, record: np.void, drained_ns: int) -> tuple[int, Stack]:
        """A stack, and its number in the run.

        Args:
            record: As the kernel wrote it.
            drained_ns: When it was taken out of its ring, ns of CLOCK_MONOTONIC.
        """
        source = source_of(record)
        flags, pid = int(record["flags"]), int(record["pid"])
        program = self._programs.of(pid, int(record["image"]), int(record["looked_at"]))
        if program.python is None:
            self._programs.look_again(program)
        natives = record["native"][: int(record["natives"])].tolist()
        # A call's first address is where it returns to, a wait's is where it was.
        is_exact = source == "sched" and bool(natives) and natives[0] < _TRAMPOLINES
        native = self._native(program, natives, drained_ns, source, is_exact=is_exact)
        pythons = record["python"][: int(record["pythons"])].tolist()
        python = self._python(program, pythons, source)
        kernel: tuple[int, ...] = ()
        if int(record["kernel"]) >= 0 and self.kernels is not None:
            kernel = self.kernels.addresses(int(record["kernel"]))
        is_cut = bool(flags & layout.StackFlag.CUT)
        if is_cut:
            self._ledger.add(source, "stack_truncated", 1, pid=pid)
        if flags & layout.StackFlag.UNREADABLE:
            self._ledger.add(source, "stack_unreadable", 1, pid=pid)
        stack = Stack(program.symbols, kernel, native, python, is_cut, is_exact)
        return content_number(program, stack), stack

    def _native(
        self,
        program: Program,
        addresses: list[int],
        drained_ns: int,
        source: str,
        *,
        is_exact: bool,
    ) -> tuple[int, ...]:
        """Addresses as far as they lie in code; a walk that goes astray ends there."""
        kept = [address for address in addresses if address < _TRAMPOLINES]
        strange = first_outside(program, kept, is_exact=is_exact)
        if strange is None:
            return tuple(kept)
        # It may lie in what was mapped since the program was last looked at.
        if program.seen_ns <= drained_ns and self._programs.look_again(program):
            strange = first_outside(program, kept, is_exact=is_exact)
        # What nobody has looked at since, or was gone by then, cannot be told astray.
        if strange is not None and program.seen_ns > drained_ns:
            self._ledger.add(source, "stack_astray", 1, pid=program.pid)
            kept = kept[:strange]
        return tuple(kept)

    def _python(
        self, program: Program, frames: Iterable[tuple[int, int, int]], source: str
    ) -> tuple[Frame, ...]:
        found = []
        unnamed = 0
        for address, place, mark in frames:
            key = _key(program.image, program.pid, address, mark)
            known = self._frames.get((key, place))
            if known is None:
                code = self._code(program, key)
                if code is not None:
                    line = None if code.is_shim else code.line(place)
                    frame = Frame(code.function, None, code.file, line, "python")
                    known = (None if code.is_shim else frame,)
                    self._frames.put((key, place), known, 1)
                elif program.python is not None and program.python.reader.is_none(address):
                    continue
                else:
                    unnamed += 1
                    known = (Frame(f"<python {address:#x}>", None, None, None, "python"),)
            if known[0] is not None:
                found.append(known[0])
        self._ledger.add(source, "stack_unresolved", unnamed, pid=program.pid)
        return tuple(found)

    def _code(self, program: Program, key: _CodeKey) -> Code | None:
        """A code object, as it was copied; what is too long for that from memory."""
        code = self._codes.get(key)
        if code is not None or program.python is None:
            return code
        _, address, mark = key
        reader = program.python.reader
        copy = self._copies.pop(key)
        if copy is not None:
            code = reader.read(copy, address, mark)
        if code is None:
            code = reader.read(Memory(program.pid), address, mark)
        if code is not None:
            self._codes.put(key, code, code.size_bytes)
        return code
