"""The look at a driver's entry points that test_gpu.py takes, on the simulated driver.

There its answers are known: each symbol is a function of its own that begins with
push %rbp, and cuGetProcAddress gives the same addresses.
"""

from __future__ import annotations

from pathlib import Path

import driver_symbols
import pytest
from simcuda_build import simcuda_environment, simcuda_library_dir


def test_the_simulated_driver_gives_its_own_symbols() -> None:
    """All that is probed and exported is found equal, in the file, and cheap to probe."""
    names = driver_symbols.probed()
    assert "cuMemcpyHtoDAsync_v2_ptsz" in names  # the table's [suffixes] are spelled out
    assert "cuMemcpyHtoDAsync_v2" in names
    answer = driver_symbols.look_up([*names, "cuNoSuchCall_v31"], env=simcuda_environment())
    assert Path(answer["path"]) == simcuda_library_dir() / "libcuda.so.1"
    rows = {row["name"]: row for row in answer["symbols"]}
    assert rows.pop("cuNoSuchCall_v31") == {"name": "cuNoSuchCall_v31", "exported": False}
    exported = [row for row in rows.values() if row["exported"]]
    assert len(exported) > len(names) / 2
    assert [row["name"] for row in exported if not row["equal"]] == []
    assert [row["name"] for row in exported if not row["as_in_file"]] == []
    firsts = {driver_symbols.first_instruction(bytes.fromhex(row["code"])) for row in exported}
    assert firsts == {"push %rbp"}
    # The driver's own version gives the newest of several.
    assert rows["cuMemcpyHtoD_v2"]["newest"] == "cuMemcpyHtoD_v2"


def test_the_table_tells_what_is_not_equal() -> None:
    """The tables name each exported symbol, and mark those that a probe would miss."""
    code = bytes.fromhex("554889e5").ljust(16, b"\x90").hex()
    row = {"exported": True, "newest": "cuB", "code": code, "as_in_file": True}
    text = driver_symbols.markdown(
        {
            "driver_version": 13000,
            "symbols": [
                {"name": "cuA", "equal": False, **row},
                {"name": "cuB", "equal": True, **row},
                {"name": "cuC", "exported": False},
            ],
        }
    )
    assert "Driver 13000: 3 symbols are probed." in text
    assert "It exports 2; 1 of those are what cuGetProcAddress gives." in text
    assert "| `push %rbp` | 2 |" in text
    assert "| `cuA` | **no** | `cuB` | `push %rbp` |" in text
    assert "| `cuB` | yes | `cuB` | `push %rbp` |" in text
    assert "cuC" not in text


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("554889e5", "push %rbp"),
        ("f30f1efa55", "endbr64"),
        ("4154", "push (r8-r15)"),
        ("53", "push"),
        ("4883ec18", "sub %rsp"),
        ("488d0512", "48 8d 05 12"),
    ],
)
def test_first_instructions_are_named(code: str, name: str) -> None:
    """As the Intel manual has them; what is not known is given as its bytes."""
    assert driver_symbols.first_instruction(bytes.fromhex(code).ljust(16, b"\0")) == name


def test_no_driver_is_said(tmp_path: Path) -> None:
    """A library that is none is an answer, not a crash."""
    (tmp_path / "libcuda.so.1").touch()
    answer = driver_symbols.look_up(["cuInit"], env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert answer == {"error": f"{tmp_path}/libcuda.so.1: file too short"}
