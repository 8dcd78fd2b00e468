"""Each check of `cctrace doctor` on a machine that lacks what it looks for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cctrace import resources
from cctrace.cli.doctor import command
from cctrace.errors import CctraceError
from cctrace.record import doctor, doctor_bpf
from cctrace.record.doctor import Diagnosis
from cctrace.record.doctor_checks import MISSING, OK, WARN, Check, CheckList, Finding

HOST: dict[str, Any] = {
    "hypervisor": "kvm",
    "tee": {"kind": "tdx", "how": "a sign"},
    "lockdown": {"level": "integrity", "how": "a file"},
    "swiotlb": {"state": "forced", "state_how": "tdx", "size_bytes": 67108864, "how": "a file"},
    "gpu": {
        "cc_state": "on",
        "cc_how": "a call",
        "accepting_work": True,
        "driver_version": "595.45.04",
        "devices": [{"name": "NVIDIA H200"}, {"name": "NVIDIA H200"}, {"name": None}],
    },
}


def _find(name: str, host: dict[str, Any] | None = None) -> Finding:
    functions = {registered: function for registered, _, function in doctor._CHECKS.entries}
    return functions[name](HOST if host is None else host)


def test_names_are_unique_and_every_needed_check_is_marked() -> None:
    entries = [*doctor._CHECKS.entries, *doctor_bpf._CHECKS.entries]
    names = [name for name, _, _ in entries]
    assert len(names) == len(set(names))
    assert {name for name, needed, _ in entries if needed} == {
        "platform",
        "python",
        "packages",
        "agent",
        "emitter",
        "shared memory",
        "limits",
        "hand-over",
        "process tree",
        "recording",
    }


def test_agent_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN an installation without its libraries
    def absent(name: str) -> Path:
        raise CctraceError(f"no {name}", "build it")

    monkeypatch.setattr(resources, "native_library", absent)
    # WHEN / THEN the error's own words and fix are told
    assert _find("agent") == Finding(MISSING, "no libcctrace_agent.so", "build it")


def test_agent_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # GIVEN a file that the loader refuses
    broken = tmp_path / "libcctrace_agent.so"
    broken.write_bytes(b"not an ELF file")
    monkeypatch.setattr(resources, "native_library", lambda _: broken)
    # WHEN / THEN
    finding = _find("agent")
    assert finding.status == MISSING
    assert finding.found.startswith("cannot be loaded: ")


def test_temporary_directory_with_a_path_too_long_for_a_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN a temporary directory beyond what sockaddr_un holds (108 bytes)
    deep = tmp_path / ("d" * 101)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    # WHEN / THEN the fix is named
    finding = _find("hand-over")
    assert (finding.status, finding.fix) == (MISSING, "set TMPDIR to a shorter path")
    assert list(deep.iterdir()) == []


def test_temporary_directory_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    finding = _find("hand-over")
    assert finding.status == MISSING
    assert finding.fix == "set TMPDIR to a directory that can be written"


@pytest.mark.parametrize(
    ("limits", "status", "fix"),
    [
        ({resource.RLIMIT_FSIZE: 7 << 20}, MISSING, "ulimit -f unlimited"),
        ({resource.RLIMIT_NOFILE: 101}, WARN, "ulimit -n 1024"),
        ({}, OK, None),
    ],
)
def test_limits(
    monkeypatch: pytest.MonkeyPatch, limits: dict[int, int], status: str, fix: str | None
) -> None:
    # GIVEN a process with those limits, and memory enough
    def getrlimit(which: int) -> tuple[int, int]:
        soft = limits.get(which, resource.RLIM_INFINITY)
        return soft, soft

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(doctor, "_available_memory_bytes", lambda: 8 << 30)
    # WHEN / THEN
    finding = _find("limits")
    assert (finding.status, finding.fix) == (status, fix)


@pytest.mark.parametrize(
    ("mounts", "uid", "status"),
    [
        ("22 1 0:21 / /proc rw,nosuid - proc proc rw,hidepid=invisible\n", 1000, WARN),
        ("22 1 0:21 / /proc rw,nosuid - proc proc rw,hidepid=invisible\n", 0, OK),
        ("22 1 0:21 / /proc rw,nosuid shared:7 - proc proc rw\n", 1000, OK),
        ("22 1 0:21 / /proc rw - proc proc rw,hidepid=off\n", 1000, OK),
    ],
)
def test_hidden_processes(
    monkeypatch: pytest.MonkeyPatch, mounts: str, uid: int, status: str
) -> None:
    # GIVEN /proc mounted so, for that user
    real = Path.read_text

    def read_text(self: Path, *arguments: Any, **named: Any) -> str:
        if str(self) == "/proc/self/mountinfo":
            return mounts
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    # WHEN / THEN
    assert _find("process tree").status == status


@pytest.mark.parametrize(
    ("variables", "status", "fix"),
    [
        ({}, OK, None),
        ({"NVTX_DISABLE": "1"}, WARN, "unset NVTX_DISABLE"),
        ({"NVTX_INJECTION64_PATH": __file__}, OK, None),
        (
            {"NVTX_INJECTION64_PATH": "/nonexistent/lib.so"},
            WARN,
            "unset NVTX_INJECTION64_PATH",
        ),
    ],
)
def test_nvtx_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], status: str, fix: str | None
) -> None:
    for name in ("NVTX_DISABLE", "NVTX_INJECTION64_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = _find("nvtx")
    assert (finding.status, finding.fix) == (status, fix)


@pytest.mark.parametrize(
    ("stdout", "status", "found"),
    [
        (
            '{"events": 7, "lost": 0, "reasons": []}',
            OK,
            "a small program was recorded: 7 of 7 ranges arrived",
        ),
        (
            '{"events": 5, "lost": 2, "reasons": ["ring_full"]}',
            MISSING,
            "of a small program, 5 of 7 ranges arrived: ring_full",
        ),
        ("", MISSING, "a small program cannot be recorded: the last line"),
    ],
)
def test_self_test_is_believed(
    monkeypatch: pytest.MonkeyPatch, stdout: str, status: str, found: str
) -> None:
    # GIVEN a self-test that ends so
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout, "a traceback\nthe last line\n")

    monkeypatch.setattr(subprocess, "run", run)
    # WHEN / THEN
    finding = _find("recording")
    assert (finding.status, finding.found) == (status, found)


def test_gpu_in_cc_mode() -> None:
    assert _find("gpu") == Finding(
        OK, "2 x NVIDIA H200, 1 x unknown GPU, driver 595.45.04, CC on (a call)"
    )


def test_gpu_that_takes_no_work_yet() -> None:
    host = {**HOST, "gpu": {**HOST["gpu"], "accepting_work": False}}
    finding = _find("gpu", host)
    assert (finding.status, finding.fix) == (WARN, "nvidia-smi conf-compute -srs 1")


def test_a_broken_check_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN two checks of which the first is broken
    def broken(_: dict[str, Any]) -> Finding:
        raise ZeroDivisionError("no")

    checks: CheckList[dict[str, Any]] = CheckList()
    checks.add("broken", needed=True)(broken)
    checks.add("sound")(lambda _: Finding(OK, "fine"))
    monkeypatch.setattr(doctor, "_CHECKS", checks)
    monkeypatch.setattr(doctor_bpf, "diagnose", lambda _: [])
    # WHEN
    diagnosis = doctor.diagnose()
    # THEN the second is there, and what is needed counts as missing
    assert diagnosis.checks == [
        Check("broken", True, Finding(MISSING, "the check failed: ZeroDivisionError: no")),
        Check("sound", False, Finding(OK, "fine")),
    ]
    assert not diagnosis.can_trace_nvtx


@pytest.mark.parametrize(
    ("needed", "status", "source", "code"),
    [
        (True, MISSING, MISSING, 3),
        (True, MISSING, WARN, 3),
        (True, MISSING, OK, 0),  # nothing of NVTX, but something
        (True, WARN, MISSING, 0),
        (False, MISSING, MISSING, 0),
        (True, OK, OK, 0),
    ],
)
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch, needed: bool, status: str, source: str, code: int
) -> None:
    # GIVEN a diagnosis of one check and one source, with words that look like rich's markup
    finding = Finding(status, "[red]found[/red] " + "x" * 90, "mend [it]")
    through_bpf = Check("source sched", False, Finding(source, "waits"))
    diagnosis = Diagnosis([Check("only", needed, finding), through_bpf], {"kernel": "6"})
    monkeypatch.setattr("cctrace.cli.doctor.diagnose", lambda: diagnosis)
    # WHEN both forms are printed
    table = CliRunner().invoke(command, [], standalone_mode=False)
    as_json = CliRunner().invoke(command, ["--json"], standalone_mode=False)
    # THEN the status says it, the table keeps to 80 columns and the words are whole
    assert (table.return_value, as_json.return_value) == (code, code)
    assert max(len(line) for line in table.output.splitlines()) <= 80
    assert "[red]found[/red]" in table.output
    assert "fix: mend [it]" in table.output
    assert ("sched" in table.output.partition("NVTX tracing")[2]) == (source == OK)
    report = json.loads(as_json.output)
    assert report["checks"] == [
        {
            "name": "only",
            "needed": needed,
            "status": status,
            "found": finding.found,
            "fix": "mend [it]",
        },
        {
            "name": "source sched",
            "needed": False,
            "status": source,
            "found": "waits",
            "fix": None,
        },
    ]
    assert report["can_trace_nvtx"] == (not needed or status != MISSING)
    assert report["bpf_sources"] == (["sched"] if source == OK else [])
    assert report["host"] == {"kernel": "6"}


def test_real_machine() -> None:
    # GIVEN this machine, on which the tests run; WHEN the real command looks at it
    done = subprocess.run(
        [sys.executable, "-m", "cctrace", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # THEN it can trace, or says which needed thing is missing
    report = json.loads(done.stdout)
    missing = [c["name"] for c in report["checks"] if c["needed"] and c["status"] == MISSING]
    assert report["can_trace_nvtx"] == (not missing)
    assert (done.returncode == 0) == bool(not missing or report["bpf_sources"])
    assert all(not c["found"].startswith("the check failed") for c in report["checks"])
    assert done.stderr == ""
