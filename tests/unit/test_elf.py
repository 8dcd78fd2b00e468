"""Functions of ELF files: against binutils, and on files that make no sense."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elf_files import with_symbol_tables

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf.elf import ElfFile, Function

SOURCE = """
int first(int x) { return x + 1; }
int second(int x) { return x + 2; }
int other(int x) { return x + 3; }
int alias(int x) __attribute__((alias("second")));
int variable = 3;
static __attribute__((noinline)) int hidden(int x) { return x * 7; }
int third(int x) { return hidden(x) + undefined_here(x); }
"""
NAMES = ("first", "second", "alias", "third", "hidden", "variable", "undefined_here", "absent")


def compiled(tmp_path: Path, name: str, *flags: str) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: apt-get install gcc")
    source = tmp_path / f"{name}.c"
    source.write_text("int undefined_here(int);\n" + SOURCE)
    path = tmp_path / name
    subprocess.run([compiler, "-O1", *flags, str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    flags = ("-shared", "-fPIC", "-fcf-protection=none", "-Wl,-soname,libthing.so.7")
    return compiled(tmp_path, "thing", *flags, "-Wl,--build-id=0x1234abcd")


def functions(path: Path, names: tuple[str, ...] = NAMES) -> list[Function]:
    with path.open("rb") as file, ElfFile(file.fileno(), path.name) as elf:
        return elf.functions(names)


def addresses(path: Path, *options: str) -> dict[str, int]:
    """By nm: what the symbols are worth."""
    if shutil.which("nm") is None:
        pytest.skip("no nm: apt-get install binutils")
    output = subprocess.run(["nm", *options, str(path)], capture_output=True, text=True, check=True)
    lines = [line.split() for line in output.stdout.splitlines()]
    return {line[2]: int(line[0], 16) for line in lines if len(line) == 3 and line[1] in "Tt"}


def test_defined_functions_are_found_where_their_code_is(library: Path) -> None:
    """Text of a small library lies at its address; data, undefined and absent ones do not."""
    expected = addresses(library)
    found = {function.name: function.offset for function in functions(library)}
    assert set(found) == {"first", "second", "alias", "third", "hidden"}
    assert found == {name: expected[name] for name in found}
    assert found["alias"] == found["second"]


def test_soname_and_build_id(library: Path) -> None:
    """As the linker was told."""
    with library.open("rb") as file, ElfFile(file.fileno(), "thing") as elf:
        assert elf.soname == "libthing.so.7"
        assert elf.build_id == "1234abcd"


def test_stripped_files_keep_what_the_dynamic_linker_needs(library: Path) -> None:
    """Without .symtab; without section headers at all; with either kind of hash table."""
    if shutil.which("strip") is None:
        pytest.skip("no strip: apt-get install binutils")
    expected = [f for f in functions(library) if f.name != "hidden"]
    subprocess.run(["strip", "--strip-all", str(library)], check=True)
    assert set(functions(library)) == set(expected)
    content = bytearray(library.read_bytes())
    struct.pack_into("<Q", content, 0x28, 0)  # e_shoff
    struct.pack_into("<H", content, 0x3C, 0)  # e_shnum
    library.write_bytes(content)
    assert set(functions(library)) == set(expected)


@pytest.mark.parametrize("style", ["gnu", "sysv"])
def test_hash_tables_tell_how_many_symbols_there_are(tmp_path: Path, style: str) -> None:
    """Where section headers do not."""
    path = compiled(tmp_path, "thing", "-shared", "-fPIC", f"-Wl,--hash-style={style}")
    expected = {f for f in functions(path) if f.name != "hidden"}
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, 0x28, 0)
    struct.pack_into("<H", content, 0x3C, 0)
    path.write_bytes(content)
    assert set(functions(path)) == expected


def test_probes_go_behind_endbr64(tmp_path: Path) -> None:
    """It would be single-stepped, which costs several times a probe."""
    path = compiled(tmp_path, "thing", "-shared", "-fPIC", "-fcf-protection=full")
    expected = addresses(path)
    assert path.read_bytes()[expected["first"] :].startswith(b"\xf3\x0f\x1e\xfa")
    (found,) = functions(path, ("first",))
    assert found.offset == expected["first"] + 4


def test_segments_are_not_where_their_addresses_are(tmp_path: Path) -> None:
    """A program loaded at a fixed address: offsets are of the file."""
    path = compiled(tmp_path, "thing", "-shared", "-fPIC", "-Wl,-Ttext-segment=0x7000000")
    expected = addresses(path)
    assert expected["first"] > 0x7000000
    (found,) = functions(path, ("first",))
    assert found.offset < path.stat().st_size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no ELF file"),
        (b"#!/bin/sh\n" * 20, "is no ELF file"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 3, 3) + bytes(44), "32-bit x86"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 183) + bytes(44), "AArch64"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, 999) + bytes(44), "machine 999"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 3, 62) + bytes(44), "32-bit"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    """And say what they are."""
    path = tmp_path / "libodd.so.1"
    path.write_bytes(content)
    with pytest.raises(CctraceError, match=said) as caught:
        functions(path)
    assert caught.value.exit_code == EXIT_UNSUPPORTED
    assert "libodd.so.1" in caught.value.message


def test_damaged_files_raise_nothing_else(library: Path) -> None:
    """Cut short anywhere, or with bytes changed: an error of ours, or fewer functions."""
    whole = library.read_bytes()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    refused = 0
    for _ in range(601):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 29))):
            # Mostly where headers and tables are.
            at = chance.choice((chance.randrange(64), chance.randrange(len(content))))
            content[at] = chance.randrange(256)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        library.write_bytes(content)
        try:
            for function in functions(library):
                assert 0 <= function.offset < len(content) + 4
        except CctraceError:
            refused += 1
    assert refused > 50


def test_tables_that_share_bytes_are_no_tables(tmp_path: Path) -> None:
    """Or a small file would be read thousands of times over."""
    path = tmp_path / "hostile"
    with_symbol_tables(path, 1, b"\0first\0", struct.pack("<IBBHQQ", 1, 2, 0, 1, 7, 0) * 101)
    with path.open("rb") as file, ElfFile(file.fileno(), "one") as elf:
        ((symbols, strings),) = elf.symbol_tables()
        assert (len(symbols), strings) == (101, b"\0first\0")
    with_symbol_tables(path, 1009, b"\0first\0", struct.pack("<IBBHQQ", 1, 2, 0, 1, 7, 0) * 10007)
    with (
        path.open("rb") as file,
        ElfFile(file.fileno(), "many") as elf,
        pytest.raises(CctraceError, match="overlap"),
    ):
        elf.symbol_tables()


def test_a_file_that_is_cut_short_meanwhile_is_an_error(library: Path) -> None:
    """And not the end of the process that reads it."""
    with library.open("rb+") as file, ElfFile(file.fileno(), "thing") as elf:
        assert elf.functions(NAMES)
        file.truncate(100)
        with pytest.raises(CctraceError, match="cannot be read"):
            elf.functions(NAMES)
