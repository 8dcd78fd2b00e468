"""The kernel's maps of stacks, as the collector uses them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cctrace.record.bpf import frontend

# Sources of the walk, in their order.
FILES: Final = ("stacks.bpf.c", "stack_python.bpf.c")
# Programs that a walk consists of, by what is added to the first one's name: in the order
# of enum stack_program of stacks.bpf.c.
STEPS: Final = ("", "_note", "_write")
_MAX_KERNEL_FRAMES: Final = 127  # PERF_MAX_STACK_DEPTH, include/uapi/linux/perf_event.h


class ProcessTable:
    """The maps ``stack_images`` and ``stack_processes``.

    Args:
        module: The compiled programs.
    """

    def __init__(self, module: frontend.Module) -> None:
        self._images: Any = module.table("stack_images")
        self._table: Any = module.table("stack_processes")

    def image(self, pid: int) -> int:
        """When the program of a process began; 0: before it was traced."""
        images = self._images
        if images is not None:
            with contextlib.suppress(KeyError):
                return int(images[images.Key(pid)].value)
        return 0

    def put(self, pid: int, entry: np.void) -> None:
        """Set the entry of a process, which the kernel uses if its image is the process's own."""
        table = self._table
        if table is not None:
            table[table.Key(pid)] = table.Leaf.from_buffer_copy(entry.tobytes())

    def close(self) -> None:
        """Leave the maps alone from now on: their descriptors are about to be others'."""
        self._images = self._table = None


class KernelStacks:
    """The map ``wait_kernels``: the kernel's part of stacks.

    Args:
        module: The compiled programs.
    """

    def __init__(self, module: frontend.Module) -> None:
        self._table: Any = module.table("wait_kernels")

    def addresses(self, number: int) -> tuple[int, ...]:
        """Addresses of one, innermost first; none: there is no such."""
        try:
            leaf = self._table[self._table.Key(number)]
        except KeyError:
            return ()
        found = np.frombuffer(bytes(leaf), "<u8")[:_MAX_KERNEL_FRAMES]
        return tuple(int(address) for address in found[found != 0])


def go_on_in(module: frontend.Module, table: str, programs: Sequence[int]) -> None:
    """Have programs go on in others.

    Args:
        module: The compiled programs.
        table: The map of type BPF_MAP_TYPE_PROG_ARRAY that they call by.
        programs: Descriptors of the others, by their slot in it.
    """
    slots: Any = module.table(table)
    for slot, program_fd in enumerate(programs):
        slots[ctypes.c_int(slot)] = ctypes.c_int(program_fd)
