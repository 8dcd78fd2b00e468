"""Tracepoint formats of several kernels, and file systems that nobody has mounted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import bpf_here
import pytest

from cctrace.errors import CctraceError
from cctrace.record.bpf import kernelfs
from cctrace.record.bpf.kernelfs import Field, KernelFs, TraceFs, parse_format
from cctrace.record.bpf.probes import tracepoint_flags

COMMON = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""


def format_file(name: str, fields: str) -> str:
    """A format file as the kernel writes it (Documentation/trace/events.rst)."""
    return f'name: {name}\nID: 317\nformat:\n{COMMON}{fields}\nprint fmt: "field:x; offset:99;"\n'


# The array's length is a number, or since 6.1 the name it has in the source.
SWITCH = {
    "5.15": "\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:1;\n"
    "\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n"
    "\tfield:int prev_prio;\toffset:28;\tsize:4;\tsigned:1;\n"
    "\tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;\n"
    "\tfield:char next_comm[16];\toffset:40;\tsize:16;\tsigned:1;\n"
    "\tfield:pid_t next_pid;\toffset:56;\tsize:4;\tsigned:1;\n",
    "6.1": "\tfield:char prev_comm[TASK_COMM_LEN];\toffset:8;\tsize:16;\tsigned:0;\n"
    "\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n"
    "\tfield:int prev_prio;\toffset:28;\tsize:4;\tsigned:1;\n"
    "\tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;\n"
    "\tfield:char next_comm[TASK_COMM_LEN];\toffset:40;\tsize:16;\tsigned:0;\n"
    "\tfield:pid_t next_pid;\toffset:56;\tsize:4;\tsigned:1;\n",
}


@pytest.mark.parametrize("release", SWITCH)
def test_switch_of_several_kernels(release: str) -> None:
    fields = parse_format(format_file("sched_switch", SWITCH[release]))
    assert fields["prev_comm"] == Field(8, 16)
    assert fields["prev_pid"] == Field(24, 4)
    assert fields["prev_state"] == Field(32, 8)
    assert fields["next_pid"] == Field(56, 4)
    assert fields["common_pid"] == Field(4, 4)
    assert len(fields) == 10  # nothing of "print fmt" among them


@pytest.mark.parametrize(
    ("declaration", "name"),
    [
        ("__data_loc char[] dev_name", "dev_name"),
        ("__data_loc const char * [] names", "names"),
        ("__rel_loc u8[] payload", "payload"),
        ("unsigned long args[6]", "args"),
        ("__u64 phys_addrs[(MAX_ENTRIES * 2)]", "phys_addrs"),
        ("const char * comm", "comm"),
        ("const void *ptr", "ptr"),
        ("enum swiotlb_force swiotlb_force", "swiotlb_force"),
        ("dma_addr_t dev_addr", "dev_addr"),
        ("struct bpf_prog *prog", "prog"),
        ("bool force", "force"),
    ],
)
def test_declarations(declaration: str, name: str) -> None:
    text = format_file("x", f"\tfield:{declaration};\toffset:16;\tsize:8;\tsigned:0;\n")
    assert parse_format(text)[name] == Field(16, 8)


def test_no_format_at_all() -> None:
    assert parse_format("") == {}


class FakeTraceFs(TraceFs):
    """tracefs in a directory of the test's."""

    def __init__(self, root: Path) -> None:
        KernelFs.__init__(self, "tracefs", (str(root),))


@pytest.fixture
def tracefs(tmp_path: Path) -> Iterator[FakeTraceFs]:
    event = tmp_path / "events/sched/sched_switch"
    event.mkdir(parents=True)
    (event / "id").write_text("317\n")
    (event / "format").write_text(format_file("sched_switch", SWITCH["6.1"]))
    with closing(FakeTraceFs(tmp_path)) as made:
        yield made


def test_flags_for_the_compiler(tracefs: FakeTraceFs) -> None:
    assert tracefs.tracepoint_id("sched:sched_switch") == 317
    assert tracepoint_flags(tracefs, "sched:sched_switch", ("prev_pid", "next_pid")) == [
        "-DTP_sched_switch_prev_pid=24",
        "-DTP_sched_switch_next_pid=56",
    ]


def test_what_a_kernel_lacks_is_refused(tracefs: FakeTraceFs) -> None:
    assert tracefs.tracepoint_id("dma:dma_map_sg") is None
    assert tracefs.fields("dma:dma_map_sg") is None
    with pytest.raises(CctraceError, match="no tracepoint dma:dma_map_sg"):
        tracepoint_flags(tracefs, "dma:dma_map_sg", ("dir",))
    with pytest.raises(CctraceError, match="sched_switch of this kernel has no field waker"):
        tracepoint_flags(tracefs, "sched:sched_switch", ("waker",))


def test_first_place_that_holds_something_is_taken(tmp_path: Path) -> None:
    # GIVEN a mount point with nothing on it, one that is not there, and a real one
    (tmp_path / "empty").mkdir()
    (tmp_path / "mounted/events").mkdir(parents=True)
    places = tuple(str(tmp_path / name) for name in ("gone", "empty", "mounted"))
    with closing(KernelFs("tracefs", places)) as found:
        assert (found.root, found.reason) == (tmp_path / "mounted", None)


def test_tracefs_that_is_kept_empty(tracefs: FakeTraceFs, tmp_path: Path) -> None:
    tracefs.require_events()
    shutil.rmtree(tmp_path / "events")
    with pytest.raises(CctraceError, match="the kernel keeps tracefs empty") as caught:
        tracefs.require_events()
    assert caught.value.hint == "boot with lockdown=integrity, or none"


def test_refused_mount_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernelfs, "_private_mount", refuse)
    with closing(KernelFs("tracefs", ("/nonexistent",))) as found:
        assert found.root is None
        assert found.reason == "tracefs cannot be mounted: Operation not permitted"
        assert found.read("events/sched/sched_switch/id") is None


def test_private_mount_shows_what_a_usual_one_does(tmp_path: Path) -> None:
    """The same files as the mount command shows, and nobody's mounts are changed."""
    bpf_here.require_bpf()
    mounts = Path("/proc/self/mountinfo").read_text()
    # GIVEN tracefs mounted for one command, in a mount namespace of its own
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare: apt-get install util-linux")
    tried = subprocess.run([unshare, "-m", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    event = "events/sched/sched_switch"
    script = f"mount -t tracefs tracefs {tmp_path} && cat {tmp_path}/{event}/{{id,format}}"
    truth = subprocess.run(
        [unshare, "-m", "bash", "-c", script], check=True, capture_output=True, text=True
    ).stdout
    # WHEN it is read where nobody has mounted it
    found = KernelFs("tracefs", ("/nonexistent",))
    read = f"{found.read(f'{event}/id')}{found.read(f'{event}/format')}"
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    found.close()
    # THEN it is the same, and its descriptor is given back
    assert read == truth
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before - 1
    assert found.root is None
    found.close()
