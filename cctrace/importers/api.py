"""Import one file: read it, stage its rows, write the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cctrace.importers import ingero, kineto, nsys
from cctrace.importers.accounting import Accounting, Rejects
from cctrace.importers.run_writer import (
    Described,
    destination,
    drop_staging,
    staging_folder,
    write_run,
)

if TYPE_CHECKING:
    from cctrace.importers.staging import Staging
    from cctrace.store.manifest import Manifest

Reader = Callable[[Path, "Staging", Accounting, Rejects], Described]

FORMATS: Final[dict[str, Reader]] = {
    "nsys": nsys.read,
    "kineto": kineto.read,
    "ingero": ingero.read,
}


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        manifest: ``run.json`` of the run.
        imported: Events of the file that are rows of the run.
        folded: Events that are a column of others' rows.
        left_out: Events that are not in the run; run.json has the reasons.
        bad: Of those, events that made no sense.
    """

    manifest: Manifest
    imported: int
    folded: int
    left_out: int
    bad: int


def import_file(
    path: Path, kind: str, run_dir: Path, *, force: bool = False, skip_bad: bool = False
) -> Imported:
    """Write what another tool recorded as a run directory.

    Args:
        path: The tool's file.
        kind: Its format, one of ``FORMATS``.
        run_dir: Run directory to write.
        force: Replace a run that is there.
        skip_bad: Leave out, and count, events that make no sense.

    Returns:
        The manifest written, and what became of the events.

    Raises:
        CctraceError: Exit code 4 where the file is damaged or not of that format, the
            message naming the place; 1 where the run cannot be written.
    """
    accounting = Accounting()
    rejects = Rejects(path, accounting, skip=skip_bad)
    with destination(run_dir, force=force) as folder:
        staging = staging_folder(folder)
        described = FORMATS[kind](path, staging, accounting, rejects)
        options = {
            "imported_from": kind,
            "file": path.name,
            "file_bytes": path.stat().st_size,
            "skip_bad": skip_bad,
        }
        manifest = write_run(folder, staging, described, options, (accounting, rejects))
        drop_staging(staging)
    return Imported(
        manifest,
        accounting.total("imported"),
        accounting.total("folded"),
        accounting.total("left_out"),
        rejects.count,
    )
