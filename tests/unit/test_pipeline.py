"""Attribution of a run worked through in pieces is that of the run as a whole."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import make_run

import cctrace
from cctrace.analyze import pipeline
from cctrace.analyze.attribution import Attribution
from cctrace.analyze.pipeline import Limits, attribute, limits_for
from cctrace.errors import CctraceError
from cctrace.store.excerpt import Excerpt
from cctrace.store.run import Run

if TYPE_CHECKING:
    import generate_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
EVENTS = 40_000
STEPS = EVENTS // 100
WHOLE = Limits(replay_events=10_000)
# The same sample and the same replay, so that pieces are all that differs.
PIECES = replace(WHOLE, chunk_events=4_700)
PARTS = 10


def _generator() -> Any:
    """benchmarks/generate_run.py, which is no package that tests could import."""
    name = "generate_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> generate_run.Generated:
    """A generated run, and what its made-up device did."""
    found: generate_run.Generated = _generator().generate(
        tmp_path_factory.mktemp("generated") / "run", EVENTS
    )
    return found


def rows_by_step(run: Run, limits: Limits) -> dict[str, list[Any]]:
    """Every row that attribution keeps of a step."""
    with Excerpt(run) as excerpt:
        pipeline._Work(run, excerpt, limits).attribution()
        return {
            name: excerpt.sql(f"SELECT * FROM {name} ORDER BY step_id, pid").fetchall()
            for name in ("step_parts", "device_idle")
        }


def test_pieces_give_the_rows_of_the_whole(made: generate_run.Generated) -> None:
    # GIVEN a run of several pieces
    run = Run(made.path)
    # WHEN it is worked through whole, and in pieces
    whole, pieces = rows_by_step(run, WHOLE), rows_by_step(run, PIECES)
    # THEN each row of each step is the same to the nanosecond
    assert len(whole["step_parts"]) == STEPS - 1
    assert pieces == whole


def test_pieces_give_the_attribution_of_the_whole(made: generate_run.Generated) -> None:
    run = Run(made.path)
    whole, pieces = attribute(run, WHOLE), attribute(run, PIECES)
    assert whole.chunks == 1
    assert pieces.chunks == 9  # 40,000 / 4,700 events
    assert replace(pieces, chunks=1) == whole


def test_the_generated_run_is_told_right(made: generate_run.Generated) -> None:
    """Figures of the generator's own against those that are found."""
    found = attribute(Run(made.path), PIECES)
    [steps] = found.steps
    assert (steps.engine, steps.phase, steps.steps) == ("decode_loop", "decode", STEPS)
    assert steps.periods == STEPS - 1
    # its last step has no length, so the means are of steps that differ by one
    assert steps.mean_ns == pytest.approx(made.period_ns, rel=0.001)
    assert len(found.parts) == PARTS
    assert sum(part.total_ns for part in found.parts) == steps.total_ns
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    [idle] = found.device_idle
    assert idle.idle_ns is not None
    assert idle.idle_lower_ns is not None
    assert idle.idle_upper_ns is not None
    truth_ns = made.idle_ns * idle.estimated_steps
    assert idle.idle_lower_ns <= truth_ns <= idle.idle_upper_ns
    assert idle.idle_ns == pytest.approx(truth_ns, abs=0.02 * idle.total_ns)


def test_a_sample_of_a_long_run_tells_what_the_run_would(made: generate_run.Generated) -> None:
    """The costs of crossings are the generator's, from a tenth of the events."""
    run = Run(made.path)
    sampled = attribute(run, replace(PIECES, sample_events=EVENTS // 10))
    assert sampled.bridge_sampled
    tolls = {(c.cls, c.copy_kind): c.toll_ns for c in sampled.bridge if c.samples}
    generator = _generator()
    mean_ns = generator.LAUNCH_NS + generator.LAUNCH_SPREAD_NS / 2
    assert tolls["launch", None] == pytest.approx(mean_ns, rel=0.02)


def test_memory_grows_with_the_run_and_has_an_end() -> None:
    small, large, huge = (limits_for(n).memory_bytes for n in (1, 10**8, 10**12))
    assert small <= large <= huge <= 4 << 30


def test_attribution_is_asked_of_one_run(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    with cctrace.open(first) as one:
        assert isinstance(one.attribution(), Attribution)
    with cctrace.open(first, second) as both:
        assert both.attribution("second").run.path == str(second)
        with pytest.raises(CctraceError, match="several runs are open") as refused:
            both.attribution()
        assert refused.value.exit_code == 2
        with pytest.raises(CctraceError, match="no run is labelled 'third'"):
            both.attribution("third")
