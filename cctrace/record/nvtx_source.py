"""Source ``nvtx``: the agent in each process, the rings it fills, their decoding."""

from __future__ import annotations

from typing import Final

from cctrace import annotate, resources
from cctrace.errors import CctraceError
from cctrace.record import losses, server
from cctrace.record.images import Images
from cctrace.record.layout import Geometry
from cctrace.record.losses import LossLedger
from cctrace.record.nvtx import to_table
from cctrace.record.reports import HookReports
from cctrace.record.segment import Segment
from cctrace.record.source import Rows
from cctrace.record.tree import ProcessTree
from cctrace.store import manifest as m

_NAME: Final = "nvtx"


class NvtxSource:
    """NVTX of every process that loads the agent.

    Args:
        geometry: Sizes of a first segment.
        earliest_ns: Start of the run.
        ledger: Takes losses.
        hook_engines: Give Python engines their step ranges.
        from_start: Whether the target is started by the recorder.

    Attributes:
        reports: What the adapters reported.
        traced_pids: Processes that were given a segment.
        socket: Where processes ask for their segment; set before ``attach``.
    """

    def __init__(
        self,
        geometry: Geometry,
        earliest_ns: int,
        ledger: LossLedger,
        *,
        hook_engines: bool,
        from_start: bool,
    ) -> None:
        self._from_start = from_start
        self._geometry = geometry
        self._ledger = ledger
        self._hook_engines = hook_engines
        self._images = Images(geometry, earliest_ns, ledger)
        self._entry = m.Source(_NAME, "refused", "not attached")
        self._programs = 0
        self._warnings: list[str] = []
        self.reports = HookReports()
        self.traced_pids: set[int] = set()
        self.socket: server.HandoverServer | None = None

    @property
    def drained(self) -> int:
        """Events taken so far."""
        return self._images.drained

    @property
    def is_attached(self) -> bool:
        """Whether programs of the target are told to load the agent."""
        return self._entry.state == "attached"

    def attach(self, environment: dict[str, str]) -> None:
        """Have the target's programs load the agent, and its Pythons the adapters."""
        try:
            agent = resources.native_library("libcctrace_agent.so")
            emit = resources.native_library("libcctrace_emit.so")
            Segment(self._geometry, 0).close()  # can we make any at all?
        except (CctraceError, OSError) as error:
            hint = error.hint if isinstance(error, CctraceError) else None
            self._entry = m.Source(_NAME, "refused", str(error), hint)
            return
        if not self._from_start:
            self._entry = m.Source(
                _NAME,
                "refused",
                "NVTX cannot be switched on in a process that runs already",
                "start the engine with: cctrace record -- COMMAND",
            )
            return
        if self.socket is None:
            self._entry = m.Source(_NAME, "refused", "there is no socket to hand memory over")
            return
        self._entry = m.Source(_NAME, "attached")
        environment.update(
            annotate.environment(
                environment,
                agent=agent,
                emit=emit,
                socket=self.socket.path,
                annotate=self._hook_engines,
            )
        )

    def hello(self, peer: server.Peer, token: int) -> Segment:
        """Make the first segment of a new process image.

        Raises:
            OSError: No memory, descriptors or room for it; the process is not traced.
        """
        try:
            segment = self._images.hello(peer, token)
        except OSError as error:
            self._ledger.add(losses.NVTX, "untraced", 1, pid=peer.pid)
            self._warnings.append(f"not every process could be traced: {error.strerror or error}")
            raise
        self._programs += 1
        self.traced_pids.add(peer.pid)
        return segment

    def more(self, peer: server.Peer, token: int) -> Segment | None:
        """Make a further segment of an image; None refuses."""
        return self._images.more(peer, token)

    def process_ended(self, pid: int) -> None:
        """Note that nothing more comes from ``pid``."""
        self._images.process_ended(pid)

    def drain(self) -> int:
        """Empty the rings."""
        return self._images.drain()

    def rows(self, tree: ProcessTree) -> Rows:
        """Rows of ``nvtx``; threads and their names go to ``tree``."""
        parts = self._images.decode()
        for pid, tid, ts_ns in self._images.take_new_threads():
            tree.note_thread(pid, tid, ts_ns)
        for pid, tid, name in self._images.take_thread_names():
            tree.name_thread(pid, tid, name)
        if not any(len(part) for part in parts):
            return []
        return [("nvtx", to_table(parts, self._images.run_keys))]

    def stop(self) -> None:
        """Take the last of every image at the next drain."""
        self._images.end_all()

    def pending(self) -> bool:
        """Whether an image has not been drained for the last time."""
        return self._images.alive() > 0

    def finish(self) -> Rows:
        """Nothing: the last drain has it all."""
        return []

    def close(self) -> None:
        """Segments are closed with their images."""

    def entries(self) -> list[m.Source]:
        """How it stands."""
        if self.is_attached:
            self._entry.detail = {"programs": self._programs}
        return [self._entry]

    def take_warnings(self) -> list[str]:
        """What the user is to be told, since the last call."""
        found, self._warnings = self._warnings, []
        return found
