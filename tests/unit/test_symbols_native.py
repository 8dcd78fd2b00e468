"""Frames of running programs, against what the programs say of themselves."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import symbol_programs as programs
from symbol_programs import Running, build, running, tool

from cctrace.record.symbols import Frame, Symbolizer, files, maps
from cctrace.record.symbols.symbolizer import REASONS

C_SOURCE = "symbol_places.c"
CXX_SOURCE = "symbol_places.cc"
C_NAMES = ("hidden", "main", "ender")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: /proc/PID/map_files, chroot")


@pytest.fixture
def symbols() -> Iterator[Symbolizer]:
    made = Symbolizer()
    yield made
    made.close()


def brief(frames: list[Frame]) -> list[tuple[str | None, str | None, int | None]]:
    return [(f.function, f.file and Path(f.file).name, f.line) for f in frames]


def resolve(symbols: Symbolizer, program: Running, name: str) -> list[Frame]:
    image = symbols.observe(program.pid)
    return symbols.native(image, [program.of(name).address])[0]


@pytest.mark.parametrize("flags", [("-pie", "-fPIE"), ("-no-pie", "-fno-pie")], ids=["pie", "not"])
@pytest.mark.parametrize("packed", [(), ("-gz=zlib",)], ids=["plain", "packed"])
def test_c_functions_lines_and_inlined_callers(
    symbols: Symbolizer, tmp_path: Path, flags: tuple[str, ...], packed: tuple[str, ...]
) -> None:
    """With debug information: lines are __LINE__, and the inlined function has its caller."""
    program = build(tmp_path, "places", C_SOURCE, "-g", *flags, *packed)
    with running([program]) as run:
        image = symbols.observe(run.pid)
        assert symbols.knows(run.pid, run.of("main").address)
        found = {n: symbols.native(image, [run.of(n).address])[0] for n in (*C_NAMES, "inner")}
        for name in C_NAMES:
            assert brief(found[name]) == [(name, C_SOURCE, run.of(name).line)]
            assert found[name][0].module == str(program)
            assert found[name][0].kind == "native"
        assert brief(found["inner"]) == [
            ("inner", C_SOURCE, run.of("inner").line),
            ("outer", C_SOURCE, run.of("outer", "caller").line),
        ]
    assert symbols.unresolved() == {}
    assert symbols.notes() == []


def test_cxx_names_are_those_of_the_source(symbols: Symbolizer, tmp_path: Path) -> None:
    """Templates, an unnamed namespace, an inlined member."""
    program = build(tmp_path, "places", CXX_SOURCE, "-g")
    with running([program]) as run:
        image = symbols.observe(run.pid)
        adds = [p for p in run.places if p.name == "add"]
        frames = symbols.native(image, [p.address for p in adds])
        assert [brief(f) for f in frames] == [
            [("shop::Box<int>::add(int)", CXX_SOURCE, adds[0].line)],
            [("shop::Box<double>::add(double)", CXX_SOURCE, adds[1].line)],
        ]
        (unnamed,) = resolve(symbols, run, "unnamed")
        assert unnamed.function == "shop::(anonymous namespace)::unnamed(int)"
        inlined = resolve(symbols, run, "twice")
        assert [f.line for f in inlined] == [run.of("twice").line, run.of("order", "caller").line]
        assert inlined[0].function is not None
        assert "twice" in inlined[0].function
        assert inlined[1].function == "shop::order(shop::Box<int>&, int)"


def test_a_symbol_table_alone_gives_functions(symbols: Symbolizer, tmp_path: Path) -> None:
    """Without debug information: names, no lines, and inlined functions are not there."""
    program = build(tmp_path, "places", C_SOURCE, "-g0")
    with running([program]) as run:
        for name in (*C_NAMES, "inner"):
            expected = "outer" if name == "inner" else name
            frame = Frame(expected, str(program), None, None, "native")
            assert resolve(symbols, run, name) == [frame]


def test_return_addresses_belong_to_the_call_before_them(
    symbols: Symbolizer, tmp_path: Path
) -> None:
    """A call that never returns is the last thing of its function; an entry is its own."""
    program = build(tmp_path, "places", C_SOURCE, "-g")
    with running([program]) as run:
        image = symbols.observe(run.pid)
        ender, outer = run.of("ender").address, run.of("outer", "entry").address
        exact = symbols.native(image, [ender, outer], exact=True)
        assert exact[0][0].function != "ender"
        assert exact[1][-1].function == "outer"
        stack = symbols.native(image, [outer, ender], first_exact=True)
        assert [f[-1].function for f in stack] == ["outer", "ender"]
        assert symbols.native(image, [outer])[0][-1].function != "outer"


@pytest.mark.parametrize("debug", ["-g", "-g0"])
def test_code_of_nobody_is_not_given_to_the_function_before(
    symbols: Symbolizer, tmp_path: Path, debug: str
) -> None:
    """A function in assembly without a size ends where the next begins; a gap stays one."""
    program = build(tmp_path, "places", C_SOURCE, debug, "-no-pie", "-fno-pie")
    with running([program]) as run:
        image = symbols.observe(run.pid)
        addresses = [run.of("sizeless", "entry").address, run.of("nobody", "nobody").address]
        (sizeless,), (nobody,) = symbols.native(image, addresses, exact=True)
        assert sizeless.function == "sizeless"
        # Not position-independent: the file's addresses are those of the process.
        assert nobody == Frame(f"{addresses[1]:#x}", str(program), None, None, "native")
    assert symbols.unresolved() == {"no_symbol": 1}


def test_a_stripped_program_keeps_module_and_offset(symbols: Symbolizer, tmp_path: Path) -> None:
    """What is left is the address in the file: that of the symbol before it was stripped."""
    program = build(tmp_path, "places", C_SOURCE, "-g0", "-no-pie", "-fno-pie", "-s")
    with running([program]) as run:
        image = symbols.observe(run.pid)
        address = run.of("main").address
        expected = Frame(f"{address:#x}", str(program), None, None, "native")
        assert symbols.native(image, [address]) == [[expected]]


def split(program: Path, debug: Path) -> None:
    """Move symbols and debug information of ``program`` into a file of their own."""
    debug.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([tool("objcopy"), "--only-keep-debug", program, debug], check=True)
    subprocess.run([tool("strip"), "--strip-all", program], check=True)


@pytest.mark.parametrize("folder", [".", ".debug"])
@pytest.mark.parametrize("build_id", ["none", "0x" + "ab" * 20])
def test_debug_files_are_found_by_debuglink(
    symbols: Symbolizer, tmp_path: Path, folder: str, build_id: str
) -> None:
    """Beside the program or in .debug there, known by checksum or by build id."""
    program = build(tmp_path, "places", C_SOURCE, "-g", f"-Wl,--build-id={build_id}")
    debug = tmp_path / folder / "places.debug"
    split(program, debug)
    subprocess.run([tool("objcopy"), f"--add-gnu-debuglink={debug}", program], check=True)
    with running([program]) as run:
        for name in C_NAMES:
            assert brief(resolve(symbols, run, name)) == [(name, C_SOURCE, run.of(name).line)]


def test_symbols_packed_within_the_file(symbols: Symbolizer, tmp_path: Path) -> None:
    """Fedora's MiniDebugInfo: a section that is a packed ELF file with the local symbols."""
    program = build(tmp_path, "places", C_SOURCE, "-g0")
    (tmp_path / "packed").write_bytes(lzma.compress(program.read_bytes()))
    subprocess.run([tool("strip"), "--strip-all", program], check=True)
    section = f"--add-section=.gnu_debugdata={tmp_path / 'packed'}"
    subprocess.run([tool("objcopy"), section, program], check=True)
    with running([program]) as run:
        for name in C_NAMES:
            frame = Frame(name, str(program), None, None, "native")
            assert resolve(symbols, run, name) == [frame]


