"""Cases of the decode loop on which the ranking of serialization points is checked.

A case is one set of switches. It is recorded as it is, and once more with each remedy
switched on, recorded too, so that the probes cost both the same. What the report says of
the first recording is then compared with what the others measured.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recording import CCTRACE, environment
from simcuda_build import simcuda_library_dir

import cctrace
from cctrace.analyze.points import find_points

LOOP = Path(__file__).resolve().parents[2] / "examples" / "decode_loop.py"
PROFILES = ("b300", "b300-cc", "h200", "h200-cc")
STEPS = 83
LIMIT_S = 180
SAME_RATIO = 0.015  # of the ITL: savings that differ by less are the same
CLOSE_RATIO = 0.05  # of the measured ITL: how far a prediction may be off
SWITCHES_ALONE = ("--async-scheduling", "--alloc-per-step")  # those without a value
EAGER_KERNELS = (17, 31, 53)
# A kernel shorter than its own launch hides behind it: nobody sees how long it takes. What
# a launch takes with probes and interpreter:
LAUNCH_US = {"b300": 12, "b300-cc": 31, "h200": 12, "h200-cc": 20}
VISIBLE_KERNEL = 1.3


@dataclass
class Outcome:
    """What one remedy was said to bring, and what it brought.

    Attributes:
        code: The remedy.
        expected_itl_ns: As predicted, ns; None: the report does not name it.
        measured_itl_ns: As measured, ns.
    """

    code: str
    expected_itl_ns: int | None
    measured_itl_ns: float

    @property
    def error_ratio(self) -> float | None:
        """How far the prediction is off, as a share of what was measured."""
        if self.expected_itl_ns is None:
            return None
        return self.expected_itl_ns / self.measured_itl_ns - 1


@dataclass
class Verdict:
    """How a case came out.

    Attributes:
        switches: The case.
        itl_ns: Median step as it is, ns.
        first: Path, API and remedy of the first point; the remedy None: none helps.
        confidence: Of the first point.
        replay_error_ratio: Of the replay without a change.
        outcomes: Each remedy there is a switch for.
        repeated: Whether it is the second try.
    """

    switches: list[str]
    itl_ns: float
    first: tuple[str, str, str | None]
    confidence: str
    replay_error_ratio: float
    outcomes: list[Outcome] = field(default_factory=list)
    repeated: bool = False

    @property
    def measured_best(self) -> Outcome | None:
        """The remedy that really brought most; None: none brings anything."""
        best = min(self.outcomes, key=lambda outcome: outcome.measured_itl_ns, default=None)
        return best if best is not None and best.measured_itl_ns < self.itl_ns else None

    @property
    def first_outcome(self) -> Outcome | None:
        """What became of the remedy that was ranked first; None: there was none."""
        return next((o for o in self.outcomes if o.code == self.first[2]), None)

    @property
    def is_ranked_right(self) -> bool:
        """Whether no remedy is better than the first by more than the noise."""
        best, first = self.measured_best, self.first_outcome
        reached_ns = self.itl_ns if first is None else first.measured_itl_ns
        best_ns = self.itl_ns if best is None else best.measured_itl_ns
        return reached_ns - best_ns <= SAME_RATIO * self.itl_ns

    @property
    def is_close(self) -> bool:
        """Whether the first remedy's prediction is close enough."""
        first = self.first_outcome
        error = None if first is None else first.error_ratio
        return error is None or abs(error) <= CLOSE_RATIO

    def as_json(self) -> dict[str, Any]:
        """The case as plain values."""
        best = self.measured_best
        return asdict(self) | {
            "measured_best": None if best is None else best.code,
            "is_ranked_right": self.is_ranked_right,
            "is_close": self.is_close,
        }

    def line(self) -> str:
        """The case in one line of a table."""
        best, first = self.measured_best, self.first_outcome
        error = None if first is None else first.error_ratio
        marks = ("" if self.is_ranked_right else " RANK") + ("" if self.is_close else " ITL")
        return (
            f"{self.itl_ns / 1000:7.0f} us  {self.first[2] or '-':21s}"
            f"{'' if first is None else f'{(first.expected_itl_ns or 0) / 1000:7.0f}':>7s} "
            f"{'' if first is None else f'{first.measured_itl_ns / 1000:7.0f}':>7s} "
            f"{'' if error is None else f'{error:+.1%}':>7s}  "
            f"{best.code if best else '-':21s} {self.confidence:6s} "
            f"{' '.join(self.switches)}{marks}"
        )


HEADER = (
    f"{'ITL':>10s}  {'first-ranked':21s}{'said':>7s} {'was':>7s} {'error':>7s}  "
    f"{'best as measured':21s} {'sure':6s} switches"
)


def changed(switches: Sequence[str], *more: str, without: Sequence[str] = ()) -> list[str]:
    """Return switches without some, and with more."""
    kept = []
    rest = iter(switches)
    for switch in rest:
        if switch in without:
            if switch not in SWITCHES_ALONE:
                next(rest)
            continue
        kept.append(switch)
    return [*kept, *more]


