"""What can be traced through BPF on this machine, each way to attach really tried.

A small module of programs (``probes/bpf/doctor.bpf.c``) is compiled once; each check
attaches one of them to a function that the doctor then calls itself, and believes the
count alone. Last, everything that ``record`` would attach is attached and detached.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cctrace.errors import CctraceError
from cctrace.record import libraries, library_search
from cctrace.record.bpf import frontend, probes, syscalls
from cctrace.record.bpf.families import Wishes, make_families
from cctrace.record.doctor_checks import MISSING, OK, WARN, Check, CheckList, Finding
from cctrace.record.doctor_trial import CALLS, COOKIE, Slot, Trial, function_in_libc
from cctrace.record.losses import LossLedger
from cctrace.record.sources import OPT_IN, SOURCES, WHERE_PRESENT

Host = dict[str, Any]

# include/uapi/linux/capability.h
_CAPABILITIES: Final = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_SOURCE: Final = "source "  # checks that name a source begin with it
_TRIAL_RING_BYTES: Final = 1 << 20
_KPROBED: Final = "__x64_sys_getppid"
_TRACEPOINT: Final = "task:task_newtask"
_AS_ROOT: Final = 'run as root: sudo -E "$(command -v cctrace)" doctor'
_PRIVILEGED: Final = "docker run --privileged --pid=host"
# include/linux/security.h, enum lockdown_reason: what comes before each level's mark.
_FORBIDDEN: Final = {
    "none": "forbids nothing",
    "integrity": "forbids nothing that cctrace needs",
    "confidentiality": "forbids kprobes and tracefs: what is in the kernel is not recorded",
}

_CHECKS: Final[CheckList[Trial]] = CheckList()
check = _CHECKS.add


def diagnose(host: Host) -> list[Check]:
    """Run every check; takes about two seconds. Never raises.

    Args:
        host: Host facts, as in a run's manifest.
    """
    with contextlib.closing(Trial(host)) as trial:
        checks = _CHECKS.run(trial)
    return [*checks, *_sources()]


def attachable(checks: Iterable[Check]) -> list[str]:
    """Sources that could be attached, of the checks that :func:`diagnose` returned."""
    return [
        found.name.removeprefix(_SOURCE)
        for found in checks
        if found.name.startswith(_SOURCE) and found.finding.status == OK
    ]


@check("privileges")
def _privileges(_: Trial) -> Finding:
    held = effective_capabilities()
    absent = [name for name, bit in _CAPABILITIES.items() if not held & 1 << bit]
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    if not absent:
        return Finding(OK, f"{who} with {', '.join(_CAPABILITIES)}")
    status = MISSING if "CAP_SYS_ADMIN" in absent else WARN  # which stands for the others
    return Finding(
        status,
        f"{who} without {', '.join(absent)}: no BPF, so no CUDA calls, no scheduler"
        if status == MISSING
        else f"{who} without {', '.join(absent)}, which CAP_SYS_ADMIN stands for",
        (_PRIVILEGED if os.geteuid() == 0 else _AS_ROOT) if status == MISSING else None,
    )


def effective_capabilities() -> int:
    """Bits of this process's effective capabilities (capabilities(7))."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


@check("process namespace")
def _process_namespace(trial: Trial) -> Finding:
    if trial.is_initial_namespace:
        return Finding(OK, "the machine's own")
    return Finding(
        MISSING,
        "another than the machine's, whose process numbers BPF sees",
        _PRIVILEGED,
    )


@check("lockdown")
def _lockdown(trial: Trial) -> Finding:
    level, how = trial.host["lockdown"]["level"], trial.host["lockdown"]["how"]
    if level == "unknown":
        return Finding(
            WARN, f"unknown ({how})", "mount -t securityfs securityfs /sys/kernel/security"
        )
    forbids = _FORBIDDEN.get(level, "what it forbids is not known")
    return Finding(
        WARN if level == "confidentiality" else OK,
        f"{level} ({how}): {forbids}",
        "lockdown=integrity on the kernel command line" if level == "confidentiality" else None,
    )


@check("btf")
def _btf(_: Trial) -> Finding:
    path = Path("/sys/kernel/btf/vmlinux")
    try:
        return Finding(OK, f"{path}, {path.stat().st_size >> 10} KiB")
    except OSError:
        return Finding(OK, f"no {path}; programs are compiled, so nothing needs it")


