"""Functions of the kernel: a list made up, and the running kernel's own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from cctrace.record.symbols import Frame, Symbolizer
from cctrace.record.symbols.kernel import KernelSymbols

LISTED = b"""\
0000000000000000 A per_cpu_thing
ffffffff81000000 t _text_alias
ffffffff81000000 T startup
ffffffff81000040 T do_work
ffffffff81000080 t _RNvNtCs1234_7mycrate3foo3bar
ffffffff81000100 D some_data
ffffffff81000200 W weak_one
ffffffffc0001000 t nv_open\t[nvidia]
ffffffffc0001100 r table\t[nvidia]
"""


def kernel(function: str, module: str = "[kernel]") -> Frame:
    return Frame(function, module, None, None, "kernel")


@pytest.mark.parametrize(
    ("address", "back", "expected"),
    [
        (0xFFFFFFFF81000000, 0, kernel("startup")),
        (0xFFFFFFFF8100003F, 0, kernel("startup")),
        (0xFFFFFFFF81000040, 0, kernel("do_work")),
        (0xFFFFFFFF81000040, 1, kernel("startup")),
        (0xFFFFFFFF81000090, 1, kernel("mycrate::foo::bar")),
        (0xFFFFFFFF81000110, 0, None),
        (0xFFFFFFFF81000201, 1, kernel("weak_one")),
        (0xFFFFFFFFC0000FFF, 0, None),
        (0xFFFFFFFFC0001001, 1, kernel("nv_open", "[nvidia]")),
        (0xFFFFFFFFC0001104, 0, None),
        (0, 1, None),
        (1 << 70, 0, None),
        (4096, 0, None),
    ],
)
def test_functions_of_a_list(address: int, back: int, expected: Frame | None) -> None:
    """The one that holds the address: not data, not far behind the last, modules named."""
    assert KernelSymbols(LISTED).frame(address, back) == expected


@pytest.mark.parametrize("text", [b"", b"\n\n", b"garbage\n", b"0" * 16 + b" T hidden\n"])
def test_a_kernel_that_tells_nothing(text: bytes) -> None:
    """No file, no sense, or addresses that are all 0: the address stays, and is counted."""
    symbols = Symbolizer(kernel=KernelSymbols(text))
    try:
        assert symbols.kernel([0xFFFFFFFF81000000]) == [kernel("0xffffffff81000000")]
        assert symbols.unresolved() == {"kernel_hidden": 1}
    finally:
        symbols.close()


def test_the_running_kernel() -> None:
    """Every 101st function is found by its own address, and by a return address in it."""
    lines = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    if not int(lines[-1][0], 16):
        pytest.skip("kernel addresses are hidden: sysctl kernel.kptr_restrict=0, as root")
    names: dict[int, set[str]] = {}
    for line in lines:
        names.setdefault(int(line[0], 16), set()).add(line[2])
    addresses = sorted(names)
    # Functions of the kernel itself that are longer than one byte.
    text = {int(line[0], 16) for line in lines if line[1] in "tT" and len(line) == 3}
    longer = [a for a, b in pairwise(addresses) if a in text and b - a > 1]
    chosen = longer[::101]
    symbols = Symbolizer()
    try:
        exact = symbols.kernel(chosen, exact=True)
        after = symbols.kernel([address + 1 for address in chosen])
    finally:
        symbols.close()
    assert exact == after
    for address, frame in zip(chosen, exact, strict=True):
        assert frame.module == "[kernel]"
        plain = {n for n in names[address] if not n.startswith("_R")}
        assert not plain or frame.function in plain