def test_a_debug_file_of_another_build_is_not_used(symbols: Symbolizer, tmp_path: Path) -> None:
    """Neither its checksum nor its build id is right."""
    program = build(tmp_path, "places", C_SOURCE, "-g", "-Wl,--build-id=0x" + "ab" * 20)
    split(program, tmp_path / "places.debug")
    link = f"--add-gnu-debuglink={tmp_path / 'places.debug'}"
    subprocess.run([tool("objcopy"), link, program], check=True)
    other = build(tmp_path, "other", C_SOURCE, "-g", "-Wl,--build-id=0x" + "cd" * 20)
    split(other, tmp_path / "places.debug")
    with running([program]) as run:
        (frame,) = resolve(symbols, run, "main")
        assert frame.function is not None
        assert frame.function.startswith("0x")


@needs_root
def test_debug_files_are_found_by_build_id_in_the_root_of_the_process(
    symbols: Symbolizer, tmp_path: Path
) -> None:
    """As in a container: its own /usr/lib/debug counts, its paths are not ours."""
    root = tmp_path / "root"
    root.mkdir()
    program = build(root, "places", C_SOURCE, "-g", "-static", "-Wl,--build-id=0x" + "ef" * 20)
    split(program, root / f"usr/lib/debug/.build-id/ef/{'ef' * 19}.debug")
    with running(["chroot", root, "/places"]) as run:
        image = symbols.observe(run.pid)
        place = run.of("hidden")
    # WHEN the process is gone, but not its files
    (frame,) = symbols.native(image, [place.address])[0]
    assert brief([frame]) == [("hidden", C_SOURCE, place.line)]


