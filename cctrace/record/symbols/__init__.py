"""Addresses of traced processes made into frames: functions, files and lines.

How the recorder uses it::

    symbols = Symbolizer()              # before the target starts: it starts a child
    image = symbols.observe(pid)        # while the process lives: which files lie where
    if not symbols.knows(pid, address): # mapped since then: look again, same image
        symbols.observe(pid)
    symbols.forget(pid)                 # exec: what pid maps from now on is a new image
    frames = symbols.native(image, [address, ...], first_exact=True)
    frames = symbols.kernel([address, ...], first_exact=True)
    symbols.unresolved()                # frames that stayed addresses, by reason
    symbols.notes()                     # what was left out, for the run's warnings
    symbols.close()

An *image* is one program of one process, named by an ``int`` that ``observe`` returns.
It outlives the process, ``forget`` and the reuse of its pid: stacks taken before are
resolved by the image they were taken under, at any time before ``close``. Seeing a pid
again gives the same image as long as it is the same program; a start time or a vDSO
that has changed tells a new one by itself, ``forget`` tells it for certain.
``image_of(pid)`` is what the last ``observe`` of it returned, or None.

``native`` and ``kernel`` never raise. An address that cannot be resolved keeps what is
known of it: ``module`` and, as ``function``,

    0x1a2b        the address within the ELF file (what addr2line takes)
    file+0x1a2b   the offset in a file that could not be read any more
    0x7f12...     the address itself: module "[anon]", "[kernel]" or None (no mapping)

Addresses are return addresses, which belong to the call before them, so that the byte
before is looked up; ``first_exact=True`` says that the first of the list is the address
of an instruction instead (a function's entry), ``exact=True`` that all of them are.

Everything that a traced process could have written is read in a child process with
limits of time and memory (:mod:`.worker`); the recorder opens such files by ``O_PATH``
only.
"""

from __future__ import annotations

from cctrace.record.symbols.frame import Frame
from cctrace.record.symbols.resolver import Limits
from cctrace.record.symbols.symbolizer import REASONS, Symbolizer

__all__ = ["REASONS", "Frame", "Limits", "Symbolizer"]
