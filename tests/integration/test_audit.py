"""Libraries are attached to before their first call, wherever they lie; engines never suffer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_harness import (
    DEADLINE_S,
    Counter,
    Watching,
    audit_library,
    build,
    copies,
    environment,
    make_fifo,
    needs_mounts,
    run,
)

from cctrace.errors import CctraceError

COPIES = 997
BOUND_S = 2.0  # WAIT_NS of audit.c
SLACK_S = 1.5  # for a busy machine
NOWHERE = Path("/nonexistent/agent.sock")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the loader, the library, and another auditor."""
    folder = tmp_path_factory.mktemp("audit")
    build(folder, "audit_loader.c", "loader")
    build(folder, "audit_library.c", "libcudart.so.12", "-shared", "-fPIC")
    build(folder, "audit_other.c", "other.so", "-shared", "-fPIC")
    return folder


@pytest.fixture
def watching(tmp_path: Path) -> Watching:
    return Watching(tmp_path)


@pytest.fixture(scope="module")
def counting(programs: Path) -> Iterator[Counter]:
    """The program that counts, compiled once."""
    made = Counter(programs / "libcudart.so.12", COPIES)
    yield made
    made.close()


@pytest.fixture
def counter(counting: Counter) -> Iterator[Counter]:
    yield counting
    counting.reset()


