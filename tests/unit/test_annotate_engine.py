"""The parts the adapters share: reports to the recorder, NVTX payloads, wrapping."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from annotate_harness import ReportServer

from cctrace.annotate.engine import emit, patch, report

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def found() -> report.Report:
    module = ModuleType("no_such_engine.core")
    return report.Report("vllm", module)


class TestReport:
    """The message to the recorder."""

    def test_is_sent_as_the_wire_wants_it(
        self, found: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = ReportServer(tmp_path / "agent.sock")
        monkeypatch.setenv("CCTRACE_SOCKET", str(server.path))
        found.hooked.append("Core.step")
        found.note("one")
        found.note("two")
        sent = found.send()
        server.close()
        assert sent
        assert server.headers == [(0x57544343, 1, 3, os.getpid(), threading.get_native_id(), 0)]
        assert server.reports == [
            {
                "adapter": "vllm",
                "engine_version": None,
                "hooked": ["Core.step"],
                "missing": [],
                "note": "one; two",
            }
        ]

    def test_of_nothing_is_not_sent(self, found: report.Report) -> None:
        assert not found.send()

    def test_that_is_refused_raises_nothing(
        self, found: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = ReportServer(tmp_path / "agent.sock", reply_status=1)
        monkeypatch.setenv("CCTRACE_SOCKET", str(server.path))
        found.missing.append("Core.step")
        sent = found.send()
        server.close()
        assert not sent

    @pytest.mark.parametrize("path", ["", "/no/such/socket", "x" * 200])
    def test_without_a_recorder_raises_nothing(
        self, found: report.Report, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CCTRACE_SOCKET", path)
        found.hooked.append("Core.step")
        assert not found.send()

    def test_to_a_stopped_recorder_gives_up(
        self, found: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # GIVEN a socket that takes connections into its backlog and never reads
        monkeypatch.setenv("CCTRACE_SOCKET", str(tmp_path / "agent.sock"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(tmp_path / "agent.sock"))
            listener.listen(1)
            found.hooked.append("Core.step")
            begin = time.monotonic()
            assert not found.send()
        assert time.monotonic() - begin < 5

    def test_that_is_too_long_is_not_sent(
        self, found: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CCTRACE_SOCKET", str(tmp_path / "agent.sock"))
        found.note("x" * 70000)
        assert not found.send()


@pytest.mark.parametrize(
    ("requests", "tokens", "expected"),
    [
        (0, 0, 0),
        (4, 96, 4 << 32 | 96),
        (1, 1 << 40, 1 << 32 | 0xFFFFFFFF),
        (1 << 33, 0, 0xFFFFFFFF << 32),
    ],
)
def test_requests_and_tokens_are_packed_into_64_bits(
    requests: int, tokens: int, expected: int
) -> None:
    assert emit.pack(requests, tokens) == expected


def test_without_a_library_events_do_nothing() -> None:
    # This process has no CCTRACE_EMIT.
    emit.Event("x").push()
    emit.PhasedEvent("y").mark("decode", 1, 1)
    assert emit.pop() == 0


class TestCover:
    """Wrapping of a class and its subclasses."""

    def module(self, **members: object) -> ModuleType:
        module = ModuleType("engine")
        vars(module).update(members)
        return module

    def test_generators_and_static_methods_are_left_alone(self, found: report.Report) -> None:
        class Engine:
            def tokens(self) -> Iterator[int]:
                yield 1

            @staticmethod
            def step() -> int:
                return 2

        hooks = [patch.Hook("tokens", patch.ranged("a")), patch.Hook("step", patch.ranged("b"))]
        patch.cover(self.module(Engine=Engine), "Engine", hooks, found)
        assert found.missing == ["Engine.tokens (a generator)", "Engine.step (not a method)"]
        assert (list(Engine().tokens()), Engine.step()) == ([1], 2)

    def test_a_class_that_is_none_is_missing(self, found: report.Report) -> None:
        hook = patch.Hook("step", patch.ranged("a"))
        patch.cover(self.module(Engine=None), "Engine", [hook], found)
        assert found.missing == ["Engine.step"]

    def test_covering_twice_wraps_once(self, found: report.Report) -> None:
        class Engine:
            def step(self) -> int:
                return 2

        hook = patch.Hook("step", patch.ranged("a"))
        patch.cover(self.module(Engine=Engine), "Engine", [hook], found)
        once = Engine.step
        patch.cover(self.module(Engine=Engine), "Engine", [hook], found)
        assert Engine.step is once
        assert found.hooked == ["Engine.step", "Engine.step"]

    def test_an_existing_init_subclass_still_runs(self, found: report.Report) -> None:
        seen: list[tuple[str, int]] = []

        class Engine:
            def __init_subclass__(cls, size: int = 0, **kwargs: object) -> None:
                super().__init_subclass__(**kwargs)
                seen.append((cls.__name__, size))

            def step(self) -> int:
                return 2

        hook = patch.Hook("step", patch.ranged("a"))
        patch.cover(self.module(Engine=Engine), "Engine", [hook], found)

        class Faster(Engine, size=3):
            def step(self) -> int:
                return super().step() + 1

        class Fastest(Faster):
            pass

        assert seen == [("Faster", 3), ("Fastest", 0)]
        assert Fastest().step() == 3
        assert hasattr(Faster.step, "__wrapped__")
