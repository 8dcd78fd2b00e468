"""Folded stacks: a line for each path, its frames with ``;`` between, then its weight.

Source: https://github.com/brendangregg/FlameGraph (flamegraph.pl reads lines
``frame;frame;frame 123``, and of two runs ``frame;frame 123 456``, as difffolded.pl
writes them; a name that ends with ``_[k]`` is a frame of the kernel).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cctrace.store.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cctrace.exporters.flame.frames import Frame
    from cctrace.exporters.flame.graph import Flame

# What a reader would take for a weight: a number at the end, with a space before it.
_LOOKS_LIKE_WEIGHT: Final = re.compile(r"\s+(?=\d+(?:\.\d*)?\s*$)")


def folded(flame: Flame) -> Iterator[str]:
    """Lines of ``flame``, sorted, each with its line break.

    With two runs each line has two weights. Whatever a name holds, a line has its frames
    and its weights and nothing else: :func:`folded_name` says how. Paths whose names come
    out the same are one line.
    """
    names = [folded_name(frame) for frame in flame.frames]
    summed: dict[str, tuple[int, ...]] = {}
    for path, values in flame.leaves.items():
        line = ";".join(names[number] for number in path)
        have = summed.get(line)
        added = values if have is None else tuple(map(sum, zip(have, values, strict=True)))
        summed[line] = added
    for line in sorted(summed):
        yield f"{line} {' '.join(map(str, summed[line]))}\n"


def folded_name(frame: Frame) -> str:
    r"""Name of ``frame`` as folded text.

    ``;`` becomes ``:``; control characters and those that turn text around are written
    out (``\n``, ``\u202e``); the space before a number at the end becomes ``_``; an empty
    name becomes ``?``; frames of the kernel end with ``_[k]``.
    """
    text = harmless(frame.text).replace(";", ":").strip() or "?"
    return frame.marked(_LOOKS_LIKE_WEIGHT.sub("_", text))
