"""Stacks out of their ring into the table ``stacks``, and their numbers into the events.

The kernel numbers a stack by a hash of its addresses, for each program anew. The run
numbers it by what it consists of: places in files, and Python functions with their
lines. So one stack has one number whichever process it was seen in, and the same number
in another run of the same programs.

Python frames are named by what the kernel copied of their code objects while they ran,
and where that was too long by the process's memory; native ones and the kernel's at the
end of the run, from files.

The thread that empties the rings of all sources only copies records out here. A thread
of this source's own decodes them: it reads memory and files of the traced processes,
which can make it slow or keep it for ever. Nobody waits for it longer than a set time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.record.bpf import layout
from cctrace.record.bpf.ring import Ring
from cctrace.record.bpf.stacks.decoder import Decoder, source_of
from cctrace.record.bpf.stacks.kernel_maps import KernelStacks, ProcessTable
from cctrace.record.bpf.stacks.programs import Programs
from cctrace.record.bpf.stacks.stack import Stack, tables
from cctrace.record.losses import LossLedger
from cctrace.record.symbols import Symbolizer

if TYPE_CHECKING:
    from cctrace.record.bpf.probes import Probes

Records = npt.NDArray[np.void] | Sequence[np.void]
StackMode = Literal["none", "crossings", "all"]

_RING_BYTES: Final = 4 << 20  # over a thousand stacks that are new
_QUEUE_BYTES: Final = 32 << 20  # waiting to be decoded; beyond, the rings fill up
_PAGE: Final = 4096
_MAX_STACKS: Final = 1 << 16
_BATCH_PATIENCE_S: Final = 2.0  # that a batch of events waits for its stacks
_LAST_PATIENCE_S: Final = 10.0  # that the end of the recording does
_LOOK_PATIENCE_S: Final = 0.1  # that who is about to run something new does
# After a process's end, until its programs are forgotten: its last stacks are on the way.
_KEPT_S: Final = 5.0
# Of one walk, by benchmarks/stack_cost.py, ns.
_WALK_NS, _NATIVE_NS, _PYTHON_NS = 800, 130, 70
# Frames of a launch until some have been seen: those of a Python engine.
_USUAL: Final = (3, 40)


class StackCollector:
    """Takes the stacks that programs walk; any thread may call it.

    Use: ``flags`` and ``attach`` from each family that has stacks walked, ``drain``
    often, ``look_at`` a process that is about to run something new, ``column`` for each
    batch of events, ``ending`` when nothing new comes, ``rows`` and ``close``.

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
        self._draining = threading.Lock()  # of the rings; taken before the other one
        self._ring: Ring | None = None
        self._code_ring: Ring | None = None
        self._table: ProcessTable | None = None
        self._programs: Programs | None = None
        self._decoder: Decoder | None = None
        # Guards all that follows; never held while anything of a process is read.
        self._changed = threading.Condition()
        self._looks: deque[tuple[int, threading.Event]] = deque()
        self._batches: deque[tuple[Records, Records, int]] = deque()
        self._queued_bytes = 0
        self._given = self._done = self._wanted = 0  # batches
        self._left = 0  # stacks in batches that are not done
        self._ended: deque[tuple[float, int]] = deque()
        self._numbers: dict[int, int] = {}  # of the run, by the kernel's
        self._stacks: dict[int, Stack] = {}
        self._frames = [0, 0]  # native and Python ones, of all distinct stacks
        self._refused: dict[str, str] = {}
        self._error: str | None = None
        self._is_late = False
        self._deadline: float | None = None
        self._is_closed = False
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
        self.shown_by = self.shown_by or source
        if self._decoder is None:
            ring = Ring(probes.module.map_fd("stack_ring"), _RING_BYTES, layout.STACK)
            codes = Ring(probes.module.map_fd("stack_code_ring"), _RING_BYTES, layout.CODE)
            self._table = ProcessTable(probes.module)
            self._begin(ring, codes, Programs(self._table, self._symbolizer))
        if waits and self._decoder is not None:
            self._decoder.kernels = KernelStacks(probes.module)

    def refuse(self, source: str, error: OSError) -> None:
        """Note that a source's stacks cannot be walked; it goes on without."""
        self.shown_by = self.shown_by or source
        self._refused[source] = error.strerror or str(error)

    def look_at(self, pid: int) -> Callable[[], None]:
        """Take note of what a process runs, while it waits or runs.

        Returns:
            Waits until that is done, a tenth of a second at most.
        """
        looked = threading.Event()
        with self._changed:
            if self._decoder is None or self._is_closed:
                return lambda: None
            self._looks.append((pid, looked))
            self._changed.notify_all()

        def wait() -> None:
            looked.wait(_LOOK_PATIENCE_S)

        return wait

    def process_ended(self, pid: int) -> None:
        """Forget a process's programs, once its stacks are taken."""
        with self._changed:
            if self._decoder is not None:
                self._ended.append((time.monotonic() + _KEPT_S, pid))

    def drain(self) -> bool:
        """Take the stacks that are new out of their rings, to be decoded.

        Where too many wait for that none are taken: the rings fill, and the programs
        drop and count.

        Returns:
            Whether everything was taken.
        """
        with self._draining:
            if self._ring is None or self._code_ring is None:
                return True
            if self._queued_bytes > _QUEUE_BYTES:
                return False
            # What a stack consists of is written down before it is.
            stacks = self._ring.drain()
            codes = self._code_ring.drain()
            if not len(stacks) and not len(codes):
                return True
            with self._changed:
                self._batches.append((codes, stacks, time.monotonic_ns()))
                self._queued_bytes += _bytes(codes, stacks)
                self._given += 1
                self._left += len(stacks)
                self._changed.notify_all()
        return True

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
        if any(number and number not in self._numbers for number in wanted):
            self._catch_up()
        with self._changed:
            found = np.array([self._numbers.get(number, 0) for number in wanted], np.int64)
        values = found[places]
        self._ledger.add(source, "stack_unknown", int((taken & (values == 0)).sum()))
        return pa.array(values, mask=values == 0)

    def walk_ns(self) -> int:
        """What a walk costs the thread that calls, by the mean of the stacks seen so far."""
        with self._changed:
            count = len(self._stacks)
            native, python = self._frames if count else _USUAL
        return _WALK_NS + (_NATIVE_NS * native + _PYTHON_NS * python) // max(count, 1)

    def ending(self) -> None:
        """Nothing new comes: from here on, what is there is waited for, but not long."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + _LAST_PATIENCE_S

    def hurry(self) -> None:
        """Wait for nothing any more; addresses that are not named yet stay addresses."""
        with self._changed:
            self._deadline = 0.0
            self._changed.notify_all()
        self._symbolizer.hurry()

    def rows(self) -> Iterator[tuple[str, pa.Table]]:
        """The table ``stacks``, by ``stack_id``, in parts. Takes the time that naming does."""
        self.ending()
        self._catch_up()
        with self._changed:
            stacks = dict(self._stacks)
            left, self._left = self._left, 0
        self._ledger.add(self.shown_by or "cuda", "stack_failed", left)
        with self._harmless():
            for table in tables(stacks, self._symbolizer):
                yield "stacks", table

    def detail(self) -> dict[str, Any]:
        """What the manifest says of stacks."""
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
        with self._changed:
            self._is_closed = True
            self._batches.clear()
            self._looks.clear()
            self._changed.notify_all()
        # A reader that is kept may come back later: it is to find no map.
        if self._table is not None:
            self._table.close()
        if self._decoder is not None:
            self._decoder.kernels = None
        with self._draining:
            for ring in (self._ring, self._code_ring):
                if ring is not None:
                    ring.close()
            self._ring = self._code_ring = None
        self._symbolizer.close()

    def _begin(self, ring: Ring, code_ring: Ring, programs: Programs) -> None:
        self._ring, self._code_ring, self._programs = ring, code_ring, programs
        self._decoder = Decoder(programs, self._ledger)
        threading.Thread(
            target=self._decode_all,
            args=(self._decoder, programs),
            name="cctrace-stacks",
            daemon=True,
        ).start()

    def _catch_up(self) -> None:
        """Wait until what is in the rings now has been decoded, within limits."""
        is_whole = False
        while not is_whole:
            is_whole = self.drain()
            with self._changed:
                self._wanted = self._given
                # Who was waited for in vain once is not waited for again until it is through.
                self._is_late = not self._changed.wait_for(self._is_through, self._patience_s())
                if self._is_late or self._deadline == 0:
                    return

    def _is_through(self) -> bool:
        return self._done >= self._wanted or self._deadline == 0

    def _patience_s(self) -> float:
        if self._deadline is not None:
            return max(self._deadline - time.monotonic(), 0.0)
        return 0.0 if self._is_late else _BATCH_PATIENCE_S

    def _decode_all(self, decoder: Decoder, programs: Programs) -> None:
        while True:
            with self._changed:
                if not (self._looks or self._batches or self._is_closed):
                    self._changed.wait(_KEPT_S)
                if self._is_closed:
                    return
                batch = self._batches.popleft() if self._batches else None
            self._look(programs)
            if batch is not None:
                self._decode(decoder, programs, *batch)
            if not self._batches:
                self._forget_ended(programs)

    def _decode(
        self,
        decoder: Decoder,
        programs: Programs,
        codes: Records,
        stacks: Records,
        drained_ns: int,
    ) -> None:
        for record in codes:
            with self._harmless():
                decoder.take_code(record)
        for record in stacks:
            self._look(programs)  # somebody waits for that
            with self._harmless():
                self._take(decoder, record, drained_ns)
            with self._changed:
                self._left = max(self._left - 1, 0)
        with self._changed:
            self._done += 1
            self._queued_bytes -= _bytes(codes, stacks)
            self._changed.notify_all()

    def _look(self, programs: Programs) -> None:
        """Look at the processes that wait to be looked at."""
        while self._looks:
            with contextlib.suppress(IndexError):  # closed meanwhile
                pid, looked = self._looks.popleft()
                with self._harmless():
                    programs.current(pid)
                looked.set()

    def _forget_ended(self, programs: Programs) -> None:
        while self._ended and self._ended[0][0] <= time.monotonic():
            _, pid = self._ended.popleft()
            programs.drop(pid)

    def _take(self, decoder: Decoder, record: np.void, drained_ns: int) -> None:
        number = int(record["id"])
        if number in self._numbers:
            return
        own, stack = decoder.take(record, drained_ns)
        with self._changed:
            if own not in self._stacks:
                if len(self._stacks) >= _MAX_STACKS:
                    pid = int(record["pid"])
                    self._ledger.add(source_of(record), "stack_map_full", 1, pid=pid)
                    return
                self._stacks[own] = stack
                self._frames[0] += len(stack.native)
                self._frames[1] += len(stack.python)
            self._numbers[number] = own

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong with a stack, its events are recorded all the same."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - counted and shown
            self._ledger.add(self.shown_by or "cuda", "stack_failed", 1)
            self._error = repr(error)


def _bytes(codes: Records, stacks: Records) -> int:
    return len(codes) * layout.CODE.itemsize + len(stacks) * layout.STACK.itemsize
