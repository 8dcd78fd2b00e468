"""The command line of the decode loop: what can be asked for, and what makes no sense.

Nothing here imports CUDA, torch or NVTX: a wrong switch is told before any of them
is loaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from decode.plan import LAYERS, Shape

PROFILES = Path(__file__).resolve().parents[1] / "simcuda" / "profiles"
LIBRARIES = Path(__file__).resolve().parents[1] / "simcuda" / "build"
DEFAULT_PROFILE = "b300"
MAX_KERNELS = 2000
MAX_CROSSINGS = 100_000

# Switches of the simulation alone: name of the option -> its default there.
_SIM_DEFAULTS = {
    "kernels": 31,
    "crossings": None,
    "alloc_per_step": False,
    "speculative": 0,
    "workers": 1,
    "gpu_us": 1999,
    "profile": None,
    "jitter": None,
    "sim_dir": LIBRARIES,
}


@dataclass(frozen=True)
class Options:
    """What the loop is to do; see ``--help`` for what each means."""

    backend: str
    steps: int
    requests: int
    prompt_tokens: int
    seed: int
    python_us: int
    async_scheduling: bool
    readback: str  # inline or worker
    host_memory: str | None  # pinned or pageable; None: what the device has
    launches: str | None  # graph or eager; None: what the device has
    kernels: int
    crossings: int | None  # crossings a step in all; None: as many as it takes
    alloc_per_step: bool
    speculative: int
    workers: int
    gpu_us: int
    profile: str | None
    jitter: float | None  # None: the profile's own
    sim_dir: Path

    @property
    def shape(self) -> Shape:
        """What one step of one process on the simulated device is made of."""
        return Shape(
            eager=self.launches == "eager",
            kernels=self.kernels,
            passes=self.speculative + 1,
            collectives=self.workers > 1,
            read_by_worker=self.readback == "worker",
            allocates=self.alloc_per_step,
        )


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: a whole number from ``low`` to ``high``."""

    def number(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range: give a number {limits}")
        return value

    number.__name__ = "number"  # argparse says "invalid number value: 'x'"
    return number


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range: give a fraction from 0 to 1")
    return value


_fraction.__name__ = "fraction"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decode_loop.py",
        description="A decode loop as LLM engines have it, that annotates itself with NVTX.",
    )
    add = parser.add_argument
    add("--backend", choices=("sim", "torch"), default="sim", help="simulated device, or torch")
    add("--steps", type=_whole(1), default=211, help="steps, the prefill included")
    add("--requests", type=_whole(1, 4096), default=7, help="requests in the batch")
    add("--prompt-tokens", type=_whole(1, 65536), default=61, help="tokens in each prompt")
    add("--seed", type=_whole(0), default=0, help="seed of tokens, weights and jitter")
    add("--python-us", type=_whole(0), default=401, help="CPU time of the host's work a step")
    add(
        "--async-scheduling",
        action="store_true",
        help="prepare the next step while one runs; read tokens back one step late",
    )
    add(
        "--readback",
        choices=("inline", "worker"),
        default="inline",
        help="thread that waits for the tokens: the loop's own, or a worker",
    )
    add("--host-memory", choices=("pinned", "pageable"), help="memory of inputs and tokens")
    add("--launches", choices=("graph", "eager"), help="one graph, or kernel by kernel")

    sim = parser.add_argument_group("simulated device (--backend sim)")
    add = sim.add_argument
    add("--kernels", type=_whole(1, MAX_KERNELS), help="kernels of one forward")
    add(
        "--crossings",
        type=_whole(1, MAX_CROSSINGS),
        help="crossings of each step in all: small copies and launches make up the number",
    )
    add(
        "--alloc-per-step",
        action="store_true",
        default=None,
        help="cudaMalloc, a copy and cudaFree in each step",
    )
    add("--speculative", type=_whole(0, 16), metavar="K", help="K draft passes, then verify")
    add("--workers", type=_whole(1, 8), metavar="W", help="W processes, one device each")
    add("--gpu-us", type=_whole(1), help="device time of one forward of a decode step")
    add("--profile", help="bridge profile, unless SIMCUDA_PROFILE names one")
    add("--jitter", type=_fraction, help="spread of the simulated times, a fraction")
    add("--sim-dir", type=Path, help="folder of the simulated libraries")
    return parser


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return what the command line asks for; leave with 2 where it makes no sense."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    on_sim = given["backend"] == "sim"
    for name, default in _SIM_DEFAULTS.items():
        if given[name] is None:
            given[name] = default
        elif not on_sim:
            switch = "--" + name.replace("_", "-")
            parser.error(f"{switch} is for --backend sim; leave it out, or the backend")
    if on_sim:
        given["host_memory"] = given["host_memory"] or "pinned"
        given["launches"] = given["launches"] or "graph"
        given["profile"] = _profile(parser, given["profile"])
    options = Options(**given)
    if on_sim:
        _check_sim(parser, options)
    return options


def _profile(parser: argparse.ArgumentParser, asked: str | None) -> str:
    """Return the profile's name or path: the environment's, the switch's, or the default."""
    set_before = os.environ.get("SIMCUDA_PROFILE")
    if asked and set_before and asked != set_before:
        parser.error(f"--profile {asked} and SIMCUDA_PROFILE={set_before} differ: give one of them")
    profile = set_before or asked or DEFAULT_PROFILE
    if "/" not in profile:
        known = sorted(path.stem for path in PROFILES.glob("*.toml"))
        if profile not in known:
            parser.error(f"no profile {profile!r}: {', '.join(known)}, or the path of one")
    elif not Path(profile).is_file():
        parser.error(f"no profile at {profile}: give the path of a TOML file, or a name")
    return profile


def _check_sim(parser: argparse.ArgumentParser, options: Options) -> None:
    """Leave with 2 where switches of the simulation contradict each other."""
    takes = options.shape.crossings
    if options.crossings is not None and options.crossings < takes:
        parser.error(
            f"--crossings {options.crossings} is too few: a step with these switches makes "
            f"{takes} as it is; give {takes} or more"
        )
    if options.workers > 1 and options.launches == "eager" and options.kernels < LAYERS:
        parser.error(
            f"--kernels {options.kernels} is too few: {LAYERS} layers end in an all-reduce "
            f"each; give {LAYERS} or more"
        )
