"""Generate with Hugging Face transformers: a tiny Llama with random weights, offline.

Nothing here annotates anything: under ``cctrace record`` the transformers adapter
does. What the program prints as JSON it counted itself, by overriding the model's
``forward``, so that a recording of it can be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import pairwise
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM


class CountedLlama(LlamaForCausalLM):
    """A Llama that notes when each of its forwards starts."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.starts_ns: list[int] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the time, then do what every Llama does."""
        self.starts_ns.append(time.perf_counter_ns())
        return super().forward(*args, **kwargs)


def main() -> None:
    """Generate ``--calls`` times and print the program's own figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=3, help="prompts in the batch")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="tokens in each prompt")
    parser.add_argument("--new-tokens", type=int, default=41, help="tokens to generate")
    parser.add_argument("--calls", type=int, default=2, help="calls of generate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and sampling")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = CountedLlama(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=1,
        )
    ).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    prompts = torch.randint(
        2, 2048, (arguments.requests, arguments.prompt_tokens), device=model.device
    )
    periods_ns: list[int] = []
    decode_ns: list[int] = []
    output = prompts
    for _ in range(arguments.calls):
        first = len(model.starts_ns)
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=arguments.new_tokens,
            do_sample=True,
        )
        starts = model.starts_ns[first:]
        # The last forward of a call has none after it in the same call.
        periods = [after - before for before, after in pairwise(starts)]
        periods_ns += periods
        decode_ns += periods[1:]  # the first forward is the prefill
    print(
        json.dumps(
            {
                "calls": arguments.calls,
                "forwards": len(model.starts_ns),
                "requests": arguments.requests,
                "new_tokens": output.shape[1] - arguments.prompt_tokens,
                "period_mean_ns": round(statistics.fmean(periods_ns)) if periods_ns else None,
                "itl_mean_ns": round(statistics.fmean(decode_ns)) if decode_ns else None,
                "itl_median_ns": round(statistics.median(decode_ns)) if decode_ns else None,
                "tokens_checksum": int(output.long().sum()),
            }
        )
    )


if __name__ == "__main__":
    main()
