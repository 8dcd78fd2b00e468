"""Run a Python program as the recorder would, with a logging emit library.

Truth comes from outside: the program's events from a C library that writes each as
a line of text, its reports from a plain socket server in this process.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cctrace import annotate

HERE = Path(__file__).resolve().parent
PROBES = HERE.parent / "probes" / "agent"
TIMEOUT_S = 60
_REQUEST = struct.Struct("=IHHIIQ")
_REPLY = struct.Struct("=IHHQQ")
_built = tempfile.TemporaryDirectory(prefix="cctrace-test-")


@cache
def emit_log_library() -> Path:
    """Build emit_log.c, once per test session."""
    library = Path(_built.name) / "libemit_log.so"
    source = HERE / "targets" / "emit_log.c"
    subprocess.run(
        [
            *["cc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"],
            *[f"-I{PROBES}", "-o", str(library), str(source)],
        ],
        check=True,
    )
    return library


@dataclass
class Event:
    """One line of the log."""

    pid: int
    kind: str
    domain: str
    name: str
    category: str | None
    payload: int | None


@dataclass
class Outcome:
    """What a program did."""

    status: int
    stdout: str
    stderr: str
    events: list[Event]
    reports: list[dict[str, Any]]

    @property
    def shape(self) -> str:
        """The events as text: ``a(`` opens a range, ``)`` closes it, ``a!`` is a mark."""
        return " ".join(
            ")" if e.kind == "pop" else e.name + ("!" if e.kind == "mark" else "(")
            for e in self.events
        )

    def named(self, name: str) -> list[Event]:
        """The events of that name, in order."""
        return [event for event in self.events if event.name == name]


class ReportServer:
    """The recorder's socket, as far as reports go.

    Args:
        path: Where to listen.
        reply_status: Status of every reply; None to never answer.
    """

    def __init__(self, path: Path, reply_status: int | None = 0) -> None:
        self.path = path
        self.reports: list[dict[str, Any]] = []
        self.headers: list[tuple[int, ...]] = []
        self._reply_status = reply_status
        self._held: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(path))
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            peer, _ = self._socket.accept()
            data = peer.recv(1 << 17)
            if not data:  # close() below
                peer.close()
                return
            self.headers.append(_REQUEST.unpack_from(data))
            self.reports.append(json.loads(data[_REQUEST.size :]))
            if self._reply_status is None:
                self._held.append(peer)
                continue
            peer.send(_REPLY.pack(0x57544343, 1, self._reply_status, 0, 0))
            peer.close()

    def close(self) -> None:
        """Stop serving, once what came before is read."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
            last.connect(str(self.path))
        self._thread.join()
        for peer in self._held:
            peer.close()
        self._socket.close()


@dataclass
class Target:
    """A program's directory: the modules it can import, and how it is run.

    Attributes:
        root: The directory; first on the program's path.
        environment: Variables to add.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        """Write a file, with ``__init__.py`` in each package above it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(self.root).parents:
            init = self.root / parent / "__init__.py"
            if parent != Path() and not init.exists():
                init.write_text("")
        path.write_text(textwrap.dedent(text))
        return path

    def env(self, socket_path: Path | None, *, annotated: bool = True) -> dict[str, str]:
        """Environment as the recorder makes it, without an NVTX injection."""
        base = {k: v for k, v in os.environ.items() if not k.startswith(("CCTRACE_", "PYTHON"))}
        base |= {"PYTHONPATH": str(self.root), "EMIT_LOG": str(self.root / "events.log")}
        base |= {"PYTHONDONTWRITEBYTECODE": "1"} | self.environment
        if annotated:
            gone = self.root / "nobody-listens.sock"
            base |= annotate.environment(base, None, emit_log_library(), socket_path or gone)
        return base

    def run(
        self,
        program: str,
        *,
        annotated: bool = True,
        flags: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> Outcome:
        """Run ``program`` (Python text) and wait for it."""
        script = self.write("program.py", program)
        (self.root / "events.log").unlink(missing_ok=True)
        server = ReportServer(self.root / "agent.sock")
        try:
            done = subprocess.run(
                [python, *flags, str(script)],
                env=self.env(server.path, annotated=annotated),
                cwd=self.root,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        finally:
            server.close()
            server.path.unlink()
        return Outcome(done.returncode, done.stdout, done.stderr, self._events(), server.reports)

    def _events(self) -> list[Event]:
        log = self.root / "events.log"
        if not log.exists():
            return []
        events = []
        for line in log.read_text().splitlines():
            pid, kind, domain, name, category, payload = line.split(" ")
            events.append(
                Event(
                    int(pid),
                    kind,
                    domain,
                    name,
                    None if category == "-" else category,
                    None if payload == "-" else int(payload),
                )
            )
        return events