def test_every_first_call_of_a_thousand_unknown_libraries_is_seen(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """Two calls each: its constructor's and the one right after dlopen."""
    watching.on_attach = counter.attach
    paths = copies(programs, tmp_path, COPIES)
    with watching.serving() as server:
        begun_s = time.monotonic()
        printed = run([programs / "loader", "load", *paths], environment(server.path))
        print(f"{COPIES} libraries loaded in {time.monotonic() - begun_s:.2f} s")
    assert printed == f"{2 * COPIES}\n"
    assert counter.hits() == [2] * COPIES
    records = watching.watch.records()
    assert [record.path for record in records] == [str(path) for path in paths]
    assert {(r.label, r.how, r.error) for r in records} == {("cudart", "at_load", None)}
    assert watching.ledger.by_reason() == {}


@pytest.mark.parametrize("mode", ["fork", "exec", "storm", "threads"])
def test_first_calls_are_seen_whatever_the_program_does(
    mode: str, programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """Forked children, an exec before, a signal every 100 us, threads with much of their own."""
    watching.on_attach = counter.attach
    paths = copies(programs, tmp_path, 11)
    with watching.serving() as server:
        run([programs / "loader", mode, *paths], environment(server.path))
    assert counter.hits() == [2] * 11
    assert watching.ledger.by_reason() == {}


def test_file_found_beforehand_is_attached_to_once(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """On LD_LIBRARY_PATH; loaded by several processes later."""
    watching.on_attach = counter.attach
    (path,) = copies(programs, tmp_path, 1)
    command = [str(programs / "loader"), "fork", *[str(path)] * 5]
    with watching.serving() as server:
        env = environment(server.path, LD_LIBRARY_PATH=str(path.parent))
        watching.watch.prescan(command, env)
        before = watching.watch.records()
        assert [r.how for r in before if r.error is None] == ["before_load"]
        run([*command], env)
    assert counter.hits() == [2 * 5]
    assert watching.watch.records() == before


def test_no_code_of_the_library_runs_before_it_is_attached_to(
    programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """Not even its constructor, which leaves a mark."""
    mark = tmp_path / "mark"
    seen: list[bool] = []
    watching.on_attach = lambda _path, _pid: seen.append(mark.exists())
    with watching.serving() as server:
        env = environment(server.path, AUDIT_MARK=str(mark))
        run([programs / "loader", "load", programs / "libcudart.so.12"], env)
    assert seen == [False]
    assert mark.exists()


def test_relative_and_linked_paths_lead_to_the_file(
    programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """Seen from the process's own directory."""
    (tmp_path / "real.so").write_bytes((programs / "libcudart.so.12").read_bytes())
    (tmp_path / "libcudart.so").symlink_to("real.so")
    with watching.serving() as server:
        done = subprocess.run(
            [programs / "loader", "load", "./libcudart.so"],
            env=environment(server.path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert [path for path, _ in watching.calls] == [tmp_path / "real.so"]
    assert watching.one().path == str(tmp_path / "real.so")


def test_libraries_not_asked_for_are_not_announced(
    programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """Nor the program itself, whatever its name."""
    program = tmp_path / "libcudart.so.12"
    shutil.copy(programs / "loader", program)
    shutil.copy(programs / "libcudart.so.12", tmp_path / "mylibcudart.so")
    with watching.serving() as server:
        run([program, "load", tmp_path / "mylibcudart.so"], environment(server.path))
    assert watching.calls == []
    assert watching.ledger.by_reason() == {}


def test_failed_attach_is_told_and_the_program_goes_on(programs: Path, watching: Watching) -> None:
    """It is tried once; the reason is kept."""

    def refuse(path: Path, pid: int | None) -> None:
        raise CctraceError(f"no symbol in {path.name} for {pid is not None}")

    watching.on_attach = refuse
    library = programs / "libcudart.so.12"
    with watching.serving() as server:
        run([programs / "loader", "fork", *[library] * 3], environment(server.path))
    assert len(watching.calls) == 1
    assert watching.one().error == "no symbol in libcudart.so.12 for True"


# ---- the recorder is not there, or does not answer ----


def test_dead_recorder_costs_nothing(programs: Path, tmp_path: Path) -> None:
    """No socket, or one that nobody listens on."""
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    paths = copies(programs, tmp_path, 101)
    for place in (NOWHERE, tmp_path / "s"):
        begun_s = time.monotonic()
        printed = run([programs / "loader", "load", *paths], environment(place))
        assert printed == "202\n"
        assert time.monotonic() - begun_s < BOUND_S


@pytest.mark.parametrize(
    ("mode", "queue_is_full"), [("load", True), ("family", False), ("storm", True)]
)
def test_stopped_recorder_costs_two_seconds_once(
    mode: str, queue_is_full: bool, programs: Path, tmp_path: Path
) -> None:
    """It has accepted nothing; children of a process that waited do not wait again."""
    paths = copies(programs, tmp_path, 3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stopped:
        stopped.bind(str(tmp_path / "s"))
        stopped.listen(0)
        waiting = [_connecting(tmp_path / "s") for _ in range(2 if queue_is_full else 0)]
        begun_s = time.monotonic()
        printed = run([programs / "loader", mode, *paths], environment(tmp_path / "s"))
        took_s = time.monotonic() - begun_s
        for peer in waiting:
            peer.close()
    assert printed == f"{2 * len(paths)}\n"
    assert BOUND_S * 0.99 < took_s < BOUND_S + SLACK_S


def _connecting(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    peer.connect_ex(str(path))
    return peer


def test_slow_recorder_is_waited_for_and_then_no_more(
    programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """An attach that takes longer than the process waits is counted as late."""
    mark = make_fifo(tmp_path, "mark")  # the constructor waits in opening it for a reader

    def attach_slowly(_path: Path, _pid: int | None) -> None:
        mark.read_bytes()  # until the constructor runs, that is, the process has gone on

    watching.on_attach = attach_slowly
    with watching.serving() as server:
        env = environment(server.path, AUDIT_MARK=str(mark))
        begun_s = time.monotonic()
        run([programs / "loader", "load", programs / "libcudart.so.12"], env)
        assert BOUND_S * 0.99 < time.monotonic() - begun_s < BOUND_S + SLACK_S
        assert watching.late_told.wait(DEADLINE_S)
    assert watching.ledger.by_reason() == {"late_attach": 1}
    assert watching.one().how == "late"


def test_process_without_free_descriptors_goes_on(programs: Path, watching: Watching) -> None:
    """One is left, which the loader itself holds; the library is found by its mapping."""
    library = programs / "libcudart.so.12"
    with watching.serving() as server:
        printed = run([programs / "loader", "few", library], environment(server.path))
    assert printed == "2\n"


def test_process_that_may_not_make_sockets_goes_on(programs: Path, watching: Watching) -> None:
    """A filter refuses; that is no reason to fail."""
    library = programs / "libcudart.so.12"
    with watching.serving() as server:
        printed = run([programs / "loader", "sandbox", library], environment(server.path))
    assert (printed, watching.calls) == ("2\n", [])


@pytest.mark.parametrize("reply", [None, b"", b"x", b"\xff" * 4096])
def test_recorder_that_hangs_up_or_talks_nonsense_does_no_harm(
    reply: bytes | None, programs: Path, tmp_path: Path
) -> None:
    """Before it has heard anything, or after: no signal, no wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as odd:
        odd.bind(str(tmp_path / "s"))
        odd.listen(7)

        def answer() -> None:
            for _ in range(3):
                peer, _ = odd.accept()
                with peer:
                    if reply is not None:
                        peer.recv(1)
                        peer.send(reply)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        paths = copies(programs, tmp_path, 3)
        printed = run([programs / "loader", "load", *paths], environment(tmp_path / "s"))
        answering.join(DEADLINE_S)
    assert printed == "6\n"


# ---- other auditors, other roots ----


def test_two_auditors_get_along(programs: Path, tmp_path: Path, watching: Watching) -> None:
    """The user's own comes first and sees what it saw without ours."""
    library = programs / "libcudart.so.12"
    logs = []
    with watching.serving() as server:
        for name in ("without", "with"):
            extra = {"LD_AUDIT": str(programs / "other.so"), "AUDIT_LOG": str(tmp_path / name)}
            env = environment(server.path, **extra)
            assert env["LD_AUDIT"] == f"{programs / 'other.so'}:{audit_library()}"
            if name == "without":
                env = {**os.environ, **extra}
            run([programs / "loader", "load", library], env)
            logs.append((tmp_path / name).read_text().splitlines())
    logs[1].remove(str(audit_library()))  # an object like any other
    assert logs[0] == logs[1]
    assert logs[0][-1] == str(library)
    assert len(watching.calls) == 1


def test_library_in_another_mount_namespace(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """Bound to a path that is another file's, or nobody's, outside."""
    needs_mounts()
    watching.on_attach = counter.attach
    (path,) = copies(programs, tmp_path, 1)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / path.name).write_text("not the file the process sees")
    script = 'mount --bind "$1" "$2" && exec "$3" load "$2/$4"'
    command: list[str | Path] = ["unshare", "-m", "sh", "-ec", script, "sh"]
    with watching.serving() as server:
        printed = run(
            [*command, path.parent, inside, programs / "loader", path.name],
            environment(server.path),
        )
    assert printed == "2\n"
    assert counter.hits() == [2]
    assert (watching.one().how, watching.one().error) == ("at_load", None)


def test_library_in_a_container(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """Another root, in which an absolute link leads to a file that outside is another."""
    needs_mounts()
    watching.on_attach = counter.attach
    root = tmp_path / "root"
    (root / "cuda").mkdir(parents=True)
    shutil.copy(programs / "libcudart.so.12", root / "cuda" / "real.so")
    shutil.copy(programs / "loader", root / "loader")
    (root / "cuda" / "libcudart.so").symlink_to("/cuda/real.so")
    socket_folder = tmp_path / "s"
    binds = ["/usr", "/lib", "/lib64", str(audit_library().parent)]
    with watching.serving() as server:
        socket_folder = server.path.parent
        env = environment(server.path)
        script = ["set -e"]
        for bind in [*binds, str(socket_folder)]:
            if Path(bind).exists():
                script += [f'mkdir -p "{root}{bind}"', f'mount --rbind "{bind}" "{root}{bind}"']
        script.append(f'exec chroot "{root}" /loader load /cuda/libcudart.so')
        printed = run(["unshare", "-m", "sh", "-c", "\n".join(script)], env)
    assert printed == "2\n"
    assert counter.hits() == [2]
    assert watching.one().how == "at_load"


def test_file_shared_by_two_overlays_is_attached_to_once(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """Containers of one image: a second probe in it would double every event."""
    needs_mounts()
    watching.on_attach = counter.attach
    (path,) = copies(programs, tmp_path, 1)
    script = (
        'mount -t tmpfs tmpfs "$1" && mkdir "$1/up" "$1/work" "$1/all" && '
        'mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/up,workdir=$1/work" "$1/all" '
        '|| exit 77; exec "$3" load "$1/all/$4"'
    )
    command = ["unshare", "-m", "sh", "-c", script, "sh"]
    lower = tmp_path / "lower"
    path.parent.rename(lower)
    with watching.serving() as server:
        for number in range(3):
            place = tmp_path / f"container{number}"
            place.mkdir()
            done = subprocess.run(
                [*command, place, lower, programs / "loader", path.name],
                env=environment(server.path),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            if done.returncode == 77:
                pytest.skip(f"cannot mount an overlay: {done.stderr.strip()}")
            assert (done.stdout, done.stderr) == ("2\n", "")
    assert counter.hits() == [2 * 3]
    assert len(watching.calls) == 1


def test_deleted_library_is_attached_to(
    programs: Path, tmp_path: Path, watching: Watching, counter: Counter
) -> None:
    """A program that unpacks a library, loads it and removes it: found late, and counted."""
    watching.on_attach = counter.attach
    (path,) = copies(programs, tmp_path, 1)
    loaded, end = make_fifo(tmp_path, "loaded"), make_fifo(tmp_path, "end")
    holder = subprocess.Popen([programs / "loader", "hold", path, loaded, end])
    loaded.read_bytes()
    path.unlink()
    watching.watch.scan_all([holder.pid])
    watching.watch.close()
    end.write_bytes(b"")
    assert holder.wait(DEADLINE_S) == 0
    assert counter.hits() == [0]
    record = watching.one()
    assert (record.path, record.pid, record.how, record.error) == (
        str(path),
        holder.pid,
        "late",
        None,
    )
    assert watching.ledger.by_reason() == {"late_attach": 1}


def test_real_cudart_of_a_wheel_is_seen(tmp_path: Path, watching: Watching) -> None:
    """NVIDIA's own library, from a path of its own, loaded by Python."""
    found = next(Path(sys.prefix).glob("lib/python3*/site-packages/nvidia/cu*/lib/libcudart.so.*"))
    private = tmp_path / found.name
    shutil.copy(found, private)
    code = (
        "import ctypes, sys\n"
        "version = ctypes.c_int()\n"
        "assert ctypes.CDLL(sys.argv[1]).cudaRuntimeGetVersion(ctypes.byref(version)) == 0\n"
        "print(version.value)\n"
    )
    with watching.serving() as server:
        printed = run([sys.executable, "-c", code, private], environment(server.path))
    assert printed == run([sys.executable, "-c", code, found], dict(os.environ))
    assert [path for path, _ in watching.calls] == [private]


# ---- what the loader does otherwise under an auditor ----


@pytest.mark.parametrize("tls_bytes", [512, 1024])
def test_library_with_static_thread_local_memory_still_loads(
    tls_bytes: int, programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """It takes of the room the loader sets aside; ours takes none of it."""
    library = build(
        tmp_path, "audit_library.c", "libcudart.so", "-shared", "-fPIC", f"-DTLS_BYTES={tls_bytes}"
    )
    command: list[str | Path] = [programs / "loader", "threads", library]
    assert run(command, dict(os.environ)) == "2\n"
    with watching.serving() as server:
        assert run(command, environment(server.path)) == "2\n"
    assert len(watching.calls) == 1


def test_numpy_works_under_the_auditor() -> None:
    """Hundreds of imported objects, OpenBLAS with its threads among them."""
    code = "import numpy; print(numpy.ones((37, 37)).dot(numpy.ones((37, 37))).sum())"
    assert run([sys.executable, "-c", code], environment(NOWHERE)) == f"{37.0**3}\n"


def test_auditor_needs_no_library_and_has_no_thread_local_memory() -> None:
    """A libc in its namespace would be a second one in every program."""
    dynamic = subprocess.run(
        ["readelf", "-W", "--dynamic", "--segments", "--dyn-syms", audit_library()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "NEEDED" not in dynamic
    assert " TLS " not in dynamic
    wanted = [line for line in dynamic.splitlines() if " UND " in line]
    assert [line.split()[0] for line in wanted] == ["0:"]  # the table's empty first entry
    assert "BIND_NOW" in dynamic


def test_auditor_withdraws_where_it_is_not_told_what_to_do(
    programs: Path, tmp_path: Path, watching: Watching
) -> None:
    """A program whose environment lost the socket or the names is left alone."""
    with watching.serving() as server:
        whole = environment(server.path)
        for lost in ("CCTRACE_SOCKET", "CCTRACE_LIBRARIES"):
            env = {name: value for name, value in whole.items() if name != lost}
            run([programs / "loader", "load", programs / "libcudart.so.12"], env)
        for odd in ({"CCTRACE_SOCKET": "/" + "x" * 4000}, {"CCTRACE_LIBRARIES": "x" * 4000}):
            env = {**whole, **odd}
            run([programs / "loader", "load", programs / "libcudart.so.12"], env)
    del tmp_path
    assert watching.calls == []
