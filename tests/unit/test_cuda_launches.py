"""Launches: decisions on a made-up clock, counting in a made-up kernel."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cctrace.errors import CctraceError
from cctrace.record.bpf import layout
from cctrace.record.bpf.cuda.kernel_map import LAUNCH_KEY, LAUNCH_TOTAL, NO_STREAM
from cctrace.record.bpf.cuda.launch_policy import Costs, LaunchPolicy, Mode
from cctrace.record.bpf.cuda.launches import REPRESENTS, LaunchController
from cctrace.record.bpf.cuda.symbols import Symbol, SymbolTable
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES

SECOND = 1_000_000_000
TABLE = SymbolTable(
    (
        Symbol(0, "cudaLaunchKernel", "cudaLaunchKernel", "cudart", "launch"),
        Symbol(1, "cuGraphLaunch", "cuGraphLaunch", "cuda", "graph"),
        Symbol(2, "cudaStreamSynchronize", "cudaStreamSynchronize", "cudart", "sync"),
    )
)
# A call costs 1 us recorded and 0.5 us counted: 1% are 10,000 and 20,000 calls a second.
COSTS = Costs(full_ns=1_000, aggregate_ns=500, budget_ratio=0.01, sample_ns=50_000_000)


class Kernel:
    """What the programs do with a launch, and the map; also a clock and the probes."""

    def __init__(self) -> None:
        self.now_ns = 1_000
        self.config = 0
        self.entries: dict[tuple[int, int, int, int], dict[str, Any]] = {}
        self.records: Counter[int] = Counter()
        self.attached = True
        self.missed = 0
        self.log: list[str] = []
        self.fails = False
        self.lock = threading.Lock()
        self.changed = threading.Condition()
        self.barriers = 0

    def clock(self) -> int:
        """Every look is a nanosecond later than the last."""
        self.now_ns += 1
        return self.now_ns

    def set_config(self, slot: int, value: int) -> None:
        """One word, as the programs read it."""
        assert slot == layout.CONFIG_LAUNCHES
        self.config = value

    def barrier(self) -> None:
        """Every program has ended: nobody calls while this runs."""
        with self.lock:
            self.barriers += 1

    def call(
        self,
        tid: int,
        dur_ns: int,
        *,
        site: int = 0,
        stream: int = 7,
        pid: int = 100,
        calls: int = 1,
    ) -> None:
        """Calls of a thread that return now."""
        with self.lock:
            if not self.attached:
                self.missed += calls
                return
            config = self.config
            if config & 0xFF == layout.LAUNCHES_FULL:
                self.records[tid] += calls
                return
            key = (tid, site, config >> 8, stream)
            entry = self.entries.setdefault(
                key,
                {"calls": 0, "total_ns": 0, "max_ns": 0, "pid": pid, "histogram": [0] * 40},
            )
            entry["calls"] += calls
            entry["total_ns"] += calls * dur_ns
            entry["max_ns"] = max(entry["max_ns"], dur_ns)
            entry["histogram"][dur_ns.bit_length() - 1] += calls

    def take(self, windows: set[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """As LaunchMap.take."""
        with self.lock:
            if self.fails:
                raise OSError(5, "made up")
            chosen = [key for key in self.entries if key[2] in windows]
            keys = np.array(chosen, LAUNCH_KEY) if chosen else np.zeros(0, LAUNCH_KEY)
            totals = np.zeros(len(chosen), LAUNCH_TOTAL)
            for total, key in zip(totals, chosen, strict=True):
                for name, value in self.entries.pop(key).items():
                    total[name] = value
            return keys, totals

    def attach_launches(self) -> None:
        """As the source does."""
        if self.fails:
            raise CctraceError("made up")
        self._note("attach", attached=True)

    def detach_launches(self) -> None:
        """As the source does."""
        self._note("detach", attached=False)

    def _note(self, what: str, *, attached: bool) -> None:
        with self.changed:
            self.attached = attached
            self.log.append(what)
            self.changed.notify_all()

    def wait_for(self, what: str, count: int) -> None:
        """Until the source was told so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.log.count(what) >= count, 20)

    def controller(self, mode: str, **more: Any) -> LaunchController:
        """A controller of this kernel, started."""
        made = LaunchController(
            mode,
            **{
                "table": TABLE,
                "kernel_map": self,
                "set_config": self.set_config,
                "source": self,
                "ledger": LossLedger(),
                "costs": COSTS,
                "clock": self.clock,
                "barrier": self.barrier,
                **more,
            },
        )
        made.start()
        return made


