"""Mappings of processes: parsed, merged over time, and looked up."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cctrace.record.symbols.maps import Region, RegionMap, merged, parse, read, read_start

MAPS = b"""\
55d0c0a00000-55d0c0a01000 r--p 00000000 fd:01 1234                       /usr/bin/thing
55d0c0a01000-55d0c0a05000 r-xp 00001000 fd:01 1234                       /usr/bin/thing
7f0000000000-7f0000010000 rwxp 00000000 00:00 0
7f0000010000-7f0000020000 r-xs 00000000 00:01 77                         /memfd:jit (deleted)
7f0000020000-7f0000030000 r-xp 00002000 fd:01 99                         /srv/a b/lib x.so (deleted)
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
7fffffffe000-7ffffffff000 --xp 00000000 00:00 0                          [uprobes]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
garbage
7f0000020000-7f0000010000 r-xp 00000000 fd:01 5                          /backwards
"""


def test_executable_mappings_and_what_they_are() -> None:
    """One of each kind; data and lines that make no sense are left out."""
    regions = parse(MAPS)
    assert regions == [
        Region(0x55D0C0A01000, 0x55D0C0A05000, 0x1000, b"fd:01", 1234, b"/usr/bin/thing"),
        Region(0x7F0000000000, 0x7F0000010000, 0, b"00:00", 0, b""),
        Region(0x7F0000010000, 0x7F0000020000, 0, b"00:01", 77, b"/memfd:jit"),
        Region(0x7F0000020000, 0x7F0000030000, 0x2000, b"fd:01", 99, b"/srv/a b/lib x.so"),
        Region(0x7FFD00000000, 0x7FFD00002000, 0, b"00:00", 0, b"[vdso]"),
        Region(0x7FFFFFFFE000, 0x7FFFFFFFF000, 0, b"00:00", 0, b"[uprobes]"),
        Region(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, 0, b"00:00", 0, b"[vsyscall]"),
    ]
    assert [r.is_file for r in regions] == [True, False, False, True, False, False, False]
    assert [r.is_special for r in regions] == [False, False, False, False, True, True, True]


def test_our_own_mappings() -> None:
    """As many as the kernel lists with an x; this function's interpreter is in one of them."""
    text = Path("/proc/self/maps").read_bytes()
    regions = parse(text)
    listed = [line for line in text.splitlines() if line.split()[1][2:3] == b"x"]
    assert len(regions) == len(listed)
    assert any(r.is_file for r in regions)
    first = next(r for r in regions if r.is_file)
    assert Path(os.fsdecode(first.path)).stat().st_ino == first.inode


def region(start: int, end: int, name: bytes = b"/a") -> Region:
    return Region(start, end, 0, b"0:1", 1, name)


def test_what_was_unmapped_stays_known_until_its_place_is_taken() -> None:
    """Of three old ones the middle one is in part under a new one."""
    before = [region(0, 10), region(20, 30), region(40, 50)]
    now = [region(25, 26, b"/b"), region(50, 60, b"/b")]
    assert merged(before, now) == [
        region(0, 10),
        region(25, 26, b"/b"),
        region(40, 50),
        region(50, 60, b"/b"),
    ]


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed(garbage: bytes) -> None:
    """Regions never overlap, whatever the text."""
    regions = parse(garbage + b"\n" + MAPS + garbage)
    assert all(r.start < r.end for r in regions)
    assert all(a.end <= b.start for a, b in pairwise(regions))


bounds = st.lists(st.integers(0, 200), unique=True).map(sorted)


def regions_of(points: list[int], name: bytes) -> list[Region]:
    pairs = zip(points[::2], points[1::2], strict=False)
    return [region(start, end, name) for start, end in pairs]


@given(bounds, bounds)
def test_merging_keeps_all_that_is_new_and_never_overlaps(old: list[int], new: list[int]) -> None:
    """New regions are found whole, old ones where nothing new lies on any part of them."""
    before, now = regions_of(old, b"/old"), regions_of(new, b"/new")
    together = merged(before, now)
    assert all(a.end <= b.start for a, b in pairwise(together))
    found = RegionMap(together)
    for address in range(202):
        newer = next((r for r in now if r.start <= address < r.end), None)
        older = next((r for r in before if r.start <= address < r.end), None)
        if newer is not None:
            assert found.find(address) == newer
        elif older is not None and not any(
            n.start < older.end and older.start < n.end for n in now
        ):
            assert found.find(address) == older
        else:
            assert found.find(address) is None


def test_a_file_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    """A line that is cut would have another path."""
    path = tmp_path / "maps"
    path.write_bytes(MAPS)
    assert read_start(str(path), len(MAPS)) == MAPS
    assert read_start(str(path), len(MAPS) - 1) == MAPS[: MAPS.rindex(b"\n", 0, -1) + 1]
    assert read_start(str(path), 10) == b""
    assert read_start(str(tmp_path / "none"), 10) == b""
    assert Path("/proc/self/maps").read_bytes().startswith(read(os.getpid()).splitlines()[0])


def test_of_what_has_gone_some_is_kept_files_first() -> None:
    gone = [
        Region(at << 12, at + 1 << 12, 0, b"0:1", at % 2, b"/file" if at % 2 else b"")
        for at in range(1, 10007)
    ]
    kept = merged(gone, [])
    assert len(kept) == 4096
    assert all(region.is_file for region in kept)
    assert merged(gone, gone) == gone  # what is there now is kept whole
