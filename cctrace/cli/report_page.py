"""``cctrace report --format html``: what is asked of the run for the page, and in which order."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from cctrace.cli.flamegraph import WEIGHTS
from cctrace.errors import EXIT_FAILED, CctraceError

if TYPE_CHECKING:
    from cctrace.analyze.opened import OpenedRuns
    from cctrace.analyze.recording import Step
    from cctrace.store.excerpt import Excerpt
    from cctrace.store.session import Session

_WEIGHTS: Final = ("wall", "blocked")  # of the flamegraph, the first that the run has
# A run of more than either has the flamegraph of a sample in its page.
_MANY_EVENTS: Final = 2_000_000
_MANY_STEPS: Final = 100_000
_LEAD_NS: Final = 1_000_000  # calls and ranges longer than that are found wherever they began


def as_html(session: OpenedRuns) -> bytes:
    """The report of an opened run as one HTML page.

    Args:
        session: The run.

    Raises:
        CctraceError: Exit code 4; a part is damaged or gone.
    """
    from cctrace.analyze import pipeline  # noqa: PLC0415 - --help stays fast
    from cctrace.analyze.attribution import REPORT_VERSION  # noqa: PLC0415 - as above
    from cctrace.analyze.verdict import verdict  # noqa: PLC0415 - as above
    from cctrace.exporters import html_page  # noqa: PLC0415 - as above

    with pipeline.attributing(pipeline.choose(session.runs, None)) as told:
        made, excerpt = told.attribution, told.excerpt
        report = {"report_version": REPORT_VERSION, **dataclasses.asdict(made)}
        lengths = html_page.step_lengths(excerpt, report)
        chosen = html_page.chosen_steps(excerpt, report)
        is_long = made.run.events > _MANY_EVENTS or sum(s.steps for s in made.steps) > _MANY_STEPS
        if not is_long:
            weight, flamegraph = _flamegraph(excerpt, "the whole run")
        if told.sample is not None:
            excerpt.focus(told.sample)
        if is_long:
            about = "the whole run" if told.sample is None else "a sample of the run"
            weight, flamegraph = _flamegraph(excerpt, about)
        copies = html_page.copy_tolls(excerpt) if made.run.cuda_calls else []
        paths = _look_at_steps(excerpt, [step["step_id"] for step in chosen])
        document = {
            "verdict": dataclasses.asdict(verdict(made)),
            "report": report,
            "lengths": lengths,
            "copies": copies,
            "copies_sampled": told.sample is not None,
            "timelines": html_page.step_timelines(excerpt, chosen, paths),
            "flamegraph_weight": weight,
            "flamegraph_sampled": is_long and told.sample is not None,
        }
    return html_page.render(document, flamegraph)


def _flamegraph(session: Session, about: str) -> tuple[str | None, str | None]:
    """Weight and SVG of the flamegraph: of the steps' time, else of the time in crossings."""
    from cctrace.exporters.flame.select import Selection, select  # noqa: PLC0415 - --help stays fast
    from cctrace.exporters.flame.svg import Heading, svg  # noqa: PLC0415 - as above

    label = session.runs[0].label
    for weight in _WEIGHTS:
        try:
            flame = select(session, Selection(weight)).flame
        except CctraceError as error:
            if error.exit_code != EXIT_FAILED:
                raise
            continue  # the run has nothing of this weight
        return weight, svg(flame, Heading(WEIGHTS[weight], about, (label,)))
    return None, None


def _look_at_steps(excerpt: Excerpt, step_ids: list[int]) -> dict[int, dict[str, Any]]:
    """Cut the run to some steps and those beside them, and find their critical paths."""
    from cctrace.analyze import critical_path  # noqa: PLC0415 - --help stays fast

    if not step_ids:
        return {}
    excerpt.focus(None)
    around = critical_path.steps_around(excerpt, step_ids)
    excerpt.cut_long(_LEAD_NS)
    excerpt.focus(_windows(around))
    [run] = excerpt.runs
    paths = critical_path.critical_paths(excerpt, run.label, around)
    return {step_id: dataclasses.asdict(path) for step_id, path in paths.items()}


def _windows(around: dict[int, list[Step]]) -> list[Any]:
    """Windows of time that hold the steps, in order and apart from each other."""
    from cctrace.store.excerpt import Window  # noqa: PLC0415 - --help stays fast

    spans = sorted(
        (steps[0].ts_ns, steps[-1].ts_ns + steps[-1].period_ns) for steps in around.values()
    )
    found: list[Window] = []
    for first_ns, end_ns in spans:
        if found and first_ns <= found[-1].end_ns:
            found[-1] = found[-1]._replace(end_ns=max(found[-1].end_ns, end_ns))
        else:
            found.append(Window(first_ns, end_ns))
    return found
