"""``cctrace flamegraph``: where a run's time goes, by thread, NVTX range, call and stack."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cctrace.cli.output import destination, output_options, refuse_overwrite, talk, warn_of_losses
from cctrace.cli.units import count, shell_word, size
from cctrace.errors import EXIT_INTERRUPTED, EXIT_USAGE, CctraceError
from cctrace.exporters.flame.frames import DEFAULT_LEVELS, LEVELS

if TYPE_CHECKING:
    from cctrace.exporters.flame.graph import Flame
    from cctrace.exporters.flame.select import Selection
    from cctrace.store.session import Session

WEIGHTS: Final = {
    "wall": "Wall time of steps",
    "blocked": "Time in calls that cross the bridge",
    "bubble": "Time the device had nothing to do",
    "bytes": "Bytes copied",
    "count": "Calls that cross the bridge",
}
_RANGE: Final = re.compile(r"(\d{0,18}):(\d{0,18})|(\d{1,18})")


class _Levels(click.ParamType[tuple[str, ...]]):
    """Levels with commas between, each once."""

    name = "levels"

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        levels = (
            tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
        )
        for level in levels:
            if level not in LEVELS:
                self.fail(f"{level!r} is none of {', '.join(LEVELS)}", param, ctx)
            if levels.count(level) > 1:
                self.fail(f"{level} is named twice", param, ctx)
        return levels


class _Steps(click.ParamType[tuple["int | None", "int | None"]]):
    """A:B, either of which may be missing, or one number."""

    name = "steps"

    def convert(
        self,
        value: str | tuple[int | None, int | None],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int | None, int | None]:
        if not isinstance(value, str):
            return value
        match = _RANGE.fullmatch(value.strip())
        if match is None or value.strip() == ":":
            self.fail(f"{value!r} is not like 10:20, 10:, :20 or 10", param, ctx)
        words = (match[3], match[3]) if match[3] else (match[1], match[2])
        first, last = (int(word) if word else None for word in words)
        if first is not None and last is not None and first > last:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return first, last


@click.command("flamegraph")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--weight",
    type=click.Choice(list(WEIGHTS)),
    default="wall",
    show_default=True,
    help="wall: time of steps on the thread that drives them; blocked: time in calls that "
    "cross the bridge; bubble: time the device was idle, by the call whose return began it; "
    "bytes: what copies moved; count: calls that cross the bridge.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(("svg", "folded", "speedscope")),
    default="svg",
    show_default=True,
    help="svg: one file for a browser; folded: text for other flamegraph tools; speedscope: "
    "JSON for speedscope.",
)
@click.option(
    "--group-by",
    "levels",
    type=_Levels(),
    default=",".join(DEFAULT_LEVELS),
    show_default=True,
    metavar="LEVELS",
    help="What frames are of, outermost first: any of process, thread, nvtx, api, part, stack. "
    "part: what time in a call was for (--weight wall; takes longer).",
)
@click.option(
    "--by-name",
    is_flag=True,
    help="One frame for processes, and for threads, of the same name; --diff always does so.",
)
@click.option("--phase", metavar="PHASE", help="Only steps of this phase, such as decode.")
@click.option("--thread", metavar="THREAD", help="Only threads of this number or name.")
@click.option(
    "--steps",
    type=_Steps(),
    metavar="A:B",
    help="Only steps A to B, both included; either may be left out.",
)
@click.option(
    "--diff",
    "other",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Compare RUN with OTHER, step for step: blue is less in OTHER, red is more.",
)
@output_options
def command(  # noqa: PLR0917 - click passes them by name
    run: Path,
    weight: str,
    kind: str,
    levels: tuple[str, ...],
    by_name: bool,  # noqa: FBT001 - click passes flags by name
    phase: str | None,
    thread: str | None,
    steps: tuple[int | None, int | None] | None,
    other: Path | None,
    output: Path | None,
    force: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Show where time goes: by process, thread, NVTX range, call and stack.

    The leaves add up to what the run's tables have for the weight, to the nanosecond or
    the byte; docs/flamegraph.md has the definitions. A comparison is of the mean step: of
    OTHER all is multiplied by steps of RUN over its own; of whole runs where one has none.

    \b
    Example:
      cctrace flamegraph run -o run.svg
      cctrace flamegraph run --weight blocked --format folded | flamegraph.pl > run.svg
      cctrace flamegraph run --phase decode --group-by nvtx,api,part -o decode.svg
      cctrace flamegraph cc-off --diff cc-on -o diff.svg
    """
    from cctrace.exporters.flame.select import Selection  # noqa: PLC0415 - --help stays fast

    if "part" in levels and weight != "wall":
        raise CctraceError(
            "the level part is of the weight wall", "leave it out, or use --weight wall", EXIT_USAGE
        )
    if other is not None and kind == "speedscope":
        raise CctraceError(
            "speedscope has no format for a comparison",
            "--format svg or folded; or two files, and speedscope's own comparison",
            EXIT_USAGE,
        )
    if output is not None:
        refuse_overwrite(output, force=force)
    first, last = steps or (None, None)
    selection = Selection(weight, levels, by_name or other is not None, phase, first, last, thread)
    try:
        text, told = _made(run, other, selection, kind)
    except KeyboardInterrupt:
        raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None
    data = text.encode()
    with destination(output, force=force, binary=False) as stream:
        stream.write(data)
    if output is not None:
        talk(f"Wrote {output} ({told}, {size(len(data))})")
        talk(f"next: {_NEXT[kind].format(shell_word(output))}")


