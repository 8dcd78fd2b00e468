"""A Debian guest with bounce buffers forced, booted for one command.

QEMU emulates it without KVM, so it runs wherever the tests do. Two data disks have
their DMA bounced through SWIOTLB; the root, payload and results disks do not use the
DMA API at all, so what the kernel bounces is what the command moved on the data
disks. The image is never written to. The source tree, with its built libraries, goes
in as a tar on a disk of its own, the results come back the same way.

As a command, for work by hand::

    python tests/vm/guest.py [--swiotlb 2048,force] [-o DIR] -- 'cctrace doctor'
    python tests/vm/guest.py --shell
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cctrace.resources import native_library

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent

DATA_DISKS: Final = ("data0", "data1")
DATA_DISK_BYTES: Final = 64 << 20
RESULTS_BYTES: Final = 1 << 30
TIMED_OUT: Final = 124  # what timeout(1) exits with
GRACE_S: Final = 90.0  # to boot before the command's time and to end after it, on a busy machine

_KERNEL_LINE: Final = (
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off random.trust_cpu=on no_timer_check "
    "tsc=reliable nowatchdog rcupdate.rcu_expedited=1"
)


class GuestError(Exception):
    """The guest did not come up, or went away without results."""


@dataclass(frozen=True)
class GuestResult:
    """What a command in the guest came to.

    Attributes:
        status: Exit status of the command, 124 if its time was up.
        output: Its standard output and error.
        results: What it left in ``/results``, its working directory.
        kernel_log: The guest's dmesg at the end.
        wall_s: From the start of QEMU to its end, seconds.
    """

    status: int
    output: str
    results: Path
    kernel_log: str
    wall_s: float


@dataclass(frozen=True)
class Guest:
    """How a guest is booted.

    Attributes:
        swiotlb: Value of the kernel's ``swiotlb=``: slots of 2 KiB, ``,force``.
        append: More words for the kernel's command line.
        data_iops: Requests a second that each data disk serves; 0 for no limit. A slow
            disk keeps its buffers mapped.
        cpus: Processors; they are threads of QEMU.
        memory_mib: Its memory.
        carry: Files and directories of this machine by their place in the guest's
            source tree ``/src``.
        echo: Called with each piece of the command's output as it comes.
    """

    swiotlb: str = "16384,force"
    append: str = ""
    data_iops: int = 0
    cpus: int = 2
    memory_mib: int = 2048
    carry: Mapping[str, Path] = field(default_factory=dict)
    echo: Callable[[str], None] | None = None

    def run(
        self,
        command: str,
        out: Path,
        *,
        time_limit_s: float = 240.0,
        environment: Mapping[str, str] | None = None,
    ) -> GuestResult:
        """Boot, run a bash script as root, shut down, and fetch its results.

        Args:
            command: Script; cctrace is on its PATH, its source in ``/src``, and
                its working directory is ``/results``.
            out: New directory on this machine for what it leaves there.
            time_limit_s: For the command alone.
            environment: Variables for it.

        Raises:
            GuestError: The guest did not boot or left no results; the message has
                the end of its console.
        """
        with tempfile.TemporaryDirectory(prefix="cctrace-vm-") as scratch_name:
            scratch = Path(scratch_name)
            settings = {"TIME_LIMIT_S": str(time_limit_s), **(environment or {})}
            _write_payload(scratch / "payload.tar", command, settings, self.carry)
            begun = time.monotonic()
            output = _run_qemu(
                [*self._qemu(scratch), *_serial_ports(scratch)],
                time_limit_s + GRACE_S,
                self.echo,
            )
            wall_s = time.monotonic() - begun
            console = (scratch / "console.log").read_text(errors="replace")
            status = _fetch_results(scratch / "results.raw", out, console)
        log = out / ".dmesg"
        return GuestResult(status, output, out, log.read_text(errors="replace"), wall_s)

    def shell(self) -> int:
        """Boot into a shell on this terminal; return its exit status."""
        with tempfile.TemporaryDirectory(prefix="cctrace-vm-") as scratch_name:
            scratch = Path(scratch_name)
            settings = {"TIME_LIMIT_S": "0", "GUEST_SHELL": "1", "TERM": "xterm"}
            _write_payload(scratch / "payload.tar", "", settings, self.carry)
            ports = ["-serial", "mon:stdio", "-serial", "null"]
            return subprocess.run([*self._qemu(scratch), *ports], check=False).returncode

    def _qemu(self, scratch: Path) -> list[str]:
        """The command line, serial ports apart; makes the disks in ``scratch``."""
        image = image_directory()
        for name in DATA_DISKS:
            _sparse_file(scratch / f"{name}.raw", DATA_DISK_BYTES)
        _sparse_file(scratch / "results.raw", RESULTS_BYTES)
        line = f"{_KERNEL_LINE} swiotlb={self.swiotlb} {self.append}".strip()
        qemu = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35"]
        qemu += ["-smp", str(self.cpus), "-m", str(self.memory_mib), "-no-reboot"]
        qemu += ["-nodefaults", "-no-user-config", "-display", "none"]
        qemu += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")]
        qemu += ["-append", line]
        # snapshot=on: writes to the image go to a file that QEMU drops at its end.
        qemu += _disk("root", image / "root.ext4", "snapshot=on")
        qemu += _disk("payload", scratch / "payload.tar", "read-only=on")
        qemu += _disk("results", scratch / "results.raw", "cache=unsafe")
        for name in DATA_DISKS:
            option = f"cache=unsafe,throttling.iops-total={self.data_iops}"
            qemu += _disk(name, scratch / f"{name}.raw", option, bounced=True)
        return qemu


def image_directory() -> Path:
    """The guest's image, built first where it is not there yet.

    Raises:
        GuestError: It cannot be built here; the message says why.
    """
    done = subprocess.run(
        [ROOT / "scripts" / "vm_image.sh"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise GuestError("scripts/vm_image.sh failed; what it said is above")
    return Path(done.stdout.strip())


def _disk(serial: str, path: Path, option: str, *, bounced: bool = False) -> list[str]:
    """A virtio disk. Only a ``bounced`` one does its DMA through the DMA API."""
    device = f"virtio-blk-pci,drive={serial},serial={serial}"
    if bounced:
        # Without iommu_platform virtio passes physical addresses, and the kernel has
        # nothing to bounce; with it, QEMU refuses the legacy interface.
        device += ",iommu_platform=on,disable-legacy=on"
    drive = f"if=none,id={serial},format=raw,file={path},{option}"
    return ["-drive", drive, "-device", device]


def _sparse_file(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)


def _serial_ports(scratch: Path) -> list[str]:
    return ["-serial", f"file:{scratch / 'console.log'}", "-serial", "stdio"]


def _source_files() -> list[Path]:
    """The source tree as git sees it, relative to its top: no build, no caches."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    paths = (Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name)
    return sorted(path for path in paths if (ROOT / path).is_file())


