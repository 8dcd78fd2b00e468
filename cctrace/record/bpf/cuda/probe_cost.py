"""What the probes of a call cost, measured before the target starts.

The programs are attached to a function of ours that does nothing, which the recorder
then calls itself: what its records say it took is what every recorded call is longer
by, and what the calls take longer is what each costs its caller. The records come
through the ring like any other and are taken out before they are decoded. Nothing
here may harm a recording: what fails leaves the costs unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from cctrace.record.bpf.cuda.frames import SLOTS
from cctrace.record.bpf.cuda.symbols import PROBE_COST_SITE, Symbol
from cctrace.record.bpf.elf import ElfFile
from cctrace.resources import native_library

if TYPE_CHECKING:
    from cctrace.record.bpf.probes import Events, Probes
    from cctrace.record.bpf.uprobes import UprobeLink, UprobePrograms

CALLS: Final = 1009
_LIBRARY: Final = "libcctrace_host.so"
_FUNCTION: Final = "cctrace_probed"
# Arguments as cudaMemcpyAsync has them: as much to read as most calls give.
_SYMBOL: Final = Symbol(
    site=PROBE_COST_SITE,
    name=_FUNCTION,
    api=_FUNCTION,
    library="cudart",
    cls="copy",
    copy_kind="argument",
    size=(3,),
    shape="product",
    stream=5,
    dst=1,
    src=2,
    kind=4,
)


class ProbeCost:
    """Measures once; use ``measure``, then give ``take`` every batch of records.

    Attributes:
        call_ns: What a probed call costs its caller, ns, a median; None: not measured.
    """

    def __init__(self) -> None:
        self._awaited = 0
        self._recorded_ns: list[npt.NDArray[np.uint64]] = []
        self.call_ns: float | None = None

    @property
    def recorded_ns(self) -> float | None:
        """What a call's recorded length has too much, ns, a median; None: not measured."""
        taken = self._recorded_ns
        if sum(map(len, taken)) <= CALLS // 2:
            return None
        return float(np.median(np.concatenate(taken)))

    def measure(self, probes: Probes, programs: UprobePrograms) -> None:
        """Attach to the function and call it; takes some 10 ms.

        The ring is drained now and then, so that it does not fill however small it is:
        nobody else may drain it meanwhile.

        Args:
            probes: Whose ring the records go through.
            programs: What is attached to every function.
        """
        # Whatever it is that fails, the recording goes on without.
        with contextlib.suppress(Exception):
            self._measure(probes, programs)

    def take(self, events: Events) -> Events:
        """Take the records of our own calls out of a batch; returns the others."""
        if not self._awaited:
            return events
        ours = events["what"] == PROBE_COST_SITE
        if not ours.any():
            return events
        self._awaited = max(0, self._awaited - int(ours.sum()))
        self._recorded_ns.append(events["dur_ns"][ours])
        others: Events = events[~ours]
        return others

    def _measure(self, probes: Probes, programs: UprobePrograms) -> None:
        path = native_library(_LIBRARY)
        library = ctypes.CDLL(str(path))
        library.cctrace_time_calls.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        library.cctrace_time_calls.restype = None
        plain_ns = _time(library, CALLS)
        with _probed(path, programs), _slot(probes):
            probed_ns = np.empty(0, np.uint64)
            while len(probed_ns) < CALLS:
                batch = min(CALLS - len(probed_ns), max(1, probes.ring_records // 4))
                self._awaited += batch
                probed_ns = np.concatenate([probed_ns, _time(library, batch)])
                probes.drain()
        self.call_ns = float(np.median(probed_ns) - np.median(plain_ns))


def _time(library: ctypes.CDLL, calls: int) -> npt.NDArray[np.uint64]:
    """Lengths of so many calls, ns each."""
    lengths_ns = np.zeros(calls, np.uint64)
    library.cctrace_time_calls(lengths_ns.ctypes.data, calls)
    return lengths_ns


@contextlib.contextmanager
def _probed(path: Path, programs: UprobePrograms) -> Iterator[None]:
    """Have the function probed; detaching, which waits for the kernel, goes on by itself."""
    with path.open("rb") as file:
        with ElfFile(file.fileno(), str(path)) as elf:
            [function] = elf.functions([_FUNCTION])
        link: UprobeLink = programs.attach(
            f"/proc/self/fd/{file.fileno()}", [(function.offset, _SYMBOL.cookie)]
        )
    try:
        yield
    finally:
        threading.Thread(target=link.close, name="cctrace-probe-cost", daemon=True).start()


@contextlib.contextmanager
def _slot(probes: Probes) -> Iterator[None]:
    """Give this thread a slot of calls in flight.

    It is then recorded as if it were traced; being traced it would be for every other
    family, too.
    """
    tid = threading.get_native_id()
    owners = probes.module.table("cuda_owners")
    threads = probes.module.table("cuda_threads")
    slot = tid % SLOTS
    mine = threads.Leaf()
    mine.pid, mine.slot, mine.tid = os.getpid(), slot, tid
    owners[owners.Key(slot)] = owners.Leaf(tid)
    threads[threads.Key(slot)] = mine
    try:
        yield
    finally:
        threads[threads.Key(slot)] = threads.Leaf()
        del owners[owners.Key(slot)]
