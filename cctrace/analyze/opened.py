"""Opened runs with their analysis: what ``cctrace.open`` returns.

``store`` knows nothing of ``analyze``, so a session that can be asked for an
attribution is one of this layer. The package ``cctrace`` itself, which is in front of
both, opens this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cctrace.store.run import open_runs
from cctrace.store.session import Session

if TYPE_CHECKING:
    import os

    from cctrace.analyze.attribution import Attribution


class OpenedRuns(Session):
    """One or several opened runs: SQL over all of them, attribution of each."""

    def attribution(self, run: str | None = None) -> Attribution:
        """Tell where the time of a run's steps goes, and what of it can be had back.

        Reads the run anew; views this session has changed do not count.

        Args:
            run: Label of the run; it may be left out where one is open.

        Returns:
            The attribution; see :mod:`cctrace.analyze.attribution` for its fields.

        Raises:
            CctraceError: Exit code 2; no run of that label is open, or several are and
                none was named. Exit code 4; a part is damaged or gone.
        """
        from cctrace.analyze import pipeline  # noqa: PLC0415 - SQL needs no analysis

        return pipeline.attribute(pipeline.choose(self.runs, run))

    def _repr_html_(self) -> str:
        """What ran, what is in the runs and what was lost, for a notebook."""
        from cctrace.analyze import notebook  # noqa: PLC0415 - only a notebook asks

        return notebook.runs_html(self.runs)


def open_session(*paths: str | os.PathLike[str]) -> OpenedRuns:
    """Open one or several runs.

    Args:
        paths: Run directories.

    Raises:
        CctraceError: Exit code 4; one of them is no run this cctrace reads.
    """
    return OpenedRuns(open_runs(paths))
