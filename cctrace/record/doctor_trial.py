"""The doctor's own BPF programs: compiled once, attached one at a time, counted."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cctrace import resources
from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend, probes
from cctrace.record.bpf.headers import Headers, find_headers
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.ring import MappedArray, Ring
from cctrace.record.doctor_checks import MISSING, OK, Finding, NotTriedError

CALLS: Final = 7  # of a probed function
COOKIE: Final = 11
# Of the standard (a64l(3p)), called by nobody: no other process is held up.
_FUNCTION: Final = "a64l"
_INIT_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Slot(IntEnum):
    """enum doctor_slot of probes/bpf/doctor.bpf.c."""

    UPROBE = 0
    UPROBE_COOKIE = 1
    MULTI = 2
    MULTI_COOKIE = 3
    TRACEPOINT = 4
    KPROBE = 5
    RING_FULL = 6


class Trial:
    """What the checks share; each part is made when it is first asked for.

    Used by one thread alone: calls that others make are not counted.

    Args:
        host: Host facts, as in a run's manifest.

    Attributes:
        refusal: Why BPF cannot be used by this process at all; None where it can.
        headers_error: Why there are no ``headers``.
        module_error: Why there is no ``module``.
        compile_s: How long compiling took, in seconds.
    """

    def __init__(self, host: dict[str, Any]) -> None:
        self.host = host
        self.refusal: CctraceError | None = None
        self.headers_error: CctraceError | None = None
        self.module_error: CctraceError | None = None
        self.compile_s = 0.0
        self._seen: MappedArray | None = None
        self._ring: Ring | None = None
        try:
            probes.require_bpf()
        except CctraceError as error:
            self.refusal = error

    @property
    def is_initial_namespace(self) -> bool:
        """Whether this process is in the machine's own process namespace."""
        return Path("/proc/self/ns/pid").stat().st_ino == _INIT_PID_NAMESPACE

    @cached_property
    def headers(self) -> Headers | None:
        """Headers to compile with; None where there are none."""
        try:
            return find_headers()
        except CctraceError as error:
            self.headers_error = error
            return None

    @cached_property
    def tracefs(self) -> TraceFs:
        """The kernel's tracepoints."""
        return TraceFs()

    @cached_property
    def module(self) -> frontend.Module | None:
        """The programs; None where they could not be compiled."""
        if self.refusal is not None or self.headers is None:
            why = self.refusal or self.headers_error
            text = why.message if why is not None else "no kernel headers"
            self.module_error = CctraceError(f"not tried: {text}")
            return None
        source = resources.resource_dir("probes") / "bpf" / "doctor.bpf.c"
        begun = time.monotonic()
        try:
            module = frontend.Module(
                [source], [f"-DDOCTOR_TID={threading.get_native_id()}"], self.headers
            )
        except CctraceError as error:
            self.module_error = error
            return None
        self.compile_s = time.monotonic() - begun
        try:
            self._seen = MappedArray(module.map_fd("seen"), len(Slot), writable=False)
            self._ring = Ring(module.map_fd("ring"), _PAGE)
        except OSError as error:
            module.close()
            self.module_error = CctraceError(
                f"BPF maps cannot be mapped: {error.strerror}",
                "Linux 5.15 or later",
                EXIT_UNSUPPORTED,
            )
            return None
        return module

    def require(self) -> frontend.Module:
        """The programs.

        Raises:
            NotTriedError: They could not be compiled.
        """
        if self.module is None:
            raise NotTriedError
        return self.module

    def load(self, name: str, program_type: int, attach_type: int = -1) -> int:
        """Descriptor of the program ``name``, which the module owns.

        Raises:
            NotTriedError: There are no programs.
            OSError: The kernel refuses it.
        """
        return self.require().load(name, program_type, attach_type)

    def seen(self, slot: Slot) -> int:
        """What the programs have counted."""
        return int(self._seen.values[slot]) if self._seen is not None else 0

    def records(self) -> int:
        """Records that have come through the ring since the last call."""
        return len(self._ring.drain()) if self._ring is not None else 0

    def counted(self, slot: Slot, what: str) -> Finding:
        """The finding for a place that was passed ``CALLS`` times."""
        seen = self.seen(slot)
        shown = f"{seen} of {CALLS} calls of {what} were seen"
        return Finding(OK if seen == CALLS else MISSING, shown, None)

    def close(self) -> None:
        """Give everything back."""
        for mapped in (self._seen, self._ring):
            if mapped is not None:
                mapped.close()
        made = self.__dict__  # where cached_property keeps what was made
        for name in ("module", "headers", "tracefs"):
            part = made.get(name)
            if part is not None:
                part.close()


def function_in_libc() -> tuple[str, int, Callable[[], object]]:
    """A function of our own C library: file, offset of its code there, and a call of it.

    Raises:
        LookupError: No file is mapped where the function is.
    """
    function = getattr(ctypes.CDLL(None), _FUNCTION)
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines():
        words = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in words[0].split("-"))
        if start <= address < end and len(words) > 5 and words[5].startswith("/"):  # noqa: PLR2004 - proc(5)
            offset = address - start + int(words[2], 16)
            return words[5], offset, lambda: function(b"")
    raise LookupError(f"{_FUNCTION} lies in no file of /proc/self/maps")
