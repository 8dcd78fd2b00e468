"""A pseudo-terminal's end of a test: what a program under test shows on it."""

from __future__ import annotations

import os


def read_until_closed(leader: int) -> bytes:
    """Everything written to the terminal until its last holder has closed it; closes it too."""
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux says EIO when nobody holds the other end any more
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    return shown
