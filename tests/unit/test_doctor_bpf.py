"""Each check of what BPF needs, on a machine that lacks it and on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import bpf_here
import pytest

from cctrace.errors import CctraceError
from cctrace.record import doctor_bpf, doctor_trial, library_search
from cctrace.record.bpf import frontend, probes, syscalls
from cctrace.record.bpf.headers import Headers
from cctrace.record.doctor_checks import MISSING, OK, WARN, Check, Finding
from cctrace.record.doctor_trial import CALLS, Slot, Trial
from cctrace.record.sources import SOURCES
from cctrace.resources import resource_dir

HOST: dict[str, Any] = {"lockdown": {"level": "none", "how": "a file"}}


@pytest.fixture
def trial() -> Iterator[Trial]:
    with closing(Trial(HOST)) as made:
        yield made


@pytest.fixture
def real(trial: Trial) -> Trial:
    """One on a machine that can attach programs."""
    bpf_here.require_bpf()
    return trial


def find_only(name: str, trial: Trial) -> Finding:
    """Run one check, without those before it."""
    return {n: function for n, _, function in doctor_bpf._CHECKS.entries}[name](trial)


def test_slots_are_those_of_the_program() -> None:
    text = (resource_dir("probes") / "bpf" / "doctor.bpf.c").read_text()
    names = text.split("enum doctor_slot {")[1].split("}")[0]
    found = [
        line.partition("/*")[0].split("=")[0].strip(" \t,").removeprefix("DOCTOR_")
        for line in names.strip().splitlines()
    ]
    assert found == [*(slot.name for slot in Slot), "SLOTS"]


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ((0, 1000), (MISSING, "user 1000 without CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF", "sudo")),
        ((0, 0), (MISSING, "root without CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF", "--privileged")),
        ((1 << 38 | 1 << 39, 1000), (MISSING, "user 1000 without CAP_SYS_ADMIN:", "sudo")),
        ((1 << 21, 0), (WARN, "root without CAP_PERFMON, CAP_BPF, which", "")),
        ((1 << 21 | 1 << 38 | 1 << 39, 0), (OK, "root with CAP_SYS_ADMIN", "")),
    ],
)
def test_privileges(
    monkeypatch: pytest.MonkeyPatch, trial: Trial, who: tuple[int, int], said: tuple[str, str, str]
) -> None:
    (bits, uid), (status, words, fix) = who, said
    monkeypatch.setattr(doctor_bpf, "effective_capabilities", lambda: bits)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    finding = find_only("privileges", trial)
    assert (finding.status, finding.found.startswith(words)) == (status, True)
    assert fix in (finding.fix or "")


def test_capabilities_are_the_kernels() -> None:
    done = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("CapEff"))
    assert doctor_bpf.effective_capabilities() == int(line.split()[1], 16)


@pytest.mark.parametrize(
    ("level", "status", "words"),
    [
        ("none", OK, "forbids nothing"),
        ("integrity", OK, "forbids nothing that cctrace needs"),
        ("confidentiality", WARN, "forbids kprobes and tracefs"),
        ("made-up", OK, "not known"),
    ],
)
def test_lockdown(level: str, status: str, words: str) -> None:
    with closing(Trial({"lockdown": {"level": level, "how": "a file"}})) as trial:
        finding = find_only("lockdown", trial)
    assert finding.status == status
    assert words in finding.found


def test_lockdown_where_nothing_can_be_read() -> None:
    with closing(Trial({"lockdown": {"level": "unknown", "how": "no securityfs"}})) as trial:
        finding = find_only("lockdown", trial)
    assert finding == Finding(
        WARN, "unknown (no securityfs)", "mount -t securityfs securityfs /sys/kernel/security"
    )


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (Headers("running", "/usr/src/ours", None), "the running kernel's: /usr/src/ours"),
        (Headers("kheaders", "kheaders", None), "kept in the kernel itself"),
        (Headers("overlay", "/usr/src/other", None), "another kernel's, which serve: /usr/src/"),
    ],
)
def test_headers(
    monkeypatch: pytest.MonkeyPatch, trial: Trial, headers: Headers, words: str
) -> None:
    monkeypatch.setattr(doctor_trial, "find_headers", lambda: headers)
    finding = find_only("kernel headers", trial)
    assert finding.status == OK
    assert words in finding.found


def test_nothing_is_tried_without_headers(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    def absent() -> Headers:
        raise CctraceError("no kernel headers for 6.1", "install them")

    monkeypatch.setattr(doctor_trial, "find_headers", absent)
    found = {check.name: check.finding for check in doctor_bpf._CHECKS.run(trial)}
    assert found["kernel headers"] == Finding(MISSING, "no kernel headers for 6.1", "install them")
    assert found["bpf programs"].found.startswith("not tried: ")
    for name in ("uprobes", "uprobe_multi", "attach cookies", "ring buffer", "kprobes"):
        assert found[name] == Finding(MISSING, "not tried; see what is missing above")


def test_nothing_is_tried_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise CctraceError("BPF needs root", "become root")

    monkeypatch.setattr(probes, "require_bpf", refuse)
    with closing(Trial(HOST)) as trial:
        found = {check.name: check.finding for check in doctor_bpf._CHECKS.run(trial)}
    assert found["bpf programs"] == Finding(MISSING, "not tried: BPF needs root")
    assert found["uprobes"].found == "not tried; see what is missing above"
    assert {c.finding.found for c in doctor_bpf._sources()} == {"BPF needs root"}


def test_pypis_bcc_is_named_and_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trial: Trial
) -> None:
    # GIVEN a package bcc in this Python's path that is no BCC, and the real one elsewhere
    wrong, right = tmp_path / "site-packages/bcc", tmp_path / "dist-packages/bcc"
    for place, text in ((wrong, "raise SystemExit('imported')"), (right, "class BPF: pass\n")):
        place.mkdir(parents=True)
        (place / "__init__.py").write_text(text)
    (right / "libbcc.py").write_text("")
    (right / "__init__.py").write_text("__version__ = '9.9'\nclass BPF: pass\n")
    monkeypatch.syspath_prepend(str(wrong.parent))
    monkeypatch.setattr(frontend, "_PLACES", (right,))
    loaded = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "bcc"}
    for name in loaded:
        del sys.modules[name]
    try:
        # WHEN / THEN the right one is found, and the wrong one is named
        finding = find_only("bcc", trial)
        assert finding.status == OK
        assert finding.found.startswith(f"9.9 in {right}; {wrong} is another package")
        # AND where only the wrong one is installed, the fix says so
        for name in ("bcc",):
            del sys.modules[name]
        monkeypatch.setattr(frontend, "_PLACES", ())
        finding = find_only("bcc", trial)
        assert finding.status == MISSING
        assert "BCC is not installed; " in finding.found
        assert str(wrong) in finding.found
        assert "not pip" in str(finding.fix)
    finally:
        sys.modules.update(loaded)


def test_programs_that_do_not_compile(monkeypatch: pytest.MonkeyPatch, real: Trial) -> None:
    def fail(*_: object) -> ModuleType:
        raise CctraceError("BPF programs do not compile: doctor.bpf.c:7", "headers in use: none")

    monkeypatch.setattr(frontend, "Module", fail)
    assert find_only("bpf programs", real) == Finding(
        MISSING, "BPF programs do not compile: doctor.bpf.c:7", "headers in use: none"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(1, "Operation not permitted"), "refused (Operation not permitted)"),
        (FileNotFoundError(2, "No such file"), "this kernel has none"),
    ],
)
def test_kprobes_refused(
    monkeypatch: pytest.MonkeyPatch, real: Trial, error: OSError, words: str
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(syscalls, "attach_kprobe", refuse)
    finding = find_only("kprobes", real)
    assert finding.status == MISSING
    assert words in finding.found
    assert finding.fix


def test_no_uprobe_multi_is_a_limit_only(monkeypatch: pytest.MonkeyPatch, real: Trial) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(syscalls, "link_uprobe_multi", refuse)
    finding = find_only("uprobe_multi", real)
    assert finding.status == WARN
    assert "attaching one by one instead" in finding.found


def test_a_probe_that_counts_too_few_is_not_believed(real: Trial) -> None:
    real.require()
    finding = real.counted(Slot.MULTI, "a function")
    assert finding == Finding(MISSING, f"0 of {CALLS} calls of a function were seen")


def test_tracefs_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trial: Trial
) -> None:
    # GIVEN tracefs that the kernel keeps empty, has nothing of the event in, and refuses
    monkeypatch.setattr(trial, "refusal", None)
    monkeypatch.setattr(trial.tracefs, "root", tmp_path)
    empty = find_only("tracefs", trial)
    assert (empty.status, "keeps tracefs empty" in empty.found) == (MISSING, True)
    assert "lockdown=integrity" in str(empty.fix)
    (tmp_path / "events").mkdir()
    assert find_only("tracefs", trial).found.endswith("but task:task_newtask cannot be read")
    monkeypatch.setattr(trial.tracefs, "root", None)
    monkeypatch.setattr(trial.tracefs, "reason", "tracefs cannot be mounted: because")
    refused = find_only("tracefs", trial)
    assert refused.found == "no tracepoints: tracefs cannot be mounted: because"
    assert refused.fix == "mount -t tracefs tracefs /sys/kernel/tracing"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (([], True), "none in this environment; an engine's own"),
        (([], False), "none in this environment; the search was cut short; an engine's own"),
        ((["/a/libcudart.so.13", "/b/libcuda.so.1"], True), "libcudart.so.13, libcuda.so.1"),
    ],
)
def test_cuda_libraries(
    monkeypatch: pytest.MonkeyPatch, trial: Trial, found: tuple[list[str], bool], words: str
) -> None:
    monkeypatch.setattr(library_search, "find_libraries", lambda *_: found)
    finding = find_only("cuda libraries", trial)
    assert finding.status == OK
    assert finding.found.startswith(words)


def test_sources_that_the_machine_need_not_have_are_no_lack() -> None:
    checks = [
        Check("source cuda", False, Finding(OK, "calls")),
        Check("source tdx", False, Finding(WARN, "no TDX guest")),
        Check("uprobes", False, Finding(OK, "works")),
    ]
    assert doctor_bpf.attachable(checks) == ["cuda"]


def test_this_machine() -> None:
    """Every check is really made here, and leaves nothing behind."""
    bpf_here.require_bpf()
    doctor_bpf.diagnose(HOST)  # what BCC opens once and keeps
    before = len(list(Path("/proc/self/fd").iterdir()))
    mounts = Path("/proc/self/mountinfo").read_text()
    found = {check.name: check.finding for check in doctor_bpf.diagnose(HOST)}
    assert not [f for f in found.values() if f.found.startswith("the check failed")]
    for name in ("privileges", "bcc", "bpf programs", "uprobes", "ring buffer", "tracepoints"):
        assert found[name].status == OK, found[name]
    assert found["uprobes"].found.startswith(f"{CALLS} of {CALLS} calls")
    assert found["source sched"].status == OK
    told = {name.removeprefix("source ") for name in found if name.startswith("source ")}
    assert told == set(SOURCES) - {"nvtx", "processes"}
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
