"""What a source of events is to a recording, whatever it reads them from.

The session makes the sources asked for and drives them all alike: ``attach`` before
the target starts, ``drain`` every few milliseconds from the drain thread, ``rows`` at
every flush from the writer thread, ``stop`` when recording is over, then ``drain`` and
``rows`` while ``pending``, ``finish`` and ``close``.
"""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from cctrace.record.tree import ProcessTree
from cctrace.store import manifest as m

Rows = list[tuple[str, pa.Table]]  # table name and rows to append to it


class Source(Protocol):
    """One reader of events; it may stand for several entries of the manifest."""

    @property
    def drained(self) -> int:
        """Events taken so far."""

    def attach(self, environment: dict[str, str]) -> None:
        """Get ready for the target; what it needs goes into its ``environment``.

        What cannot be had is refused in ``entries``, not raised.
        """

    def drain(self) -> int:
        """Take what has come; returns events taken."""

    def rows(self, tree: ProcessTree) -> Rows:
        """Decode what was drained since the last call.

        Args:
            tree: Told of threads and processes that the events make known.
        """

    def stop(self) -> None:
        """Take nothing new from anyone: recording is over."""

    def pending(self) -> bool:
        """Whether there may be more to drain after ``stop``."""

    def finish(self) -> Rows:
        """Rows known only at the end."""

    def close(self) -> None:
        """Give everything back."""

    def entries(self) -> list[m.Source]:
        """How each source stands, for the manifest."""

    def take_warnings(self) -> list[str]:
        """What the user is to be told, since the last call."""
