"""What one step is made of: the batch it works on, and how many crossings it takes."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

VOCABULARY = 4096
LAYERS = 7  # each ends in an all-reduce where several processes share the model
SAMPLING_KERNELS = 3  # penalties, top-k, draw
INPUT_COPIES = 3  # token ids, positions, block tables
BLOCK_TOKENS = 16  # KV-cache block, as vLLM's default
DRAFT_SHARE = 8  # a draft pass is an eighth of the forward: kernels and device time
PREFILL_FACTOR = 5  # device time of the prefill over that of a decode step


@dataclass(frozen=True)
class Shape:
    """The make-up of one step of one process, the same for prefill and decode."""

    eager: bool
    kernels: int
    passes: int  # forwards: drafts, and the one that verifies or is alone
    collectives: bool
    read_by_worker: bool
    allocates: bool

    @property
    def draft_kernels(self) -> int:
        """Kernels of one draft pass."""
        return max(1, self.kernels // DRAFT_SHARE)

    @property
    def all_reduces(self) -> int:
        """All-reduces the host calls a step: one a layer; one for a graph or a draft."""
        if not self.collectives:
            return 0
        return self.passes - 1 + (LAYERS if self.eager else 1)

    @property
    def classes(self) -> dict[str, int]:
        """Crossings of one step by class, before any are added to make up a number."""
        drafts = self.passes - 1
        found = {
            "copy": INPUT_COPIES + self.passes + self.allocates,
            "launch": SAMPLING_KERNELS * self.passes
            + (self.kernels + drafts * self.draft_kernels if self.eager else 0),
            "graph": 0 if self.eager else self.passes,
            # A worker waits for the sampling first, and then for its copy.
            "sync": self.passes * (2 if self.read_by_worker else 1),
            "alloc": int(self.allocates),
            "collective": self.all_reduces,
        }
        return {name: count for name, count in found.items() if count}

    @property
    def crossings(self) -> int:
        """Crossings of one step in all."""
        return sum(self.classes.values())


@dataclass(frozen=True)
class Batch:
    """One step's work: how many tokens of how many requests, and from which position."""

    number: int
    requests: int
    tokens: int  # of each request
    start: int  # position of the first of them

    @property
    def is_prefill(self) -> bool:
        """Whether the batch is the prompts."""
        return self.number == 0

    @property
    def phase(self) -> str:
        """``prefill`` or ``decode``."""
        return "prefill" if self.is_prefill else "decode"

    @property
    def payload(self) -> int:
        """Requests and tokens of the batch, 32 bits each, for the NVTX range of a step."""
        return self.requests << 32 | self.requests * self.tokens


class Scheduler:
    """Makes one batch after the other for requests that all started together.

    Args:
        requests: Requests in each batch.
        prompt_tokens: Tokens of the first batch, for each request.
        passes: Tokens each request has in the batches after it.
        seed: Of the prompts, and of the tokens where ``invents``.
        invents: Whether to make tokens up, for a device that computes none.
    """

    def __init__(
        self, requests: int, prompt_tokens: int, passes: int, seed: int, *, invents: bool
    ) -> None:
        self._requests = requests
        self._tokens = prompt_tokens
        self._passes = passes
        self._random = random.Random(seed)
        self._invents = invents
        self._number = 0
        self._position = 0

    def next_batch(self) -> Batch:
        """Return the next batch, without its tokens."""
        batch = Batch(self._number, self._requests, self._tokens, self._position)
        self._position += self._tokens
        self._tokens = self._passes
        self._number += 1
        return batch

    def token_ids(self, batch: Batch, sampled: list[int] | None) -> array[int]:
        """Return the tokens of ``batch``: requests x tokens, int32.

        Args:
            batch: The batch.
            sampled: The tokens read back last; None: they are on the device alone, as
                where a step is prepared before the one before it has been read back.

        Returns:
            The tokens; none where the device has to take those it sampled itself.
        """
        if self._invents or batch.is_prefill:
            count = batch.requests * batch.tokens
            return array("i", self._random.choices(range(VOCABULARY), k=count))
        return array("i", sampled or ())
