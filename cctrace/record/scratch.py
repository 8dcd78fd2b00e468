"""Directories of one recorder in the temporary directory, and what killed ones left there.

A directory's name begins with its recorder's pid. That is not enough to tell who is gone:
containers share a temporary directory and number their processes apart. So each is locked
while its recorder lives, and has its name only once it is: who is killed in between, some
microseconds, leaves an empty directory for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "cctrace-"
_UNNAMED: Final = "cctrace.new-"  # before it is locked


def directory_name(purpose: str = "") -> str:
    """What the name of a directory begins with; eight characters follow.

    Args:
        purpose: Words that tell what it is for.
    """
    return f"{_PREFIX}{os.getpid()}-{f'{purpose}-' if purpose else ''}"


class ScratchDirectory:
    """A private directory (0700), locked until it is closed.

    Args:
        purpose: Words for its name.
        place: Where it is made; None: the temporary directory.

    Attributes:
        path: Where it is.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, purpose: str = "", place: str | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_UNNAMED, dir=place))
        self._lock_fd, self._closed = -1, False
        try:
            self._lock_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            name = directory_name(purpose) + self.path.name.removeprefix(_UNNAMED)
            self.path = self.path.rename(self.path.with_name(name))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Remove it with all that is in it; again: nothing."""
        if not self._closed:
            self._closed = True
            shutil.rmtree(self.path, ignore_errors=True)
            if self._lock_fd >= 0:
                os.close(self._lock_fd)


def remove_stale_directories() -> None:
    """Remove what recorders that were killed have left in the temporary directory."""
    try:
        place = Path(tempfile.gettempdir())
    except OSError:  # there is none that can be written
        return
    for path in place.glob(f"{_PREFIX}*-*"):
        pid = path.name[len(_PREFIX) :].split("-")[0]
        with contextlib.suppress(OSError):
            if (
                pid.isdigit()
                and path.lstat().st_uid == os.geteuid()
                and not path.is_symlink()
                and not Path(f"/proc/{pid}").exists()
                and not _is_locked(path)
            ):
                shutil.rmtree(path, ignore_errors=True)


def _is_locked(path: Path) -> bool:
    """Whether a recorder holds it, perhaps one whose pid is of another namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
