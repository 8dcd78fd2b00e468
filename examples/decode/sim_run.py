"""The loop on the simulated device: find or build its libraries, run, count.

The runtime looks ``libcuda.so.1`` up by name as NVIDIA's does, and the loader reads
``LD_LIBRARY_PATH`` at start-up alone: :func:`prepare` therefore starts this program
anew, in the same process, where the variable does not name the folder yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import sys
from ctypes import byref, c_int
from pathlib import Path
from typing import Any, NoReturn

from decode import figures
from decode.errors import LoopError, UsageError
from decode.options import LIBRARIES, Options
from simcuda.bindings import COLLECTIVES, DRIVER, RUNTIME, Calls, Runtime

_ROOT = LIBRARIES.parents[2]
_BUILD_LIMIT_S = 300


def prepare(options: Options) -> None:
    """Have the libraries built and the environment set; may start this program anew.

    Raises:
        LoopError: The libraries are not there and cannot be built.
    """
    directory = options.sim_dir.resolve()
    lacking = [name for name in (RUNTIME, DRIVER, COLLECTIVES) if not (directory / name).exists()]
    if lacking:
        if directory != LIBRARIES:
            raise LoopError(
                f"{directory} lacks {', '.join(lacking)}",
                f"make -C {_shown(LIBRARIES.parent)} BUILD={directory}",
            )
        _build()
    wanted = {
        "SIMCUDA_PROFILE": options.profile,
        "SIMCUDA_SEED": options.seed,
        "SIMCUDA_JITTER": options.jitter,
    }
    for name, value in wanted.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    paths = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    if paths[:1] != [str(directory)]:
        os.environ["LD_LIBRARY_PATH"] = ":".join([str(directory), *paths])
        _start_anew()


def _shown(path: Path) -> Path:
    """Return a path as one would type it at the top of the project."""
    return path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path


def _start_anew() -> NoReturn:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def _build() -> None:
    """Build the libraries, one process at a time."""
    folder = LIBRARIES.parent
    command = ["make", "--no-print-directory", "-s", "-C", str(folder), f"PYTHON={sys.executable}"]
    hint = f"make setup, then make -C {_shown(folder)}: it needs make, gcc and CUDA's headers"
    with (folder / "Makefile").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_BUILD_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LoopError(f"cannot build the simulated CUDA libraries: {error}", hint) from error
    if done.returncode != 0:
        raise LoopError(
            f"building the simulated CUDA libraries failed:\n{done.stdout.rstrip()}", hint
        )


def check_devices(calls: Calls, options: Options) -> None:
    """Check that each worker has a device of its own.

    Raises:
        UsageError: ``--workers`` is more than the profile's devices.
    """
    count = c_int()
    calls.make("cudaGetDeviceCount", byref(count))
    if options.workers > count.value:
        raise UsageError(
            f"--workers {options.workers}: {options.profile} simulates {count.value} devices"
        )


def accepted_tokens(options: Options) -> int:
    """Return how many tokens the requests get: with speculation, as many as are accepted.

    A step of K draft passes gives each request 1 to K + 1 tokens; the draw stands in
    for the comparison that a model would make.
    """
    drawn = random.Random(options.seed)
    first = options.requests
    if not options.speculative:
        return first * options.steps
    most = options.speculative + 1
    return first + sum(drawn.randint(1, most) for _ in range(first * (options.steps - 1)))


def run(options: Options) -> dict[str, Any]:
    """Run the loop and return its figures."""
    # What loads NVTX or CUDA comes after the program has been started anew.
    from decode.loop import Engine, Loop  # noqa: PLC0415 - see above
    from decode.plan import Scheduler  # noqa: PLC0415 - see above
    from decode.pool import Pool  # noqa: PLC0415 - see above
    from decode.sim import SimDevice  # noqa: PLC0415 - see above

    runtime = Runtime(options.sim_dir.resolve())
    late = options.async_scheduling
    passes = options.shape.passes
    scheduler = Scheduler(
        options.requests, options.prompt_tokens, passes, options.seed, invents=True
    )
    if options.workers > 1:
        calls = Calls(runtime)
        check_devices(calls, options)
        with contextlib.closing(Pool(options)) as pool:
            pool.meet()
            loop = Loop(scheduler, pool, options.python_us, late=late)
            starts_ns = loop.generate(options.steps)
            processes = pool.finish()
        processes.insert(0, figures.of_process(None, None, {}, calls.counts(), starts_ns))
    else:
        device = SimDevice(runtime, options)
        engine = Engine(device, passes, late=late, by_worker=options.shape.read_by_worker)
        loop = Loop(scheduler, engine, options.python_us, late=late)
        before = device.counts()
        starts_ns = loop.generate(options.steps)
        engine.close()
        steps = figures.subtract(device.counts(), before)
        device.close()
        processes = [figures.of_process(0, 0, steps, device.counts(), starts_ns)]
    return {
        "device": "simulated",
        "profile": options.profile,
        "tokens": accepted_tokens(options),
        "readbacks": loop.token_lists,
        "tokens_checksum": loop.tokens_checksum,
        "crossings_per_step": options.crossings or options.shape.crossings,
        **figures.latencies(starts_ns),
        "processes": processes,
    }
