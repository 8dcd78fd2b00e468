"""The loop itself, the same for every device: step, readback late or at once, worker."""

from __future__ import annotations

import queue
import threading
import time
import zlib
from array import array
from typing import Protocol

from decode import marks, work
from decode.plan import Batch, Scheduler

_SCHEDULING_SHARE = 2 / 3  # of the host's work a step; the rest is detokenising
READER = "readback"  # name of the worker thread


class Device(Protocol):
    """What the loop asks of a device. A batch has one or more passes, from 0."""

    def upload(self, batch: Batch, ids: array[int]) -> None:
        """Copy the inputs of a batch to the device."""

    def forward(self, batch: Batch, index: int) -> None:
        """Start the forward of one pass."""

    def sample(self, batch: Batch, index: int) -> None:
        """Start the sampling of one pass."""

    def start_read(self, batch: Batch, index: int) -> None:
        """Start to copy the tokens of a pass to the host."""

    def finish_read(self, batch: Batch, index: int) -> list[int]:
        """Wait for what :meth:`start_read` started, and return the tokens."""

    def mark(self, batch: Batch, index: int) -> None:
        """Mark where the tokens of a pass will be there, for :meth:`drain`."""

    def drain(self, batch: Batch, index: int) -> list[int]:
        """Wait for the mark, copy the tokens, return them: all of it on a worker thread."""


class Executor(Protocol):
    """Runs batches: on a device of this process, or in worker processes."""

    def upload(self, batch: Batch, ids: array[int]) -> None:
        """Take a batch and its inputs."""

    def run(self, batch: Batch) -> list[int] | None:
        """Run it; return the tokens that have come meanwhile, its own or the last one's."""

    def flush(self) -> list[int] | None:
        """Return the tokens still out, if there are any."""


class Reader:
    """The worker thread that waits for tokens, so that the loop's own thread need not."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._wanted: queue.SimpleQueue[tuple[Batch, int] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[list[int] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=READER, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        work.name_thread(READER)
        while (wanted := self._wanted.get()) is not None:
            try:
                self._found.put(self._device.drain(*wanted))
            except Exception as error:  # noqa: BLE001 - raised where the tokens are waited for
                self._found.put(error)

    def ask(self, batch: Batch, index: int) -> None:
        """Have the tokens of a pass read."""
        self._wanted.put((batch, index))

    def answer(self) -> list[int]:
        """Return the tokens asked for, in the order of asking; wait for them."""
        found = self._found.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the thread."""
        self._wanted.put(None)
        self._thread.join()


class Engine:
    """Runs batches on a device of this process.

    Args:
        device: The device.
        passes: Passes of each batch, each with a readback.
        late: Whether tokens are taken one step late.
        by_worker: Whether a worker thread reads them.
    """

    def __init__(self, device: Device, passes: int, *, late: bool, by_worker: bool) -> None:
        self._device = device
        self._passes = passes
        self._late = late
        self._reader = Reader(device) if by_worker else None
        self._out: Batch | None = None  # whose tokens are still to be taken
        self.upload = device.upload

    def _start(self, batch: Batch, index: int) -> None:
        if self._reader is None:
            self._device.start_read(batch, index)
        else:
            self._device.mark(batch, index)
            self._reader.ask(batch, index)

    def _finish(self, batch: Batch, index: int) -> list[int]:
        if self._reader is None:
            return self._device.finish_read(batch, index)
        return self._reader.answer()

    def run(self, batch: Batch) -> list[int] | None:
        """Run a batch; return its tokens, or where they come late those of the last one."""
        tokens = None
        taken = self._out if self._late else batch
        for index in range(self._passes):
            marks.push("forward")
            self._device.forward(batch, index)
            marks.pop()
            marks.push("sample")
            self._device.sample(batch, index)
            marks.pop()
            marks.push("readback")
            self._start(batch, index)
            if taken is not None:
                tokens = self._finish(taken, index)
            marks.pop()
        if self._late:
            self._out = batch
        return tokens

    def flush(self) -> list[int] | None:
        """Return the tokens of the last batch where they come late."""
        if self._out is None:
            return None
        tokens = None
        for index in range(self._passes):
            with marks.marked("readback"):
                tokens = self._finish(self._out, index)
        self._out = None
        return tokens

    def close(self) -> None:
        """End the worker thread, if there is one."""
        if self._reader is not None:
            self._reader.close()


class Loop:
    """The engine's loop on the thread that drives it.

    Args:
        scheduler: Makes the batches.
        executor: Runs them.
        python_us: CPU time of the host's own work a step.
        late: Whether the executor returns tokens one step late.
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, python_us: int, *, late: bool
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._scheduling_us = round(python_us * _SCHEDULING_SHARE)
        self._detokenising_us = python_us - self._scheduling_us
        self._late = late
        self._last: list[int] | None = None
        self.token_lists = 0  # batches whose tokens have come
        self.tokens_checksum = 0

    def _take(self, tokens: list[int] | None) -> None:
        """Do with tokens what an engine does: make text of them, send it on."""
        if tokens is not None:
            self.token_lists += 1
            self.tokens_checksum = zlib.crc32(array("i", tokens).tobytes(), self.tokens_checksum)
            work.spend(self._detokenising_us)

    def step(self) -> None:
        """Run one step."""
        batch = self._scheduler.next_batch()
        marks.push_step(batch)
        marks.push("prepare_inputs")
        work.spend(self._scheduling_us)
        ids = self._scheduler.token_ids(batch, None if self._late else self._last)
        self._executor.upload(batch, ids)
        marks.pop()
        self._last = self._executor.run(batch)
        self._take(self._last)
        marks.pop()

    def generate(self, steps: int) -> list[int]:
        """Run ``steps`` steps; return the clock (ns) at the start of each."""
        starts_ns = []
        with marks.marked("generate"):
            for _ in range(steps):
                starts_ns.append(time.perf_counter_ns())
                self.step()
            self._take(self._executor.flush())
        return starts_ns