def remedies(switches: Sequence[str]) -> dict[str, list[str]]:
    """Return the switches with each remedy that makes sense, by its code."""
    profile = switches[list(switches).index("--profile") + 1]
    is_late, by_worker = "--async-scheduling" in switches, "worker" in switches
    found: dict[str, list[str]] = {}
    if not by_worker:
        found["worker_readback"] = changed(
            switches, "--async-scheduling", "--readback", "worker", without=["--async-scheduling"]
        )
    if not is_late:
        found["async_scheduling_on"] = changed(switches, "--async-scheduling")
    elif not by_worker:
        found["async_scheduling_off"] = changed(switches, without=["--async-scheduling"])
    if profile.endswith("-cc") and "pageable" not in switches:
        found["pageable_host_memory"] = changed(switches, "--host-memory", "pageable")
    if not profile.endswith("-cc") and "pageable" in switches:
        found["pinned_host_memory"] = changed(switches, without=["--host-memory"])
    if "eager" in switches:
        found["cuda_graphs"] = changed(switches, without=["--launches"])
    if "--alloc-per-step" in switches:
        found["reuse_allocations"] = changed(switches, without=["--alloc-per-step"])
    if "--crossings" in switches:
        found["batch_copies"] = changed(switches, without=["--crossings"])
    return found


def draw(seed: int, count: int) -> list[list[str]]:
    """Draw cases: the profiles in turn, the rest at random."""
    chance = random.Random(seed)
    return [_draw_one(chance, PROFILES[number % len(PROFILES)]) for number in range(count)]


def _draw_one(chance: random.Random, profile: str) -> list[str]:
    python_us = round(53 * 30 ** chance.random())
    gpu_us = round(211 * 14 ** chance.random())
    switches = ["--profile", profile]
    switches += chance.choices(
        [
            [],
            ["--async-scheduling"],
            ["--async-scheduling", "--readback", "worker"],
            ["--readback", "worker"],
        ],
        weights=[9, 4, 3, 2],
    )[0]
    if chance.random() < 0.2:
        switches += ["--host-memory", "pageable"]
    extras = ["", "eager", "alloc", "speculative", "crossings", "workers"]
    extra = chance.choices(extras, weights=[8, 4, 3, 3, 2, 2])[0]
    if extra == "eager":
        kernels = chance.choice(EAGER_KERNELS)
        gpu_us = max(gpu_us, round(VISIBLE_KERNEL * kernels * LAUNCH_US[profile]))
        switches += ["--launches", "eager", "--kernels", str(kernels)]
    elif extra == "alloc":
        switches += ["--alloc-per-step"]
    elif extra == "speculative":
        switches += ["--speculative", str(chance.randint(1, 3))]
    elif extra == "crossings":
        switches += ["--crossings", str(chance.randint(25, 97))]
    elif extra == "workers":
        # Host work of three processes on few cores is noise: have the device take most.
        gpu_us, python_us = max(gpu_us, 1511), min(python_us, 499)
        switches += ["--workers", "2"]
    switches += ["--gpu-us", str(gpu_us), "--python-us", str(python_us)]
    switches += ["--requests", str(chance.randint(1, 61))]
    jitter = chance.choice(["", "0.02", "0.05"])
    return switches + (["--jitter", jitter] if jitter else [])


def _ahead_of_others() -> list[str]:
    """A command that has the loop go before other programs, where that is allowed.

    What is measured is the loop; what else runs on the machine meanwhile is noise.
    """
    chrt = shutil.which("chrt")
    return [chrt, "--rr", "10"] if chrt and os.geteuid() == 0 else []


def record_loop(run: Path, switches: Sequence[str]) -> Path:
    """Record the loop, and return the run."""
    loop = [sys.executable, str(LOOP), "--sim-dir", str(simcuda_library_dir())]
    done = subprocess.run(
        [
            *(*CCTRACE, "record", "--force", "--stacks", "none", "-o", str(run), "--"),
            *(*_ahead_of_others(), *loop, "--steps", str(STEPS), *switches),
        ],
        env={k: v for k, v in environment().items() if not k.startswith("SIMCUDA_")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run


def measured_itl_ns(run: Path) -> float:
    """Median step of a run, ns."""
    with cctrace.open(run) as session:
        rows = session.sql(
            "SELECT period_ns FROM steps WHERE phase = 'decode' AND period_ns IS NOT NULL"
        ).fetchall()
    return float(statistics.median(length for (length,) in rows))


def judge(switches: Sequence[str], folder: Path) -> Verdict:
    """Record a case with and without its remedies, and compare; once more if it fails."""
    verdict = _judge_once(switches, folder)
    if verdict.is_ranked_right and verdict.is_close:
        return verdict
    again = _judge_once(switches, folder)
    again.repeated = True
    return again


def _judge_once(switches: Sequence[str], folder: Path) -> Verdict:
    run = record_loop(folder / "as-it-is", switches)
    with cctrace.open(run) as session:
        points, summary = find_points(session, session.runs[0].label)
    assert points, "no serialization point was found"
    assert summary.error_ratio is not None
    first = points[0]
    said = {
        gain.code: gain.expected_itl_ns
        for point in reversed(points)
        for gain in (*reversed(point.alternatives), point.remedy)
        if gain is not None
    }
    verdict = Verdict(
        list(switches),
        measured_itl_ns(run),
        (first.path, first.api, first.remedy.code if first.remedy else None),
        first.confidence,
        summary.error_ratio,
    )
    for code, other in remedies(switches).items():
        itl_ns = measured_itl_ns(record_loop(folder / code, other))
        verdict.outcomes.append(Outcome(code, said.get(code), itl_ns))
    return verdict
