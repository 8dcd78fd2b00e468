"""``cctrace report``: one screen on where a run's time goes and what gives it back."""

from __future__ import annotations

import dataclasses
import json
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cctrace.cli.output import (
    destination,
    output_options,
    refuse_overwrite,
    replacing,
    talk,
    warn_of_losses,
)
from cctrace.cli.units import count, harmless, shell_word, size
from cctrace.errors import EXIT_INTERRUPTED, CctraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cctrace.analyze.attribution import (
        Attribution,
        DeviceIdle,
        PartStats,
        Point,
        ReplayFacts,
        RunFacts,
        StepStats,
    )
    from cctrace.analyze.opened import OpenedRuns

_WIDTH = 80
_BAR = 24  # cells of a bar as long as the step
_LEAST_SHARE = 0.0005  # a part below this is not shown
_POINTS = 3
_COMMAND = 138  # two lines
_LINES = 44
_LEAST_UNKNOWN = 4  # lines for what cannot be said, however much there is to say
_STEP_ROWS = 4
_DEVICES = 2
_MARK = "*"
_FOUND_BY = {
    "annotation": "ranges that a profiler or framework makes",
    "pattern": "launches and readbacks that repeat: no range is a step",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"
_ENDED = {
    "clean": "ended by itself",
    "target_signal": "ended by a signal",
    "stopped": "recording stopped",
    "duration": "recorded for --duration",
    "disk_full": "disk full",
    "write_failed": "could not be written",
    "recorder_killed": "recorder killed",
    "recording": "still recording",
}


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("text", "json", "html")),
    default="text",
    show_default=True,
    help="One screen of text, every figure as JSON (docs/report.schema.json), or an HTML page.",
)
@output_options
def command(
    run: Path,
    kind: str,
    output: Path | None,
    force: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Tell which call holds the decode loop up, and what gives the time back.

    Says what ran and on what, how long its steps take and what that time is for, how
    long the GPU had nothing to do, the calls that hold the loop up with their
    remedies, and what the run cannot tell. Figures of remedies are estimates. A run of
    ten million events takes some 15 s. Ctrl-C ends it with status 130.

    \b
    Example:
      cctrace report run
      cctrace report run --format json -o report.json
      cctrace report run --format html -o report.html
    """
    from cctrace.analyze.opened import open_session  # noqa: PLC0415 - --help stays fast

    if output is not None:
        refuse_overwrite(output, force=force)
    try:
        with open_session(run) as session:
            if kind != "text":
                warn_of_losses(session.runs)
            if kind == "html":
                _write_page(session, output, force=force)
                return
            made = session.attribution()
    except KeyboardInterrupt:
        raise CctraceError("interrupted", None, EXIT_INTERRUPTED) from None
    text = as_json(made) if kind == "json" else as_text(made, run)
    if output is None:
        click.echo(text, nl=False)
        return
    with replacing(output, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    talk(f"Wrote {output}")


def _write_page(session: OpenedRuns, output: Path | None, *, force: bool) -> None:
    from cctrace.cli.report_page import as_html  # noqa: PLC0415 - --help stays fast

    with destination(output, force=force, binary=True) as stream:
        page = as_html(session)
        stream.write(page)
    if output is not None:
        talk(f"Wrote {output} ({size(len(page))})")


def as_json(made: Attribution) -> str:
    """Every figure; docs/report.schema.json describes them."""
    from cctrace.analyze.attribution import REPORT_VERSION  # noqa: PLC0415 - --help stays fast

    data = {"report_version": REPORT_VERSION, **dataclasses.asdict(made)}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def as_text(made: Attribution, path: Path) -> str:
    """One screen of 80 columns.

    Args:
        made: What to show.
        path: The run as the user named it.
    """
    sections = [_head(made.run)]
    if made.steps:
        sections.append(_steps(made.steps))
    main = _main_phase(made)
    if main is not None:
        sections.append([*_parts(main, made.parts), *_idle(made.device_idle)])
    if made.points:
        sections.append(_points(made))
    sections.append(_health(made))
    last = _next(made, path)
    used = sum(len(lines) + 1 for lines in [*sections, last])
    sections += [_unknown(made, max(_LINES - used, _LEAST_UNKNOWN)), last]
    # Names are the traced program's own words, and lines of ours never hold control characters.
    return "\n\n".join("\n".join(map(harmless, lines)) for lines in sections if lines) + "\n"


def _fold(text: str, first: str = "", later: str = "") -> list[str]:
    """``text`` in lines of the screen's width, each with its indent."""
    return textwrap.wrap(
        harmless(text), _WIDTH, initial_indent=first, subsequent_indent=later or " " * len(first)
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _time(value_ns: float | None) -> str:
    from cctrace.analyze.sentences import duration  # noqa: PLC0415 - --help stays fast

    return "-" if value_ns is None else duration(value_ns)


def _head(run: RunFacts) -> list[str]:
    command = shlex.join(run.command)
    if run.imported_from is not None:
        command = f"(imported from {run.imported_from})"
    when = [] if run.started is None else [f"{run.started} UTC"]
    when += [] if run.length_ns is None else [_time(run.length_ns)]
    when.append(_ENDED.get(run.ended, run.ended))
    if run.exit_code is not None:
        when.append(f"exit code {run.exit_code}")
    on = [f"GPU CC {run.gpu_cc or 'unknown'}", f"TEE {run.tee or 'unknown'}"]
    on += [run.gpu] if run.gpu else ["GPU not told"]
    on += [f"driver {run.gpu_driver}"] if run.gpu_driver else []
    on += [f"Linux {run.kernel}"] if run.kernel else []
    what = [count(run.processes, "process"), count(run.events, "event")]
    what.append(count(run.cuda_calls, "CUDA call"))
    if run.launches_counted:
        what.append(f"{run.launches_counted:,} launches counted")
    rows = [("ran", _cut(harmless(command), _COMMAND)), ("when", ", ".join(when))]
    rows += [("on", ", ".join(on)), ("recorded", ", ".join(what))]
    return [line for name, text in rows for line in _fold(text, f"{name:<10}")]


def _steps(steps: Sequence[StepStats]) -> list[str]:
    names = ("steps", "mean", "p50", "p90", "p99", "max")
    lines = [f"{'Steps (ITL)':<24}" + "".join(f"{name:>9}" for name in names)]
    for step in steps[:_STEP_ROWS]:
        name = f"{harmless(step.engine)} {harmless(step.phase or '')}".strip()
        if step.found_by != "nvtx":
            name += _MARK
        times = (step.mean_ns, step.p50_ns, step.p90_ns, step.p99_ns, step.max_ns)
        row = f"  {_cut(name, 21):<22}{step.steps:>9,}"
        lines.append(row + "".join(f"{_time(value):>9}" for value in times))
    if len(steps) > _STEP_ROWS:
        lines.append(f"  and {len(steps) - _STEP_ROWS} more: --format json")
    for kind in sorted({step.found_by for step in steps} & set(_FOUND_BY)):
        lines += _fold(f"told from {_FOUND_BY[kind]}", f"  {_MARK} ")
    return lines


def _main_phase(made: Attribution) -> StepStats | None:
    """The steps whose parts are shown: decode where there is any, else the most time."""
    known = {(part.engine, part.phase) for part in made.parts}
    shown = [step for step in made.steps if (step.engine, step.phase) in known]
    decode = [step for step in shown if step.phase == "decode"]
    return next(iter(decode or shown), None)


def _parts(main: StepStats, parts: Sequence[PartStats]) -> list[str]:
    own = [p for p in parts if (p.engine, p.phase) == (main.engine, main.phase)]
    of = f"A {main.phase} step" if main.phase else "A step"
    lines = [f"{harmless(of)} takes {_time(main.mean_ns)}, of which (mean of {own[0].steps:,})"]
    shown = sorted(own, key=lambda part: -part.total_ns)
    for part in shown:
        if part.share < _LEAST_SHARE:
            continue
        about = "~" if part.is_estimate and part.part in {"launch", "host_compute"} else " "
        figures = f"{about}{_time(part.mean_ns):>8}{part.share:>8.1%}"
        lines.append(f"  {part.part:<16} {_bar(part.share)} {figures}   p99 {_time(part.p99_ns)}")
    return lines


def _bar(share: float) -> str:
    """A bar of ``_BAR`` cells for a share of 1, to an eighth of a cell."""
    eighths = round(max(min(share, 1.0), 0.0) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + _EIGHTHS[rest].strip()).ljust(_BAR)


def _idle(found: Sequence[DeviceIdle]) -> Iterator[str]:
    for idle in found[:_DEVICES]:
        which = "GPU" if idle.device is None else f"GPU {idle.device}"
        who = f" of pid {idle.pid}" if len(found) > 1 and idle.pid is not None else ""
        told = []
        if idle.idle_ns is not None and idle.idle_share is not None:
            mean = _time(idle.idle_ns / idle.estimated_steps)
            told.append(f"~{mean} of a step, {idle.idle_share:.1%}")
        if idle.idle_lower_ns is not None and idle.idle_upper_ns is not None:
            low, high = idle.idle_lower_ns, idle.idle_upper_ns
            bounds = [_time(value / idle.bounded_steps) for value in (low, high)]
            told.append(f"surely {bounds[0]} to {bounds[1]}")
        if idle.observed_idle_ns is not None and idle.observed_share is not None:
            mean = _time(idle.observed_idle_ns / idle.observed_steps)
            told.append(f"observed {mean}, {idle.observed_share:.1%}")
        if told:
            yield from _fold(f"{which}{who} idle {'; '.join(told)}", "  ")
    if len(found) > _DEVICES:
        yield f"  and {len(found) - _DEVICES} more: --format json"


def _points(made: Attribution) -> list[str]:
    lines = ["What holds the loop up"]
    shown = [point for point in made.points if point.remedy] or made.points
    for point in shown[:_POINTS]:
        lines += _fold(point.sentence, f"  {point.rank}. ")
        if point.called_from:
            lines.append(_cut(f"     by {harmless(', in '.join(point.called_from))}", _WIDTH))
        lines += _fold(_remedy(point, made.replay), "     -> ")
    if len(made.points) > len(shown[:_POINTS]):
        lines.append(f"  and {len(made.points) - len(shown[:_POINTS])} more: --format json")
    return lines


def _remedy(point: Point, replay: ReplayFacts | None) -> str:
    from cctrace.analyze.sentences import gain  # noqa: PLC0415 - --help stays fast

    trust = f"estimate, {point.confidence} confidence"
    if replay is not None and replay.error_ratio is not None:
        trust += f", replay error {abs(replay.error_ratio):.1%}"
    if point.remedy is None or replay is None or not replay.recorded_itl_ns:
        bound = "" if not point.recoverable_bound_ns else _time(point.recoverable_bound_ns)
        most = f"; a step would be {bound} shorter if it took no time" if bound else ""
        return f"no remedy known to help{most} ({trust})"
    return f"{point.remedy.title}: {gain(point.remedy, replay.recorded_itl_ns)} ({trust})"


def _health(made: Attribution) -> list[str]:
    lost = ", ".join(f"{loss.reason} {loss.count:,}" for loss in made.losses)
    lines = _fold(lost or "nothing", f"{'Lost':<10}")
    refused = [source for source in made.run.sources if source.state == "refused"]
    names = ", ".join(source.name for source in refused)
    if names:
        lines += _fold(f"{names} (why: cctrace info)", f"{'Refused':<10}")
    return lines


def _unknown(made: Attribution, room: int) -> list[str]:
    """What cannot be said, in ``room`` lines: the first of it, and how much more there is."""
    lines = ["This run cannot say"] if made.cannot_say else []
    for number, unknown in enumerate(made.cannot_say):
        more = _fold(unknown.sentence, "  - ")
        left = len(made.cannot_say) - number
        if len(lines) + len(more) + (left > 1) > room:
            lines.append(f"  and {left} more: --format json")
            break
        lines += more
    return lines


def _next(made: Attribution, path: Path) -> list[str]:
    run = harmless(shell_word(path))
    names = ["step_breakdown", "step_outliers"] if made.parts else []
    if not names:
        names = ["cuda_summary"] if made.run.cuda_calls else ["runs"]
    return ["Next", *(f"  cctrace query {run} --name {name}" for name in names)]
