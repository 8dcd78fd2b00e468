"""The C header and its Python mirror agree on every size, offset and constant."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cctrace.record import layout
from cctrace.resources import resource_dir

HEADER = resource_dir("probes") / "agent" / "cctrace_shm.h"

CONSTANTS = {
    "CCT_MAGIC": layout.MAGIC,
    "CCT_SHM_VERSION": layout.SHM_VERSION,
    "CCT_SLOT_FREE": layout.SLOT_FREE,
    "CCT_SLOT_LIVE": layout.SLOT_LIVE,
    "CCT_SLOT_EXITED": layout.SLOT_EXITED,
    "CCT_LOSS_REASONS": layout.LOSS_REASONS_MAX,
    "CCT_REC_PUSH_POP": layout.REC_PUSH_POP,
    "CCT_REC_MARK": layout.REC_MARK,
    "CCT_REC_START": layout.REC_START,
    "CCT_REC_END": layout.REC_END,
    "CCT_PAYLOAD_NONE": layout.PAYLOAD_NONE,
    "CCT_PAYLOAD_U64": layout.PAYLOAD_U64,
    "CCT_PAYLOAD_I64": layout.PAYLOAD_I64,
    "CCT_PAYLOAD_F64": layout.PAYLOAD_F64,
    "CCT_PAYLOAD_U32": layout.PAYLOAD_U32,
    "CCT_PAYLOAD_I32": layout.PAYLOAD_I32,
    "CCT_PAYLOAD_F32": layout.PAYLOAD_F32,
    "CCT_DICT_KEY": layout.DICT_KEY,
    "CCT_DICT_DOMAIN": layout.DICT_DOMAIN,
    "CCT_DICT_CATEGORY": layout.DICT_CATEGORY,
    "CCT_DICT_THREAD": layout.DICT_THREAD,
    "CCT_DICT_HAS_TEXT": layout.DICT_HAS_TEXT,
    "CCT_DICT_TRUNCATED": layout.DICT_TRUNCATED,
    "CCT_DICT_HAS_COLOR": layout.DICT_HAS_COLOR,
    "CCT_TEXT_MAX": layout.TEXT_MAX,
    "CCT_WIRE_MAGIC": layout.WIRE_MAGIC,
    "CCT_WIRE_VERSION": layout.WIRE_VERSION,
    "CCT_REQ_HELLO": layout.REQ_HELLO,
    "CCT_REQ_MORE": layout.REQ_MORE,
    "CCT_REQ_REPORT": layout.REQ_REPORT,
    "CCT_REPORT_MAX": layout.REPORT_MAX,
    "CCT_REQ_LIBRARY": layout.REQ_LIBRARY,
    "CCT_LIBRARY_PATH_MAX": layout.LIBRARY_PATH_MAX,
    "CCT_REPLY_OK": layout.REPLY_OK,
    "CCT_REPLY_REFUSED": layout.REPLY_REFUSED,
    **{f"CCT_LOSS_{reason.upper()}": number for number, reason in enumerate(layout.LOSS_REASONS)},
}


def test_structs_and_constants_are_those_of_the_header(tmp_path: Path) -> None:
    """A program compiled from the header prints what layout.py says."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    expected: dict[str, int] = dict(CONSTANTS)
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    for struct, dtype in layout.STRUCTS.items():
        expected[struct] = dtype.itemsize
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        assert dtype.fields is not None
        for field, (_, offset, *_rest) in dtype.fields.items():
            expected[f"{struct}.{field}"] = offset
            lines.append(f'printf("{struct}.{field} %zu\\n", offsetof(struct {struct}, {field}));')
    source = tmp_path / "offsets.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = tmp_path / "offsets"
    subprocess.run([compiler, "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert {k: int(v) for k, v in (line.split() for line in printed.splitlines())} == expected


def test_no_struct_or_loss_reason_of_the_header_is_missing() -> None:
    """A struct or a loss reason added to the header alone is noticed."""
    text = HEADER.read_text()
    assert set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == set(layout.STRUCTS)
    reasons = set(re.findall(r"\bCCT_LOSS_\w+(?= =)", text))
    assert reasons <= set(CONSTANTS)


def test_geometry_parts_do_not_overlap_and_are_page_aligned() -> None:
    """Header, slots, rings, stacks and dictionary follow each other."""
    geometry = layout.Geometry(slots=3, ring_records=16, stack_frames=5, dict_bytes=100)
    bounds = [
        layout.SEGMENT.itemsize,
        geometry.slots_offset,
        geometry.slots_offset + 3 * layout.SLOT.itemsize,
        geometry.rings_offset,
        geometry.rings_offset + 3 * geometry.ring_stride,
        geometry.stacks_offset + 3 * geometry.stack_stride,
        geometry.dict_offset + 100,
        geometry.segment_bytes,
    ]
    assert bounds == sorted(bounds)
    for offset in (geometry.slots_offset, geometry.rings_offset, geometry.stacks_offset):
        assert offset % 4096 == 0
    assert layout.RECORD.itemsize == 32
    with pytest.raises(ValueError, match="power of two"):
        layout.Geometry(ring_records=12)
