"""Code objects, read from memory: names, files and lines are those Python itself tells."""

from __future__ import annotations

import ctypes
import dis
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from elf_files import with_symbol_tables
from hypothesis import given
from hypothesis import strategies as st
from python_versions import interpreter

from cctrace.record.bpf.elf import ElfFile
from cctrace.record.bpf.layout import Python
from cctrace.record.bpf.stacks import interpreter as interpreter_module
from cctrace.record.bpf.stacks.code_objects import Code, CodeReader, Copied, line_of, line_of_3_10
from cctrace.record.bpf.stacks.interpreter import NoWalkError, find_interpreter, process_entry
from cctrace.record.bpf.stacks.memory import Memory
from cctrace.record.bpf.stacks.offsets import DEBUG_BYTES, debug_offsets
from cctrace.record.symbols import maps

# Lines of every instruction of the functions of some modules, by the interpreter.
TABLES = """
import json, types, argparse, dataclasses, typing, asyncio.base_events
def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)
found = []
for module in (argparse, dataclasses, typing, asyncio.base_events):
    with open(module.__file__, encoding="utf-8") as file:
        for code in codes(compile(file.read(), module.__file__, "exec")):
            lines = [[a, b, line] for a, b, line in code.co_lines()]
            found.append([code.co_linetable.hex(), code.co_firstlineno, lines])
print(json.dumps(found))
"""


def own_regions() -> list[maps.Region]:
    return maps.parse(Path("/proc/self/maps").read_bytes())


@pytest.fixture(scope="module")
def reader() -> CodeReader:
    """Of this very process, if its Python is one that can be walked."""
    try:
        found = find_interpreter(os.getpid(), own_regions())
    except NoWalkError as error:
        pytest.skip(f"the tests' own Python cannot be walked: {error}")
    assert found is not None
    assert found.version == sys.version_info[:2]
    assert found.code_type == id(types.CodeType)
    assert found.threads_head
    return CodeReader(found)


def mark_of(reader: CodeReader, code: types.CodeType) -> int:
    return reader.mark(Memory(os.getpid()), id(code_name(code)), id(code.co_filename))


def code_name(code: types.CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)
    return name


def functions() -> Iterator[types.FunctionType]:
    for module in (json, json.decoder, dis, subprocess):
        for value in vars(module).values():
            if isinstance(value, types.FunctionType):
                yield value


def test_functions_of_this_process_are_read(reader: CodeReader) -> None:
    memory = Memory(os.getpid())
    count = 0
    for function in functions():
        code = function.__code__
        found = reader.read(memory, id(code), mark_of(reader, code))
        assert found is not None
        assert (found.function, found.file) == (code_name(code), code.co_filename)
        assert (found.first_line, found.linetable) == (code.co_firstlineno, code.co_linetable)
        count += 1
    assert count > 31


@pytest.mark.parametrize("name", ["plain", "caf\xe9", "\u96ea", "\U0001f40d", "x" * 5000])
def test_names_of_every_width_are_read(reader: CodeReader, name: str) -> None:
    scope: dict[str, types.FunctionType] = {}
    exec(compile("def f(): pass", name, "exec"), scope)
    code = scope["f"].__code__
    found = reader.read(Memory(os.getpid()), id(code), mark_of(reader, code))
    assert found is not None
    assert found.file == (name if len(name) < 5000 else name[:4096] + "…")


def test_what_is_none_gives_no_name(reader: CodeReader) -> None:
    """Another object, another mark, an address of nothing, memory of nobody."""
    memory = Memory(os.getpid())
    code = own_regions.__code__
    mark = mark_of(reader, code)
    assert reader.read(memory, id(code), mark) is not None
    assert reader.read(memory, id(code), mark ^ 1) is None
    assert reader.read(memory, id(mark_of), mark) is None
    assert reader.read(memory, 4096, mark) is None
    assert reader.read(Memory(1 << 22), id(code), mark) is None
    assert reader.is_none(id(None)) or not reader.is_none(id(code))


