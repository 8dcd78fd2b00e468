"""The BPF programs' header and its NumPy mirror agree on every offset and number."""

from __future__ import annotations

import re
import shutil
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
import pytest

from cctrace.record.bpf import layout
from cctrace.resources import resource_dir
from cctrace.store.losses import REASONS

HEADER = resource_dir("probes") / "bpf" / "cctrace.h"

# Enums of the header: prefix of the names, mirror.
ENUMS: dict[str, tuple[str, type[IntEnum | IntFlag]]] = {
    "cct_kind": ("CCT_KIND_", layout.Kind),
    "cct_bpf_loss": ("CCT_LOST_", layout.Loss),
    "cct_cuda_flag": ("CCT_CUDA_", layout.CudaFlag),
    "cct_sched_state": ("CCT_SCHED_", layout.SchedState),
    "cct_life": ("CCT_LIFE_", layout.Life),
    "cct_io_op": ("CCT_IO_", layout.IoOp),
    "cct_python": ("CCT_PYTHON_", layout.Python),
    "cct_stack_flag": ("CCT_STACK_", layout.StackFlag),
    "cct_direction": ("CCT_", layout.Direction),
}
# Numbers that are mirrored as constants, where the names differ.
RENAMED = {"CCT_BPF_LOSSES": "LOSSES", "CCT_DIRECTION_UNKNOWN": "UNKNOWN"}
HEAD = set(layout.CUDA_EVENT.names or ()) & set(layout.SCHED_EVENT.names or ())
UNIONS = {
    "cuda": layout.CUDA_EVENT,
    "sched": layout.SCHED_EVENT,
    "life": layout.LIFE_EVENT,
    "io": layout.IO_EVENT,
}


def header_text() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text("utf-8"), flags=re.DOTALL)


def enums() -> dict[str, list[str]]:
    """Names of every enum in the header."""
    return {
        name: re.findall(r"\b(CCT_\w+)\b", body)
        for name, body in re.findall(r"enum (\w+) \{(.*?)\}", header_text(), re.DOTALL)
    }


