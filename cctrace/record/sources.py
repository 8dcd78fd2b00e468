"""The names of the sources, apart from the code that attaches them.

The command line needs the names before anything that starts threads is imported.
"""

from __future__ import annotations

from typing import Final

SOURCES: Final = ("nvtx", "processes")
