"""A small LLM decode loop that annotates itself with NVTX, for cctrace to record.

A two-layer attention model with random weights and a KV cache runs one prefill and
then one decode step per token for a batch of requests, and reads the sampled tokens
back each step, as an engine does. It needs torch and PyPI ``nvtx``, uses a GPU if
there is one, and prints as JSON what it counted and measured itself, so that a
recording of it can be checked:

    cctrace record -o runs/demo -- python examples/decode_loop.py
    cctrace query runs/demo --name itl
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise

import nvtx
import torch
from torch import nn
from torch.nn import functional

DOMAIN = nvtx.get_domain("decode_loop")

VOCABULARY = 4096
WIDTH = 256
HEADS = 8
LAYERS = 2


class Attention(nn.Module):
    """Causal self-attention that keeps keys and values of all positions so far."""

    def __init__(self, requests: int, positions: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        shape = (requests, HEADS, positions, WIDTH // HEADS)
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))

    def forward(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """Attend from positions ``start`` onwards to all of them so far."""
        requests, length, _ = hidden.shape
        end = start + length
        query, key, value = (
            part.view(requests, length, HEADS, -1).transpose(1, 2)
            for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        mixed = functional.scaled_dot_product_attention(
            query, self.keys[:, :, :end], self.values[:, :, :end], is_causal=length > 1
        )
        return self.out(mixed.transpose(1, 2).reshape(requests, length, WIDTH))


class Layer(nn.Module):
    """Attention and a feed-forward part, each added to what came in."""

    def __init__(self, requests: int, positions: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention(requests, positions)
        self.feed_norm = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """Pass ``hidden`` of positions ``start`` onwards through the layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), start)
        return hidden + self.feed(self.feed_norm(hidden))


class Model(nn.Module):
    """Embedding, layers, and the logits of each request's last position."""

    def __init__(self, requests: int, positions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(positions, WIDTH)
        self.layers = nn.ModuleList(Layer(requests, positions) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor, where: torch.Tensor, start: int) -> torch.Tensor:
        """Return logits, requests x vocabulary, after ``tokens`` at ``where``."""
        hidden = self.embedding(tokens) + self.positions(where)
        for layer in self.layers:
            hidden = layer(hidden, start)
        return self.head(hidden[:, -1])


class Loop:
    """The engine loop: its state is the batch's last tokens and how far they are."""

    def __init__(self, requests: int, prompt_tokens: int, steps: int, device: torch.device) -> None:
        self.device = device
        self.model = Model(requests, prompt_tokens + steps).to(device).eval()
        self.next_input = torch.randint(VOCABULARY, (requests, prompt_tokens))
        self.position = 0
        # Made once: looking attributes up costs more than the range itself.
        self._ranges = {
            name: DOMAIN.get_event_attributes(message=name)
            for name in ("generate", "prepare_inputs", "forward", "sample", "readback")
        }

    def step(self) -> list[int]:
        """Run one step, and return the token sampled for each request."""
        requests, tokens = self.next_input.shape
        attributes = DOMAIN.get_event_attributes(
            message="step",
            category="prefill" if self.position == 0 else "decode",
            payload=requests << 32 | requests * tokens,
        )
        DOMAIN.push_range(attributes)
        DOMAIN.push_range(self._ranges["prepare_inputs"])
        inputs = self.next_input.to(self.device)
        where = torch.arange(self.position, self.position + tokens, device=self.device)
        DOMAIN.pop_range()
        DOMAIN.push_range(self._ranges["forward"])
        logits = self.model(inputs, where, self.position)
        DOMAIN.pop_range()
        DOMAIN.push_range(self._ranges["sample"])
        sampled = torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)
        DOMAIN.pop_range()
        DOMAIN.push_range(self._ranges["readback"])
        self.next_input = sampled.cpu()
        result = self.next_input[:, 0].tolist()
        DOMAIN.pop_range()
        self.position += tokens
        DOMAIN.pop_range()
        return result

    @torch.inference_mode()
    def generate(self, steps: int) -> list[int]:
        """Run ``steps`` steps; return the clock (ns) at the start of each."""
        starts_ns = []
        DOMAIN.push_range(self._ranges["generate"])
        for _ in range(steps):
            starts_ns.append(time.perf_counter_ns())
            self.step()
        DOMAIN.pop_range()
        return starts_ns


def main() -> None:
    """Run the loop and print its own figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4, help="requests in the batch")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens in each prompt")
    parser.add_argument("--steps", type=int, default=211, help="steps, the prefill included")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and sampling")
    arguments = parser.parse_args()
    if min(arguments.requests, arguments.prompt_tokens, arguments.steps) < 1:
        parser.error("--requests, --prompt-tokens and --steps must be at least 1")

    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = (arguments.requests, arguments.prompt_tokens, arguments.steps)
    Loop(*sizes, device).model(  # the first call of each kernel is slow and no step
        torch.zeros(sizes[:2], dtype=torch.long, device=device),
        torch.arange(sizes[1], device=device),
        0,
    )
    loop = Loop(*sizes, device)
    starts_ns = loop.generate(arguments.steps)
    periods_ns = [after - before for before, after in pairwise(starts_ns)]
    decode_ns = periods_ns[1:]  # the first step is the prefill
    print(
        json.dumps(
            {
                "device": str(device),
                "requests": arguments.requests,
                "prompt_tokens": arguments.prompt_tokens,
                "steps": len(starts_ns),
                "decode_steps": len(starts_ns) - 1,
                "period_mean_ns": round(statistics.fmean(periods_ns)) if periods_ns else None,
                "itl_mean_ns": round(statistics.fmean(decode_ns)) if decode_ns else None,
                "itl_median_ns": round(statistics.median(decode_ns)) if decode_ns else None,
            }
        )
    )


if __name__ == "__main__":
    main()
