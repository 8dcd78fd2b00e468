"""Record a program of a few NVTX ranges: does the whole path work here?

Run as ``python -m cctrace.record.selftest RUN`` by ``cctrace doctor``, in a
process of its own, because a recorder takes over its process's signals and
children. Writes one JSON object to stdout: what arrived and what was lost.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from cctrace.record.session import Options, Session

RANGES: Final = 7
_PROGRAM: Final = f"""
import nvtx
for _ in range({RANGES}):
    with nvtx.annotate("doctor", domain="cctrace.doctor"):
        pass
"""


def record(run_dir: Path) -> dict[str, Any]:
    """Record the program into ``run_dir``.

    Returns:
        ``events`` and ``lost`` (counts), ``reasons`` for what is amiss.

    Raises:
        CctraceError: The run cannot be written or the program not started.
    """
    session = Session(
        Options(
            command=[sys.executable, "-c", _PROGRAM],
            output=run_dir,
            sources=("nvtx", "processes"),
            annotate=False,
        )
    )
    session.start()
    outcome = session.record()
    session.wait_target()
    manifest = outcome.manifest
    refused = [source.reason for source in manifest.sources if source.reason]
    return {
        "events": manifest.events,
        "lost": manifest.lost,
        "reasons": [*refused, *manifest.warnings, *outcome.losses],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(record(Path(sys.argv[1]))))
