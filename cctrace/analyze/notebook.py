"""Opened runs and attributions as a notebook shows them.

Nothing is computed here: of a run its manifest, footers and losses are shown, and an
attribution is there already.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from cctrace.analyze.sentences import duration, gain
from cctrace.analyze.verdict import verdict
from cctrace.schema import TABLES
from cctrace.store.losses import REASONS
from cctrace.store.notebook import Html, note, output, table, text
from cctrace.store.run import utc_text
from cctrace.store.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cctrace.analyze.attribution import Attribution, PartStats
    from cctrace.store.run import Run

_POINTS: Final = 5
_LEAST_SHARE: Final = 0.0005  # a part below this is not shown
# Okabe and Ito's colours, which all kinds of sight tell apart.
_COLORS: Final = {
    "queue_wait": "#0072b2",
    "sync_wait": "#56b4e9",
    "bridge_toll": "#d55e00",
    "bridge_transfer": "#e69f00",
    "launch": "#cc79a7",
    "alloc": "#8a6d1f",
    "host_compute": "#009e73",
    "lock_wait": "#a9a72a",
    "runnable": "#7a4fa3",
    "unattributed": "#a0a6ad",
}


def runs_html(runs: Sequence[Run]) -> str:
    """Opened runs: what ran, what is in them, and what was lost.

    Args:
        runs: The runs; their manifests, footers and losses are read.
    """
    facts = [_facts(run) for run in runs]
    columns = [run.label for run in runs]
    rows = [(name, *(each[name] for each in facts)) for name in facts[0]]
    parts = [table(("run", *columns), rows)]
    counts = [(name, *(run.rows(name) for run in runs)) for name in TABLES]
    counts = [row for row in counts if any(row[1:])]
    if counts:
        parts.append(table(("table", *columns), counts, caption="Rows"))
    lost = [
        (run.label, reason, count, REASONS[reason].doc if reason in REASONS else "")
        for run in runs
        for reason, count in {**run.losses.lost, **run.losses.impaired}.items()
    ]
    if lost:
        parts.append(table(("run", "reason", "count", "meaning"), lost, caption="Losses"))
    parts.append(note("Next: .attribution(), .report('steps'), .sql('FROM nvtx LIMIT 10')"))
    return output(*parts)


def _facts(run: Run) -> dict[str, str | None]:
    manifest = run.manifest
    stop = manifest.stop
    length_ns = stop.monotonic_ns - manifest.start.monotonic_ns if stop else None
    started = utc_text(manifest.start.realtime_ns)
    return {
        "command": shlex.join(manifest.command),
        "started": None if started is None else f"{started} UTC",
        "length": None if length_ns is None else duration(length_ns),
        "ended": manifest.ended,
        "exit code": None if manifest.exit_code is None else str(manifest.exit_code),
        "events": f"{run.events:,}",
        "events lost": f"{run.losses.lost_total:,}",
        "TEE": run.host_fact("tee", "kind"),
        "GPU CC": run.host_fact("gpu", "cc_state"),
        "sources": ", ".join(s.name for s in manifest.sources if s.state == "attached") or None,
    }


def attribution_html(made: Attribution) -> str:
    """An attribution: its verdict, the parts of a step as bars, points with remedies."""
    told = verdict(made)
    parts: list[str] = [f'<p class="verdict">{text(told.sentence)}</p>']
    parts += [f"<p>{text(told.because)}</p>"] if told.because else []
    parts += [note(told.trust)] if told.trust else []
    parts += [_bars(own) for own in _phases(made)]
    if made.points:
        parts.append(_points(made))
    if made.losses:
        rows = [(loss.reason, loss.count, loss.meaning) for loss in made.losses]
        parts.append(table(("reason", "count", "meaning"), rows, caption="Losses"))
    if made.cannot_say:
        items = "".join(f"<li>{text(unknown.sentence)}</li>" for unknown in made.cannot_say)
        parts.append(f"<p>This run cannot say</p><ul>{items}</ul>")
    return output(*parts)


def attribution_text(made: Attribution) -> str:
    """The same where there is no HTML: its verdict."""
    told = verdict(made)
    return harmless(" ".join(part for part in (told.sentence, told.because) if part))


def figure(made: Attribution) -> Any:
    """The parts of a step, a bar for each engine and phase.

    Returns:
        ``plotly.graph_objects.Figure``.
    """
    import plotly.graph_objects as go  # noqa: PLC0415 - takes long, and few want it

    drawn: dict[str, list[tuple[str, PartStats]]] = {}
    for own in _phases(made):
        for part in own:
            if part.total_ns:
                drawn.setdefault(part.part, []).append((text(_whose(part)), part))
    bars = [
        go.Bar(
            name=name,
            orientation="h",
            y=[whose for whose, _ in parts],
            x=[part.mean_ns / 1e6 for _, part in parts],
            customdata=[[part.share, part.p99_ns / 1e6] for _, part in parts],
            hovertemplate=f"{name}: %{{x:.3f}} ms (%{{customdata[0]:.1%}}), "
            "p99 %{customdata[1]:.3f} ms<extra></extra>",
            marker={"color": _COLORS.get(name)},
        )
        for name, parts in drawn.items()
    ]
    height = 220 + 40 * len({whose for parts in drawn.values() for whose, _ in parts})
    layout = {
        "barmode": "stack",
        "height": height,
        "xaxis": {"title": {"text": "mean of a step, ms"}},
        "yaxis": {"autorange": "reversed"},
        "legend": {"traceorder": "normal"},
        "margin": {"t": 30},
    }
    return go.Figure(data=bars, layout=layout)


def _phases(made: Attribution) -> Iterator[list[PartStats]]:
    """Parts by engine and phase, most time first."""
    for engine, phase in dict.fromkeys((part.engine, part.phase) for part in made.parts):
        own = [part for part in made.parts if (part.engine, part.phase) == (engine, phase)]
        yield sorted(own, key=lambda part: -part.total_ns)


def _whose(part: PartStats) -> str:
    return f"{part.engine} {part.phase or 'step'}"


def _bars(own: Sequence[PartStats]) -> Html:
    rows = [
        (part.part, _bar(part), f"{part.share:.1%}", duration(part.mean_ns), duration(part.p99_ns))
        for part in own
        if part.share >= _LEAST_SHARE
    ]
    caption = f"{_whose(own[0])}: where the time of {own[0].steps:,} steps goes"
    return table(("part", "", "share", "mean", "p99"), rows, caption=caption)


def _bar(part: PartStats) -> Html:
    width = 100 * max(min(part.share, 1.0), 0.0)
    color = _COLORS.get(part.part, "#a0a6ad")
    style = f"width:{width:.2f}%;background:{color}"
    return Html(f'<span class="track"><span class="bar" style="{style}"></span></span>')


def _points(made: Attribution) -> Html:
    itl_ns = made.replay.recorded_itl_ns if made.replay else None
    rows = []
    for point in made.points[:_POINTS]:
        remedy = point.remedy
        rows.append(
            (
                point.rank,
                point.sentence,
                "no remedy known to help" if remedy is None else remedy.title,
                "" if remedy is None or not itl_ns else gain(remedy, itl_ns),
                "" if remedy is None else remedy.switch,
                point.confidence,
            )
        )
    columns = ("", "what holds the loop up", "remedy", "estimate", "setting", "confidence")
    shown = table(columns, rows, caption="Serialization points")
    left = len(made.points) - _POINTS
    return Html(shown + note(f"and {left} more: .points")) if left > 0 else shown
