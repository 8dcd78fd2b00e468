"""Worker processes that share the model, one device each, driven over pipes.

The driver sends each batch to all of them and takes the tokens from all; they agree, or
it says so. Workers are fresh processes, not forks: CUDA does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import time
from array import array
from ctypes import byref, c_void_p
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from decode import figures, marks, work
from decode.errors import LoopError
from decode.loop import Engine
from decode.options import Options
from decode.plan import Batch
from decode.sim import SimDevice
from simcuda.bindings import Calls, CudaError, Runtime, UniqueId

_END_LIMIT_S = 30


class Pool:
    """The driver's side: an executor of :class:`decode.loop.Loop`.

    Raises:
        LoopError: A worker has ended before its time, or the workers disagree.
    """

    def __init__(self, options: Options) -> None:
        # spawn, as engines do: the driver has threads and libraries that do not fork.
        context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        for rank in range(options.workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, options, rank), name=f"worker-{rank}", daemon=True
            )
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            self._processes.append(process)
            self._pipes.append(ours)

    def meet(self) -> None:
        """Have the workers meet: rank 0 names the communicator, all join it."""
        unique_id = self._receive(0)
        for rank in range(1, len(self._pipes)):
            self._send(rank, unique_id)
        for rank in range(len(self._pipes)):
            self._receive(rank)  # it is ready

    def close(self) -> None:
        """End the workers, whatever happened."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_LIMIT_S)
            if process.is_alive():
                process.kill()
                process.join()

    def _send(self, rank: int, message: object) -> None:
        try:
            self._pipes[rank].send(message)
        except OSError as error:
            raise self._lost(rank) from error

    def _receive(self, rank: int) -> Any:
        try:
            return self._pipes[rank].recv()
        except (EOFError, OSError) as error:
            raise self._lost(rank) from error

    def _lost(self, rank: int) -> LoopError:
        process = self._processes[rank]
        process.join(_END_LIMIT_S)
        return LoopError(
            f"worker {rank} (pid {process.pid}) ended with status {process.exitcode}",
            "its own message is above; without one it was killed",
        )

    def _tokens(self) -> list[int] | None:
        """Return the tokens all workers send next."""
        answers = [self._receive(rank) for rank in range(len(self._pipes))]
        if any(answer != answers[0] for answer in answers):
            raise LoopError("the workers read different tokens back")
        tokens: list[int] | None = answers[0]
        return tokens

    def upload(self, batch: Batch, ids: array[int]) -> None:
        """Send a batch to all workers."""
        for rank in range(len(self._pipes)):
            self._send(rank, (batch, ids))

    def run(self, batch: Batch) -> list[int] | None:  # noqa: ARG002 - an executor's signature
        """Wait for what all workers answer to the batch sent."""
        with marks.marked("readback"):
            return self._tokens()

    def flush(self) -> list[int] | None:
        """Have the workers take what is still out."""
        for rank in range(len(self._pipes)):
            self._send(rank, None)
        return self._tokens()

    def finish(self) -> list[dict[str, Any]]:
        """Return the workers' figures, by rank; they end."""
        return [self._receive(rank) for rank in range(len(self._pipes))]


def _work(pipe: Connection, options: Options, rank: int) -> None:
    """Be one worker: batches in, tokens out, figures at the end."""
    work.name_thread(f"worker-{rank}")
    try:
        _serve(pipe, options, rank)
    except (EOFError, BrokenPipeError):
        raise SystemExit(1) from None  # the driver is gone, and has said why
    except (CudaError, OSError) as error:
        raise SystemExit(f"decode_loop.py: worker {rank}: {error}") from None


def _serve(pipe: Connection, options: Options, rank: int) -> None:
    runtime = Runtime(options.sim_dir.resolve())
    runtime.load_collectives()

    def join(calls: Calls) -> c_void_p:
        unique_id = UniqueId()
        if rank == 0:
            calls.make("ncclGetUniqueId", byref(unique_id))
            pipe.send(bytes(unique_id))
        else:
            unique_id = UniqueId.from_buffer_copy(pipe.recv())
        communicator = c_void_p()
        calls.make("ncclCommInitRank", byref(communicator), options.workers, unique_id, rank)
        return communicator

    device = SimDevice(runtime, options, rank, join)
    shape = options.shape
    engine = Engine(
        device, shape.passes, late=options.async_scheduling, by_worker=shape.read_by_worker
    )
    before = device.counts()
    pipe.send(None)  # ready
    starts_ns = []
    while (message := pipe.recv()) is not None:
        batch, ids = message
        starts_ns.append(time.perf_counter_ns())
        with marks.marked("prepare_inputs"):
            device.upload(batch, ids)
        pipe.send(engine.run(batch))
    pipe.send(engine.flush())
    engine.close()
    steps = figures.subtract(device.counts(), before)
    device.close()
    pipe.send(figures.of_process(rank, rank, steps, device.counts(), starts_ns))