def rows_of(rows: list[tuple[str, Any]], name: str = "cuda_launches") -> list[dict[str, Any]]:
    """Rows of one table, checked against the schema."""
    found = []
    for table_name, table in rows:
        assert table.schema.equals(TABLES[table_name].arrow, check_metadata=True)
        table.validate(full=True)
        if table_name == name:
            found += table.to_pylist()
    return found


def launches(*tids: int, site: int = 0) -> np.ndarray[Any, Any]:
    """Records of launches by threads."""
    events = np.zeros(len(tids), layout.CUDA_EVENT)
    events["tid"] = tids
    events["what"] = site
    return events


def test_windows_follow_one_another_and_hold_every_call_once() -> None:
    kernel = Kernel()
    controller = kernel.controller("aggregate")
    kernel.call(11, 1_500)
    kernel.call(11, 3_000, calls=4)
    kernel.call(12, 1_024, site=1, stream=NO_STREAM)
    kernel.call(12, 1_023, site=1, stream=2**64 - 2, pid=200)
    first = rows_of(controller.poll())
    kernel.call(11, 7)
    second = rows_of(controller.poll())
    kernel.call(11, 7, calls=2)
    controller.stop()
    kernel.call(11, 7, calls=3)  # until the probes are gone
    last = rows_of(controller.finish())

    def histogram(**buckets: int) -> list[int]:
        return [buckets.get(f"b{i}", 0) for i in range(40)]

    assert [
        (row["tid"], row["api"], row["stream"], row["calls"], row["total_ns"], row["max_ns"])
        for row in first
    ] == [
        (11, "cudaLaunchKernel", 7, 5, 13_500, 3_000),
        (12, "cuGraphLaunch", -2, 1, 1_023, 1_023),
        (12, "cuGraphLaunch", None, 1, 1_024, 1_024),
    ]
    assert [row["pid"] for row in first] == [100, 200, 100]
    assert [row["histogram"] for row in first] == [
        histogram(b10=1, b11=4),
        histogram(b9=1),
        histogram(b10=1),
    ]
    assert [(row["calls"]) for row in second + last] == [1, 5]
    windows = [(row["ts_ns"], row["window_ns"]) for row in (first[0], second[0], last[0])]
    assert windows[0][0] + windows[0][1] == windows[1][0]
    assert windows[1][0] + windows[1][1] == windows[2][0]
    assert kernel.entries == {}
    assert controller.detail()["observed_ratio"] == 1


def test_calls_during_the_reading_are_neither_lost_nor_counted_twice() -> None:
    # GIVEN threads that launch all the time while windows are read, through window numbers
    # that start over
    kernel = Kernel()
    controller = kernel.controller("aggregate")
    controller._number = (1 << 16) - 5
    done = threading.Event()
    made: Counter[int] = Counter()

    def launch(tid: int) -> None:
        while not done.is_set() or made[tid] < 1_009:
            kernel.call(tid, 1 + made[tid] % 1_000)
            made[tid] += 1

    threads = [threading.Thread(target=launch, args=(tid,)) for tid in (21, 22, 23)]
    for thread in threads:
        thread.start()
    rows = [row for _ in range(53) for row in rows_of(controller.poll())]
    done.set()
    for thread in threads:
        thread.join()
    rows += rows_of(controller.finish())
    counted: Counter[int] = Counter()
    for row in rows:
        counted[row["tid"]] += row["calls"]
        assert sum(row["histogram"]) == row["calls"]
    assert counted == made
    assert kernel.barriers >= 53


def test_a_map_that_cannot_be_read_is_read_the_next_time() -> None:
    kernel = Kernel()
    controller = kernel.controller("aggregate")
    kernel.call(11, 100)
    kernel.fails = True
    with pytest.raises(OSError, match="made up"):
        controller.poll()
    kernel.fails = False
    kernel.call(11, 100)
    assert [row["calls"] for row in rows_of(controller.poll())] == [1, 1]


