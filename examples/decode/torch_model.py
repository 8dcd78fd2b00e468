"""A small attention model with random weights and a KV cache, in torch.

Every shape of a decode step is the same whatever the position, so that the step can be
captured into a CUDA graph: attention goes over the whole cache, and a mask hides what
is not written yet.
"""

from __future__ import annotations

import torch
from decode.plan import VOCABULARY
from torch import nn
from torch.nn import functional

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

    def forward(
        self, hidden: torch.Tensor, where: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """Attend from the positions ``where`` to those that ``seen`` allows each."""
        requests, length, _ = hidden.shape
        query, key, value = (
            part.view(requests, length, HEADS, -1).transpose(1, 2)
            for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        self.keys.index_copy_(2, where, key)
        self.values.index_copy_(2, where, value)
        mixed = functional.scaled_dot_product_attention(
            query, self.keys, self.values, attn_mask=seen
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

    def forward(
        self, hidden: torch.Tensor, where: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """Pass ``hidden`` of the positions ``where`` through the layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), where, seen)
        return hidden + self.feed(self.feed_norm(hidden))


class Model(nn.Module):
    """Embedding, layers, and the logits of each request's last position."""

    def __init__(self, requests: int, positions: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(positions, WIDTH)
        self.layers = nn.ModuleList(Layer(requests, positions) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("places", torch.arange(positions))

    def forward(self, tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Return logits, requests x vocabulary, after ``tokens`` at positions ``where``."""
        seen = self.places[None, :] <= where[:, None]
        hidden = self.embedding(tokens) + self.positions(where)
        for layer in self.layers:
            hidden = layer(hidden, where, seen)
        return self.head(hidden[:, -1])
