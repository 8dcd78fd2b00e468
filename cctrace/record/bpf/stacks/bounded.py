"""What is remembered of programs, within a number of bytes: they say how much there is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Bounded(Generic[_Key, _Value]):
    """Values by key; the ones unused for longest go first. Not for two threads at once.

    Args:
        bytes_max: What all together may take.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._values: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)

    def put(self, key: _Key, value: _Value, size_bytes: int) -> None:
        """Remember a value that takes so much."""
        self.pop(key)
        self._values[key] = value, size_bytes
        self.size_bytes += size_bytes
        while self.size_bytes > self._bytes_max:
            _, (_, dropped) = self._values.popitem(last=False)
            self.size_bytes -= dropped

    def get(self, key: _Key) -> _Value | None:
        """The value; None: there is none."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def pop(self, key: _Key) -> _Value | None:
        """The value, no longer remembered; None: there is none."""
        found = self._values.pop(key, None)
        if found is None:
            return None
        self.size_bytes -= found[1]
        return found[0]
