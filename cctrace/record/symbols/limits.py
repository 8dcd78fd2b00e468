"""What the recorder and the child that reads for it agree on."""

from __future__ import annotations

from typing import Final

MAX_DESCRIPTORS: Final = 4  # a request's: the memory file, the file, two roots
MAX_REQUEST_BYTES: Final = 16 << 20
MAX_ADDRESSES: Final = 4096  # of one request
