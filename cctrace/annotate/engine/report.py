"""Tell the recorder which hook points of the engine were found.

One message of the hand-over socket (``probes/agent/cctrace_shm.h``) per engine
module and process: a ``struct cct_request`` of type ``CCT_REQ_REPORT``, then JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from types import ModuleType

# struct cct_request: magic, version, type, pid, tid, token
_REQUEST = struct.Struct("=IHHIIQ")
_MAGIC = 0x57544343  # CCT_WIRE_MAGIC
_VERSION = 1  # CCT_WIRE_VERSION
_TYPE_REPORT = 3  # CCT_REQ_REPORT
_REPLY_BYTES = 24  # struct cct_reply
_REPORT_MAX = 65536  # CCT_REPORT_MAX
_TIMEOUT_S = 0.5  # a stopped recorder costs an engine's import this much, once each


class Report:
    """What an adapter did to one module of the engine.

    Args:
        adapter: Adapter's name.
        module: The engine's module.
    """

    def __init__(self, adapter: str, module: ModuleType) -> None:
        self.adapter = adapter
        self.engine_version = _version(module.__name__.split(".")[0])
        self.hooked: list[str] = []
        self.missing: list[str] = []
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Add what the user should know."""
        self._notes.append(text)

    def as_json(self) -> dict[str, object]:
        """The message's fields, as in ``cctrace.store.manifest.HookReport``."""
        return {
            "adapter": self.adapter,
            "engine_version": self.engine_version,
            "hooked": self.hooked,
            "missing": self.missing,
            "note": "; ".join(self._notes) or None,
        }

    def send(self) -> bool:
        """Send it, where there is anything to tell; True where it was taken."""
        if not (self.hooked or self.missing or self._notes):
            return False
        try:
            return _send(json.dumps(self.as_json()).encode())
        except (OSError, ValueError):
            return False


def _send(text: bytes) -> bool:
    path = os.environ.get("CCTRACE_SOCKET")
    if not path or len(text) > _REPORT_MAX:
        return False
    header = _REQUEST.pack(
        _MAGIC, _VERSION, _TYPE_REPORT, os.getpid(), threading.get_native_id(), 0
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(_TIMEOUT_S)
        peer.connect(path)
        peer.sendall(header + text)
        reply = peer.recv(_REPLY_BYTES)
    # struct cct_reply: magic u32, version u16, status u16, ...; status 0: taken
    return len(reply) == _REPLY_BYTES and struct.unpack_from("=IHH", reply)[2] == 0


def _version(package: str) -> str | None:
    """Version of the engine, without importing it: it may still be half imported."""
    module = sys.modules.get(package)
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return version
    for name in (f"{package}.version", f"{package}._version"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            return version
    from importlib import metadata  # noqa: PLC0415 - slow, and seldom needed

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
