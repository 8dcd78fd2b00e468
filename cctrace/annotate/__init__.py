"""Have engines annotate themselves: the recorder's half of the annotation.

The recorder starts the engine with the environment made here. In it, NVTX loads the
agent, and Python finds ``bootstrap/sitecustomize.py``, which hooks the adapters of
``engine/`` into the engine as it is imported. Everything below ``bootstrap`` and
``engine`` runs in the engine's interpreter and is never imported by the recorder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Read by NVTX itself: nvtxDetail/nvtxInit.h, NVTX v3.
INJECTION = "NVTX_INJECTION64_PATH"
CHAIN = "CCTRACE_NVTX_CHAIN"
SOCKET = "CCTRACE_SOCKET"
EMIT = "CCTRACE_EMIT"
PYTHONPATH = "PYTHONPATH"


def bootstrap_dir() -> Path:
    """Directory that makes a Python annotate its engine when first on PYTHONPATH."""
    return Path(__file__).resolve().parent / "bootstrap"


def environment(
    base_env: Mapping[str, str],
    agent: Path | None,
    emit: Path,
    socket: Path,
    *,
    annotate: bool = True,
) -> dict[str, str]:
    """Return the variables to add to, or to replace in, the target's environment.

    Args:
        base_env: Environment the target would have without cctrace.
        agent: The NVTX injection library; None to leave NVTX alone.
        emit: The library through which the adapters call NVTX.
        socket: The recorder's hand-over socket.
        annotate: Also hook Python engines that do not annotate themselves.
    """
    changes = {SOCKET: str(socket), EMIT: str(emit)}
    if agent is not None:
        changes[INJECTION] = str(agent)
        previous = base_env.get(INJECTION)
        if previous and previous != str(agent):
            changes[CHAIN] = previous
    if annotate:
        # An empty element would mean the current directory: keep those the user has,
        # and make none.
        here = str(bootstrap_dir())
        existing = base_env.get(PYTHONPATH)
        if not existing:
            changes[PYTHONPATH] = here
        elif here not in existing.split(os.pathsep):
            changes[PYTHONPATH] = here + os.pathsep + existing
    return changes
