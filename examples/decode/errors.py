"""What can go wrong that is not a fault of the program."""

from __future__ import annotations


class LoopError(Exception):
    """The loop cannot run; the hint says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(Exception):
    """The switches ask for what this machine or device has not."""
