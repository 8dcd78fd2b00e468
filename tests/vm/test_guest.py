"""cctrace in a guest of its own: an older kernel, and one that refuses.

Linux 6.1 has no multi-uprobe and no PIDFD_GET_INFO, so what record does without them is
tried here. Locked down at boot, a kernel gives no kprobes (integrity still does) and
leaves tracefs empty: as a hardened confidential VM may be.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from guest import Guest, GuestResult
from recording import losses, rows

pytestmark = pytest.mark.vm

SLEEPS = 31
SLEEP_NS = 50_000_000

# In the guest: doctor, and a program that sleeps a prime number of times and does I/O.
SCRIPT = f"""
set -u
cctrace doctor --json >doctor.json
echo $? >doctor.status
cat >sleeper.py <<'PROGRAM'
import pathlib, time
told = lambda: [
    line for line in pathlib.Path("/proc/self/status").read_text().splitlines()
    if line.startswith(("Pid", "voluntary"))
]
before = told()
for _ in range({SLEEPS}):
    time.sleep({SLEEP_NS / 1e9})
pathlib.Path("/results/sleeper.txt").write_text("\\n".join(before + told()))
PROGRAM
cctrace record -q -o run --sources nvtx,sched,swiotlb -- bash -c '
	python3 sleeper.py && python3 /src/tests/vm/direct_io.py io.json data0:read:37:4096
	exit 41'
echo $? >run.status
"""


@pytest.fixture(scope="module", params=["integrity", "confidentiality"])
def lockdown(request: pytest.FixtureRequest) -> str:
    """Level that the guest's kernel is locked down to at boot; the other tests have none."""
    level: str = request.param
    return level


@pytest.fixture(scope="module")
def guest(lockdown: str, tmp_path_factory: pytest.TempPathFactory) -> GuestResult:
    """A guest locked down to that level, and what cctrace did in it."""
    out = tmp_path_factory.mktemp(lockdown) / "results"
    return Guest(append=f"lockdown={lockdown}").run(SCRIPT, out)


def sources(guest: GuestResult) -> dict[str, dict[str, Any]]:
    """The manifest's sources by name."""
    manifest = json.loads((guest.results / "run" / "run.json").read_text())
    return {source["name"]: source for source in manifest["sources"]}


def test_status_is_the_targets(guest: GuestResult) -> None:
    """Whatever is refused, record ends as its command did, and the run is there."""
    assert (guest.results / "run.status").read_text().strip() == "41", guest.output
    assert sources(guest)["nvtx"]["state"] == "attached"
    assert losses(guest.results / "run") == {}


def test_doctor_sees_the_lockdown(guest: GuestResult, lockdown: str) -> None:
    """Doctor tells lockdown and SWIOTLB as they were set at boot; NVTX works all the same."""
    assert (guest.results / "doctor.status").read_text().strip() == "0", guest.output
    told = json.loads((guest.results / "doctor.json").read_text())
    host = told["host"]
    assert host["lockdown"]["level"] == lockdown
    assert (host["swiotlb"]["state"], host["swiotlb"]["size_bytes"]) == ("forced", 32 << 20)
    assert host["hypervisor"] == "qemu-tcg"
    assert host["kernel"].startswith("6.1.")
    status = {check["name"]: check["status"] for check in told["checks"]}
    kernels = "missing" if lockdown == "confidentiality" else "ok"
    assert (status["kprobes"], status["tracepoints"]) == (kernels, kernels)
    assert (status["uprobes"], status["ring buffer"]) == ("ok", "ok")
    assert status["uprobe_multi"] == "warn"


def test_sources_work_or_say_why(guest: GuestResult, lockdown: str) -> None:
    """Kprobes serve up to integrity; beyond that each BPF source is refused with its reason."""
    told = sources(guest)
    if lockdown == "confidentiality":
        for name in ("sched", "swiotlb"):
            assert told[name]["state"] == "refused"
            assert "lockdown" in told[name]["reason"]
            assert told[name]["hint"]
        assert "use of tracefs is restricted" in guest.kernel_log
        assert not rows(guest.results / "run", "swiotlb")
    else:
        assert told["swiotlb"]["state"] == "attached"
        assert told["swiotlb"]["detail"]["attached"] == "kprobes"
        io = json.loads((guest.results / "io.json").read_text())
        maps = [row for row in rows(guest.results / "run", "swiotlb") if row["op"] == "map"]
        assert {row["device"] for row in maps} == {io["disks"]["data0"]["device"]}
        assert len(maps) == 4 * 37


def test_every_sleep_is_an_interval(guest: GuestResult, lockdown: str) -> None:
    """The program's sleeps are its blocked intervals of at least their length."""
    if lockdown == "confidentiality":
        assert not rows(guest.results / "run", "sched")
        return
    status = (guest.results / "sleeper.txt").read_text().splitlines()
    told = [int(line.split(":")[1]) for line in status]
    pid, before, _, after = told
    mine = [row for row in rows(guest.results / "run", "sched") if row["pid"] == pid]
    blocked = [row for row in mine if row["state"] == "blocked"]
    # The timer is armed before the thread leaves the CPU, and an emulated CPU may stall
    # in between, hence not all of it.
    slept = [row for row in blocked if row["dur_ns"] >= SLEEP_NS / 2]
    assert len(slept) >= SLEEPS
    assert after - before >= SLEEPS
    assert len(blocked) >= after - before