@check("kernel headers")
def _headers(trial: Trial) -> Finding:
    if trial.headers is None:
        return _as_missing(trial.headers_error)
    what = {
        "running": f"the running kernel's: {trial.headers.tree}",
        "kheaders": "the running kernel's, kept in the kernel itself",
        "overlay": f"another kernel's, which serve: {trial.headers.tree}",
    }
    return Finding(OK, what.get(trial.headers.kind, trial.headers.tree))


@check("bcc")
def _bcc(_: Trial) -> Finding:
    wrong = _bcc_of_pypi()
    besides = f"; {wrong} is another package of that name, which does not disturb" if wrong else ""
    try:
        module = frontend.load_bcc()
    except CctraceError as error:
        return Finding(MISSING, f"{error.message}{besides}", error.hint)
    place = Path(module.__file__ or "").parent
    return Finding(OK, f"{getattr(module, '__version__', 'unknown version')} in {place}{besides}")


def _bcc_of_pypi() -> Path | None:
    """Where this Python would import ``bcc`` from by itself, if it is not BCC."""
    loaded = sys.modules.pop("bcc", None)  # find_spec believes what is loaded
    try:
        spec = importlib.util.find_spec("bcc")
    except (ImportError, ValueError):
        return None
    finally:
        if loaded is not None:
            sys.modules["bcc"] = loaded
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent
    return None if (place / "libbcc.py").is_file() else place


@check("bpf programs")
def _compile(trial: Trial) -> Finding:
    if trial.module is None:
        return _as_missing(trial.module_error)
    return Finding(OK, f"BCC compiles them: a small one took {trial.compile_s:.1f} s")


@check("uprobes")
def _uprobes(trial: Trial) -> Finding:
    """Attach to a function of our own libc, as before Linux 6.6."""
    path, offset, call = function_in_libc()
    program = trial.load("doctor_uprobe", frontend.KPROBE)
    descriptors = syscalls.link_uprobe(program, path, offset, COOKIE, is_return=False)
    try:
        for _ in range(CALLS):
            call()
    finally:
        syscalls.close_all(descriptors)
    return trial.counted(Slot.UPROBE, f"a function of {path}")


@check("attach cookies")
def _cookies(trial: Trial) -> Finding:
    trial.require()
    seen = trial.seen(Slot.UPROBE_COOKIE)
    if seen == CALLS * COOKIE:
        return Finding(OK, "one program can tell its places apart")
    return Finding(MISSING, f"a cookie of {COOKIE} came as {seen / CALLS:g}", "Linux 5.15 or later")


@check("ring buffer")
def _ring_buffer(trial: Trial) -> Finding:
    trial.require()
    records = trial.records()
    if records == CALLS:
        return Finding(OK, f"{records} of {CALLS} records arrived")
    return Finding(MISSING, f"{records} of {CALLS} records arrived", "Linux 5.15 or later")


@check("uprobe_multi")
def _uprobe_multi(trial: Trial) -> Finding:
    """Attach to many places at once, as since Linux 6.6; not having it costs time only."""
    path, offset, call = function_in_libc()
    slower = "attaching one by one instead, which takes longer"
    try:
        program = trial.load(
            "doctor_uprobe_multi", frontend.KPROBE, syscalls.BPF_TRACE_UPROBE_MULTI
        )
        sites = [(offset, COOKIE)]
        link = syscalls.link_uprobe_multi(program, path, sites, is_return=False)
    except OSError as error:
        return Finding(WARN, f"{error.strerror}: {slower}", "Linux 6.6 or later")
    try:
        for _ in range(CALLS):
            call()
    finally:
        os.close(link)
    found = trial.counted(Slot.MULTI, f"a function of {path}")
    if found.status == OK and trial.seen(Slot.MULTI_COOKIE) != CALLS * COOKIE:
        return Finding(WARN, f"cookies do not come through: {slower}", None)
    return found


@check("tracefs")
def _tracefs(trial: Trial) -> Finding:
    tracefs = trial.tracefs
    try:
        tracefs.require_events()
    except CctraceError as error:
        return Finding(MISSING, error.message, None if trial.refusal else error.hint)
    usual = str(tracefs.root).startswith("/sys/")
    shown = f"{tracefs.root}" if usual else "by a mount that nobody else sees"
    if not tracefs.fields(_TRACEPOINT):
        return Finding(MISSING, f"{shown}, but {_TRACEPOINT} cannot be read", None)
    return Finding(OK, f"tracepoints can be read ({shown})")


