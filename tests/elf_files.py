"""ELF files made by hand, as no compiler would make them."""

from __future__ import annotations

import struct
from pathlib import Path


def with_symbol_tables(path: Path, tables: int, strings: bytes, symbols: bytes) -> None:
    """A file whose sections are so many symbol tables, all over the same bytes."""
    start = 64 + len(strings) + len(symbols)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        62,
        1,
        0,
        0,
        start,
        0,
        64,
        56,
        0,
        64,
        tables + 1,
        0,
    )
    text = struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, 64, len(strings), 0, 0, 1, 0)
    at = 64 + len(strings)
    table = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, at, len(symbols), 0, 0, 8, 24)
    path.write_bytes(header + strings + symbols + text + table * tables)
