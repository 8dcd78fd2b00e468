"""A decode loop as LLM engines have it, that annotates itself with NVTX.

A step makes a batch (work in Python), copies its inputs to the device, launches the
forward and the sampling, reads the tokens back and makes something of them. Switches
choose what engines differ in: who waits for the tokens and when, graphs or single
launches, pinned or pageable memory, how many crossings of the bus. It runs on a
simulated device (``examples/simcuda``) with no GPU and no torch, or with
``--backend torch`` as a small model on a GPU or the CPU. At its end it prints as JSON
what it counted and measured itself, so that a recording of it can be checked:

    cctrace record -o runs/demo -- python examples/decode_loop.py --profile b300-cc
    cctrace query runs/demo --name itl
"""

from __future__ import annotations

import importlib
import json
import sys

from decode.errors import LoopError, UsageError
from decode.options import parse
from simcuda.bindings import CudaError


def main() -> int:
    """Run the loop, print its own figures, and return the exit status."""
    options = parse()
    try:
        # Not before it is asked for: torch may not be there.
        name = "torch_run" if options.backend == "torch" else "sim_run"
        backend = importlib.import_module(f"decode.{name}")
        backend.prepare(options)
        found = backend.run(options)
    except UsageError as error:
        print(f"decode_loop.py: error: {error}", file=sys.stderr)
        return 2
    except (LoopError, CudaError, OSError) as error:
        print(f"decode_loop.py: error: {error}", file=sys.stderr)
        if isinstance(error, LoopError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    asked = {
        "backend": options.backend,
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "steps": options.steps,
        "decode_steps": options.steps - 1,
        "seed": options.seed,
    }
    print(json.dumps(asked | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
