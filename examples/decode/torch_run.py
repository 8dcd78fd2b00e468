"""The loop through torch: a real GPU where there is one, the CPU where not."""

from __future__ import annotations

from array import array
from typing import Any

from decode import figures
from decode.errors import LoopError, UsageError
from decode.loop import Engine, Loop
from decode.options import Options
from decode.plan import Batch, Scheduler

try:
    import torch
except ModuleNotFoundError as error:
    raise LoopError(
        "--backend torch: this Python has no torch", "make setup-torch, or --backend sim"
    ) from error

from decode.torch_model import Model

_SLOTS = 2  # a step is prepared while the one before it is out
_WARM_UPS = 3  # before a capture: libraries allocate at their first calls


def prepare(options: Options) -> None:
    """Check that the device has what the switches ask for.

    Raises:
        UsageError: Pinned memory or a graph without a GPU.
    """
    if torch.cuda.is_available():
        return
    for switch, asked, wanted in (
        ("--host-memory", options.host_memory, "pinned"),
        ("--launches", options.launches, "graph"),
    ):
        if asked == wanted:
            raise UsageError(f"{switch} {asked} needs a GPU, and torch sees none")


class TorchDevice:
    """The model, and what moves between it and the host, on any device.

    On the CPU copies and kernels are done when they return, and nothing needs marking.
    """

    def __init__(self, options: Options, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._counts: dict[tuple[str, str], list[int]] = {}
        torch.manual_seed(options.seed)
        sizes = (options.requests, options.prompt_tokens + options.steps)
        self._model = Model(*sizes).to(device).eval()
        self._tokens = torch.zeros((options.requests, 1), dtype=torch.long, device=device)
        self._where = torch.zeros(1, dtype=torch.long, device=device)
        self._logits = torch.empty(0)
        self._sampled = [torch.empty(0)] * _SLOTS
        self._results = [self._on_host((options.requests, 1)) for _ in range(_SLOTS)]
        self._prompt_host = self._on_host((options.requests, options.prompt_tokens))
        self._token_hosts = [self._on_host((options.requests, 1)) for _ in range(_SLOTS)]
        self._where_hosts = [self._on_host((1,)) for _ in range(_SLOTS)]
        self._prompt = self._prompt_where = torch.empty(0)
        # The first call of each kernel is slow, and no step; what it leaves in the cache
        # is written over.
        self._model(
            torch.zeros(self._prompt_host.shape, dtype=torch.long, device=device),
            torch.arange(options.prompt_tokens, device=device),
        )
        self._model(self._tokens, self._where)

    def _on_host(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, pin_memory=self._is_pinned)

    @property
    def _is_pinned(self) -> bool:
        return False

    def _count(self, name: str, direction: str = "", size_bytes: int = 0) -> None:
        count = self._counts.setdefault((name, direction), [0, 0])
        count[0] += 1
        count[1] += size_bytes

    def _copy(self, target: torch.Tensor, source: torch.Tensor, direction: str) -> None:
        target.copy_(source, non_blocking=True)
        self._count("Tensor.copy_", direction, source.numel() * source.element_size())

    def upload(self, batch: Batch, ids: array[int]) -> None:
        """Copy tokens and positions to the device, as far as they are not there."""
        slot = batch.number % _SLOTS
        if batch.is_prefill:
            self._prompt_host.copy_(torch.tensor(ids.tolist()).view(self._prompt_host.shape))
            self._prompt = torch.empty_like(self._prompt_host, device=self._device)
            self._copy(self._prompt, self._prompt_host, "h2d")
            self._prompt_where = torch.arange(batch.tokens, device=self._device)
            return
        if ids:
            self._token_hosts[slot].copy_(torch.tensor(ids.tolist()).view(-1, 1))
            self._copy(self._tokens, self._token_hosts[slot], "h2d")
        else:
            self._tokens.copy_(self._sampled[(batch.number - 1) % _SLOTS])
        self._where_hosts[slot].fill_(batch.start)
        self._copy(self._where, self._where_hosts[slot], "h2d")

    def forward(self, batch: Batch, index: int) -> None:  # noqa: ARG002 - there is one pass
        """Run the model on what was copied."""
        if batch.is_prefill:
            self._logits = self._model(self._prompt, self._prompt_where)
        else:
            self._decode()

    def _decode(self) -> None:
        self._logits = self._model(self._tokens, self._where)

    def sample(self, batch: Batch, index: int) -> None:  # noqa: ARG002 - there is one pass
        """Draw a token for each request."""
        chances = torch.softmax(self._logits, dim=-1)
        self._sampled[batch.number % _SLOTS] = torch.multinomial(chances, num_samples=1)

    def start_read(self, batch: Batch, index: int) -> None:  # noqa: ARG002 - there is one pass
        """Copy the tokens to the host."""
        slot = batch.number % _SLOTS
        self._copy(self._results[slot], self._sampled[slot], "d2h")

    def finish_read(self, batch: Batch, index: int) -> list[int]:  # noqa: ARG002 - there is one pass
        """Return the tokens."""
        tokens: list[int] = self._results[batch.number % _SLOTS][:, 0].tolist()
        return tokens

    def mark(self, batch: Batch, index: int) -> None:
        """Mark nothing: the tokens are there."""

    def drain(self, batch: Batch, index: int) -> list[int]:
        """Copy the tokens and return them, on a worker thread."""
        with torch.inference_mode():  # a thread has its own
            self.start_read(batch, index)
            return self.finish_read(batch, index)

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (calls, bytes) by (name, direction)."""
        return {key: (made, moved) for key, (made, moved) in self._counts.items()}


class CudaDevice(TorchDevice):
    """The same on a GPU: streams, events, pinned memory, a graph of the decode step."""

    def __init__(self, options: Options, device: torch.device) -> None:
        self._copy_stream = torch.cuda.Stream(device)
        self._marks = [torch.cuda.Event() for _ in range(_SLOTS)]
        self._copied = [torch.cuda.Event() for _ in range(_SLOTS)]
        super().__init__(options, device)
        self._graph = self._capture() if options.launches != "eager" else None
        torch.cuda.synchronize(device)

    @property
    def _is_pinned(self) -> bool:
        return self._options.host_memory != "pageable"

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture a decode step on the inputs' own memory; replays leave logits there."""
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._model(self._tokens, self._where)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._graph_logits = self._model(self._tokens, self._where)
        return graph

    def _decode(self) -> None:
        if self._graph is None:
            super()._decode()
            return
        self._graph.replay()
        self._count("cudaGraphLaunch")
        self._logits = self._graph_logits

    def start_read(self, batch: Batch, index: int) -> None:
        """Copy the tokens off the main stream, so that the next step does not queue."""
        self.mark(batch, index)
        slot = batch.number % _SLOTS
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(self._marks[slot])
            super().start_read(batch, index)
            # The allocator must not hand the tokens out again before they are copied.
            self._sampled[slot].record_stream(self._copy_stream)
            self._copied[slot].record(self._copy_stream)

    def finish_read(self, batch: Batch, index: int) -> list[int]:
        """Wait for the copy, and return the tokens."""
        self._copied[batch.number % _SLOTS].synchronize()
        self._count("cudaEventSynchronize")
        return super().finish_read(batch, index)

    def mark(self, batch: Batch, index: int) -> None:  # noqa: ARG002 - there is one pass
        """Record where the tokens are sampled."""
        self._marks[batch.number % _SLOTS].record(torch.cuda.current_stream(self._device))

    def drain(self, batch: Batch, index: int) -> list[int]:
        """Wait for the mark first: a copy may hold its thread up for all that is queued."""
        slot = batch.number % _SLOTS
        torch.cuda.set_device(self._device)  # a thread has its own
        self._marks[slot].synchronize()
        self._count("cudaEventSynchronize")
        with torch.inference_mode(), torch.cuda.stream(self._copy_stream):
            TorchDevice.start_read(self, batch, index)
            self._sampled[slot].record_stream(self._copy_stream)
            self._copied[slot].record(self._copy_stream)
        return self.finish_read(batch, index)


@torch.inference_mode()
def run(options: Options) -> dict[str, Any]:
    """Run the loop and return its figures."""
    late = options.async_scheduling
    by_worker = options.readback == "worker"
    if torch.cuda.is_available():
        device: TorchDevice = CudaDevice(options, torch.device("cuda", 0))
    else:
        device = TorchDevice(options, torch.device("cpu"))
    name = "cuda" if torch.cuda.is_available() else "cpu"
    engine = Engine(device, 1, late=late, by_worker=by_worker)
    scheduler = Scheduler(options.requests, options.prompt_tokens, 1, options.seed, invents=False)
    loop = Loop(scheduler, engine, options.python_us, late=late)
    starts_ns = loop.generate(options.steps)
    engine.close()
    return {
        "device": name,
        "tokens": options.requests * options.steps,
        "readbacks": loop.token_lists,
        "tokens_checksum": loop.tokens_checksum,
        **figures.latencies(starts_ns),
        "processes": [figures.of_process(0, name, device.counts(), device.counts(), starts_ns)],
    }
