"""A JSON file of events, one event at a time: memory holds a piece of the file.

The file is one object with an array of events in it, and facts beside that array; or
only the array. Each value is found by the standard library's scanner, which is
written in C; numbers with a fraction keep their digits (``Number``), as a float would
lose the nanoseconds of a time of today.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.importers.accounting import broken, shown

_CHUNK_BYTES: Final = 1 << 22
# A value that is larger is no event; it could fill the memory.
_MAX_VALUE_CHARS: Final = 1 << 26
_GZIP_MAGIC: Final = b"\x1f\x8b"
_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Up to the first character of the next element.
_SEPARATOR: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")
# So near to the end of what was read an error may only mean that more is needed.
_UNSURE_CHARS: Final = 16


class Number(str):
    """A number with a fraction or an exponent, as it is written."""

    __slots__ = ()


class JsonEvents:
    """The events of a file, and what is beside them.

    Args:
        path: The file, plain or gzip-compressed (told by its content).
        key: Name of the array of events.
        wanted: Other members of the outer object to keep; there can be any number.

    Attributes:
        facts: Those members; what comes after the events is there once they have been
            read.
        events: Events read so far.
        pieces: Pieces of the file read so far, of 4 MiB or more.
    """

    def __init__(self, path: Path, key: str, wanted: frozenset[str]) -> None:
        self._path = path
        self._key = key
        self._wanted = wanted
        self._decoder = json.JSONDecoder(parse_float=Number, strict=False)
        self._text = ""
        self._at = 0
        self._start = 0  # of the value read last
        self._before = 0  # bytes of the file's text before ``_text``
        self._ended = False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._file: io.BufferedIOBase
        self.facts: dict[str, Any] = {}
        self.events = 0
        self.pieces = 0

    def place(self) -> str:
        """Where the event is that was read last."""
        return f"event {self.events}, byte {self._byte(self._at)}"

    def read(self) -> Iterator[Any]:
        """The events, in the order of the file.

        Raises:
            CctraceError: Exit code 4; not readable, not JSON, cut off, or no events.
        """
        try:
            with self._open() as file:
                is_gzip = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
                self._file = gzip.GzipFile(fileobj=file) if is_gzip else file
                yield from self._read()
        except (OSError, EOFError, zlib.error) as error:
            place = f"after byte {self._byte(len(self._text))} of its content"
            raise broken(self._path, place, f"cannot be read: {error}") from error

    def _open(self) -> io.BufferedReader:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise CctraceError(
                f"cannot read {self._path}: {error.strerror or error}", None, EXIT_BAD_DATA
            ) from error

    def _read(self) -> Iterator[Any]:
        opening = self._character()
        if opening == "[":
            yield from self._elements()
        elif opening != "{":
            raise self.error(f"no JSON object: it starts with {shown(opening)}")
        else:
            yield from self._members()
        if self._character():
            raise self.error("something follows the end of the JSON")

    def _members(self) -> Iterator[Any]:
        self._at += 1
        found = False
        if self._character() != "}":
            while True:
                key = self._value()
                if not isinstance(key, str) or isinstance(key, Number):
                    raise self.error(f"a name was expected, not {shown(key)}")
                self._expect(":")
                if key == self._key and self._character() == "[":
                    found = True
                    yield from self._elements()
                else:
                    value = self._value()
                    if key in self._wanted:
                        self.facts[key] = value
                if self._character() != ",":
                    break
                self._at += 1
        self._expect("}")
        if not found:
            raise broken(self._path, "top level", f"no array {self._key}")

    def _elements(self) -> Iterator[Any]:
        self._at += 1
        if self._character() == "]":
            self._at += 1
            return
        decode, separator = self._decoder.raw_decode, _SEPARATOR.match
        following: re.Match[str] | None
        while True:
            start = self._at
            try:
                value, end = decode(self._text, start)
                following = separator(self._text, end)
            except (ValueError, RecursionError):
                following = None
            if following is None:  # the last one of this piece, or of all, or an error
                value = self._value()
                end, self._at = self._at, self._start
            self.events += 1
            yield value  # with ``_at`` at its start, so that ``place`` tells that
            self._at = end
            if following is not None:
                self._at = following.end()
            elif not self._goes_on():
                return

    def _goes_on(self) -> bool:
        """Take what stands after an element; whether another one follows."""
        found = self._character()
        if found not in (",", "]"):
            raise self.error(f"a comma was expected, not {shown(found)}")
        self._at += 1
        if found == ",":
            self._character()
        return found == ","

    def _character(self) -> str:
        """The next character that is no space, not taken; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, wanted: str) -> None:
        found = self._character()
        if found != wanted:
            raise self.error(f"{shown(wanted)} was expected, not {shown(found)}")
        self._at += 1

    def _value(self) -> Any:
        self._character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string")
                is_cut |= error.pos >= len(self._text) - _UNSURE_CHARS
                if is_cut and self._more():
                    continue
                self._at = min(error.pos, len(self._text))
                is_end = not self._text[self._at :].strip()
                is_end |= error.msg.startswith("Unterminated string")
                cut = ": the file is cut off" if is_end else ""
                raise self.error(f"{error.msg}{cut}") from None
            except (RecursionError, ValueError) as error:
                raise self.error(f"{type(error).__name__}: {error}") from None
            # A number that ends where the text read so far does may go on.
            if end == len(self._text) and self._more():
                continue
            self._start, self._at = self._at, end
            return value

    def _more(self) -> bool:
        """Read on; whether there was more. What lies before ``_at`` is let go."""
        if self._ended:
            return False
        kept = len(self._text) - self._at
        if kept > _MAX_VALUE_CHARS:
            raise self.error(f"a value of more than {_MAX_VALUE_CHARS} characters")
        # As much again as is there: a long value is then not scanned too often.
        data = self._file.read(max(_CHUNK_BYTES, kept))
        self._ended = not data
        self.pieces += 1
        text = self._decode(data, self._ended)
        if not text and self._ended:
            return False
        self._before = self._byte(self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        return True

    def _byte(self, position: int) -> int:
        return self._before + len(self._text[:position].encode("utf-8", "surrogatepass"))

    def error(self, why: str) -> CctraceError:
        """The error of a file that is wrong where it is being read."""
        return broken(self._path, f"byte {self._byte(self._at)}", why)
