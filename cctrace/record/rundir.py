"""Make the run directory, and keep a little of the disk back for its last words."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from cctrace.errors import EXIT_FAILED, CctraceError
from cctrace.store.manifest import MANIFEST_NAME, RECORDING, read_manifest

_RESERVE_NAME: Final = ".reserve"
_RESERVE_BYTES: Final = 512 * 1024  # manifest and the table of losses


class OldRun:
    """A run about to be replaced: set aside until the new one has begun."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path.with_name(f".{path.name}.replaced-{os.getpid()}")
        path.rename(self._aside)

    def restore(self) -> None:
        """Put it back; its place must be free again."""
        self._aside.rename(self._path)

    def discard(self) -> None:
        """Delete it."""
        shutil.rmtree(self._aside, ignore_errors=True)


def create_run_dir(path: Path, *, force: bool) -> OldRun | None:
    """Make ``path`` an empty directory for a run.

    Args:
        path: Where the run goes; its parents are made too.
        force: Replace a run that is there. Nothing but a run is ever replaced.

    Returns:
        The run that was there, set aside.

    Raises:
        CctraceError: Something is there already, or the place cannot be written.
    """
    old: OldRun | None = None
    made = False
    try:
        if path.is_dir() and not any(path.iterdir()):
            _probe(path)
            return None
        if path.exists() or path.is_symlink():
            _check_replaceable(path, force=force)
            old = OldRun(path)
        path.mkdir(parents=True)
        made = True
        _probe(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            if made:
                path.rmdir()
            if old is not None:
                old.restore()
        raise CctraceError(
            f"cannot write a run to {path}: {error.strerror or error}",
            "name another place with -o",
            EXIT_FAILED,
        ) from error
    return old


def _check_replaceable(path: Path, *, force: bool) -> None:
    is_run = path.is_dir() and not path.is_symlink() and (path / MANIFEST_NAME).is_file()
    if not is_run:
        raise CctraceError(
            f"{path} exists and is not a cctrace run",
            "name another place with -o",
            EXIT_FAILED,
        )
    if not force:
        raise CctraceError(
            f"{path} exists", "add --force to replace that run, or name another place with -o"
        )
    recorder = _recorder(path)
    if recorder is not None:
        raise CctraceError(
            f"{path} is being recorded right now, by process {recorder}",
            "wait for it, or name another place with -o",
        )


def _recorder(path: Path) -> int | None:
    """Process that is recording the run: both would write into one directory."""
    try:
        manifest = read_manifest(path)
    except CctraceError:  # damaged, or of another version: it may be replaced
        return None
    return manifest.recorder.pid if manifest.ended == RECORDING else None


def _probe(path: Path) -> None:
    probe = path / ".probe"
    probe.touch()
    probe.unlink()


class Reserve:
    """Disk space held back, so that a full disk can still be told in the run."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _RESERVE_NAME
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Where the filesystem cannot, it has nothing to hold back either.
            with contextlib.suppress(OSError):
                os.posix_fallocate(fd, 0, _RESERVE_BYTES)
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give the space back."""
        self._path.unlink(missing_ok=True)
