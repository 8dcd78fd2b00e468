"""Generate with transformers in every way its adapter has to get along with.

Prints as JSON a checksum of the tokens of each way, how many forwards the main
model made (assistants' not counted), and how often torch.compile broke a graph.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import CompileConfig

PROMPT_TOKENS = 7
NEW_TOKENS = 5


class FailingStreamer:
    """A streamer that raises at the third put: of the prompt, the first token, the second."""

    def __init__(self) -> None:
        self.puts = 0

    def put(self, value: Any) -> None:
        """Count, then fail."""
        del value
        self.puts += 1
        if self.puts == 3:
            raise RuntimeError("the reader is gone")

    def end(self) -> None:
        """Nothing is open."""


def make_model() -> LlamaForCausalLM:
    """A Llama small enough to compile and run in no time."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=1,
        )
    ).eval()


def main() -> None:
    """Generate in each way."""
    torch.manual_seed(0)
    model, assistant = make_model(), make_model()
    prompt = torch.randint(2, 512, (1, PROMPT_TOKENS))
    sums: dict[str, int] = {}
    forwards = 0

    def generate(name: str, **options: Any) -> None:
        torch.manual_seed(1)
        options.setdefault("do_sample", False)
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, **options
        )
        sums[name] = int((tokens * torch.arange(1, tokens.numel() + 1)).sum())

    generate("greedy")
    generate("sampled", do_sample=True)
    generate("beams", num_beams=3)
    forwards += 3 * NEW_TOKENS
    generate("chunked", prefill_chunk_size=3)
    forwards += NEW_TOKENS + 2
    generate("static cache", cache_implementation="static")
    forwards += NEW_TOKENS
    try:
        generate("failing", streamer=FailingStreamer())
    except RuntimeError:
        forwards += 2

    # An assisted generation makes as many forwards as drafts were good: count them.
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    generate("assisted", assistant_model=assistant)
    handle.remove()
    forwards += len(calls)

    threads = [threading.Thread(target=generate, args=(f"thread {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    forwards += len(threads) * NEW_TOKENS

    plain = model.forward
    model.forward = torch.compile(plain, fullgraph=True, backend="eager")
    generate("compiled forward")
    model.forward = plain
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    model.generation_config.compile_config = config
    generate("compiled by generate", cache_implementation="static")
    model.generation_config.compile_config = None
    model.compile(backend="eager")
    generate("compiled model")
    forwards += 3 * NEW_TOKENS

    counters = torch._dynamo.utils.counters
    breaks = sum(counters["graph_break"].values())
    print(json.dumps({"sums": sums, "forwards": forwards, "graph_breaks": breaks}))


if __name__ == "__main__":
    main()
