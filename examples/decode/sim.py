"""The loop's device on the simulated GPU: buffers, streams, graphs, and every call ready.

Kernels compute nothing here, so what a step reads back are the tokens it was given:
the readback checks that, and so that every byte really went there and back.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p

from decode.options import Options
from decode.plan import BLOCK_TOKENS, DRAFT_SHARE, LAYERS, PREFILL_FACTOR, SAMPLING_KERNELS, Batch
from simcuda.bindings import (
    CAPTURE_THREAD_LOCAL,
    DEVICE_TO_HOST,
    EVENT_DISABLE_TIMING,
    HOST_TO_DEVICE,
    NCCL_BFLOAT16,
    NCCL_SUM,
    STREAM_NON_BLOCKING,
    Calls,
    Runtime,
)

_SLOTS = 2  # a step is prepared while the one before it is out
_HIDDEN = 1024  # elements a token has in an all-reduce
_BFLOAT16_BYTES = 2
_TOKEN_BYTES = 4
_POSITION_BYTES = 8
_BLOCK_BYTES = 4
_SMALL_BYTES = 64  # of the copies that make up a number of crossings
_SAMPLING_KERNEL_NS = 5003
_SMALL_KERNEL_NS = 1009

Call = Callable[[], None]


class _Slot:
    """The buffers and calls of every second step."""

    def __init__(self) -> None:
        self.host_tokens = self.host_positions = self.host_blocks = 0
        self.uploads: dict[bool, list[Call]] = {}  # by: is it the prefill
        self.results: list[int] = []  # host address by pass
        self.events: list[c_void_p] = []  # by pass: the tokens are sampled
        self.copied: list[c_void_p] = []  # by pass: and copied
        self.reads: dict[tuple[bool, int], list[Call]] = {}  # by: is it the prefill; pass
        self.waits: list[Call] = []
        self.marks: list[Call] = []
        self.drains: dict[tuple[bool, int], list[Call]] = {}
        self.expected: list[int] = []


class SimDevice:
    """One simulated device, and what this process does with it.

    Args:
        runtime: The loaded libraries.
        options: What the steps are made of.
        ordinal: Number of the device.
        communicator: NCCL's, where several processes share the model.
    """

    def __init__(
        self,
        runtime: Runtime,
        options: Options,
        ordinal: int = 0,
        communicator: Callable[[Calls], c_void_p] | None = None,
    ) -> None:
        self.calls = Calls(runtime)
        self.reader_calls = Calls(runtime)  # the worker thread's
        self._runtime = runtime
        self._options = options
        self._shape = options.shape
        self._frees: list[Call] = []
        self._kept: list[object] = []  # host buffers that only addresses point at
        self._reader_starts = [self.reader_calls.prepare("cudaSetDevice", c_int(ordinal))]
        self.calls.make("cudaSetDevice", ordinal)
        self._stream = self._make_stream()
        self._copy_stream = self._make_stream()
        self._kernels = self._make_kernels()
        self._communicator = communicator(self.calls) if communicator else None
        if self._communicator is not None:
            self._frees.append(self.calls.prepare("ncclCommDestroy", self._communicator))
        self._slots = [self._make_slot() for _ in range(_SLOTS)]
        self._forwards = self._make_forwards()
        launch = self.calls.prepare_launch(self._kernels["sample"], self._stream)
        self._sampling = [launch] * SAMPLING_KERNELS
        self._extra = self._make_allocation() + self._make_padding()
        self.calls.make("cudaDeviceSynchronize")

    # -- setting up ---------------------------------------------------------------

    def _make_stream(self) -> c_void_p:
        stream = c_void_p()
        self.calls.make("cudaStreamCreateWithFlags", byref(stream), STREAM_NON_BLOCKING)
        self._frees.append(self.calls.prepare("cudaStreamDestroy", stream))
        return stream

    def _make_event(self) -> c_void_p:
        event = c_void_p()
        self.calls.make("cudaEventCreateWithFlags", byref(event), EVENT_DISABLE_TIMING)
        self._frees.append(self.calls.prepare("cudaEventDestroy", event))
        return event

    def _on_device(self, size_bytes: int) -> int:
        pointer = c_void_p()
        self.calls.make("cudaMalloc", byref(pointer), size_bytes)
        self._frees.append(self.calls.prepare("cudaFree", pointer))
        return pointer.value or 0

    def _on_host(self, size_bytes: int) -> int:
        if self._options.host_memory == "pageable":
            buffer = ctypes.create_string_buffer(size_bytes)
            self._kept.append(buffer)
            return ctypes.addressof(buffer)
        pointer = c_void_p()
        self.calls.make("cudaHostAlloc", byref(pointer), size_bytes, 0)
        self._frees.append(self.calls.prepare("cudaFreeHost", pointer))
        return pointer.value or 0

    def _make_kernels(self) -> dict[str, int]:
        """Return an address for each kernel, and tell the device how long it runs."""
        forward_ns = self._options.gpu_us * 1000
        lengths_ns = {
            "prefill": forward_ns * PREFILL_FACTOR // self._shape.kernels,
            "decode": forward_ns // self._shape.kernels,
            "draft": forward_ns // DRAFT_SHARE // self._shape.draft_kernels,
            "sample": _SAMPLING_KERNEL_NS,
            "small": _SMALL_KERNEL_NS,
        }
        names = (ctypes.c_uint64 * len(lengths_ns))()  # an address is all a kernel is
        self._kept.append(names)
        found = {}
        for index, (name, dur_ns) in enumerate(lengths_ns.items()):
            found[name] = ctypes.addressof(names) + index * ctypes.sizeof(ctypes.c_uint64)
            self._runtime.set_kernel_ns(found[name], dur_ns)
        return found

    def _tokens(self, *, prefill: bool) -> int:
        """Return how many tokens of each request a step works on."""
        return self._options.prompt_tokens if prefill else self._shape.passes

    def _read_count(self, index: int, *, prefill: bool) -> int:
        """Return how many tokens a pass reads back: the verifying one has them all."""
        is_last = index == self._shape.passes - 1
        return self._options.requests * (self._shape.passes if is_last and not prefill else 1)

    def _make_slot(self) -> _Slot:
        """Make the buffers of a slot and the calls that use them."""
        slot = _Slot()
        options, calls = self._options, self.calls
        longest = options.prompt_tokens + options.steps * self._shape.passes
        blocks_bytes = options.requests * -(-longest // BLOCK_TOKENS) * _BLOCK_BYTES
        most = options.requests * max(options.prompt_tokens, self._shape.passes)
        tokens = self._on_device(most * _TOKEN_BYTES)
        positions = self._on_device(most * _POSITION_BYTES)
        blocks = self._on_device(blocks_bytes)
        slot.host_tokens = self._on_host(most * _TOKEN_BYTES)
        slot.host_positions = self._on_host(most * _POSITION_BYTES)
        slot.host_blocks = self._on_host(blocks_bytes)
        for prefill in (True, False):
            count = options.requests * self._tokens(prefill=prefill)
            slot.uploads[prefill] = [
                calls.prepare_copy(target, source, size_bytes, HOST_TO_DEVICE, self._stream)
                for target, source, size_bytes in (
                    (tokens, slot.host_tokens, count * _TOKEN_BYTES),
                    (positions, slot.host_positions, count * _POSITION_BYTES),
                    (blocks, slot.host_blocks, blocks_bytes),
                )
            ]
        for index in range(self._shape.passes):
            self._make_reads(slot, index, tokens)
        return slot

    def _make_reads(self, slot: _Slot, index: int, tokens: int) -> None:
        """Make the calls that read one pass back, in each of the ways there are."""
        calls, reader = self.calls, self.reader_calls
        result = self._on_host(self._options.requests * self._shape.passes * _TOKEN_BYTES)
        sampled, copied = self._make_event(), self._make_event()
        slot.results.append(result)
        slot.marks.append(calls.prepare("cudaEventRecord", sampled, self._stream))
        late = self._options.async_scheduling
        for prefill in (True, False):
            size_bytes = self._read_count(index, prefill=prefill) * _TOKEN_BYTES
            what = (result, tokens, size_bytes, DEVICE_TO_HOST)
            if late:
                # Off the main stream, so that the next step does not queue behind it.
                slot.reads[prefill, index] = [
                    slot.marks[-1],
                    calls.prepare("cudaStreamWaitEvent", self._copy_stream, sampled, c_uint(0)),
                    calls.prepare_copy(*what, self._copy_stream),
                    calls.prepare("cudaEventRecord", copied, self._copy_stream),
                ]
            else:
                slot.reads[prefill, index] = [calls.prepare_copy(*what, self._stream)]
            # Waiting before the copy is asked for: where a copy holds its caller up for
            # all that is queued, it then has nothing to wait for but itself.
            slot.drains[prefill, index] = [
                reader.prepare("cudaEventSynchronize", sampled),
                reader.prepare_copy(*what, self._copy_stream),
                reader.prepare("cudaStreamSynchronize", self._copy_stream),
            ]
        slot.waits.append(
            calls.prepare("cudaEventSynchronize", copied)
            if late
            else calls.prepare("cudaStreamSynchronize", self._stream)
        )

    def _make_forwards(self) -> dict[str, list[Call]]:
        """Return the calls of a forward, by kernel: one graph, or each kernel by itself."""
        found = {}
        for name in ("prefill", "decode", "draft"):
            draft = name == "draft"
            count = self._shape.draft_kernels if draft else self._shape.kernels
            launch = self.calls.prepare_launch(self._kernels[name], self._stream)
            kernels = [launch] * count
            layers = LAYERS if self._shape.eager and not draft else 1
            if not self._shape.eager:
                kernels = [self._make_graph(kernels)]
            found[name] = self._with_all_reduces(kernels, layers, prefill=name == "prefill")
        return found

    def _with_all_reduces(self, kernels: list[Call], layers: int, *, prefill: bool) -> list[Call]:
        """Return the calls with an all-reduce at the end of each layer, if there is NCCL."""
        if self._communicator is None:
            return kernels
        elements = self._options.requests * self._tokens(prefill=prefill) * _HIDDEN
        buffer = c_void_p(self._on_device(elements * _BFLOAT16_BYTES))
        all_reduce = self.calls.prepare(
            "ncclAllReduce",
            buffer,
            buffer,
            c_size_t(elements),
            c_int(NCCL_BFLOAT16),
            c_int(NCCL_SUM),
            self._communicator,
            self._stream,
        )
        found: list[Call] = []
        for layer in range(layers):
            first, after = (len(kernels) * end // layers for end in (layer, layer + 1))
            found += [*kernels[first:after], all_reduce]
        return found

    def _make_graph(self, kernels: list[Call]) -> Call:
        """Capture calls into a graph, and return the call that launches it."""
        graph, executable = c_void_p(), c_void_p()
        self.calls.make("cudaStreamBeginCapture", self._stream, CAPTURE_THREAD_LOCAL)
        for kernel in kernels:
            kernel()
        self.calls.make("cudaStreamEndCapture", self._stream, byref(graph))
        self.calls.make("cudaGraphInstantiate", byref(executable), graph, 0)
        self.calls.make("cudaGraphDestroy", graph)
        self._frees.append(self.calls.prepare("cudaGraphExecDestroy", executable))
        return self.calls.prepare("cudaGraphLaunch", executable, self._stream)

    def _make_allocation(self) -> list[Call]:
        """Return the calls that allocate, fill and free a small buffer in each step."""
        if not self._shape.allocates:
            return []
        pointer = c_void_p()  # the copy and the free take what the allocation left in it
        size_bytes = c_size_t(_SMALL_BYTES)
        return [
            self.calls.prepare("cudaMalloc", byref(pointer), size_bytes),
            self.calls.prepare(
                "cudaMemcpy",
                pointer,
                c_void_p(self._on_host(_SMALL_BYTES)),
                size_bytes,
                c_int(HOST_TO_DEVICE),
                direction="h2d",
                size_bytes=_SMALL_BYTES,
            ),
            self.calls.prepare("cudaFree", pointer),
        ]

    def _make_padding(self) -> list[Call]:
        """Return small copies and launches, in turn, up to the crossings asked for."""
        lacking = (self._options.crossings or self._shape.crossings) - self._shape.crossings
        if not lacking:
            return []
        copy = self.calls.prepare_copy(
            self._on_device(_SMALL_BYTES),
            self._on_host(_SMALL_BYTES),
            _SMALL_BYTES,
            HOST_TO_DEVICE,
            self._stream,
        )
        launch = self.calls.prepare_launch(self._kernels["small"], self._stream)
        return [launch if number % 2 else copy for number in range(lacking)]

    # -- stepping -----------------------------------------------------------------

    def upload(self, batch: Batch, ids: array[int]) -> None:
        """Copy token ids, positions and block tables to the device."""
        slot = self._slots[batch.number % _SLOTS]
        places = range(batch.start, batch.start + batch.tokens)
        positions = array("q", places) * batch.requests
        used = -(-(batch.start + batch.tokens) // BLOCK_TOKENS)
        blocks = array("i", range(batch.requests * used))
        for address, values in (
            (slot.host_tokens, ids),
            (slot.host_positions, positions),
            (slot.host_blocks, blocks),
        ):
            source, count = values.buffer_info()
            ctypes.memmove(address, source, count * values.itemsize)
        slot.expected = ids.tolist()
        for call in slot.uploads[batch.is_prefill]:
            call()
        for call in self._extra:
            call()

    def forward(self, batch: Batch, index: int) -> None:
        """Launch the kernels of one pass, or their graph."""
        name = batch.phase if index == self._shape.passes - 1 else "draft"
        for call in self._forwards[name]:
            call()

    def sample(self, batch: Batch, index: int) -> None:  # noqa: ARG002 - all are alike
        """Launch the sampling kernels."""
        for call in self._sampling:
            call()

    def start_read(self, batch: Batch, index: int) -> None:
        """Enqueue the copy of the tokens."""
        for call in self._slots[batch.number % _SLOTS].reads[batch.is_prefill, index]:
            call()

    def finish_read(self, batch: Batch, index: int) -> list[int]:
        """Wait for the copy, and return the tokens."""
        self._slots[batch.number % _SLOTS].waits[index]()
        return self._result(batch, index)

    def mark(self, batch: Batch, index: int) -> None:
        """Record the event that :meth:`drain` waits for."""
        self._slots[batch.number % _SLOTS].marks[index]()

    def drain(self, batch: Batch, index: int) -> list[int]:
        """Wait for the event, copy the tokens and return them."""
        while self._reader_starts:  # each thread has a current device of its own
            self._reader_starts.pop()()
        for call in self._slots[batch.number % _SLOTS].drains[batch.is_prefill, index]:
            call()
        return self._result(batch, index)

    def _result(self, batch: Batch, index: int) -> list[int]:
        """Return the tokens a pass left on the host, which are those it was given."""
        slot = self._slots[batch.number % _SLOTS]
        count = self._read_count(index, prefill=batch.is_prefill)
        found = array("i")
        found.frombytes(ctypes.string_at(slot.results[index], count * _TOKEN_BYTES))
        tokens = found.tolist()
        if tokens != slot.expected[:count]:
            raise RuntimeError(
                f"step {batch.number}, pass {index}: the {count} tokens read back are not "
                "those copied to the device; the simulated copies lose or mix data"
            )
        return tokens

    # -- the end ------------------------------------------------------------------

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (calls, bytes) by (name, direction), of all threads."""
        total = self.calls.counts()
        for key, (made, moved) in self.reader_calls.counts().items():
            before = total.get(key, (0, 0))
            total[key] = (before[0] + made, before[1] + moved)
        return total

    def close(self) -> None:
        """Free everything, last made first."""
        while self._frees:
            self._frees.pop()()
