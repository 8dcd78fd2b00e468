"""Run vLLM on the CPU, offline, with a tiny Llama of dummy weights.

All of vLLM is real: its processes, scheduler, model runner and sampler. As JSON the
program prints what vLLM itself counted and measured of its steps, so that a
recording of it can be checked:

- ``iterations`` and ``decode_iterations``: engine steps, as vLLM numbers them in its
  iteration details, and those of them without a request in prefill;
- ``executed_steps``, ``period_*`` and ``itl_*``: from ``plugin/step_clock.py``, which
  times the steps inside the engine's process. A period is from one step's start to
  the next one's within a call of generate; the ITL is the period of a decode step;
- ``tokens_checksum``: of all generated tokens, to compare two runs of one seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for the figures
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "step_clock",
}.items():
    os.environ.setdefault(name, value)

WAIT_S = 30.0


class IterationLog:
    """A vLLM stat logger that keeps the iteration details vLLM reports.

    Attributes:
        prefills: Requests in prefill, by iteration number.
    """

    def __init__(self) -> None:
        self.prefills: dict[int, int] = {}

    def record(self, scheduler_stats: Any, *_args: Any, **_kwargs: Any) -> None:
        """Take what the engine says after a step."""
        details = getattr(scheduler_stats, "iteration_details", None)
        if details is not None and not details.is_dummy:
            self.prefills[details.iteration_index] = details.num_ctx_requests

    def __getattr__(self, _name: str) -> Any:
        """Ignore all else that a stat logger is told."""
        return lambda *_args, **_kwargs: None


def main() -> None:
    """Generate ``--calls`` times and print vLLM's own figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4, help="prompts of one call")
    parser.add_argument("--prompt-tokens", type=int, default=48, help="tokens in each prompt")
    parser.add_argument("--new-tokens", type=int, default=61, help="tokens to generate")
    parser.add_argument("--calls", type=int, default=2, help="calls of generate")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and sampling")
    parser.add_argument("--in-process", action="store_true", help="run the engine in this process")
    arguments = parser.parse_args()
    if arguments.in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    sys.path.append(str(HERE / "plugin"))  # the engine's processes inherit it

    with tempfile.TemporaryDirectory() as directory:
        os.environ["STEP_CLOCK_DIR"] = directory
        print(json.dumps(generate(arguments, Path(directory))))


def generate(arguments: argparse.Namespace, clock_dir: Path) -> dict[str, Any]:
    """Run the engine; return its figures."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment is set

    started = time.perf_counter()
    llm = LLM(
        model=str(HERE / "model"),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_seqs=64,
        seed=arguments.seed,
        disable_log_stats=False,
        enable_logging_iteration_details=True,
        enforce_eager=True,
    )
    startup_s = time.perf_counter() - started
    log = IterationLog()
    llm.llm_engine.logger_manager.stat_loggers.append(log)
    numbers = random.Random(arguments.seed)
    sampling = SamplingParams(
        temperature=1.0,
        seed=arguments.seed,
        max_tokens=arguments.new_tokens,
        ignore_eos=True,
        detokenize=False,
    )
    spans_ns = []
    tokens: list[int] = []
    for _ in range(arguments.calls):
        prompts = [
            {"prompt_token_ids": numbers.choices(range(2, 1024), k=arguments.prompt_tokens)}
            for _ in range(arguments.requests)
        ]
        begin_ns = time.perf_counter_ns()
        for output in llm.generate(prompts, sampling, use_tqdm=False):
            tokens += output.outputs[0].token_ids
        spans_ns.append((begin_ns, time.perf_counter_ns()))
    llm.llm_engine.engine_core.shutdown()
    starts_ns = read_clock(clock_dir)
    prefills = [log.prefills[index] for index in sorted(log.prefills)]
    every_ns, decode_ns = periods(starts_ns, prefills, spans_ns)
    return {
        "startup_s": round(startup_s, 3),
        "calls": arguments.calls,
        "requests": arguments.requests * arguments.calls,
        "generated_tokens": len(tokens),
        "tokens_checksum": sum(i * token for i, token in enumerate(tokens, 1)),
        "iterations": len(prefills),
        "decode_iterations": prefills.count(0),
        "executed_steps": len(starts_ns),
        "periods": len(every_ns),
        "period_mean_ns": round(statistics.fmean(every_ns)),
        "itl_mean_ns": round(statistics.fmean(decode_ns)),
        "itl_median_ns": round(statistics.median(decode_ns)),
    }


def read_clock(directory: Path) -> list[int]:
    """Return when each executed step began, ns, once the engine has written it."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for path in directory.glob("steps-*.json"):
            try:
                starts_ns: list[int] = json.loads(path.read_text())
            except ValueError:  # being written
                continue
            if starts_ns:
                return starts_ns
        time.sleep(0.05)
    sys.exit(f"vLLM's engine wrote no steps into {directory} within {WAIT_S:.0f} s")


def periods(
    starts_ns: list[int], prefills: list[int], spans_ns: list[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Return the step periods, ns, within each call of generate: all, and of decode steps.

    Args:
        starts_ns: Start of each step, ns.
        prefills: Requests in prefill in each step.
        spans_ns: Begin and end of each call of generate, ns, on the same clock.
    """
    every: list[int] = []
    decode: list[int] = []
    steps = list(zip(starts_ns, prefills, strict=True))
    for begin_ns, end_ns in spans_ns:
        within = [step for step in steps if begin_ns <= step[0] < end_ns]
        for (start_ns, in_prefill), (next_ns, _) in pairwise(within):
            every.append(next_ns - start_ns)
            if not in_prefill:
                decode.append(next_ns - start_ns)
    return every, decode


if __name__ == "__main__":
    main()
