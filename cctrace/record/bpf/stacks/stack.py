"""One distinct stack: what it consists of, its number in the run, its rows at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from cctrace.record.bpf.stacks.programs import Program
from cctrace.record.symbols import Frame, Symbolizer
from cctrace.schema import TABLES

_TRUNCATED: Final = Frame("[truncated]", None, None, None, "native")
_CHUNK: Final = 2048  # stacks that are named and written together

# An address, and whether it is that of an instruction itself, not one to return to.
_Place = tuple[int, bool]


@dataclass(frozen=True)
class Stack:
    """One distinct stack.

    Attributes:
        program: Of the process it was first seen in, what the symbolizer calls it.
        kernel: The kernel's addresses, innermost first.
        native: The program's addresses, innermost first, below those.
        python: Frames of Python, innermost first, below those.
        is_cut: It goes on.
        is_exact: The first native address is where the thread was, not where it returns.
    """

    program: int | None
    kernel: tuple[int, ...]
    native: tuple[int, ...]
    python: tuple[Frame, ...]
    is_cut: bool
    is_exact: bool = False

    def places(self) -> Iterator[_Place]:
        """Its native addresses."""
        for number, address in enumerate(self.native):
            yield address, self.is_exact and number == 0


def first_outside(program: Program, addresses: Sequence[int], *, is_exact: bool) -> int | None:
    """Which is the first of the addresses where no code of the program lies; None: none."""
    for number, address in enumerate(addresses):
        back = 0 if is_exact and number == 0 else 1
        if program.regions.find(address - back) is None:
            return number
    return None


def content_number(program: Program, stack: Stack) -> int:
    """A number made of what a stack consists of: 63 bits, never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for address in stack.kernel:
        digest.update(b"k%x;" % address)
    for address, is_exact in stack.places():
        region = program.regions.find(address if is_exact else address - 1)
        kind = b"e" if is_exact else b"n"
        if region is not None and (region.is_file or region.is_special):
            place = address - region.start + region.offset
            digest.update(b"%s%s+%x;" % (kind, region.path, place))
        else:  # code that a program made for itself is its own
            digest.update(b"a%s%d.%d.%x;" % (kind, program.pid, program.image, address))
    for frame in stack.python:
        text = f"p{frame.function}\0{frame.file}\0{frame.line}\0"
        if frame.file is None:
            text += f"{program.pid}.{program.image}"
        digest.update(text.encode("utf-8", "surrogatepass"))
    digest.update(b"+" if stack.is_cut else b".")
    return int.from_bytes(digest.digest(), "little") & ((1 << 63) - 1) or 1


def tables(stacks: dict[int, Stack], symbolizer: Symbolizer) -> Iterator[pa.Table]:
    """The table ``stacks``, by ``stack_id``, in parts: all of it at once would be large.

    Args:
        stacks: By their numbers.
        symbolizer: Names addresses.
    """
    numbers = sorted(stacks)
    for start in range(0, len(numbers), _CHUNK):
        part = numbers[start : start + _CHUNK]
        frames = _frames([stacks[number] for number in part], symbolizer)
        columns = {"stack_id": part, "frames": frames}
        yield pa.table(columns, schema=TABLES["stacks"].arrow)


def _frames(stacks: Sequence[Stack], symbolizer: Symbolizer) -> list[list[dict[str, Any]]]:
    """Frames of each stack, named: the kernel's, native ones, Python's."""
    groups: dict[tuple[int | None, bool], set[int]] = {}
    for stack in stacks:
        for address, is_exact in stack.places():
            groups.setdefault((stack.program, is_exact), set()).add(address)
    native: dict[tuple[int | None, _Place], list[Frame]] = {}
    for (program, is_exact), addresses in groups.items():
        ordered = sorted(addresses)
        named = symbolizer.native(program, ordered, exact=is_exact)
        for address, frames in zip(ordered, named, strict=True):
            native[program, (address, is_exact)] = frames
    kernels = sorted({address for stack in stacks for address in stack.kernel})
    named_kernels = symbolizer.kernel(kernels) if kernels else []
    kernel = dict(zip(kernels, named_kernels, strict=True))
    rows = []
    for stack in stacks:
        found = [kernel[address] for address in stack.kernel]
        for place in stack.places():
            found += native[stack.program, place]
        found += stack.python
        if stack.is_cut:
            found.append(_TRUNCATED)
        rows.append([frame._asdict() for frame in found])
    return rows