def test_an_entry_of_no_known_function_is_counted_as_lost() -> None:
    kernel = Kernel()
    ledger = LossLedger()
    controller = kernel.controller("aggregate", ledger=ledger)
    kernel.call(11, 100, site=3, calls=13)
    assert rows_of(controller.poll()) == []
    assert ledger.by_reason() == {"bad_record": 13}


def test_full_records_are_left_alone() -> None:
    kernel = Kernel()
    controller = kernel.controller("full")
    kernel.call(11, 100, calls=100_003)
    controller.count(launches(*[11] * 1_009))
    assert controller.poll() == []
    assert controller.finish() == []
    assert kernel.records[11] == 100_003
    assert controller.detail()["mode"] == "full"


def observe(policy: LaunchPolicy, *rates: float) -> list[str]:
    """Modes after each rate."""
    return [policy.observe(rate).value for rate in rates]


def test_policy_records_less_when_it_costs_too_much_twice_in_a_row() -> None:
    policy = LaunchPolicy(COSTS)
    assert observe(policy, 9_999, 10_001, 9_999, 10_001, 10_001) == ["full"] * 4 + ["aggregate"]
    assert observe(policy, 19_999, 20_001, 19_999, 20_001, 20_001) == ["aggregate"] * 4 + ["sample"]


def test_policy_goes_straight_to_samples() -> None:
    policy = LaunchPolicy(COSTS)
    assert observe(policy, 200_000, 200_000) == ["full", "sample"]
    # Counting costs 10%: a window of 50 ms in each 500 ms.
    assert policy.period_ns == 500_000_000


def test_policy_keeps_samples_within_the_budget() -> None:
    policy = LaunchPolicy(COSTS)
    observe(policy, 50_000, 50_000)
    random = np.random.default_rng(5)
    for rate in random.uniform(30_000, 3_000_000, 200):
        policy.observe(float(rate))
        spent = (policy._rate or 0) * COSTS.aggregate_ns / SECOND * COSTS.sample_ns
        assert spent / policy.period_ns <= COSTS.budget_ratio * 1.001
    # THEN not even the fastest program is left unobserved for long
    observe(policy, *[1e9] * 60)
    assert policy.period_ns == 20 * SECOND


def test_policy_records_more_only_after_a_while_well_below() -> None:
    policy = LaunchPolicy(COSTS)
    observe(policy, 200_000, 200_000)
    # Not below half of what is allowed: stays.
    assert observe(policy, *[10_001] * 9) == ["sample"] * 9
    assert observe(policy, 9_999, 9_999, 9_999, 10_001) == ["sample"] * 4
    assert observe(policy, *[9_999] * 4) == ["sample"] * 3 + ["aggregate"]
    assert observe(policy, *[4_999] * 4) == ["aggregate"] * 3 + ["full"]


def test_policy_does_not_flap() -> None:
    # GIVEN a program that bursts just when more is recorded
    policy = LaunchPolicy(COSTS)
    observe(policy, 11_000, 11_000)
    waits = []
    for _ in range(6):
        waited = 0
        while policy.mode is Mode.AGGREGATE:
            policy.observe(0)
            waited += 1
        waits.append(waited)
        observe(policy, 11_000, 11_000)
    # THEN each mistake doubles the wait, up to a limit
    assert waits == [4, 8, 16, 32, 64, 64]