@given(st.binary(max_size=256), st.integers(0, 1 << 64))
def test_garbage_gives_no_name_and_no_error(content: bytes, mark: int) -> None:
    found = find_interpreter(os.getpid(), own_regions())
    assert found is not None
    reader = CodeReader(found)
    head = bytearray(content.ljust(256, b"\0"))
    head[8:16] = found.code_type.to_bytes(8, "little")
    copied = Copied([(1 << 30, bytes(head)), (0, content), (1 << 20, content)])
    reader.read(copied, 1 << 30, mark)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_lines_are_those_the_interpreter_tells(version: str) -> None:
    """Of the first and last instruction of each stretch of hundreds of functions."""
    done = subprocess.run(
        [interpreter(version), "-c", TABLES], capture_output=True, text=True, check=True
    )
    of, unit = (line_of_3_10, 1) if version == "3.10" else (line_of, 2)
    instructions = 0
    for table, first_line, lines in json.loads(done.stdout):
        for start, end, line in lines:
            for at in {start, end - 2}:
                # Modules begin at line 0, which is none.
                assert of(bytes.fromhex(table), first_line, at // unit) == (line or None)
                instructions += 1
    assert instructions > 5003


@given(st.binary(max_size=64), st.integers(-5, 1 << 31), st.integers(-5, 500))
def test_any_table_of_lines_gives_a_line_or_none(table: bytes, first: int, at: int) -> None:
    for of in (line_of, line_of_3_10):
        line = of(table, first, at)
        assert line is None or 0 < line < 1 << 31


def test_a_frame_that_has_not_begun_is_at_its_function() -> None:
    code = Code("f", "file", 17, b"\x02\x01", 0, Python.V_3_10)
    assert code.line((1 << 32) - 1) == 17
    code = Code("f", "file", 17, b"\x80\x00", 1000, Python.V_3_12)
    assert code.line(998) == 17


def test_the_newer_pythons_tell_their_offsets() -> None:
    """What _PyRuntime says of 3.13 is what its own objects have."""
    text = (
        "import ctypes, sys\n"
        f"raw = (ctypes.c_char * {DEBUG_BYTES}).in_dll(ctypes.pythonapi, '_PyRuntime')\n"
        "print(bytes(raw).hex(), sys.version_info[0], sys.version_info[1])"
    )
    python = interpreter("3.13")
    done = subprocess.run([python, "-c", text], capture_output=True, text=True, check=True)
    raw, major, minor = done.stdout.split()
    offsets = debug_offsets(bytes.fromhex(raw))
    assert offsets is not None
    assert offsets.version == (int(major), int(minor))
    # As of Include/cpython/code.h and pystate.h of 3.13.
    assert (offsets.prev, offsets.next, offsets.interpreter) == (0, 8, 16)
    assert (offsets.code.qualname, offsets.code.linetable) == (128, 136)
    # Another cookie, a version of later, a frame that looks otherwise: it tells nothing.
    assert debug_offsets(b"\0" * DEBUG_BYTES) is None
    later = bytearray(bytes.fromhex(raw))
    later[10] = 99
    assert debug_offsets(bytes(later)) is None
    assert debug_offsets(bytes.fromhex(raw)[:100]) is None


def test_a_process_without_python_has_none() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        regions = maps.parse(Path(f"/proc/{process.pid}/maps").read_bytes())
        assert find_interpreter(process.pid, regions) is None
        entry = process_entry(None, 1, 23, process.pid)
        assert (int(entry["image"]), int(entry["looked_at"])) == (23, 1)
        assert int(entry["threads_head"]) == int(entry["text_bytes"]) == 0


def test_memory_is_read_whole_or_not_at_all() -> None:
    content = ctypes.create_string_buffer(b"cctrace")
    memory = Memory(os.getpid())
    assert memory.read(ctypes.addressof(content), 7) == b"cctrace"
    assert memory.read(ctypes.addressof(content), 0) is None
    assert memory.read(ctypes.addressof(content), -1) is None
    assert memory.read(8, 8) is None
    assert memory.u64(1 << 63) is None
    assert memory.read(ctypes.addressof(content), 1 << 40) is None


def test_a_table_of_lines_is_read_as_far_as_is_sensible(reader: CodeReader) -> None:
    """A function of a million lines has its first ones."""
    source = "def f(x):\n" + "    x()\n" * 30011
    scope: dict[str, types.FunctionType] = {}
    exec(compile(source, "long", "exec"), scope)
    code = scope["f"].__code__
    assert len(code.co_linetable) > 1 << 16
    found = reader.read(Memory(os.getpid()), id(code), mark_of(reader, code))
    assert found is not None
    assert found.linetable == code.co_linetable[: 1 << 16]
    assert found.size_bytes > 1 << 16


def test_a_file_full_of_the_name_is_searched_once(tmp_path: Path) -> None:
    """Symbols that all begin as the wanted one does; the last of them is it."""
    count = 200003
    strings = b"\0" + b"_PyRuntimeX\0" * count + b"_PyRuntime\0"
    fields = [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2")]
    symbols = np.zeros(count + 2, [*fields, ("value", "<u8"), ("size", "<u8")])
    symbols["name"] = 1 + 12 * np.minimum(np.arange(count + 2), count)
    symbols["section"], symbols["value"] = 1, 7
    symbols["section"][-2] = 0  # one that is defined elsewhere
    symbols["value"][-1] = 4711
    path = tmp_path / "hostile"
    with_symbol_tables(path, 1, strings, symbols.tobytes())
    before_s = time.process_time()
    with path.open("rb") as file, ElfFile(file.fileno(), "hostile") as elf:
        found = interpreter_module._values(elf, ("_PyRuntime", "Py_Version"))
    assert found == {"_PyRuntime": 4711}
    # One find for each of them, over all symbols, took minutes.
    assert time.process_time() - before_s < 5
