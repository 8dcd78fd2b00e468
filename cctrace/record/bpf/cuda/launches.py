"""Launches, of which there are too many: full records, counts, or counts of samples.

A decode step makes hundreds of launches, and a probe costs each of them a
microsecond. The policy (launch_policy.py) decides from the busiest thread's rate how
much may be recorded; the controller does it, and turns what the kernel counted into
rows of ``cuda_launches``.

Counts are kept per *window*. The number of the current window is part of every key;
the recorder counts it up, waits until no program runs that may have seen the old
number, and only then reads and deletes the old window's entries. So each call is in
exactly one row, or in one record of ``cuda_api``: mode and window are one 64-bit
word that a program reads once, when the call returns.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cctrace.errors import CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.kernel_map import (
    HISTOGRAM_BUCKETS,
    NO_STREAM,
    Entries,
    wait_for_programs,
)
from cctrace.record.bpf.cuda.launch_policy import Costs, LaunchPolicy, Mode
from cctrace.record.bpf.cuda.memory import SOURCE
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

if TYPE_CHECKING:
    from cctrace.record.bpf.cuda.symbols import SymbolTable

Rows = list[tuple[str, pa.Table]]

# counters.name: what part of the run a sampled window stands for.
REPRESENTS: Final = "cuda_launches.represents"

_NS_PER_S: Final = 1_000_000_000
_WINDOW_SHIFT: Final = 8
_WINDOWS: Final = 1 << 16
_MAX_SAMPLE_NS: Final = _NS_PER_S
_RETRY_S: Final = 20
_MAX_SWITCHES: Final = 64


class LaunchSource(Protocol):
    """What has the probes of launches."""

    def attach_launches(self) -> None:
        """Attach them where they are not."""

    def detach_launches(self) -> None:
        """Detach them where they are."""


class KernelMap(Protocol):
    """The map of counted launches (kernel_map.LaunchMap)."""

    def take(self, windows: set[int]) -> tuple[Entries, Entries]:
        """Read and delete the entries of some windows."""


@dataclass(frozen=True)
class _Window:
    number: int
    start_ns: int
    stop_ns: int
    is_observed: bool

    @property
    def length_ns(self) -> int:
        """At least 1."""
        return max(1, self.stop_ns - self.start_ns)


class LaunchController:
    """Records launches in the mode asked for, or as the policy says.

    Use: ``start`` when the probes are attached; ``count`` each batch of records and
    then ``poll`` at every flush; ``stop`` before the probes are detached and
    ``finish`` after that.

    Args:
        mode: ``full``, ``aggregate`` or ``auto``.
        table: What each site is.
        kernel_map: The counts.
        set_config: Sets a slot of the programs' configuration.
        source: Has the probes.
        ledger: Takes entries that make no sense.
        costs: What probes cost.
        walk_ns: What the stack of a call recorded in full costs besides; None: none is taken.
        clock: Now, ns of CLOCK_MONOTONIC.
        barrier: Waits for programs that run.
    """

    def __init__(
        self,
        mode: str,
        *,
        table: SymbolTable,
        kernel_map: KernelMap,
        set_config: Callable[[int, int], None],
        source: LaunchSource,
        ledger: LossLedger,
        costs: Costs | None = None,
        walk_ns: Callable[[], float] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        barrier: Callable[[], None] = wait_for_programs,
    ) -> None:
        self._asked = mode
        self._costs = costs or Costs()
        self._policy = LaunchPolicy(self._costs)
        self._walk_ns = walk_ns
        self._map = kernel_map
        self._set_config = set_config
        self._source = source
        self._ledger = ledger
        self._clock = clock
        self._barrier = barrier
        self._apis = pa.array([symbol.api for symbol in table.symbols], pa.string())
        self._is_launch = np.array([symbol.is_launch for symbol in table.symbols], np.bool_)
        self._lock = threading.Lock()
        self._mode = Mode.FULL
        self._number = 0
        self._window_start_ns = 0
        self._is_observed = False
        self._closed: list[_Window] = []
        self._sample_start_ns: int | None = None
        self._represented: list[tuple[int, int]] = []
        self._calls: Counter[int] = Counter()
        self._counted_from_ns = 0
        self._started_ns = 0
        self._stopped_ns: int | None = None
        self._unobserved_ns = 0
        self._unobserved_from_ns: int | None = None
        self._switches: list[tuple[int, str]] = []
        self._switch_count = 0
        self._error: str | None = None
        self._sampler: threading.Thread | None = None
        self._end_sampling = threading.Event()

    def start(self) -> None:
        """Begin; the probes are attached."""
        self._started_ns = self._counted_from_ns = self._clock()
        self._enter(Mode.AGGREGATE if self._asked == "aggregate" else Mode.FULL)

    def count(self, events: npt.NDArray[np.void]) -> None:
        """Look how many launches a batch of records has, thread by thread."""
        if self._asked != "auto" or self._mode is not Mode.FULL:
            return
        site = events["what"]
        known = site < len(self._is_launch)
        launches = events[known][self._is_launch[site[known]]]
        tids, counts = np.unique(launches["tid"], return_counts=True)
        for tid, count in zip(tids.tolist(), counts.tolist(), strict=True):
            self._calls[tid] += count

    def poll(self) -> Rows:
        """Rows of the windows that ended; decides how to go on.

        Raises:
            OSError: The map cannot be read.
        """
        with self._lock:
            if self._mode is Mode.AGGREGATE:
                self._flip(is_observed=True)
        rows, busiest = self._take()
        if self._asked == "auto":
            self._decide(busiest)
        return rows

    def stop(self) -> None:
        """End sampling; afterwards the probes may be detached. May be called twice."""
        self._stop_sampler()
        with self._lock:
            if self._stopped_ns is None:
                self._stopped_ns = self._clock()
                self._note_observed(self._stopped_ns, observed=True)

    def finish(self) -> Rows:
        """Rows of the last window; the probes are detached.

        Raises:
            OSError: The map cannot be read.
        """
        self.stop()
        with self._lock:
            self._end_sample(self._stopped_ns or self._clock())
            self._flip(is_observed=False)
        return self._take()[0]

    def detail(self) -> dict[str, Any]:
        """What the manifest says: modes, and the share of the time that was observed."""
        with self._lock:
            now_ns = self._clock() if self._stopped_ns is None else self._stopped_ns
            unobserved_ns = self._unobserved_ns
            if self._unobserved_from_ns is not None:
                unobserved_ns += now_ns - self._unobserved_from_ns
            total_ns = max(1, now_ns - self._started_ns)
            found: dict[str, Any] = {
                "asked": self._asked,
                "mode": self._mode.value,
                "observed_ratio": round(1 - unobserved_ns / total_ns, 6),
                "switches": [{"at_ns": at, "mode": mode} for at, mode in self._switches],
            }
            if self._switch_count > len(self._switches):
                found["switches_not_listed"] = self._switch_count - len(self._switches)
            if self._error is not None:
                found["error"] = self._error
            return found

    def _decide(self, busiest: float | None) -> None:
        now_ns = self._clock()
        if self._mode is Mode.FULL:
            length_ns = max(1, now_ns - self._counted_from_ns)
            busiest = max(self._calls.values(), default=0) * _NS_PER_S / length_ns
        self._calls.clear()
        self._counted_from_ns = now_ns
        if busiest is None:
            return
        if self._walk_ns is not None:
            full_ns = self._costs.full_ns + self._walk_ns()
            self._policy.costs = replace(self._costs, full_ns=full_ns)
        mode = self._policy.observe(busiest)
        if mode is not self._mode:
            self._enter(mode)

    def _enter(self, mode: Mode) -> None:
        if self._mode is Mode.SAMPLE:
            self._stop_sampler()
            if not self._attach():
                self._policy.mode = Mode.SAMPLE
                self._start_sampler()
                return
        with self._lock:
            self._mode = mode
            self._switch_count += 1
            if len(self._switches) < _MAX_SWITCHES:
                self._switches.append((self._clock(), mode.value))
            self._flip(is_observed=mode is Mode.AGGREGATE)
        if mode is Mode.SAMPLE:
            self._start_sampler()

    def _flip(self, *, is_observed: bool) -> None:
        """End the window and begin another; what counts in neither is not recorded."""
        now_ns = self._clock()
        self._closed.append(_Window(self._number, self._window_start_ns, now_ns, self._is_observed))
        samples = self._mode is Mode.SAMPLE
        if is_observed or not samples:
            self._end_sample(now_ns)
        if is_observed and samples:
            self._sample_start_ns = now_ns
        if self._stopped_ns is None:
            self._note_observed(now_ns, observed=is_observed or not samples)
        self._number = (self._number + 1) % _WINDOWS
        self._window_start_ns = now_ns
        self._is_observed = is_observed
        is_full = self._mode is Mode.FULL
        in_kernel = layout.LAUNCHES_FULL if is_full else layout.LAUNCHES_AGGREGATE
        self._set_config(layout.CONFIG_LAUNCHES, in_kernel | self._number << _WINDOW_SHIFT)

    def _note_observed(self, now_ns: int, *, observed: bool) -> None:
        if self._unobserved_from_ns is not None:
            self._unobserved_ns += now_ns - self._unobserved_from_ns
        self._unobserved_from_ns = None if observed else now_ns

    def _end_sample(self, end_ns: int) -> None:
        """What the last sampled window stands for reaches to here."""
        if self._sample_start_ns is not None:
            self._represented.append((self._sample_start_ns, end_ns - self._sample_start_ns))
            self._sample_start_ns = None

    def _take(self) -> tuple[Rows, float | None]:
        """Rows of closed windows, and the busiest thread's calls a second in the last one."""
        with self._lock:
            closed, self._closed = self._closed, []
            represented, self._represented = self._represented, []
        rows: Rows = [("counters", _counters(represented))] if represented else []
        if not closed:
            return rows, None
        self._barrier()
        try:
            keys, totals = self._map.take({window.number for window in closed})
        except OSError:
            with self._lock:  # to be asked for again
                self._closed = closed + self._closed
                self._represented = represented + self._represented
            raise
        start_ns, length_ns = np.zeros(_WINDOWS, np.int64), np.zeros(_WINDOWS, np.int64)
        observed = [window for window in closed if window.is_observed]
        for window in observed:
            start_ns[window.number] = window.start_ns
            length_ns[window.number] = window.length_ns
        bad = keys["site"] >= len(self._apis)
        if bad.any():
            self._ledger.add(SOURCE, "bad_record", int(totals["calls"][bad].sum()))
        kept = ~bad & (length_ns[keys["window"]] > 0)
        keys, totals = keys[kept], totals[kept]
        if len(keys):
            number = keys["window"]
            table = self._table(keys, totals, start_ns[number], length_ns[number])
            rows.append(("cuda_launches", table))
        if not observed:
            return rows, None
        last = observed[-1]
        of_last = keys["window"] == last.number
        _, threads = np.unique(keys["tid"][of_last], return_inverse=True)
        calls = np.bincount(threads, totals["calls"][of_last].astype(np.float64))
        busiest = float(calls.max()) if len(calls) else 0.0
        return rows, busiest * _NS_PER_S / last.length_ns

    def _table(
        self,
        keys: Entries,
        totals: Entries,
        start_ns: npt.NDArray[np.int64],
        length_ns: npt.NDArray[np.int64],
    ) -> pa.Table:
        order = np.lexsort((keys["stream"], keys["site"], keys["tid"], start_ns))
        keys, totals = keys[order], totals[order]
        offsets = np.arange(len(keys) + 1, dtype=np.int32) * HISTOGRAM_BUCKETS
        apis = pa.DictionaryArray.from_arrays(keys["site"].astype(np.int32), self._apis)
        columns: list[Any] = [
            start_ns[order],
            totals["pid"].astype(np.int32),
            keys["tid"].astype(np.int32),
            length_ns[order],
            apis,
            pa.array(keys["stream"].astype(np.int64), mask=keys["stream"] == NO_STREAM),
            totals["calls"].astype(np.int64),
            totals["total_ns"].astype(np.int64),
            totals["max_ns"].astype(np.int64),
            pa.ListArray.from_arrays(offsets, totals["histogram"].astype(np.int64).ravel()),
        ]
        return pa.Table.from_arrays(columns, schema=TABLES["cuda_launches"].arrow)

    def _sample(self) -> None:
        """Observe a window, leave the target alone, and so on (a thread of its own)."""
        switching_ns = 0
        while not self._end_sampling.is_set():
            sample_ns = min(max(self._costs.sample_ns, 2 * switching_ns), _MAX_SAMPLE_NS)
            begun_ns = self._clock()
            if not self._attach():
                self._end_sampling.wait(_RETRY_S)
                continue
            # Calls of the time when only some probes were attached are in the window
            # that ends here, which is not observed; so are those of the detaching.
            attached_ns = self._next_sample(is_observed=True)
            self._end_sampling.wait(sample_ns / _NS_PER_S)
            detaching_ns = self._next_sample(is_observed=False)
            try:
                self._source.detach_launches()
            except (CctraceError, OSError) as error:
                self._error = f"launches cannot be detached: {error}"
            switching_ns = self._clock() - detaching_ns + attached_ns - begun_ns
            # The policy's period is that of windows of the usual length.
            period_ns = self._policy.period_ns * sample_ns / self._costs.sample_ns
            rest_ns = period_ns - (self._clock() - attached_ns)
            self._end_sampling.wait(max(rest_ns, sample_ns) / _NS_PER_S)

    def _next_sample(self, *, is_observed: bool) -> int:
        with self._lock:
            self._flip(is_observed=is_observed)
            return self._window_start_ns

    def _attach(self) -> bool:
        try:
            self._source.attach_launches()
        except (CctraceError, OSError) as error:
            self._error = f"launches cannot be attached again: {error}"
            return False
        return True

    def _start_sampler(self) -> None:
        self._end_sampling.clear()
        self._sampler = threading.Thread(target=self._sample, name="launches", daemon=True)
        self._sampler.start()

    def _stop_sampler(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            self._end_sampling.set()
            sampler.join()


def _counters(represented: list[tuple[int, int]]) -> pa.Table:
    """What sampled windows stand for: (start, ns from it that it stands for) of each."""
    rows = [
        {
            "ts_ns": ts,
            "pid": None,
            "tid": None,
            "name": REPRESENTS,
            "value": float(ns),
            "unit": "ns",
        }
        for ts, ns in represented
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["counters"].arrow)
