"""cctrace: which CPU-GPU crossing holds an LLM engine's decode loop up.

>>> import cctrace
>>> with cctrace.open("run") as run:
...     run.sql("SELECT name, count(*) FROM nvtx GROUP BY ALL").fetchall()

Nothing heavy is imported before :func:`open` is called: the command line and the
processes of an engine both import this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cctrace import version

if TYPE_CHECKING:
    import os

    from cctrace.analyze.opened import OpenedRuns

__all__ = ["__version__", "open"]

__version__ = version.VERSION


def open(*paths: str | os.PathLike[str]) -> OpenedRuns:  # noqa: A001 - cctrace.open reads as intended
    """Open one or several run directories for queries.

    Args:
        paths: Run directories; several give rows of all, told apart by ``run``.

    Returns:
        The runs; ``.sql(query)`` returns rows, ``.attribution()`` says where the time
        of a run's steps goes.

    Raises:
        cctrace.errors.CctraceError: Exit code 4; one of them is no run, or one of
            a version this cctrace does not read.
    """
    from cctrace.analyze.opened import open_session  # noqa: PLC0415 - see above

    return open_session(*paths)
