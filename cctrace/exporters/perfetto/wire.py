"""Protobuf's wire format for a batch of messages at once: columns in, bytes out.

A Perfetto trace has two packets for each slice, and making each by its own object takes
longer than everything else an export does. Here a field of all messages of a batch is
one piece: a matrix with a row of bytes for each message, and how many bytes of each row
count. Pieces side by side are messages; nothing runs per message.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Ints = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH_DELIMITED: Final = 2
_LONGEST_VARINT: Final = 10
_BITS: Final = 7


@dataclass(frozen=True)
class Piece:
    """A field, or the head of a nested message, in each of n messages.

    Attributes:
        data: Bytes, n rows of the same width, from the left.
        lengths: Bytes of each row that count; 0 where the message lacks the field.
    """

    data: Bytes
    lengths: Ints


def varint_field(number: int, values: npt.NDArray[Any], present: Mask | None = None) -> Piece:
    """An integer, enum or bool field.

    Args:
        number: Number of the field.
        values: Integers, n; negative ones as protobuf's int64.
        present: Which messages have the field; all unless given.
    """
    return _tagged(number, _VARINT, *_varints(values.astype(np.uint64)), present)


def fixed64_field(number: int, values: npt.NDArray[Any], present: Mask | None = None) -> Piece:
    """A fixed64 or double field.

    Args:
        number: Number of the field.
        values: Integers or doubles, n.
        present: Which messages have the field; all unless given.
    """
    kind = "<f8" if values.dtype.kind == "f" else "<u8"
    data = np.ascontiguousarray(values.astype(kind)).view(np.uint8).reshape(-1, 8)
    return _tagged(number, _FIXED64, data, np.full(len(values), 8, np.int64), present)


def message_field(
    number: int, pieces: Sequence[Piece], present: Mask | None = None
) -> Sequence[Piece]:
    """A nested message, as its head and its own pieces.

    Args:
        number: Number of the field.
        pieces: The nested message's fields, one at least.
        present: Which messages have the field; in the others no piece may have bytes.
            All unless given.
    """
    lengths = _total(pieces)
    head = _tagged(number, _LENGTH_DELIMITED, *_varints(lengths.astype(np.uint64)), present)
    return [head, *pieces]


def constant(content: bytes, count: int) -> Piece:
    """The same bytes, fields that are encoded already, in each of ``count`` messages."""
    row = np.frombuffer(content, np.uint8)
    data = np.broadcast_to(row, (count, len(row)))
    return Piece(data, np.full(count, len(row), np.int64))


def join(pieces: Iterable[Piece]) -> Any:
    """Put pieces side by side.

    Args:
        pieces: Pieces of n messages, one at least.

    Returns:
        ``pyarrow.LargeBinaryArray`` of n messages.
    """
    used = [piece for piece in pieces if piece.data.shape[1]]
    count = len(used[0].lengths)
    width = sum(piece.data.shape[1] for piece in used)
    data = np.empty((count, width), np.uint8)
    counts = np.empty((count, width), np.bool_)
    at = 0
    for piece in used:
        end = at + piece.data.shape[1]
        data[:, at:end] = piece.data
        counts[:, at:end] = np.arange(end - at) < piece.lengths[:, None]
        at = end
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(_total(used), out=offsets[1:])
    content = np.compress(counts.ravel(), data.ravel())  # six times as fast as data[counts]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), count, buffers)


def _total(pieces: Sequence[Piece]) -> Ints:
    """Bytes of all pieces of each message."""
    total = np.zeros(len(pieces[0].lengths), np.int64)
    for piece in pieces:
        total += piece.lengths
    return total


def _tagged(number: int, kind: int, data: Bytes, lengths: Ints, present: Mask | None) -> Piece:
    tag, [size] = _varints(np.array([number << 3 | kind], np.uint64))
    tagged = np.concatenate([np.broadcast_to(tag[:, :size], (len(data), size)), data], axis=1)
    return Piece(tagged, lengths + size if present is None else (lengths + size) * present)


def _varints(values: npt.NDArray[np.uint64]) -> tuple[Bytes, Ints]:
    """Integers as varints: seven bits a byte, least first, the high bit on all but the last."""
    lengths = np.ones(len(values), np.int64)
    for length in range(1, _LONGEST_VARINT):
        longer = values >= np.uint64(1 << length * _BITS)
        if not longer.any():
            break
        lengths += longer
    places = np.arange(int(lengths.max(initial=1)))
    shifted = values[:, None] >> (places * _BITS).astype(np.uint64)
    data = (shifted & np.uint64(0x7F)).astype(np.uint8)
    data |= (places < lengths[:, None] - 1).astype(np.uint8) << 7
    return data, lengths
