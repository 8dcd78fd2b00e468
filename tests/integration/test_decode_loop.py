"""examples/decode_loop.py: each switch does what it says, told by the device's own log.

What the loop counted itself, what the simulated device logged, and what these tests
work out from the switches are three sources that have to agree.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from recording import CCTRACE, environment, losses, rows
from simcuda_build import simcuda_library_dir

import cctrace
from cctrace.record.bpf.cuda.symbols import symbol_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LOOP = EXAMPLES / "decode_loop.py"
LIMIT_S = 120
STEPS, REQUESTS, PROMPT = 23, 5, 13
SIZES = ("--steps", str(STEPS), "--requests", str(REQUESTS), "--prompt-tokens", str(PROMPT))
QUICK = ("--gpu-us", "199", "--python-us", "53")
ITL_TOLERANCE = 0.02

Figures = dict[str, Any]


def _load_example(name: str) -> Any:
    """A module of examples/simcuda, which is no package that tests could import."""
    spec = importlib.util.spec_from_file_location(
        f"simcuda_{name}", EXAMPLES / "simcuda" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


truth_log = _load_example("truth")
bindings = _load_example("bindings")


def loop_command(*switches: str) -> list[str]:
    return [sys.executable, str(LOOP), "--sim-dir", str(simcuda_library_dir()), *switches]


def sim_environment(**extra: str) -> dict[str, str]:
    """The environment without what a shell could have set for the simulated device."""
    return {k: v for k, v in environment().items() if not k.startswith("SIMCUDA_")} | extra


def run_loop(*switches: str, truth: Path | None = None, **extra: str) -> Figures:
    """Run the loop to its end, and return what it printed."""
    if truth is not None:
        truth.mkdir()
        extra["SIMCUDA_TRUTH"] = str(truth)
    done = subprocess.run(
        loop_command(*switches),
        env=sim_environment(**extra),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures: Figures = json.loads(done.stdout)
    return figures


def logged_calls(truth: Path, pid: int) -> Counter[str]:
    """Calls a process made itself, not one inside another, from the device's log."""
    [log] = [process for process in truth_log.read(truth) if process.pid == pid]
    assert log.dropped == 0
    outermost = log.api[log.api["depth"] == 0]
    # Libraries ask the driver for its functions as they load.
    return Counter(name for name in map(log.name, outermost) if not name.startswith("cuGetProc"))


def test_counts_are_those_of_the_log(tmp_path: Path) -> None:
    """One graph and three copies in, one out: by class, in bytes, and in the log."""
    figures = run_loop(*SIZES, *QUICK, truth=tmp_path / "truth")
    [process] = figures["processes"]
    made = process["step_calls"]
    assert made["classes"] == {
        "copy": 4 * STEPS,
        "graph": STEPS,
        "launch": 3 * STEPS,
        "sync": STEPS,
    }
    assert made["crossings"] == 9 * STEPS == figures["crossings_per_step"] * STEPS
    tokens = REQUESTS * (PROMPT + STEPS - 1)
    blocks = REQUESTS * 3 * STEPS  # 36 positions are three blocks of 16
    assert made["h2d"] == {"calls": 3 * STEPS, "size_bytes": 4 * tokens + 8 * tokens + 4 * blocks}
    assert made["d2h"] == {"calls": STEPS, "size_bytes": 4 * REQUESTS * STEPS}
    assert figures["tokens"] == REQUESTS * STEPS
    assert figures["readbacks"] == STEPS
    assert logged_calls(tmp_path / "truth", process["pid"]) == process["calls"]


