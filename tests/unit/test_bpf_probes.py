"""One family that fails does not take the others along."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import bpf_here
import numpy as np
import pyarrow as pa
import pytest

from cctrace.errors import CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.kernelfs import TraceFs
from cctrace.record.bpf.probes import Events, Probes, Rows
from cctrace.record.losses import LossLedger

RING_BYTES = 1 << 16


class Made:
    """A family whose steps do as they are told."""

    def __init__(
        self,
        name: str,
        kind: layout.Kind,
        files: tuple[str, ...] = (),
        *,
        flags: list[str] | CctraceError | None = None,
        tracepoint: str | None = None,
        decode: Exception | None = None,
    ) -> None:
        self.name = name
        self.kinds = (kind,)
        self.files = files
        self._flags = flags
        self._tracepoint = tracepoint
        self._decode = decode
        self.detached = 0

    def prepare(self, tracefs: TraceFs) -> list[str]:
        assert tracefs.root is not None
        if isinstance(self._flags, CctraceError):
            raise self._flags
        return self._flags or []

    def attach(self, probes: Probes) -> None:
        if self._tracepoint is not None:
            probes.tracepoint(self._tracepoint)

    def decode(self, events: Events) -> Rows:
        if self._decode is not None:
            raise self._decode
        return [(self.name, pa.table({"ts_ns": events["ts_ns"]}))]

    def poll(self) -> Rows:
        return []

    def finish(self) -> Rows:
        return []

    def detail(self) -> dict[str, Any]:
        return {}

    def detach(self) -> None:
        self.detached += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bpf_here.require_bpf()
    return tmp_path


def source(folder: Path, name: str, text: str) -> tuple[str, ...]:
    path = folder / f"{name}.bpf.c"
    path.write_text(text)
    return (str(path),)


def started(*families: Made) -> tuple[Probes, LossLedger]:
    ledger = LossLedger()
    probes = Probes(families, RING_BYTES, ledger)
    probes.start()
    return probes, ledger


# Reports each thread that ends.
SOUND = """
int on_sched_wakeup_new(void *ctx)
{
	struct cct_event *event = cct_reserve(CCT_KIND_DMA);
	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = bpf_ktime_get_ns();
	event->kind = CCT_KIND_DMA;
	cct_submit(event);
	return 0;
}
"""
SOUND_AT = "sched:sched_wakeup_new"


def test_a_family_that_does_not_compile(folder: Path) -> None:
    # GIVEN three families of which one has an error in its program, and one in its flags
    sound = Made("sound", layout.Kind.DMA, source(folder, "sound", SOUND), tracepoint=SOUND_AT)
    wrong = Made("wrong", layout.Kind.UVM, source(folder, "wrong", "\n\nint x = nobody;\n"))
    plain = Made("plain", layout.Kind.IOCTL)
    # WHEN
    probes, _ = started(wrong, sound, plain)
    with closing(probes):
        # THEN it alone is refused, by file and line, and the others record
        assert [family.name for family in probes.attached()] == ["sound", "plain"]
        ((family, error),) = probes.refused()
        assert family is wrong
        assert "wrong.bpf.c:3:" in error.message
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        assert probes.drain() >= 1
        rows = probes.rows()
        assert {name for name, _ in rows} == {"sound"}


def test_a_machine_that_cannot_do_it(folder: Path) -> None:
    error = CctraceError("this kernel has no such thing", "another kernel")
    unable = Made("unable", layout.Kind.UVM, flags=error)
    sound = Made("sound", layout.Kind.DMA, source(folder, "sound", SOUND), tracepoint=SOUND_AT)
    probes, _ = started(unable, sound)
    with closing(probes):
        assert [family.name for family in probes.attached()] == ["sound"]
        assert probes.refused() == [(unable, error)]


@pytest.mark.usefixtures("folder")
def test_a_tracepoint_that_is_not_there() -> None:
    lost = Made("lost", layout.Kind.UVM, tracepoint="sched:sched_made_up")
    plain = Made("plain", layout.Kind.IOCTL)
    probes, _ = started(lost, plain)
    with closing(probes):
        assert [family.name for family in probes.attached()] == ["plain"]
        ((_, error),) = probes.refused()
        assert error.message == "this kernel has no tracepoint sched:sched_made_up"


def test_a_program_that_the_kernel_refuses(folder: Path) -> None:
    unsafe = "int on_sched_wakeup_new(void *ctx) { return *(int *)(*(long *)ctx); }\n"
    refused = Made("unsafe", layout.Kind.UVM, source(folder, "unsafe", unsafe), tracepoint=SOUND_AT)
    plain = Made("plain", layout.Kind.IOCTL)
    probes, _ = started(refused, plain)
    with closing(probes):
        assert [family.name for family in probes.attached()] == ["plain"]
        ((_, error),) = probes.refused()
        assert "the kernel refuses program on_sched_wakeup_new" in error.message


def test_all_is_given_back(folder: Path) -> None:
    families = [
        Made("sound", layout.Kind.DMA, source(folder, "sound", SOUND), tracepoint=SOUND_AT),
        Made("wrong", layout.Kind.UVM, source(folder, "wrong", "int x = nobody;\n")),
    ]
    started(Made("first", layout.Kind.IOCTL))[0].close()  # what BCC opens once and keeps
    before = len(list(Path("/proc/self/fd").iterdir()))
    probes, _ = started(*families)
    headers = probes.headers
    probes.close()
    probes.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert headers is not None
    assert headers.path is None or not headers.path.exists()
    assert families[0].detached >= 1


def given(probes: Probes, *counts: tuple[layout.Kind, int]) -> None:
    """Put records where ``drain`` does."""
    for kind, count in counts:
        events = np.zeros(count, layout.CUDA_EVENT)
        events["kind"] = kind
        events["ts_ns"] = np.arange(1, count + 1)
        probes._chunks.append(events)


def test_a_family_that_cannot_decode() -> None:
    # GIVEN two families of which one raises on what it is given
    raises = Made("raises", layout.Kind.SWIOTLB, decode=ZeroDivisionError("no"))
    sound = Made("sound", layout.Kind.DMA)
    ledger = LossLedger()
    probes = Probes([raises, sound], RING_BYTES, ledger)
    # WHEN both have records, mixed, twice
    for _ in range(2):
        given(
            probes,
            (layout.Kind.DMA, 3),
            (layout.Kind.SWIOTLB, 11),
            (layout.Kind.DMA, 4),
            (layout.Kind.LIFECYCLE, 2),
        )
        rows = probes.rows()
        # THEN the other gets all of its own, in order
        ((name, table),) = rows
        assert name == "sound"
        assert table["ts_ns"].to_pylist() == [1, 2, 3, 1, 2, 3, 4]
        assert [len(chunk) for chunk in probes.take_life()] == [2]
    # AND what was lost is counted, and told
    assert ledger.by_reason() == {"recorder_error": 22}
    assert probes.warnings == {"raises": "raises: ZeroDivisionError('no')"}


def test_records_that_nobody_asked_for_are_left() -> None:
    probes = Probes([Made("sound", layout.Kind.DMA)], RING_BYTES, LossLedger())
    given(probes, (layout.Kind.TDX, 5))
    assert probes.rows() == []
    assert probes.rows() == []


def test_without_privilege_every_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cctrace.record.bpf.probes._has_capabilities", lambda: False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    families = [Made("one", layout.Kind.DMA), Made("two", layout.Kind.UVM)]
    probes, _ = started(*families)
    with closing(probes):
        assert probes.attached() == []
        assert {error.hint for _, error in probes.refused()} == {
            'run as root: sudo -E "$(command -v cctrace)" record ...'
        }
        # AND what follows has nothing to do
        with probes.spawning():
            pass
        assert (probes.drain(), probes.rows(), probes.finish()) == (0, [], [])
