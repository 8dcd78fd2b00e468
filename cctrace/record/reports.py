"""What annotation adapters report of themselves: checked, merged, kept for the manifest."""

from __future__ import annotations

import threading
from typing import Any, Final

from cctrace.record.server import Peer
from cctrace.store.manifest import HookReport

_MAX_REPORTS: Final = 4096
_MAX_WORDS: Final = 256
_WORD_LIMIT: Final = 1000


class HookReports:
    """Reports of a recording, one for each process and adapter; the server's thread adds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: list[HookReport] = []

    def take(self, peer: Peer, report: dict[str, Any]) -> None:
        """Add what ``peer`` sent.

        Raises:
            ValueError: It makes no sense.
        """
        new = parse_report(peer.pid, report)
        with self._lock:
            for known in self._reports:
                if (known.pid, known.adapter) == (new.pid, new.adapter):
                    merge_report(known, new)
                    return
            if len(self._reports) < _MAX_REPORTS:
                self._reports.append(new)

    def all(self) -> list[HookReport]:
        """Copies of the reports as they are now."""
        with self._lock:
            return [
                HookReport(r.pid, r.adapter, r.engine_version, [*r.hooked], [*r.missing], r.note)
                for r in self._reports
            ]


def merge_report(known: HookReport, new: HookReport) -> None:
    """Add to a process's report what the adapter says of a further module."""
    for ours, theirs in ((known.hooked, new.hooked), (known.missing, new.missing)):
        fresh = [word for word in theirs if word not in ours]
        ours.extend(fresh[: _MAX_WORDS - len(ours)])
    known.engine_version = known.engine_version or new.engine_version
    if new.note and new.note not in (known.note or ""):
        known.note = f"{known.note}; {new.note}"[:_WORD_LIMIT] if known.note else new.note


def parse_report(pid: int, report: dict[str, Any]) -> HookReport:
    """Check what an adapter reported; it comes from the target, so nothing is trusted.

    Raises:
        ValueError: A field is missing, of another kind, or too long.
    """

    def text(name: str) -> str | None:
        value = report.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} is not text")
        return _word(value) if value is not None else None

    def words(name: str) -> list[str]:
        value = report.get(name, [])
        if not isinstance(value, list) or len(value) > _MAX_WORDS:
            raise ValueError(f"{name} is not a list of at most {_MAX_WORDS}")
        return [_word(str(word)) for word in value]

    adapter = text("adapter")
    if adapter is None:
        raise ValueError("adapter is missing")
    return HookReport(
        pid, adapter, text("engine_version"), words("hooked"), words("missing"), text("note")
    )


def _word(text: str) -> str:
    # JSON can hold lone surrogates, which nobody could print.
    return text[:_WORD_LIMIT].encode("utf-8", "replace").decode()
