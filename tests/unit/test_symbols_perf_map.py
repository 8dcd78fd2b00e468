"""Code made at run time, named by perf maps that anybody may have written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symbol_programs import TARGETS, Running, build, running

from cctrace.record.symbols import Frame, Symbolizer
from cctrace.record.symbols.frame import CUT, MAX_CHARACTERS
from cctrace.record.symbols.perf_map import PerfMap

JIT = """
#define _GNU_SOURCE
#include "symbol_places.h"
#include <sys/mman.h>
int main(void)
{
    int rwx = PROT_READ | PROT_WRITE | PROT_EXEC;
    char *code = mmap(NULL, 8192, rwx, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("entry code %p 0\\n", (void *)code);
    return code == MAP_FAILED || finish();
}
"""


@pytest.fixture(scope="module")
def jit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jit")
    return build(folder, "jit", JIT, f"-I{TARGETS}", "-static")


@pytest.fixture
def symbols() -> Iterator[Symbolizer]:
    made = Symbolizer()
    yield made
    made.close()


@pytest.fixture
def run(jit: Path) -> Iterator[Running]:
    with running([jit]) as program:
        yield program
        path = place(program)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def place(program: Running) -> Path:
    return Path(f"/tmp/perf-{program.pid}.map")


def frames(symbols: Symbolizer, program: Running, *offsets: int) -> list[Frame]:
    image = symbols.observe(program.pid)
    start = program.of("code", "entry").address
    found = symbols.native(image, [start + offset for offset in offsets], exact=True)
    return [frame for (frame,) in found]


def test_names_of_a_perf_map(symbols: Symbolizer, run: Running) -> None:
    """Python's own entries are Python frames; a later line holds; C++ is demangled."""
    start = run.of("code", "entry").address
    place(run).write_text(
        f"{start:x} 40 py::Model.forward:/srv/engine/model.py\n"
        f"{start + 0x40:x} 40 _ZN3jit5blockEv\n"
        f"{start + 0x80:x} 40 old\n"
        "nonsense\n"
        f"{start + 0x90:x} 10 new name; with <things>\n"
    )
    module = "[anon]"
    assert frames(symbols, run, 0, 0x3F, 0x40, 0x80, 0x90, 0x9F, 0xA0, 0xC0) == [
        Frame("Model.forward", module, "/srv/engine/model.py", None, "python"),
        Frame("Model.forward", module, "/srv/engine/model.py", None, "python"),
        Frame("jit::block()", module, None, None, "native"),
        Frame("old", module, None, None, "native"),
        Frame("new name; with <things>", module, None, None, "native"),
        Frame("new name; with <things>", module, None, None, "native"),
        Frame("old", module, None, None, "native"),
        Frame(f"{start + 0xC0:#x}", module, None, None, "native"),
    ]
    assert symbols.unresolved() == {"no_perf_map": 1}
    # WHEN the map has grown, it is read again
    with place(run).open("a") as file:
        file.write(f"{start + 0xC0:x} 4 later\n")
    assert frames(symbols, run, 0xC0)[0].function == "later"


def test_code_without_a_map(symbols: Symbolizer, run: Running) -> None:
    """Its address stays."""
    start = run.of("code", "entry").address
    assert frames(symbols, run, 7) == [Frame(f"{start + 7:#x}", "[anon]", None, None, "native")]
    assert symbols.unresolved() == {"no_perf_map": 1}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "old", "foreign"])
def test_what_is_no_perf_map_of_the_process(symbols: Symbolizer, run: Running, kind: str) -> None:
    """Nothing waits for a writer, and neither another user nor an earlier process names code."""
    start = run.of("code", "entry").address
    path = place(run)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(f"{start:x} 40 believed\n")
        if kind == "old":
            os.utime(path, (1, 1))
        elif os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            pytest.skip("needs root, to give a file away")
    assert frames(symbols, run, 0) == [Frame(f"{start:#x}", "[anon]", None, None, "native")]
    assert symbols.unresolved() == {"no_perf_map": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot")
def test_the_map_is_the_one_the_process_sees(
    symbols: Symbolizer, jit: Path, tmp_path: Path
) -> None:
    """In a container /tmp is another one."""
    (tmp_path / "tmp").mkdir()
    shutil.copy(jit, tmp_path / "jit")
    with running(["chroot", tmp_path, "/jit"]) as program:
        start = program.of("code", "entry").address
        (tmp_path / f"tmp/perf-{program.pid}.map").write_text(f"{start:x} 40 inside\n")
        assert frames(symbols, program, 0)[0].function == "inside"


def test_long_names_are_cut_and_marked() -> None:
    """To 2048 characters."""
    found = PerfMap(b"10 10 " + b"x" * 10_000 + b"\n").find(0x10)
    assert found == ("x" * MAX_CHARACTERS + CUT, None, "native")


@given(st.binary(max_size=300), st.integers(0, 1 << 64))
def test_any_bytes_are_a_map(garbage: bytes, address: int) -> None:
    """Whatever is in it, texts are texts that can be written."""
    found = PerfMap(b"10 20 a\n" + garbage + b"\n18 4 \xff\xfe\n").find(address)
    assert found is None or found[0].encode()


entries = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30)


@given(entries)
def test_the_last_line_that_covers_an_address_holds(listed: list[tuple[int, int]]) -> None:
    """As a search from the end of the file finds it."""
    text = "".join(f"{start:x} {size:x} n{i}\n" for i, (start, size) in enumerate(listed))
    made = PerfMap(text.encode())
    starts = {start: i for i, (start, size) in enumerate(listed) if size}
    for address in range(90):
        # One line for each start: a later one of the same start takes its place.
        covering = [i for i, (s, n) in enumerate(listed) if s <= address < s + n and starts[s] == i]
        expected = (f"n{covering[-1]}", None, "native") if covering else None
        assert made.find(address) == expected
