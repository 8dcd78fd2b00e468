"""Flamegraph files: read back, exact, and safe whatever names hold."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from flame_rows import (
    SVG,
    flame,
    fold,
    folded_totals,
    small_run,
    speedscope_totals,
    svg_frames,
    svg_leaves,
)
from hostile import FORBIDDEN, LONG, NAMES
from hypothesis import given
from hypothesis import strategies as st
from part_rows import call
from query_rows import span

import cctrace
from cctrace.exporters.flame.folded import folded, folded_name
from cctrace.exporters.flame.frames import CALL, KERNEL, KINDS, NATIVE, NVTX, PYTHON, Frame
from cctrace.exporters.flame.graph import Flame, combine, make_flame, prune, tree
from cctrace.exporters.flame.select import Selection
from cctrace.exporters.flame.speedscope import evented, sampled
from cctrace.exporters.flame.svg import MOST_BYTES, Heading, amount, rough, svg
from cctrace.exporters.flame.timeline import Stretch, Track, read_timeline

if TYPE_CHECKING:
    from conftest import Golden

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / ".cache" / "pages" / "speedscope" / "file-format-schema.json"
HEADING = Heading("Wall time of steps", "all: python serve.py", ("run",))
BOTH = Heading("Wall time of steps, one to two", "all", ("one", "two"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("flame"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Flame:
    """Every bad name as every kind of name that a target gives."""
    names = list(NAMES.values())
    nvtx = [span(100 * i, 90, name, tid=i + 1) for i, name in enumerate(names)]
    calls = [
        call(100 * i + 10, 7, "sync", f"{name} ", tid=i + 1, stack_id=i)
        for i, name in enumerate(names)
    ]
    stacks = [
        {"stack_id": i, "frames": [
            {"function": name, "module": name, "file": name, "line": 3, "kind": kind}
            for kind in ("native", "python", "kernel", name)
        ]}
        for i, name in enumerate(names)
    ]  # fmt: skip
    path = small_run(
        tmp_path_factory.mktemp("hostile"),
        nvtx=nvtx,
        cuda_api=calls,
        stacks=stacks,
        threads=[{"tid": i + 1, "name": name} for i, name in enumerate(names)],
        processes=[{"exe": f"/bin/{NAMES['markup']}\n"}],
    )
    return flame(path, weight="blocked")


def made(*paths: tuple[str, int], weight: str = "wall", steps: int = 1) -> Flame:
    """A flamegraph of NVTX ranges, from folded text and a weight each."""
    frames = ((tuple(Frame(name, NVTX) for name in path.split(";")), (n,)) for path, n in paths)
    return make_flame(weight, frames, (steps,))


def drawing(text: str) -> str:
    """An SVG file without its style and script, which are files of their own."""
    return re.sub(r"<!\[CDATA\[.*?\]\]>", "...", text, flags=re.DOTALL)


# --- golden files


def test_golden_folded(run: Path, golden: Golden) -> None:
    golden("flame.folded", fold(run))


def test_golden_svg(run: Path, golden: Golden) -> None:
    golden("flame.svg", drawing(svg(flame(run), HEADING)))


def test_golden_speedscope(run: Path, golden: Golden) -> None:
    golden("flame.speedscope.json", sampled(flame(run, weight="blocked"), "all"))


def test_golden_speedscope_in_order(run: Path, golden: Golden) -> None:
    with cctrace.open(run) as session:
        tracks = read_timeline(session, Selection())
    golden("flame_in_order.speedscope.json", evented(tracks, "all"))


def test_golden_comparison(run: Path, tmp_path: Path, golden: Golden) -> None:
    other = small_run(tmp_path, "other", cuda_api=[call(150, 80, "launch"), call(950, 20, "sync")])
    both = combine(flame(run, by_name=True), flame(other, by_name=True))
    golden("flame_diff.folded", "".join(folded(both)))
    golden("flame_diff.svg", drawing(svg(both, BOTH)))


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    assert svg(flame(run), HEADING) == svg(flame(run), HEADING)


# --- totals


@pytest.mark.parametrize("weight", ["wall", "blocked", "bubble", "bytes", "count"])
def test_every_format_adds_up(run: Path, weight: str) -> None:
    found = flame(run, weight=weight)
    (total,) = found.totals
    assert folded_totals("".join(folded(found))) == [total]
    text = svg(found, HEADING)
    assert svg_leaves(text) == total == int(ET.fromstring(text).attrib["data-total"])
    assert speedscope_totals(json.loads(sampled(found, "x"))) == total


def test_the_order_of_time_adds_up(run: Path) -> None:
    with cctrace.open(run) as session:
        tracks = read_timeline(session, Selection())
    assert speedscope_totals(json.loads(evented(tracks, "x"))) == 2000


_PATHS = st.dictionaries(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(";".join),
    st.integers(1, 10**17),
    min_size=1,
    max_size=30,
)


@given(_PATHS)
def test_any_tree_adds_up_however_much_is_cut(paths: dict[str, int]) -> None:
    found = made(*paths.items())
    root = tree(found, "all")
    for least in (0, 10, 10**15, 10**18):
        left = [prune(root, least)]
        own = 0
        while left:
            node = left.pop()
            own += node.size - sum(child.size for child in node.children)
            left += node.children
        assert own == sum(paths.values())
    assert svg_leaves(svg(found, HEADING)) == sum(paths.values())


def test_what_is_too_narrow_is_one_frame_with_its_number() -> None:
    found = made(("a;wide", 1_000_000), *((f"a;narrow{i}", 7) for i in range(13)), ("a;x;y", 3))
    names = {
        e.findtext(f"{SVG}title", "").split("\n")[0]: e for e in svg_frames(svg(found, HEADING))
    }
    assert set(names) == {"all", "a", "wide", "[15 smaller frames]"}
    assert names["[15 smaller frames]"].attrib["data-w"] == str(13 * 7 + 3)


def test_a_file_is_never_too_large() -> None:
    # GIVEN 40,000 frames that could all be seen, each with a name of 1,000 letters
    found = made(*((f"{i:05d}{LONG[:995]};inner", 1) for i in range(20_000)))
    text = svg(found, HEADING)
    assert len(text.encode()) <= MOST_BYTES
    assert svg_leaves(text) == 20_000


# --- comparison


def test_a_run_and_itself_differ_by_nothing(run: Path) -> None:
    same = combine(flame(run, by_name=True), flame(run, by_name=True))
    assert all(base == other > 0 for base, other in same.leaves.values())
    frames = svg_frames(svg(same, BOTH))
    assert {frame.attrib["class"].split()[1] for frame in frames} == {"same"}
    assert all("+" not in f.findtext(f"{SVG}title", "").split("\n")[1] for f in frames)


def test_a_comparison_is_by_step() -> None:
    # GIVEN 3 steps, and 7 in which the same things take as long or longer
    base = made(("a", 300), ("gone", 30), steps=3)
    other = made(("a", 700), ("new", 71), steps=7)
    # THEN the other is as if it had 3 steps: 71 * 3 / 7 = 30.4
    assert "".join(folded(combine(base, other))) == "a 300 300\ngone 30 0\nnew 0 30\n"


def test_without_steps_whole_runs_are_compared() -> None:
    assert "".join(folded(combine(made(("a", 3), steps=0), made(("a", 9), steps=7)))) == "a 3 9\n"


@given(_PATHS, st.integers(1, 1000), st.integers(1, 1000))
def test_a_comparison_adds_up(paths: dict[str, int], steps: int, others: int) -> None:
    base, other = made(*paths.items(), steps=steps), made(*paths.items(), steps=others)
    total = sum(paths.values())
    scaled = Fraction(total * steps, others)
    both = combine(base, other)
    assert both.totals[0] == total
    assert abs(both.totals[1] - scaled) <= Fraction(1, 2)
    assert folded_totals("".join(folded(both)), 2) == list(both.totals)
    text = svg(both, BOTH)
    assert [svg_leaves(text, f"data-{name}") for name in "bc"] == list(both.totals)


def test_a_weight_can_shrink_to_nothing_and_come_from_nothing() -> None:
    both = combine(made(("a;gone", 5), ("a;stays", 8)), made(("a;stays", 9), ("a;new", 4)))
    colours = {
        e.findtext(f"{SVG}title", "").split("\n")[0]: e.attrib["class"].split()[1]
        for e in svg_frames(svg(both, BOTH))
    }
    # of 17 ns in both runs, 1 is more: a twentieth and no more
    found = [colours[name] for name in ("gone", "stays", "new")]
    assert found == ["down5", "up3", "up5"]


# --- names


def test_folded_lines_hold_their_frames_and_weight_alone(hostile: Flame) -> None:
    lines = "".join(folded(hostile)).splitlines()
    depths = sorted(len(path) for path in hostile.leaves)
    pattern = re.compile(r"(.*) (\d+)")
    found = [pattern.fullmatch(line) for line in lines]
    assert all(found)
    assert [m[2] for m in found if m] == ["7"] * len(NAMES)
    # AND no frame ends with what a reader would take for the first of two weights
    assert not [m for m in found if m and pattern.fullmatch(m[1])]
    assert sorted(m[1].count(";") + 1 for m in found if m) == depths
    assert any(LONG in line for line in lines)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (Frame("a;b", NVTX), "a:b"),
        (Frame("iter 12", NVTX), "iter_12"),
        (Frame("iter  12.5 ", NVTX), "iter_12.5"),
        (Frame("12", NVTX), "12"),
        (Frame("a\nb\u202e", NVTX), "a\\nb\\u202e"),
        (Frame(" ", CALL), "?"),
        (Frame("read 3", KERNEL), "read_3_[k]"),
        (Frame("f", PYTHON, "/x/y/z.py", 7), "f (y/z.py:7)"),
        (Frame("f", NATIVE, "/usr/lib/libx.so.1", None), "f (lib/libx.so.1)"),
        (Frame("f", NATIVE, "/", 7), "f (:7)"),
    ],
)
def test_names_in_folded_text(frame: Frame, expected: str) -> None:
    assert folded_name(frame) == expected


@given(st.text(), st.sampled_from(KINDS), st.one_of(st.none(), st.text()))
def test_any_name_is_one_frame_of_folded_text(name: str, kind: str, file: str | None) -> None:
    found = folded_name(Frame(name, kind, file, 3))
    assert found
    assert ";" not in found
    assert len(f"{found} 5".splitlines()) == 1
    assert re.search(r"\s\d+(\.\d*)?$", found) is None


def test_names_in_xml(hostile: Flame) -> None:
    text = svg(hostile, Heading(NAMES["markup"], NAMES["controls"], ("run",)))
    root = ET.fromstring(text)  # it is well-formed
    assert not [c for c in FORBIDDEN if c in text]
    # THEN the only script is ours, and nothing is fetched or handled by an attribute
    assert len(list(root.iter(f"{SVG}script"))) == 1
    for element in root.iter():
        names = [name.rpartition("}")[2] for name in element.attrib]
        assert not [n for n in names if n.startswith("on") or n in {"href", "src", "style"}]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    # AND names come through as they are, or written out
    shown = {e.findtext(f"{SVG}title", "").split("\n")[0] for e in svg_frames(text)}
    assert NAMES["quotes"] in shown
    assert NAMES["letters"] in {name.rpartition(" (")[0] for name in shown} | shown
    assert f"{LONG[:1000]}… (10,001 characters)" in shown  # the call
    assert "one\\ntwo\\r\\nthree\\ttab\\x0b\\x0c" in shown
    assert "abc\\u202edef\\u2066ghi\\u2069\\u200f" in shown


def test_names_in_json(hostile: Flame) -> None:
    text = sampled(hostile, NAMES["controls"])
    data = json.loads(text)
    assert text.isascii()
    assert all(value.isprintable() for frame in data["shared"]["frames"]
               for value in (frame["name"], frame.get("file", "")))  # fmt: skip
    assert LONG in {frame["name"] for frame in data["shared"]["frames"]}


def test_text_that_is_not_unicode_is_written_out() -> None:
    # Halves of pairs: how Python keeps bytes that are no UTF-8.
    found = made(("a\udc80b\ud800", 5))
    assert "".join(folded(found)) == "a\\udc80b\\ud800 5\n"
    svg(found, HEADING).encode()
    assert json.loads(sampled(found, "x"))["shared"]["frames"][0]["name"] == "a\\udc80b\\ud800"


# --- speedscope


def _checked(data: dict[str, Any]) -> None:
    if not SCHEMA.is_file():
        pytest.skip("speedscope's published schema is not here: make test-pages fetches it")
    jsonschema.validate(data, json.loads(SCHEMA.read_text("utf-8")))


def test_speedscope_files_are_what_its_schema_says(run: Path, hostile: Flame) -> None:
    with cctrace.open(run) as session:
        tracks = read_timeline(session, Selection())
    for weight in ("wall", "blocked", "bytes", "count"):
        _checked(json.loads(sampled(flame(run, weight=weight), "x")))
    _checked(json.loads(sampled(hostile, "x")))
    _checked(json.loads(evented(tracks, "x")))


def test_a_profile_for_each_thread(run: Path) -> None:
    profiles = json.loads(sampled(flame(run, weight="blocked"), "x"))["profiles"]
    assert [(p["name"], p["unit"], p["endValue"]) for p in profiles] == [
        ("python3 (100) / main (100)", "nanoseconds", 350),
        ("python3 (100) / copier (101)", "nanoseconds", 100),
    ]
    one = json.loads(sampled(flame(run, "api", "thread", weight="bytes"), "x"))["profiles"]
    assert [(p["name"], p["unit"]) for p in one] == [("bytes", "bytes")]


def test_calls_of_one_function_in_a_row_stay_apart() -> None:
    step, launch = Frame("step", NVTX), Frame("launch", CALL)
    stretches = [
        Stretch(0, 5, (step, launch), 100),
        Stretch(5, 3, (step, launch), 105),
        Stretch(9, 2, (step,), None),
    ]
    assert list(Track("t", stretches).events()) == [
        ("O", step, 0), ("O", launch, 0), ("C", launch, 5), ("O", launch, 5), ("C", launch, 8),
        ("C", step, 8), ("O", step, 9), ("C", step, 11),
    ]  # fmt: skip


# --- figures


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (7, "ns", "7 ns"),
        (1_234_567, "ns", "1.235 ms (1,234,567 ns)"),
        (2_000, "ns", "2 us (2,000 ns)"),
        (1_500_000_000, "bytes", "1.500 GB (1,500,000,000 bytes)"),
        (1_979, "calls", "1,979 calls"),
    ],
)
def test_amounts(value: int, unit: str, expected: str) -> None:
    assert amount(value, unit) == expected


def test_fractions_of_a_unit() -> None:
    assert rough(Fraction(1, 3), "ns") == "0.333 ns"
