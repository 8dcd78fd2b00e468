"""Paths with weights, and the tree they make.

Frames are numbered in the order of their names, so that paths sort as their names do and
cost little to compare; a path is a tuple of these numbers, outermost first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cctrace.exporters.flame.frames import NOTE, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cctrace.exporters.flame.frames import Path

    Numbers = tuple[int, ...]

UNITS: Final = {"wall": "ns", "blocked": "ns", "bubble": "ns", "bytes": "bytes", "count": "calls"}


@dataclass(frozen=True)
class Flame:
    """A flamegraph's data.

    Attributes:
        weight: wall, blocked, bubble, bytes or count.
        frames: Its frames, by name.
        leaves: By path: the weight of the path itself, one for each run that is shown;
            not all 0. In the order of the paths.
        steps: Steps that it is of, one for each run; 0: none are known.
    """

    weight: str
    frames: Sequence[Frame]
    leaves: Mapping[Numbers, tuple[int, ...]]
    steps: tuple[int, ...]

    @property
    def unit(self) -> str:
        """Unit of the weights: ns, bytes or calls."""
        return UNITS[self.weight]

    @property
    def totals(self) -> tuple[int, ...]:
        """Sum of the leaves, one for each run."""
        runs = len(self.steps)
        return tuple(sum(values[i] for values in self.leaves.values()) for i in range(runs))


def make_flame(
    weight: str, paths: Iterable[tuple[Path, tuple[int, ...]]], steps: tuple[int, ...]
) -> Flame:
    """Add up what has the same path, and number the frames.

    Args:
        weight: wall, blocked, bubble, bytes or count.
        paths: Paths with their weights, one for each run.
        steps: Steps of each run.
    """
    numbers: dict[Frame, int] = {}
    summed: dict[Numbers, tuple[int, ...]] = {}
    for path, values in paths:
        if any(values):
            key = tuple(numbers.setdefault(frame, len(numbers)) for frame in path)
            have = summed.get(key)
            added = values if have is None else tuple(map(sum, zip(have, values, strict=True)))
            summed[key] = added
    ordered = sorted(numbers, key=_order)
    place = {numbers[frame]: i for i, frame in enumerate(ordered)}
    moved = {tuple(place[n] for n in key): values for key, values in summed.items()}
    return Flame(weight, ordered, dict(sorted(moved.items())), steps)


def _order(frame: Frame) -> tuple[str, str, str, int]:
    return (frame.name, frame.kind, frame.file or "", frame.line or 0)


def combine(base: Flame, other: Flame) -> Flame:
    """Both, each path with the weight of the first and the second.

    The second is brought to the steps of the first: times steps of the first, over its
    own, in whole numbers that are rounded where sums end, so that they add up to the
    rounded total. Where one of them has no steps, whole runs are compared.
    """
    scaled = base.steps[0] and other.steps[0] and base.steps != other.steps
    times, over = (base.steps[0], other.steps[0]) if scaled else (1, 1)

    def both() -> Iterator[tuple[Path, tuple[int, ...]]]:
        for path, (value,) in base.leaves.items():
            yield tuple(base.frames[n] for n in path), (value, 0)
        exact = rounded = 0
        for path, (value,) in other.leaves.items():
            exact += value * times
            upto = (2 * exact + over) // (2 * over)  # half up
            yield tuple(other.frames[n] for n in path), (0, upto - rounded)
            rounded = upto

    return make_flame(base.weight, both(), (base.steps[0], other.steps[0]))


@dataclass(slots=True)
class Node:
    """A frame where it stands in the tree.

    Attributes:
        frame: The frame.
        totals: Its weight with all inside it, one for each run.
        children: What is inside, in the order of the frames.
        count: Frames, itself and all inside.
    """

    frame: Frame
    totals: list[int]
    children: list[Node] = field(default_factory=list)
    count: int = 1

    @property
    def size(self) -> int:
        """What it is drawn by: the weights of all runs together."""
        return sum(self.totals)


def tree(flame: Flame, name: str) -> Node:
    """The tree of all paths under one node called ``name``."""
    root = Node(Frame(name, NOTE), [0] * len(flame.steps))
    made: list[tuple[Node, Node]] = []  # with their parents, which come before them
    # The nodes of the path before: paths are in order, so all they share is at their start.
    before: Numbers = ()
    open_nodes = [root]
    for path, values in flame.leaves.items():
        shared = 0
        while shared < min(len(path), len(before)) and path[shared] == before[shared]:
            shared += 1
        del open_nodes[shared + 1 :]
        for number in path[shared:]:
            node = Node(flame.frames[number], [0] * len(values))
            open_nodes[-1].children.append(node)
            made.append((open_nodes[-1], node))
            open_nodes.append(node)
        _add(open_nodes[-1], values)
        before = path
    for parent, node in reversed(made):
        _add(parent, node.totals)
        parent.count += node.count
    return root


def _add(node: Node, values: Sequence[int]) -> None:
    for i, value in enumerate(values):
        node.totals[i] += value


def prune(node: Node, least: float) -> Node:
    """A copy in which what is smaller than ``least`` is one node beside its larger siblings.

    Sums stay what they are: that node has the weight of all it stands for.
    """
    copy = Node(node.frame, node.totals)
    pairs = [(node, copy)]
    while pairs:
        whole, cut = pairs.pop()
        small = [child for child in whole.children if child.size < least]
        for child in whole.children:
            if child.size >= least:
                kept = Node(child.frame, child.totals)
                cut.children.append(kept)
                pairs.append((child, kept))
        if small:
            frames = sum(child.count for child in small)
            totals = [sum(values) for values in zip(*(c.totals for c in small), strict=True)]
            noun = "frame" if frames == 1 else "frames"
            cut.children.append(Node(Frame(f"[{frames:,} smaller {noun}]", NOTE), totals))
    return copy