def _write_payload(
    path: Path, command: str, settings: Mapping[str, str], carry: Mapping[str, Path]
) -> None:
    """A tar of the source tree, its built libraries, the command and its settings."""
    libraries = native_library("libcctrace_agent.so").parent
    carried = {"cctrace/_native": libraries, **carry}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()]
    with tarfile.open(path, "w") as tar:
        tar.add(HERE / "guest_init", "init")
        _add_text(tar, "environment", "".join(lines))
        _add_text(tar, "command", command + "\n")
        for source in _source_files():
            tar.add(ROOT / source, f"src/{source}")
        for place, source in carried.items():
            tar.add(source, f"src/{place}")


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _run_qemu(arguments: Sequence[str], limit_s: float, echo: Callable[[str], None] | None) -> str:
    """Run QEMU to its end, at most ``limit_s``; return what the second port said."""
    pieces: list[str] = []
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        bufsize=1,
    ) as qemu:
        timer = threading.Timer(limit_s, qemu.kill)
        timer.start()
        try:
            for line in qemu.stdout or ():
                pieces.append(line)
                if echo is not None:
                    echo(line)
        except BaseException:
            qemu.kill()
            raise
        finally:
            timer.cancel()
    if qemu.returncode not in (0, -signal.SIGKILL):
        raise GuestError(f"QEMU ended with {qemu.returncode}; what it said is above")
    return "".join(pieces)


def _fetch_results(disk: Path, out: Path, console: str) -> int:
    """Unpack the results disk; return the command's exit status."""
    tail = "\n".join(console.splitlines()[-40:])
    try:
        with tarfile.open(disk, "r:") as tar:
            tar.extractall(out, filter="data")
        return int((out / ".status").read_text())
    except (tarfile.TarError, FileNotFoundError) as error:
        raise GuestError(f"the guest left no results ({error}). Its console:\n{tail}") from error


def main() -> int:
    """Run a command, or a shell, in the guest; its status is the exit status."""
    parser = argparse.ArgumentParser(description="Run a command in the test guest.")
    parser.add_argument("--swiotlb", default=Guest.swiotlb, help="SLOTS[,force] (%(default)s)")
    parser.add_argument("--iops", type=int, default=0, help="limit of each data disk (none)")
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds (%(default)s)")
    parser.add_argument("-o", "--out", type=Path, help="directory for what it leaves in /results")
    parser.add_argument("--carry", action="append", default=[], metavar="PLACE=PATH")
    parser.add_argument("--shell", action="store_true", help="a shell on this terminal")
    parser.add_argument("command", nargs="*", help="bash script")
    chosen = parser.parse_args()
    carry = {place: Path(path) for place, _, path in (c.partition("=") for c in chosen.carry)}
    simcuda = ROOT / "examples" / "simcuda" / "build"
    if simcuda.is_dir():
        carry.setdefault("examples/simcuda/build", simcuda)
    guest = Guest(
        swiotlb=chosen.swiotlb,
        append=chosen.append,
        data_iops=chosen.iops,
        carry=carry,
        echo=lambda piece: print(piece, end="", flush=True),
    )
    if chosen.shell:
        return guest.shell()
    if not chosen.command:
        parser.error("which command?")
    out = chosen.out or Path(tempfile.mkdtemp(prefix="cctrace-vm-results-"))
    done = guest.run(" ".join(chosen.command), out, time_limit_s=chosen.time_limit)
    print(f"guest: status {done.status}, {done.wall_s:.1f} s, results in {out}", file=sys.stderr)
    return done.status


if __name__ == "__main__":
    sys.exit(main())