@needs_root
def test_deleted_and_replaced_files_are_those_that_run(symbols: Symbolizer, tmp_path: Path) -> None:
    """Deleted before it was seen; another file in its place; and what is seen stays."""
    program = build(tmp_path, "places", C_SOURCE, "-g")
    other = build(tmp_path, "other", "int main(void)\n{\nreturn 7;\n}\n", "-g")
    with running([program]) as run:
        program.unlink()
        shutil.copy(other, program)
        image = symbols.observe(run.pid)
        program.unlink()
        for name in C_NAMES:
            assert brief(symbols.native(image, [run.of(name).address])[0]) == [
                (name, C_SOURCE, run.of(name).line)
            ]


def test_files_that_are_not_held_are_found_by_their_path(
    symbols: Symbolizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor left, as long as it is the same file that lies there."""
    monkeypatch.setattr(symbols._files, "_left_to_hold", 0)
    program = build(tmp_path, "places", C_SOURCE, "-g")
    with running([program]) as run:
        assert resolve(symbols, run, "main")[0].line == run.of("main").line
        (tmp_path / "copy").write_bytes(program.read_bytes())
        (tmp_path / "copy").rename(program)
        (frame,) = resolve(symbols, run, "hidden")
        assert frame.module == str(program)
        assert frame.function is not None
        assert frame.function.startswith("file+0x")
    assert symbols.unresolved() == {"gone_file": 1}


def test_without_the_privilege_for_map_files_paths_are_compared(
    symbols: Symbolizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By inode: a file in the place of the one that runs is not taken for it."""

    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(files, "_open_mapped", refused)
    program = build(tmp_path, "places", C_SOURCE, "-g")
    with running([program]) as run:
        assert resolve(symbols, run, "main")[0].line == run.of("main").line
    with running([program]) as run:
        (tmp_path / "copy").write_bytes(program.read_bytes())
        program.unlink()
        (tmp_path / "copy").rename(program)
        other = Symbolizer()
        (frame,) = resolve(other, run, "main")
        assert other.unresolved() == {"gone_file": 1}
        assert frame.function is not None
        assert frame.function.startswith("file+0x")
        other.close()


MADE_UP = b"""\
1000-2000 r-xp 00003000 00:01 77                          /gone/lib.so
3000-4000 r-xp 00000000 00:01 78                          /memfd:jit (deleted)
5000-6000 --xp 00000000 00:00 0                           [uprobes]
7000-8000 --xp 00000000 00:00 0                           [vsyscall]
"""


def test_mappings_that_lead_to_no_file(
    symbols: Symbolizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone, code in a memory file, the kernel's own pages."""
    monkeypatch.setattr(maps, "read", lambda _: MADE_UP)
    image = symbols.observe(1)
    found = symbols.native(image, [0x1010, 0x3010, 0x5000, 0x7020, 0x9000], exact=True)
    assert [(f.function, f.module) for (f,) in found] == [
        ("file+0x3010", "/gone/lib.so"),
        ("0x3010", "/memfd:jit"),
        ("uprobe trampoline", "[uprobes]"),
        ("0x20", "[vsyscall]"),
        ("0x9000", None),
    ]
    reasons = {"gone_file": 1, "no_mapping": 1, "no_perf_map": 1, "no_symbol": 1}
    assert symbols.unresolved() == reasons
    assert set(reasons) <= set(REASONS)


def test_a_file_that_was_gone_may_be_seen_again(
    symbols: Symbolizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process ends while it is looked at; another one runs the same program."""
    program = build(tmp_path, "places", C_SOURCE, "-g", "-no-pie", "-fno-pie")

    def gone(*_: object) -> int:
        raise FileNotFoundError

    with running([program]) as run, monkeypatch.context() as patch:
        patch.setattr(files, "_open_mapped", gone)
        first, place = symbols.observe(run.pid), run.of("main")
        (frame,) = symbols.native(first, [place.address])[0]
        assert frame.function is not None
        assert frame.function.startswith("file+0x")
    with running([program]) as run:
        for image in (symbols.observe(run.pid), first):
            assert symbols.native(image, [place.address])[0][0].line == place.line


def test_more_files_than_are_followed(symbols: Symbolizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset in the file stays, and it is counted."""
    monkeypatch.setattr(maps, "read", lambda _: MADE_UP)
    monkeypatch.setattr(files, "_MAX_FILES", 0)
    (frame,) = symbols.native(symbols.observe(1), [0x1010])[0]
    assert (frame.function, frame.module) == ("file+0x3010", "/gone/lib.so")
    assert symbols.unresolved() == {"too_many": 1}


LIBRARY = "int work(int x)\n{\nreturn x * 7;\n}\n"
USES_LIBRARY = """
#include "symbol_places.h"
#include <dlfcn.h>
int main(int count, char **words)
{
    void *library = dlopen(words[1], RTLD_NOW);
    printf("entry work %p 0\\n", dlsym(library, "work"));
    return library == NULL || finish() || count != 2;
}
"""


@pytest.fixture
def library_user(tmp_path: Path) -> Path:
    return build(tmp_path, "user", USES_LIBRARY, f"-I{programs.TARGETS}", "-ldl")


def test_a_library_written_to_since_is_not_believed(
    symbols: Symbolizer, tmp_path: Path, library_user: Path
) -> None:
    """Same file, other content: the offset in it is all that is known."""
    library = build(tmp_path, "libwork.so", LIBRARY, "-shared", "-fPIC")
    with running([library_user, library]) as run:
        image = symbols.observe(run.pid)
        with library.open("ab") as file:
            file.write(b"more")
        (frame,) = symbols.native(image, [run.of("work", "entry").address], exact=True)[0]
        assert frame.module == str(library)
        assert frame.function is not None
        assert frame.function.startswith("file+0x")
    assert symbols.unresolved() == {"changed_file": 1}


@pytest.mark.parametrize("stripped", [(), ("-s",)], ids=["symtab", "dynsym"])
def test_libraries_and_their_exported_symbols(
    symbols: Symbolizer, tmp_path: Path, library_user: Path, stripped: tuple[str, ...]
) -> None:
    """A shared library; stripped it still has what it exports."""
    library = build(tmp_path, "libwork.so", LIBRARY, "-shared", "-fPIC", *stripped)
    with running([library_user, library]) as run:
        image = symbols.observe(run.pid)
        frames = symbols.native(image, [run.of("work", "entry").address], exact=True)
        assert frames == [[Frame("work", str(library), None, None, "native")]]


def test_the_vdso_is_resolved(symbols: Symbolizer, tmp_path: Path) -> None:
    """By the kernel's own symbols for it: the address libc would call is its function."""
    program = build(tmp_path, "places", C_SOURCE)
    with running([program]) as run:
        image = symbols.observe(run.pid)
        base = run.of("vdso", "vdso").address
        dump = tmp_path / "vdso.so"
        with Path(f"/proc/{run.pid}/mem").open("rb") as memory:
            memory.seek(base)
            dump.write_bytes(memory.read(8192))
        listed = subprocess.run(
            [tool("nm"), "-D", dump], check=True, capture_output=True, text=True
        ).stdout
        offset = next(
            int(line.split()[0], 16)
            for line in listed.splitlines()
            if line.endswith((" __vdso_clock_gettime", " __vdso_clock_gettime@@LINUX_2.6"))
        )
        frames = symbols.native(image, [base + offset], exact=True)
        assert frames == [[Frame("__vdso_clock_gettime", "[vdso]", None, None, "native")]]


def test_addresses_of_nothing(symbols: Symbolizer, tmp_path: Path) -> None:
    """No mapping, no image, beyond what a processor has, nothing at all."""
    program = build(tmp_path, "places", C_SOURCE)
    with running([program]) as run:
        image = symbols.observe(run.pid)
        odd = [0, 1, 4096, (1 << 64) - 1, 1 << 70, -5]
        for number in (image, None, 9999):
            frames = symbols.native(number, odd)
            assert [f.function for (f,) in frames] == [f"{address:#x}" for address in odd]
            assert {f.module for (f,) in frames} == {None}
        assert symbols.native(image, []) == []
        main = np.array([run.of("main").address], np.uint64)
        assert symbols.native(image, main)[0][0].function == "main"
        assert symbols.knows(run.pid, main[0])
        assert not symbols.knows(run.pid, 4096)
    assert symbols.unresolved() == {"no_mapping": 3 * len(odd)}


def test_after_closing_addresses_stay(tmp_path: Path) -> None:
    """Nothing raises, and no descriptor that is another's by now is touched."""
    program = build(tmp_path, "places", C_SOURCE)
    with running([program]) as run:
        symbols = Symbolizer()
        image = symbols.observe(run.pid)
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
        symbols.close()
        assert set(os.listdir("/proc/self/fd")) < before  # noqa: PTH208 - names
        (main,), (vdso,) = symbols.native(
            image, [run.of("main").address, run.of("vdso", "vdso").address + 2000]
        )
        assert (main.module, vdso.module) == (str(program), "[vdso]")
        assert main.function is not None
        assert main.function.startswith("file+0x")
        assert vdso.function == f"{2000:#x}"
        symbols.close()


def test_images_outlive_exec_and_process(symbols: Symbolizer, tmp_path: Path) -> None:
    """The same pid runs another program: what was seen before keeps its names."""
    second = build(tmp_path, "second", CXX_SOURCE, "-g")
    process = subprocess.Popen(
        ["sh", "-c", f"echo ready; read line; exec {second}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    shell = symbols.observe(process.pid)
    shell_code = next(
        int(line.partition("-")[0], 16)
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        if " r-xp " in line and "sh" in line
    )
    process.stdin.write("go\n")
    process.stdin.flush()
    places = {}
    for line in process.stdout:
        if line == "end\n":
            break
        _, name, address, number = line.split()
        places[name] = (int(address, 16), int(number))
    # WHEN it is looked at again, whether or not the recorder was told of the exec
    program = symbols.observe(process.pid)
    assert program != shell
    assert symbols.image_of(process.pid) == program
    symbols.forget(process.pid)
    assert symbols.image_of(process.pid) is None
    assert not symbols.knows(process.pid, places["unnamed"][0])
    process.communicate("\n", timeout=20)
    # THEN each image has its own
    (frame,) = symbols.native(program, [places["unnamed"][0]])[0]
    assert frame.line == places["unnamed"][1]
    (frame,) = symbols.native(shell, [shell_code + 64])[0]
    assert frame.module is not None
    assert "sh" in frame.module
    assert symbols.observe(process.pid) is None