def test_auto_follows_the_busiest_thread() -> None:
    # GIVEN a second between polls, and one thread of several that launches a lot
    kernel = Kernel()
    controller = kernel.controller("auto")

    def second(calls: int) -> tuple[str, int]:
        kernel.now_ns += SECOND
        before = kernel.records[31]
        kernel.call(31, 900, calls=calls)
        kernel.call(32, 900, calls=17)
        recorded = kernel.records[31] - before
        controller.count(launches(*[31] * recorded, *[32] * 17))
        controller.count(launches(*[31] * 100_000, site=2))  # not launches
        controller.count(launches(31, site=99))
        counted = sum(row["calls"] for row in rows_of(controller.poll()) if row["tid"] == 31)
        assert recorded + counted == calls  # in the one or the other, never both or neither
        return controller.detail()["mode"], recorded

    assert [second(9_973), second(9_973)] == [("full", 9_973)] * 2
    assert [second(11_003), second(11_003)] == [("full", 11_003), ("aggregate", 11_003)]
    assert [second(11_003) for _ in range(3)] == [("aggregate", 0)] * 3
    assert [second(101) for _ in range(5)] == [("aggregate", 0)] * 3 + [("full", 0), ("full", 101)]
    detail = controller.detail()
    assert [switch["mode"] for switch in detail["switches"]] == ["full", "aggregate", "full"]
    assert detail["observed_ratio"] == 1


def sampling(kernel: Kernel, **more: Any) -> LaunchController:
    """A controller that has just begun to sample windows of a millisecond."""
    costs = Costs(full_ns=1_000, aggregate_ns=500, budget_ratio=0.01, sample_ns=1_000_000)
    controller = kernel.controller("auto", costs=costs, **more)
    for _ in range(2):
        kernel.now_ns += SECOND
        kernel.call(31, 900, calls=70_001)
        controller.count(launches(*[31] * 70_001))
        controller.poll()
    assert controller.detail()["mode"] == "sample"
    return controller


def test_samples_are_told_with_what_they_stand_for() -> None:
    class Slow(Kernel):
        def attach_launches(self) -> None:
            self.now_ns += SECOND // 100
            super().attach_launches()

    kernel = Slow()
    controller = sampling(kernel)
    kernel.wait_for("detach", 3)
    controller.stop()
    kernel.now_ns += 100 * SECOND  # what comes after the end does not count
    rows = controller.finish()
    # THEN each window that was observed stands for the time until the next one
    stands = rows_of(rows, "counters")
    assert len(stands) >= 3
    assert {(row["name"], row["unit"], row["pid"]) for row in stands} == {(REPRESENTS, "ns", None)}
    ends = [row["ts_ns"] + row["value"] for row in stands]
    assert ends[:-1] == [row["ts_ns"] for row in stands[1:]]
    # AND the time of attaching was not observed, while the two seconds before were
    attaching_s = kernel.log.count("attach") / 100
    expected = 2 / (2 + attaching_s)
    assert controller.detail()["observed_ratio"] == pytest.approx(expected, abs=2e-6)
    # AND it ends detached, each window having been attached for
    assert kernel.log[0] == "attach"
    assert kernel.log[-1] == "detach"
    assert kernel.log.count("attach") == kernel.log.count("detach")


def test_calls_while_probes_come_and_go_are_in_no_window() -> None:
    # GIVEN a kernel in which calls return while the probes are being attached or detached
    class Moving(Kernel):
        def attach_launches(self) -> None:
            super().attach_launches()
            self.call(31, 2_000, calls=1_000_003)

        def detach_launches(self) -> None:
            self.call(31, 2_000, calls=1_000_003)
            super().detach_launches()

    kernel = Moving()
    controller = sampling(kernel)
    kernel.wait_for("detach", 2)
    controller.stop()
    assert rows_of(controller.finish()) == []
    assert kernel.entries == {}


def test_after_samples_everything_is_counted_again() -> None:
    kernel = Kernel()
    controller = sampling(kernel)
    # WHEN windows stay empty
    while controller.detail()["mode"] == "sample":
        kernel.wait_for("detach", kernel.log.count("detach") + 1)
        controller.poll()
    assert kernel.attached
    kernel.call(31, 900, calls=7)
    assert [row["calls"] for row in rows_of(controller.poll())] == [7]
    controller.finish()
    assert kernel.missed == 0


def test_probes_that_cannot_be_attached_again_are_told() -> None:
    kernel = Kernel()
    controller = sampling(kernel)
    kernel.wait_for("detach", 1)
    kernel.fails = True
    controller._enter(Mode.AGGREGATE)
    assert controller.detail()["mode"] == "sample"
    assert "made up" in controller.detail()["error"]
    kernel.fails = False
    controller.finish()
