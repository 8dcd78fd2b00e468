"""A flamegraph as one SVG file that a browser makes interactive, and that reads without.

The process is at the top and what is inside it below. Each frame is an ``svg`` element with
its place and size, so that its name is clipped; ``data-o`` and ``data-w`` hold its exact
start and weight, ``data-d`` its depth, and in a comparison ``data-b`` and ``data-c`` the
weight of each run. Frames that have none inside them, and what a frame has beyond those
inside it, add up to the total.

Nothing is fetched. Names are the traced program's: they are text and never markup.

Source: https://www.w3.org/TR/SVG2/, https://www.w3.org/TR/xml/#charsets (which characters
XML cannot hold)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

from cctrace.exporters.flame.frames import KINDS
from cctrace.exporters.flame.graph import prune, tree
from cctrace.store.text import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cctrace.exporters.flame.graph import Flame, Node

_HERE: Final = Path(__file__).resolve().parent
MOST_BYTES: Final = 4_500_000
_WIDTH, _MARGIN, _ROW, _HEAD = 1200, 10, 17, 112  # px
_LETTER: Final = 7.23  # px, of the monospace letters
_LEAST_LETTERS: Final = 3
_TITLE: Final = 1_000  # characters of a name in a title
_ABOUT: Final = 160  # characters of a line of the heading
_LEAST: Final = Fraction(1, 10 * (_WIDTH - 2 * _MARGIN))  # a tenth of a pixel, of the whole
_SHADES: Final = 4
# A change by this share of what both have together is that strong.
_STRENGTHS: Final = (Fraction(1, 50), Fraction(1, 20), Fraction(3, 20), Fraction(2, 5))


@dataclass(frozen=True)
class Heading:
    """What is said above the frames.

    Attributes:
        title: What it shows.
        about: Of what: a line of text.
        labels: Names of the runs.
    """

    title: str
    about: str
    labels: tuple[str, ...]


def svg(flame: Flame, heading: Heading) -> str:
    """The file.

    Frames narrower than a tenth of a pixel are drawn as one, ``[n smaller frames]``, beside
    their larger siblings; so are wider ones where the file would be larger than
    ``MOST_BYTES``. Sums stay exact.

    Args:
        flame: What to show, of one run or two.
        heading: What is said above.
    """
    whole = tree(flame, "all")
    least = _LEAST * whole.size
    while True:
        text = "".join(_Drawing(flame, heading, prune(whole, float(least))).parts())
        if len(text.encode()) <= MOST_BYTES or least >= whole.size:
            return text
        least *= 2


class _Drawing:
    """One file: where each frame goes."""

    def __init__(self, flame: Flame, heading: Heading, root: Node) -> None:
        self._flame = flame
        self._heading = heading
        self._root = root
        self._figures = _comparison(flame) if len(flame.steps) > 1 else _figures(flame)

    def parts(self) -> Iterator[str]:
        """Text of the file, in pieces."""
        frames = list(self._frames())
        depth = _depth(self._root)
        height = _HEAD + depth * _ROW + _MARGIN
        label = quoteattr(_shown(self._heading.title, _ABOUT))
        yield '<?xml version="1.0" encoding="UTF-8"?>\n'
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="cctrace-flame" '
            f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
            f'aria-label={label} data-head="{_HEAD}" data-total="{self._root.size}" '
            f'data-unit="{self._flame.unit}">\n'
        )
        yield f"<title>{escape(_shown(self._heading.title, _ABOUT))}</title>\n"
        yield f"<style><![CDATA[\n{_read('flame.css')}]]></style>\n"
        yield '<rect class="page" width="100%" height="100%"/>\n'
        yield '<g class="frames">\n'
        yield from frames
        yield "</g>\n"
        yield from self._head()
        yield f"<script><![CDATA[\n{_read('flame.js')}]]></script>\n</svg>\n"

    def _head(self) -> Iterator[str]:
        yield f'<g class="head">\n<rect class="page" width="100%" height="{_HEAD - 4}"/>\n'
        yield _text(_MARGIN, 26, "heading", _shown(self._heading.title, _ABOUT))
        yield _text(_MARGIN, 46, "about", _shown(self._heading.about, _ABOUT))
        x = _MARGIN
        for kind, name in self._key():
            yield f'<rect class="{kind}" x="{x}" y="56" width="11" height="11" rx="2"/>'
            yield _text(x + 16, 66, "key", name)
            x += 16 + round((len(name) + 2) * _LETTER)
        yield _text(_MARGIN, 86, "detail", f"all: {self._figures(self._root)}")
        yield _text(_MARGIN, 102, "detail", "")
        yield f'<path class="rule" d="M0 {_HEAD - 4.5}H100000"/>\n</g>\n'

    def _key(self) -> Iterator[tuple[str, str]]:
        """Classes and names of what the colours mean."""
        if len(self._flame.steps) > 1:
            yield from (("down4", "less"), ("same", "the same"))
            yield "up4", f"more in {_shown(self._heading.labels[1], 40)}"
            return
        there = {frame.kind for frame in self._flame.frames}
        yield from ((kind, _KIND_NAMES.get(kind, kind)) for kind in KINDS if kind in there)

    def _frames(self) -> Iterator[str]:
        scale = Fraction(_WIDTH - 2 * _MARGIN, max(self._root.size, 1))
        left = [(self._root, 0, 0)]
        while left:
            node, start, depth = left.pop()
            yield self._frame(node, start, depth, float(scale))
            inside = []
            for child in node.children:
                inside.append((child, start, depth + 1))
                start += child.size
            left += reversed(inside)

    def _frame(self, node: Node, start: int, depth: int, scale: float) -> str:
        width = node.size * scale
        name = _shown(node.frame.text, _TITLE)
        letters = int((width - 6) / _LETTER)
        label = name if len(name) <= letters else f"{name[: letters - 1]}…"
        label = label if letters >= min(_LEAST_LETTERS, len(name)) and letters > 0 else ""
        exact = f'data-o="{start}" data-w="{node.size}" data-d="{depth}"'
        if len(node.totals) > 1:
            exact += f' data-b="{node.totals[0]}" data-c="{node.totals[1]}"'
            colour = _change(*node.totals)
        else:
            shade = zlib.crc32(node.frame.name.encode("utf-8", "replace")) % _SHADES
            colour = f"{node.frame.kind} a{shade}"
        return (
            f'<svg class="f {colour}" x="{_MARGIN + start * scale:.2f}" '
            f'y="{_HEAD + depth * _ROW}" width="{width:.2f}" height="{_ROW - 1}" {exact}>'
            f"<title>{escape(name)}\n{self._figures(node)}</title>"
            f'<rect width="100%" height="100%"/><text x="3" y="12">{escape(label)}</text></svg>\n'
        )


_KIND_NAMES: Final = {
    "nvtx": "NVTX range",
    "call": "CUDA call",
    "part": "part of a step",
    "note": "sum or remark",
}


def _depth(root: Node) -> int:
    deepest, left = 0, [(root, 1)]
    while left:
        node, depth = left.pop()
        deepest = max(deepest, depth)
        left += [(child, depth + 1) for child in node.children]
    return deepest


def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _text(x: int, y: int, kind: str, text: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>\n'


def _shown(text: str, most: int) -> str:
    """``text`` without what XML cannot hold, cut with a mark of how long it is."""
    if len(text) > most:
        return f"{harmless(text[:most])}… ({len(text):,} characters)"
    return harmless(text) if text.strip() else "?"


def _change(base: int, other: int) -> str:
    """Class of a colour: by how much of the two together they differ."""
    if base == other:
        return "same"
    share = Fraction(abs(other - base), base + other)
    strength = 1 + sum(share >= border for border in _STRENGTHS)
    return f"{'up' if other > base else 'down'}{strength}"


def _figures(flame: Flame) -> Callable[[Node], str]:
    """How a frame's weight is told: rounded and exact, its share, and what is its own."""
    total = flame.totals[0]

    def tell(node: Node) -> str:
        size = node.totals[0]
        own = size - sum(child.totals[0] for child in node.children)
        text = f"{amount(size, flame.unit)}, {_percent(size, total)}"
        if node.children and own:
            text += f"; itself {amount(own, flame.unit)}, {_percent(own, total)}"
        return text

    return tell


