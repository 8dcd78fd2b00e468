"""What BPF lacks is said, what is left is recorded, and the target never notices.

Each machine that lacks something is the real one with that taken away: a mount over
it, a capability dropped, another namespace. What is true for all: the target ends
with its own status, NVTX is recorded whole, and the fix is on stderr and in run.json.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import agent_harness as harness
import bpf_here
import pytest
from recording import CCTRACE, DEADLINE_S, environment, losses, rows

from cctrace.record.bpf.frontend import find_bcc

ROOT_HINT = 'run as root: sudo -E "$(command -v cctrace)" record ...'
NVTX = """
import sys, nvtx
for _ in range(97):
    with nvtx.annotate("range"):
        pass
sys.exit(37)
"""


@pytest.fixture(autouse=True)
def _bpf() -> None:
    bpf_here.require_bpf()


def tool(name: str, package: str) -> str:
    """Path of a program of the machine, or a skip."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: apt-get install {package}")
    return path


def record_under(
    prefix: list[str], run: Path, *command: str | Path, sources: str = "nvtx,processes,sched"
) -> subprocess.CompletedProcess[str]:
    """``cctrace record``, itself started by ``prefix``."""
    return subprocess.run(
        [
            *prefix,
            *CCTRACE,
            "record",
            "-o",
            str(run),
            "--sources",
            sources,
            "--",
            *map(str, command),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(),
        check=False,
    )


def unshare(*namespaces: str) -> list[str]:
    """A prefix that runs a command in namespaces of its own, or a skip."""
    prefix = [tool("unshare", "util-linux"), *namespaces]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    return prefix


def without(*places: Path | str) -> list[str]:
    """A prefix that hides directories, for this command alone."""
    mounts = "".join(f"mount -t tmpfs none {place} && " for place in places)
    return [*unshare("-m"), "sh", "-c", f'{mounts}exec "$@"', "sh"]


def without_capability(*arguments: str) -> list[str]:
    return [tool("setpriv", "util-linux"), *arguments]


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    return found


def source(run: Path, name: str) -> dict[str, Any]:
    return next(s for s in manifest(run)["sources"] if s["name"] == name)


# Who is nobody may still read the tree of the tests, and write their directory.
NOBODY = (
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+dac_override",
    "--ambient-caps=-all,+dac_override",
)
CASES: dict[str, tuple[str, str]] = {
    "nobody": ("BPF needs root", ROOT_HINT),
    "root without CAP_SYS_ADMIN": (
        "BPF needs root (or CAP_BPF, CAP_PERFMON",
        "docker run --privileged",
    ),
    "process namespace": ("this is another process namespace", "docker run --pid=host"),
    "no BCC": ("BCC is not installed", "apt-get install python3-bpfcc"),
    "empty BCC": ("cannot be imported", "apt-get install --reinstall python3-bpfcc"),
    "no headers": ("no kernel headers for ", "apt-get install linux-headers-amd64"),
}


def prefix_of(case: str) -> list[str]:
    if case == "nobody":
        return without_capability(*NOBODY)
    if case == "root without CAP_SYS_ADMIN":
        return without_capability("--bounding-set=-sys_admin")
    if case == "process namespace":
        return unshare("-pf", "--mount-proc")
    if case == "no BCC":
        return without(find_bcc())
    if case == "empty BCC":
        script = f'mount -t tmpfs none {find_bcc()} && touch {find_bcc()}/libbcc.py && exec "$@"'
        return [*unshare("-m"), "sh", "-c", script, "sh"]
    return without("/usr/src", "/lib/modules")


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_said_and_the_rest_recorded(case: str, tmp_path: Path) -> None:
    if case == "no headers" and Path("/sys/kernel/kheaders.tar.xz").exists():
        pytest.skip("this kernel keeps its headers in itself: they cannot be taken away")
    reason, hint = CASES[case]
    run = tmp_path / "run"
    # WHEN a program with NVTX ranges is recorded on such a machine
    done = record_under(prefix_of(case), run, sys.executable, "-c", NVTX)
    # THEN it ends as by itself, and stderr has the reason and the fix, once
    assert done.returncode == 37, done.stderr
    refusals = [line for line in done.stderr.splitlines() if "not recorded" in line]
    assert len(refusals) == 1
    assert refusals[0].startswith("WARNING: sched was not recorded: ")
    assert reason in refusals[0]
    assert any(hint in line for line in done.stderr.splitlines() if line.startswith("hint: "))
    assert "Traceback" not in done.stderr
    # AND so has the run
    sched = source(run, "sched")
    assert sched["state"] == "refused"
    assert reason in sched["reason"]
    assert hint in sched["hint"]
    # AND what needs no BPF is whole
    assert [source(run, name)["state"] for name in ("nvtx", "processes")] == ["attached"] * 2
    assert len(rows(run, "nvtx")) == 97
    assert manifest(run)["exit_code"] == 37
    assert rows(run, "sched") == []


def test_bpf_alone_and_refused_still_runs_the_target(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prefix = without_capability("--bounding-set=-sys_admin")
    done = record_under(prefix, run, "sh", "-c", "echo out; kill -9 $$", sources="sched")
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "out\n")
    assert source(run, "sched")["state"] == "refused"


def test_all_sources_share_one_warning(tmp_path: Path) -> None:
    """The default sources without root: one reason, one fix, not one for each."""
    run = tmp_path / "run"
    command = [*without_capability(*NOBODY), *CCTRACE, "record", "-o", str(run), "--", "true"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.count("BPF needs root") == 1
    assert done.stderr.count(ROOT_HINT) == 1


def test_kprobes_refused(tmp_path: Path) -> None:
    # GIVEN a kernel that has no kprobes, or refuses them
    done = subprocess.run(
        [*CCTRACE, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    if checks["kprobes"]["status"] == "ok":
        pytest.skip("kprobes work here")
    if "source page_conversion" not in checks:
        pytest.skip("page_conversion is no source of this build")
    # WHEN a source that needs them is asked for beside one that does not
    run = tmp_path / "run"
    done = record_under([], run, "sh", "-c", "sleep 0.01; exit 7", sources="sched,page_conversion")
    # THEN it alone is refused, with the kernel's reason
    assert done.returncode == 7
    assert "WARNING: page_conversion was not recorded: " in done.stderr
    assert source(run, "page_conversion")["state"] == "refused"
    assert source(run, "page_conversion")["reason"]
    assert source(run, "sched")["state"] == "attached"
    assert len(rows(run, "sched")) >= 1


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scheduler's test program, linked in two ways."""
    folder = tmp_path_factory.mktemp("workload")
    code = harness.TARGETS / "sched_workload.c"
    return {
        "dynamic": harness.compile_c(code, folder / "dynamic", "-lpthread"),
        "static": harness.compile_c(code, folder / "static", "-static", "-lpthread"),
    }


def assert_sleeps_are_exact(run: Path, log: str) -> None:
    """As many waits as getrusage(2) counted, in the stretch that the program logged."""
    (span,) = [line.split() for line in log.splitlines() if line.startswith("span ")]
    tid, begin_ns, end_ns, voluntary = (int(word) for word in (*span[3:6], span[6]))
    waits = [
        row
        for row in rows(run, "sched")
        if row["tid"] == tid
        and begin_ns <= row["ts_ns"] < end_ns
        and row["state"] in ("blocked", "io")
    ]
    assert voluntary >= 40
    # What the kernel keeps from the probes on a busy machine is counted.
    kept_back = sum(losses(run, with_sched=True).values())
    assert voluntary - kept_back <= len(waits) <= voluntary


ONLY = ("-f", "--seccomp-bpf", "-e")  # stop at these system calls alone
SLEEPS = ("sleeps", "main", "43", "300000")


def test_statically_linked_target(workload: dict[str, Path], tmp_path: Path) -> None:
    done = record_under([], tmp_path / "run", workload["static"], *SLEEPS)
    assert done.returncode == 0, done.stderr
    assert_sleeps_are_exact(tmp_path / "run", done.stdout)


def test_32_bit_target(tmp_path: Path) -> None:
    # GIVEN a 32-bit program, which neither the agent nor the loader's auditor can enter
    program = tmp_path / "exit32"
    source_file = harness.TARGETS / "exit32.c"
    flags = ["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-O1"]
    compiled = subprocess.run(
        ["cc", *flags, "-o", program, source_file], capture_output=True, text=True, check=False
    )
    if compiled.returncode != 0:
        pytest.skip(f"no 32-bit compiler: {compiled.stderr.splitlines()[:1]}")
    if subprocess.run([program], check=False).returncode != 41:
        pytest.skip("this kernel runs no 32-bit programs")
    # WHEN / THEN it ends as by itself, with nothing on stderr of the loader's
    run = tmp_path / "run"
    done = record_under([], run, program)
    assert done.returncode == 41, done.stderr
    assert "ld.so" not in done.stderr
    # AND what the kernel sees of it is recorded
    assert source(run, "sched")["state"] == "attached"
    (process,) = rows(run, "processes")
    waits = [row for row in rows(run, "sched") if row["state"] == "blocked"]
    assert {row["pid"] for row in waits} == {process["pid"]}
    assert len(waits) >= 13
    assert manifest(run)["exit_code"] == 41


@pytest.mark.parametrize("tracer", ["strace", "gdb"])
def test_target_under_a_debugger(tracer: str, workload: dict[str, Path], tmp_path: Path) -> None:
    # GIVEN the target run by a tool that stops it at will
    path = tool(tracer, tracer)
    prefix = {
        # At every call, the counts that the program takes would never stand still.
        "strace": [path, *ONLY, "trace=nanosleep,write", "-o", str(tmp_path / "strace.txt")],
        "gdb": [path, "--batch", "-nx", "-ex", "run", "--args"],
    }[tracer]
    # WHEN / THEN every wait is recorded as ever
    run = tmp_path / "run"
    done = record_under([], run, *prefix, workload["dynamic"], *SLEEPS)
    assert done.returncode == 0, done.stderr
    assert source(run, "sched")["state"] == "attached"
    assert_sleeps_are_exact(run, done.stdout)


def test_recorder_under_strace(workload: dict[str, Path], tmp_path: Path) -> None:
    prefix = [tool("strace", "strace"), *ONLY, "trace=bpf", "-o", str(tmp_path / "strace.txt")]
    done = record_under(prefix, tmp_path / "run", workload["dynamic"], *SLEEPS)
    assert done.returncode == 0, done.stderr
    assert_sleeps_are_exact(tmp_path / "run", done.stdout)


def test_another_tools_probes_in_the_same_place(tmp_path: Path) -> None:
    """Uprobes of bpftrace and of ours on one function: each counts every call."""
    # GIVEN bpftrace counting a function of libc
    path = tool("bpftrace", "bpftrace")
    libc = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("/libc.so.6")
    )
    ready, out = tmp_path / "ready", tmp_path / "bpftrace.txt"
    os.mkfifo(ready)
    program = f'BEGIN {{ system("echo > ready"); }} uprobe:{libc}:a64l {{ @calls = count(); }}'
    with out.open("w") as file:
        other = subprocess.Popen(
            [path, "--unsafe", "-e", program], stdout=file, stderr=file, cwd=tmp_path
        )
        try:
            reader = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
            if not select.select([reader], [], [], DEADLINE_S)[0]:
                pytest.fail(f"bpftrace did not start: {out.read_text()}")
            os.close(reader)
            # WHEN the doctor probes it, too
            done = subprocess.run(
                [*CCTRACE, "doctor", "--json"],
                capture_output=True,
                text=True,
                check=False,
                timeout=DEADLINE_S,
            )
        finally:
            other.send_signal(signal.SIGINT)
            other.wait(DEADLINE_S)
    # THEN both have seen each of its calls: seven by a uprobe, seven by a uprobe_multi
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["uprobes"]["found"].startswith("7 of 7 calls")
    calls = 14 if checks["uprobe_multi"]["status"] == "ok" else 7
    assert f"@calls: {calls}" in out.read_text()


def test_target_in_a_process_namespace_of_its_own(
    workload: dict[str, Path], tmp_path: Path
) -> None:
    """As a container's processes are: BPF sees the machine's numbers for them."""
    prefix = unshare("-pf", "--mount-proc")
    run = tmp_path / "run"
    done = record_under([], run, *prefix, workload["dynamic"], *SLEEPS)
    assert done.returncode == 0, done.stderr
    (span,) = [line.split() for line in done.stdout.splitlines() if line.startswith("span ")]
    assert span[2] == span[3] == "1", "the program calls itself number 1"
    (inner,) = [row["tid"] for row in rows(run, "threads") if row["name"] == "dynamic"]
    log = done.stdout.replace("span main 1 1 ", f"span main {inner} {inner} ")
    assert_sleeps_are_exact(run, log)