def compile_and_run(directory: Path, lines: list[str]) -> dict[str, int]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    source, program = directory / "layout.c", directory / "layout"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    subprocess.run([compiler, "-DCCT_USER_SPACE", "-Wall", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


def test_every_number_of_the_header_is_mirrored(tmp_path: Path) -> None:
    # GIVEN every enumerator and #define of the header
    names = [name for members in enums().values() for name in members]
    names += re.findall(r"#define (CCT_\w+) \S", header_text())
    assert len(names) > 50
    # WHEN the compiler says what they are
    values = compile_and_run(tmp_path, [f'printf("{n} %d\\n", (int){n});' for n in names])
    # THEN the mirror has each of them, and nothing besides
    expected: dict[str, int] = {}
    for enum, members in enums().items():
        for name in members:
            prefix, mirror = ENUMS.get(enum, ("", None))
            short = RENAMED.get(name, name.removeprefix(prefix))
            is_member = mirror is not None and short in mirror.__members__
            plain = RENAMED.get(name, name.removeprefix("CCT_"))
            expected[name] = mirror[short] if mirror and is_member else getattr(layout, plain)
    for name in values.keys() - expected.keys():
        expected[name] = getattr(layout, name.removeprefix("CCT_"))
    assert values == expected
    mirrored = {f"{prefix}{m.name}" for prefix, mirror in ENUMS.values() for m in mirror}
    assert {name.replace("CCT_UNKNOWN", "CCT_DIRECTION_UNKNOWN") for name in mirrored} <= set(names)


def test_every_field_of_a_record_is_where_the_mirror_says(tmp_path: Path) -> None:
    # GIVEN the mirror's view of each member of the union
    lines = ['printf("size %zu\\n", sizeof(struct cct_event));']
    expected = {"size": layout.EVENT_BYTES}
    fields: list[str] = []
    for member, dtype in UNIONS.items():
        assert dtype.itemsize == layout.EVENT_BYTES
        assert dtype.fields is not None
        for name, (kind, offset, *_) in dtype.fields.items():
            path = name if name in HEAD else f"{member}.{name}"
            fields.append(path)
            expected |= {f"{path}@": offset, f"{path}#": kind.itemsize}
    for path in dict.fromkeys(fields):
        lines.append(f'printf("{path}@ %zu\\n", offsetof(struct cct_event, {path}));')
        lines.append(f'printf("{path}# %zu\\n", sizeof(((struct cct_event *)0)->{path}));')
    # WHEN the compiler says where they are; THEN they are there, and as long
    assert compile_and_run(tmp_path, lines) == expected


@pytest.mark.parametrize(
    ("struct", "dtype"),
    [
        ("cct_stack_process", layout.STACK_PROCESS),
        ("cct_python_frame", layout.PYTHON_FRAME),
        ("cct_stack", layout.STACK),
        ("cct_code", layout.CODE),
    ],
)
def test_every_field_of_a_stack_is_where_the_mirror_says(
    struct: str, dtype: np.dtype[np.void], tmp_path: Path
) -> None:
    # GIVEN the fields that the header declares
    body = header_text().split(f"struct {struct} {{")[1].split("};")[0]
    declared = re.findall(r"\b(?:u8|u16|u32|u64|s32|struct \w+) (\w+)(?:\[\w+\])?;", body)
    assert dtype.fields is not None
    # WHEN the compiler says where they are; THEN the mirror has each there, and as long
    lines = [f'printf("size %zu\\n", sizeof(struct {struct}));']
    for name in declared:
        lines.append(f'printf("{name}@ %zu\\n", offsetof(struct {struct}, {name}));')
        lines.append(f'printf("{name}# %zu\\n", sizeof(((struct {struct} *)0)->{name}));')
    expected = {"size": dtype.itemsize}
    for name, (kind, offset, *_) in dtype.fields.items():
        expected |= {f"{name}@": offset, f"{name}#": kind.itemsize}
    assert compile_and_run(tmp_path, lines) == expected
    # AND numbers that may be negative are
    signed = set(re.findall(r"\bs32 (\w+);", body))
    assert {n for n, (kind, *_) in dtype.fields.items() if kind.base.kind == "i"} == signed


def test_no_field_of_the_header_is_missing() -> None:
    # GIVEN the text of the struct
    body = header_text().split("struct cct_event {")[1].split("struct cct_stack_process")[0]
    declared = re.findall(r"\b(?:u8|u16|u32|u64|s16|char) (\w+)(?:\[\w+\])?;", body)
    # THEN each field has a mirror
    mirrored = [n for d in UNIONS.values() for n in d.names or ()]
    assert len(declared) > 20
    assert set(declared) == set(mirrored)


def test_signs_are_the_headers() -> None:
    body = header_text().split("struct cct_event {")[1].split("struct cct_stack_process")[0]
    signed = set(re.findall(r"\bs16 (\w+);", body))
    for dtype in UNIONS.values():
        assert dtype.fields is not None
        kinds = {n: kind.base.kind for n, (kind, *_) in dtype.fields.items()}
        assert {n for n, kind in kinds.items() if kind == "i"} == signed
        assert set(kinds.values()) <= {"i", "u", "S"}


def test_every_loss_has_a_reason_that_the_store_knows() -> None:
    assert set(layout.LOSS_REASONS) == set(layout.Loss)
    assert len(layout.Loss) == layout.LOSSES
    assert len(layout.Kind) == layout.KINDS
    assert set(layout.LOSS_REASONS.values()) <= set(REASONS)


def test_a_record_in_the_ring_is_its_header_and_the_event() -> None:
    # struct bpf_ringbuf_hdr is two 32-bit words, kernel/bpf/ringbuf.c
    assert layout.RING_RECORD.itemsize == layout.EVENT_BYTES + layout.RING_HEADER_BYTES
    assert np.dtype("<u4").itemsize * 2 == layout.RING_HEADER_BYTES
    assert layout.RING_RECORD.itemsize % 8 == 0  # records are aligned to 8 bytes