def _comparison(flame: Flame) -> Callable[[Node], str]:
    """How the weights of two runs are told: for a step, or for all, and the difference."""
    # The second has been brought to the steps of the first.
    steps = flame.steps[0] if all(flame.steps) else 0
    per = " a step" if steps else ""

    def tell(node: Node) -> str:
        base, other = node.totals
        shown = [rough(Fraction(value, steps or 1), flame.unit) for value in (base, other)]
        change = rough(Fraction(abs(other - base), steps or 1), flame.unit)
        sign = "+" if other > base else "-" if other < base else ""
        of = f", {sign}{_percent(abs(other - base), base)}" if base else ", new" if other else ""
        return f"{shown[0]} -> {shown[1]}{per}: {sign}{change}{of}"

    return tell


def _percent(part: int, whole: int) -> str:
    return f"{float(Fraction(100 * part, whole)):.2f}%" if whole else "0%"


_SCALES: Final = {
    "ns": ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")),
    "bytes": ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB"), (1, "bytes")),
    "calls": ((1, "calls"),),
}


def rough(value: Fraction, unit: str) -> str:
    """A weight in the largest unit that leaves at least 1, to three decimals."""
    scales = _SCALES[unit]
    size, name = next((s for s in scales if value >= s[0]), scales[-1])
    figure = Fraction(value, size)
    text = f"{int(figure):,}" if figure.denominator == 1 else f"{float(figure):,.3f}"
    return f"{text} {name}"


def amount(value: int, unit: str) -> str:
    """A weight, rounded and exact: ``1.235 ms (1,234,567 ns)``."""
    about, exact = rough(Fraction(value), unit), f"{value:,} {unit}"
    return about if about == exact else f"{about} ({exact})"