_NEXT: Final = {
    "svg": "open {} in a browser",
    "folded": "flamegraph.pl {} > flame.svg",
    "speedscope": "open {} in speedscope",
}


def _made(path: Path, other: Path | None, selection: Selection, kind: str) -> tuple[str, str]:
    """Text of the file, and what is in it."""
    from cctrace.exporters.flame.folded import folded  # noqa: PLC0415 - --help stays fast
    from cctrace.exporters.flame.graph import combine  # noqa: PLC0415 - as above
    from cctrace.exporters.flame.select import select  # noqa: PLC0415 - as above
    from cctrace.exporters.flame.svg import Heading, svg  # noqa: PLC0415 - as above
    from cctrace.store.session import open_session  # noqa: PLC0415 - as above

    with open_session(path) as session:
        warn_of_losses(session.runs)
        label = session.runs[0].label
        about = f"{_chosen(selection)}: {shlex.join(session.manifest.command) or label}"
        if kind == "speedscope":
            return _speedscope(session, selection, about)
        selected = select(session, selection, may_be_empty=other is not None)
        _tell(selected.notes)
    flame, title = selected.flame, WEIGHTS[selection.weight]
    labels: tuple[str, ...] = (label,)
    if other is not None:
        with open_session(other) as session:
            warn_of_losses(session.runs)
            second = select(session, selection, may_be_empty=bool(flame.leaves))
            _tell(second.notes)
            labels = (label, _different(label, session.runs[0].label))
        flame = combine(flame, second.flame)
        title = f"{title}, {labels[0]} to {labels[1]}"
        about = f"{_chosen(selection)}: {_compared(flame, labels)}"
        talk(_compared(flame, labels))
    heading = Heading(title, about, labels)
    text = "".join(folded(flame)) if kind == "folded" else svg(flame, heading)
    return text, _contents(flame)


def _speedscope(session: Session, selection: Selection, about: str) -> tuple[str, str]:
    """In order where that is told and not too long, else sums."""
    from cctrace.exporters.flame.select import select  # noqa: PLC0415 - --help stays fast
    from cctrace.exporters.flame.speedscope import evented, sampled  # noqa: PLC0415 - as above
    from cctrace.exporters.flame.timeline import read_timeline  # noqa: PLC0415 - as above

    selected = select(session, selection)
    _tell(selected.notes)
    if selection.weight == "wall" and "part" not in selection.levels:
        tracks = read_timeline(session, selection)
        if tracks:
            stretches = sum(len(track.stretches) for track in tracks)
            return evented(tracks, about), f"{stretches:,} stretches in order"
        talk("sums only: too much for a file in the order of time; --steps A:B chooses fewer")
    return sampled(selected.flame, about), _contents(selected.flame)


def _contents(flame: Flame) -> str:
    from cctrace.exporters.flame.svg import amount  # noqa: PLC0415 - --help stays fast

    totals = " and ".join(amount(total, flame.unit) for total in flame.totals)
    return f"{count(len(flame.leaves), 'path')}, {totals}"


def _chosen(selection: Selection) -> str:
    """What the selection leaves of a run, in words."""
    first, last = selection.first_step, selection.last_step
    words = [f"{selection.phase} steps" if selection.phase else ""]
    if (first, last) != (None, None):
        words.append(f"steps {'' if first is None else first}:{'' if last is None else last}")
    words.append(f"thread {selection.thread}" if selection.thread else "")
    return ", ".join(word for word in words if word) or "all"


def _compared(flame: Flame, labels: tuple[str, ...]) -> str:
    if not all(flame.steps):
        return f"whole runs are compared: no steps in {labels[0] if flame.steps[1] else labels[1]}"
    one, two = (
        f"{count(n, 'step')} of {name}" for n, name in zip(flame.steps, labels, strict=True)
    )
    return f"compared by step: {one}, {two}"


def _different(label: str, other: str) -> str:
    return f"{other} (other)" if other == label else other


def _tell(notes: tuple[str, ...]) -> None:
    for note in notes:
        talk(f"WARNING: {note}")
