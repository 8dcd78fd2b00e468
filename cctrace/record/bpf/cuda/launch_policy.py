"""How much of the launches may be recorded: the decision, without clock and kernel."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

_NS_PER_S: Final = 1_000_000_000
_MAX_PERIOD_NS: Final = 20 * _NS_PER_S
# How often in a row a rate has to be seen before less, or more, is recorded.
_PATIENCE_UP: Final = 2
_PATIENCE_DOWN: Final = 4
_MAX_PATIENCE: Final = 64


class Mode(Enum):
    """How launches are recorded."""

    FULL = "full"
    AGGREGATE = "aggregate"
    SAMPLE = "sample"


@dataclass(frozen=True)
class Costs:
    """What the probes cost the thread that calls, and how much of it is allowed.

    Attributes:
        full_ns: One probed call, its entry and its return, with a record. Default: what
            benchmarks/probe_cost.py measured in a nested virtual machine, where
            traps are dear; on bare metal it is a half to a quarter of that.
        aggregate_ns: The same, counted in the map.
        budget_ratio: Part of the busiest thread's time that may be spent.
        sample_ns: Length of an observed window where even counting costs too much.
    """

    full_ns: float = 1_800
    aggregate_ns: float = 1_750
    budget_ratio: float = 0.01
    sample_ns: int = 50_000_000


class LaunchPolicy:
    """Decides how launches are recorded; knows no clock and no kernel.

    More is recorded only after the rate has been below half of what is allowed for a
    while, a while that doubles each time it was a mistake.

    Attributes:
        costs: What the probes cost; may be set as that becomes known.
        mode: What is done now.
        period_ns: In mode SAMPLE: from the start of one window to that of the next.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._rate: float | None = None
        self._over = 0
        self._under = 0
        self._patience_down = _PATIENCE_DOWN
        self._came_down = False
        self.mode = Mode.FULL
        self.period_ns = 0

    def observe(self, calls_per_s: float) -> Mode:
        """Take in how many launch calls a second the busiest thread made while observed.

        Args:
            calls_per_s: Probed calls, those of both layers.

        Returns:
            The mode from now on.
        """
        budget = self.costs.budget_ratio
        full_ratio = calls_per_s * self.costs.full_ns / _NS_PER_S
        aggregate_ratio = calls_per_s * self.costs.aggregate_ns / _NS_PER_S
        up = full_ratio if self.mode is Mode.FULL else aggregate_ratio
        down = full_ratio if self.mode is Mode.AGGREGATE else aggregate_ratio
        self._over = self._over + 1 if up > budget and self.mode is not Mode.SAMPLE else 0
        self._under = self._under + 1 if down < budget / 2 and self.mode is not Mode.FULL else 0
        # A window is short: several together tell what the probes cost on average.
        self._rate = calls_per_s if self._rate is None else (self._rate + calls_per_s) / 2
        if self._over >= _PATIENCE_UP:
            self._record_less(Mode.AGGREGATE if aggregate_ratio <= budget else Mode.SAMPLE)
        elif self._under >= self._patience_down:
            self._go(Mode.AGGREGATE if self.mode is Mode.SAMPLE else Mode.FULL)
            self._came_down = True
        if self.mode is Mode.SAMPLE:
            self._set_period()
        return self.mode

    def _record_less(self, mode: Mode) -> None:
        if self._came_down:
            self._patience_down = min(2 * self._patience_down, _MAX_PATIENCE)
            self._came_down = False
        if self.mode is Mode.AGGREGATE:
            mode = Mode.SAMPLE
        self._go(mode)

    def _go(self, mode: Mode) -> None:
        self.mode = mode
        self._over = self._under = 0

    def _set_period(self) -> None:
        ratio = (self._rate or 0.0) * self.costs.aggregate_ns / _NS_PER_S
        period_ns = self.costs.sample_ns * ratio / self.costs.budget_ratio
        self.period_ns = int(min(max(period_ns, 2 * self.costs.sample_ns), _MAX_PERIOD_NS))