@pytest.mark.parametrize(
    ("switches", "classes"),
    [
        (("--launches", "eager", "--kernels", "37"), {"launch": 40, "copy": 4, "sync": 1}),
        (("--launches", "eager", "--kernels", "2000"), {"launch": 2003, "copy": 4, "sync": 1}),
        (
            ("--alloc-per-step",),
            {"alloc": 1, "copy": 5, "free": 1, "graph": 1, "launch": 3, "sync": 1},
        ),
        (
            ("--async-scheduling",),
            {"copy": 4, "event": 3, "graph": 1, "launch": 3, "sync": 1},
        ),
        (
            ("--async-scheduling", "--readback", "worker"),
            {"copy": 4, "event": 1, "graph": 1, "launch": 3, "sync": 2},
        ),
        (("--readback", "worker"), {"copy": 4, "event": 1, "graph": 1, "launch": 3, "sync": 2}),
        (("--speculative", "3"), {"copy": 7, "graph": 4, "launch": 12, "sync": 4}),
        (
            ("--speculative", "2", "--launches", "eager", "--kernels", "17"),
            {"copy": 6, "launch": 9 + 17 + 2 * 2, "sync": 3},
        ),
        # 9 as it is; 94 more, copies and launches in turn.
        (("--crossings", "103"), {"copy": 4 + 47, "graph": 1, "launch": 3 + 47, "sync": 1}),
        (("--crossings", "10"), {"copy": 5, "graph": 1, "launch": 3, "sync": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_switch_changes_what_a_step_calls(
    tmp_path: Path, switches: tuple[str, ...], classes: dict[str, int]
) -> None:
    """Each step makes the calls it should, and the device's log has every one of them."""
    figures = run_loop(*SIZES, *QUICK, *switches, truth=tmp_path / "truth")
    [process] = figures["processes"]
    made = process["step_calls"]
    assert made["classes"] == {name: count * STEPS for name, count in classes.items()}
    assert made["crossings"] == figures["crossings_per_step"] * STEPS
    assert logged_calls(tmp_path / "truth", process["pid"]) == process["calls"]


@pytest.mark.parametrize("launches", ["graph", "eager"])
def test_workers_reduce_over_devices_of_their_own(tmp_path: Path, launches: str) -> None:
    """Each of them makes all the calls, on its own device; the driver makes none."""
    truth = tmp_path / "truth"
    figures = run_loop(
        *SIZES, *QUICK, "--workers", "2", "--launches", launches, "--kernels", "11", truth=truth
    )
    driver, *workers = figures["processes"]
    assert driver["rank"] is None
    assert driver["calls"] == {"cudaGetDeviceCount": 1}
    assert [worker["rank"] for worker in workers] == [0, 1]
    assert [worker["device"] for worker in workers] == [0, 1]
    assert len({process["pid"] for process in figures["processes"]}) == 3
    reductions = 7 if launches == "eager" else 1  # one a layer, or one after the graph
    for worker in workers:
        assert worker["step_calls"]["classes"]["collective"] == reductions * STEPS
        assert logged_calls(truth, worker["pid"]) == worker["calls"]
    assert figures["readbacks"] == STEPS


def test_classes_are_those_of_the_probes() -> None:
    """The loop calls a class what cctrace calls it, or their counts could not be compared."""
    known = symbol_table().by_name(None)
    assert {name: known[name].cls for name in bindings.CLASSES} == bindings.CLASSES


@pytest.mark.parametrize("memory", ["pinned", "pageable"])
def test_copies_use_the_memory_asked_for(tmp_path: Path, memory: str) -> None:
    """All of them, in both directions, as the device sees it."""
    truth = tmp_path / "truth"
    run_loop(*SIZES, *QUICK, "--host-memory", memory, truth=truth)
    [log] = truth_log.read(truth)
    copies = log.ops("copy")
    assert len(copies) == 4 * STEPS
    assert {truth_log.HOST_MEMORY[int(kind)] for kind in copies["host_memory"]} == {memory}


def test_a_forward_takes_the_devices_time_asked_for(tmp_path: Path) -> None:
    """Each graph of a decode step, and the prefill's, which takes five times as long."""
    truth = tmp_path / "truth"
    run_loop(*SIZES, "--gpu-us", "1009", "--kernels", "1", "--python-us", "0", truth=truth)
    [log] = truth_log.read(truth)
    graphs = log.ops("graph")
    prefill_ns, *decode_ns = (graphs["end_ns"] - graphs["start_ns"]).tolist()
    assert len(decode_ns) == STEPS - 1
    assert prefill_ns == pytest.approx(5 * 1_009_000, rel=0.02)
    assert decode_ns == pytest.approx([1_009_000] * (STEPS - 1), rel=0.05)


def test_tokens_do_not_depend_on_how_they_are_moved() -> None:
    """The same seed gives the same tokens, whoever waits for them; another one does not."""
    ways = (
        (),
        ("--async-scheduling",),
        ("--readback", "worker", "--async-scheduling"),
        ("--launches", "eager", "--host-memory", "pageable"),
        ("--workers", "2", "--async-scheduling"),
    )
    found = {run_loop(*SIZES, *QUICK, "--seed", "7", *way)["tokens_checksum"] for way in ways}
    assert len(found) == 1
    assert run_loop(*SIZES, *QUICK, "--seed", "8")["tokens_checksum"] not in found


def test_all_but_times_is_the_same_twice() -> None:
    """Counts, bytes and accepted tokens come from the switches and the seed alone."""
    switches = (*SIZES, *QUICK, "--speculative", "3", "--seed", "11", "--jitter", "0.1")

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: without_times(inner)
                for key, inner in value.items()
                if not key.endswith("_ns") and key != "pid"
            }
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    first, second = (without_times(run_loop(*switches)) for _ in range(2))
    assert first == second
    least, most = REQUESTS * STEPS, REQUESTS * (1 + 4 * (STEPS - 1))
    assert least < first["tokens"] < most


class TestTimes:
    """What the switches are for: the latency they change.

    Another program's load only ever makes a median longer, so the shortest of some runs
    is the loop's own; how many it takes depends on the load.
    """

    RUNS = 9
    # Half of the device's time leaves the host's work room to be hidden under load too.
    SIZES = ("--steps", "23", "--requests", "5", "--gpu-us", "8009", "--python-us", "3001")
    IN_TURN_NS = 11_010_000  # the device's time and the host's
    DEVICE_NS = 8_009_000
    OVERLAPPED_NS = 9_300_000  # nearer to the one than to the other

    def shortest(
        self, ways: dict[str, tuple[str, ...]], enough: Callable[[dict[str, int]], bool]
    ) -> dict[str, int]:
        """The shortest median ITL of each way, over as many runs as are enough."""
        found: dict[str, int] = {}
        for _ in range(self.RUNS):
            for name, way in ways.items():
                itl_ns = run_loop(*self.SIZES, *way)["itl_p50_ns"]
                found[name] = min(found.get(name, itl_ns), itl_ns)
            if enough(found):
                break
        return found

    def test_async_scheduling_hides_the_hosts_work(self) -> None:
        found = self.shortest(
            {"sync": ("--profile", "b300"), "async": ("--profile", "b300", "--async-scheduling")},
            lambda itl: itl["async"] < self.OVERLAPPED_NS,
        )
        assert found["sync"] > self.IN_TURN_NS
        assert self.DEVICE_NS < found["async"] < self.OVERLAPPED_NS

    def test_a_worker_gives_back_what_cc_takes(self) -> None:
        """Under CC the loop's own copy waits for the step; a worker's does not hold it up."""
        inline = ("--profile", "b300-cc", "--async-scheduling")
        found = self.shortest(
            {"inline": inline, "worker": (*inline, "--readback", "worker")},
            lambda itl: itl["worker"] < self.OVERLAPPED_NS,
        )
        # Nothing overlaps, as if there were no async scheduling.
        assert found["inline"] > self.IN_TURN_NS
        assert self.DEVICE_NS < found["worker"] < self.OVERLAPPED_NS

    def test_eager_launches_cost_more_under_cc(self) -> None:
        eager = ("--launches", "eager", "--kernels", "499", "--profile")
        found = self.shortest(
            {"open": (*eager, "b300"), "cc": (*eager, "b300-cc")},
            lambda itl: itl["cc"] > 1.3 * itl["open"],
        )
        assert found["cc"] > 499 * 26_000  # a launch takes 26 us of the host's time
        assert found["cc"] > 1.3 * found["open"]


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (("--kernels", "0"), "--kernels: 0 is out of range: give a number from 1 to 2000"),
        (("--kernels", "2001"), "--kernels: 2001 is out of range"),
        (("--steps", "x"), "--steps: invalid number value: 'x'"),
        (("--readback", "later"), "--readback: invalid choice: 'later'"),
        (("--jitter", "1.5"), "--jitter: 1.5 is out of range: give a fraction from 0 to 1"),
        (("--crossings", "8"), "--crossings 8 is too few: a step with these switches makes 9"),
        (("--profile", "b3"), "no profile 'b3': b300, b300-cc"),
        (("--profile", "./none.toml"), "no profile at ./none.toml: give the path"),
        (
            ("--workers", "2", "--launches", "eager", "--kernels", "5"),
            "--kernels 5 is too few: 7 layers end in an all-reduce each",
        ),
        (("--backend", "torch", "--gpu-us", "5"), "--gpu-us is for --backend sim"),
    ],
    ids=" ".join,
)
def test_switches_that_make_no_sense_are_refused(switches: tuple[str, ...], message: str) -> None:
    """Status 2, before anything is loaded, and a message that names the switch."""
    command = [sys.executable, str(LOOP), *switches]
    done = subprocess.run(
        command, env=sim_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr


def test_two_profiles_are_refused() -> None:
    """The switch and the environment must not differ: one would be ignored."""
    done = subprocess.run(
        [sys.executable, str(LOOP), "--profile", "h200"],
        env=sim_environment(SIMCUDA_PROFILE="b300"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--profile h200 and SIMCUDA_PROFILE=b300 differ" in done.stderr


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    """With the command that makes them."""
    done = subprocess.run(
        [sys.executable, str(LOOP), "--sim-dir", str(tmp_path)],
        env=sim_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path} lacks libcudart.so.13, libcuda.so.1, libnccl.so.2" in done.stderr
    assert f"hint: make -C examples/simcuda BUILD={tmp_path}" in done.stderr


def test_a_recording_has_the_loops_own_steps(tmp_path: Path) -> None:
    """Steps, phases, batch and latency by cctrace against what the loop says."""
    run = tmp_path / "run"
    command = [*CCTRACE, "record", "-o", str(run), "--sources", "nvtx,processes", "--"]
    steps = ("--steps", "101", "--requests", "3", "--prompt-tokens", "13", "--async-scheduling")
    done = subprocess.run(
        command + loop_command(*steps, "--readback", "worker", "--profile", "b300-cc"),
        env=sim_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert losses(run) == {}
    with cctrace.open(run) as opened:
        found = opened.sql(
            "SELECT pid, engine, phase, requests, tokens FROM steps ORDER BY ts_ns"
        ).fetchall()
    [process] = own["processes"]
    pid = process["pid"]
    assert (
        found
        == [(pid, "decode_loop", "prefill", 3, 39)] + [(pid, "decode_loop", "decode", 3, 3)] * 100
    )
    ranges = Counter(row["name"] for row in rows(run, "nvtx"))
    assert ranges == {
        "generate": 1,
        "step": 101,
        "prepare_inputs": 101,
        "forward": 101,
        "sample": 101,
        "readback": 102,  # the last step's tokens are taken after it
    }
    starts = [row["ts_ns"] for row in rows(run, "nvtx") if row["name"] == "step"]
    periods = [after - before for before, after in pairwise(starts[1:])]
    mean_ns = sum(periods) / len(periods)
    assert mean_ns == pytest.approx(own["itl_mean_ns"], rel=ITL_TOLERANCE)
    assert "readback" in {row["name"] for row in rows(run, "threads")}


def test_workers_in_a_recording_are_processes_with_parts_of_steps(tmp_path: Path) -> None:
    """Steps are the driver's alone; forwards are the workers'."""
    run = tmp_path / "run"
    command = [*CCTRACE, "record", "-o", str(run), "--sources", "nvtx,processes", "--"]
    done = subprocess.run(
        command + loop_command(*SIZES, *QUICK, "--workers", "3"),
        env=sim_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    driver, *workers = (process["pid"] for process in json.loads(done.stdout)["processes"])
    found = Counter((row["pid"], row["name"]) for row in rows(run, "nvtx"))
    assert {pid for pid, name in found if name == "step"} == {driver}
    assert {(pid, found[pid, "forward"]) for pid in workers} == {(pid, STEPS) for pid in workers}
    assert {pid for pid, _ in found} == {driver, *workers}
    assert {row["pid"] for row in rows(run, "processes")} >= {driver, *workers}


def test_a_worker_that_fails_ends_the_loop(tmp_path: Path) -> None:
    """The worker says what it lacks, the driver which worker it was; the status is 1."""
    for name in ("libcudart.so.13", "libcuda.so.1"):
        (tmp_path / name).symlink_to(simcuda_library_dir() / name)
    (tmp_path / "profiles").symlink_to(simcuda_library_dir() / "profiles")
    (tmp_path / "libnccl.so.2").touch()  # there, and no library
    done = subprocess.run(
        [sys.executable, str(LOOP), "--sim-dir", str(tmp_path), *SIZES, "--workers", "2"],
        env=sim_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"worker 0: {tmp_path}/libnccl.so.2: file too short" in done.stderr
    assert "decode_loop.py: error: worker 0 (pid " in done.stderr
    assert "Traceback" not in done.stderr