@check("tracepoints")
def _tracepoints(trial: Trial) -> Finding:
    """Start threads, each of which passes a tracepoint."""
    number = trial.tracefs.tracepoint_id(_TRACEPOINT)
    if number is None:
        trial.require()
        return Finding(MISSING, f"this kernel shows no tracepoint {_TRACEPOINT}", None)
    event = syscalls.attach_tracepoint(trial.load("doctor_tracepoint", frontend.TRACEPOINT), number)
    try:
        for _ in range(CALLS):
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
    finally:
        os.close(event)
    return trial.counted(Slot.TRACEPOINT, _TRACEPOINT)


@check("kprobes")
def _kprobes(trial: Trial) -> Finding:
    """Attach to a system call and make it."""
    without = "kernel functions cannot be watched"
    try:
        program = trial.load("doctor_kprobe", frontend.KPROBE)
        event = syscalls.attach_kprobe(program, _KPROBED, is_return=False)
    except FileNotFoundError:
        return Finding(
            MISSING, f"this kernel has none: {without}", "a kernel with CONFIG_KPROBE_EVENTS=y"
        )
    except OSError as error:
        fix = "lockdown=integrity on the kernel command line, if lockdown forbids it"
        return Finding(MISSING, f"refused ({error.strerror}): {without}", fix)
    try:
        for _ in range(CALLS):
            os.getppid()
    finally:
        os.close(event)
    return trial.counted(Slot.KPROBE, _KPROBED)


@check("perf events")
def _paranoid(trial: Trial) -> Finding:
    path = Path("/proc/sys/kernel/perf_event_paranoid")
    try:
        level = int(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        return Finding(MISSING, f"{path}: {error}", "a kernel with CONFIG_PERF_EVENTS=y")
    if trial.refusal is None:
        return Finding(OK, f"perf_event_paranoid is {level}, which does not bind root")
    return Finding(OK, f"perf_event_paranoid is {level}, which binds users without CAP_PERFMON")


@check("cuda libraries")
def _cuda_libraries(_: Trial) -> Finding:
    """Look where ``record`` looks before it starts a Python of this environment."""
    found, whole = library_search.find_libraries(
        [sys.executable],
        os.environ,
        lambda name: name.startswith(libraries.PREFIXES) and ".so" in name,
    )
    more = "" if whole else "; the search was cut short"
    if not found:
        return Finding(
            OK, f"none in this environment{more}; an engine's own are found when it loads them"
        )
    names = ", ".join(dict.fromkeys(Path(path).name for path in found))
    return Finding(OK, f"{names}{more}")


def _sources() -> list[Check]:
    """Attach what ``record`` would, and tell of each source how that went."""
    names = [name for name in SOURCES if name not in ("nvtx", "processes")]
    ledger = LossLedger()
    trial = None
    refused: dict[str, CctraceError] = {}
    attached: set[str] = set()
    try:
        trial = probes.Probes(
            make_families(names, Wishes("full", ledger)), _TRIAL_RING_BYTES, ledger
        )
        trial.start()
        refused = {family.name: error for family, error in trial.refused()}
        attached = {family.name for family in trial.attached()}
    except Exception as error:  # noqa: BLE001 - as CheckList.run
        failed = CctraceError(f"the check failed: {type(error).__name__}: {error}")
        refused = dict.fromkeys(names, failed)
    finally:
        if trial is not None:
            trial.detach()
            trial.finish()
            trial.close()
    checks = []
    for name in names:
        why = refused.get(name)
        if why is not None:
            mild = name in WHERE_PRESENT or name in OPT_IN
            finding = Finding(WARN if mild else MISSING, why.message, why.hint)
        elif name in attached:
            asked = f" (where asked for: --sources {name})" if name in OPT_IN else ""
            finding = Finding(OK, f"{SOURCES[name]}{asked}")
        else:
            continue
        checks.append(Check(f"{_SOURCE}{name}", needed=False, finding=finding))
    return checks


def _as_missing(error: CctraceError | None) -> Finding:
    if error is None:
        return Finding(MISSING, "not tried", None)
    return Finding(MISSING, error.message, error.hint)
