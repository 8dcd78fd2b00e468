"""Real engines under `cctrace record`, against what they count and measure themselves.

CCTRACE_VLLM_PYTHON and CCTRACE_HF_PYTHON name interpreters that have the engines;
`make test-engines` makes both environments.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bpf_here import require_bpf
from recording import CCTRACE, environment

import cctrace

Recorded = tuple[Path, dict[str, Any]]  # a run, and the figures its program printed

pytestmark = pytest.mark.engines

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 600
ITL_TOLERANCE = 0.02


def engine_python(variable: str) -> str:
    """The interpreter that has the engine, or a skip."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no Python with the engine; run `make test-engines`")
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would leave the environment


def run_program(command: list[str], cwd: Path, **extra: str) -> dict[str, Any]:
    """Run a program that prints its own figures as JSON, and return them."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def recorded(run: Path, python: str, program: str, *arguments: str, **extra: str) -> dict[str, Any]:
    """Record an example with all stacks, and return the figures it printed."""
    command = [
        *CCTRACE,
        "record",
        "-o",
        str(run),
        "--stacks",
        "all",
        "--",
        python,
        str(EXAMPLES / program),
        *arguments,
    ]
    return run_program(command, run.parent, **extra)


def query(run: Path, name: str, *parameters: str) -> list[dict[str, Any]]:
    """A named query's rows, through the command line."""
    command = [*CCTRACE, "query", str(run), "--name", name, "--format", "json", *parameters]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def ask(run: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a query, through the Python API."""
    return cctrace.open(run).sql(sql).fetchall()


def adapters(run: Path) -> dict[str, dict[str, set[str]]]:
    """What each adapter hooked and missed, over all processes."""
    found: dict[str, dict[str, set[str]]] = {}
    for report in json.loads((run / "run.json").read_text())["adapters"]:
        points = found.setdefault(report["adapter"], {"hooked": set(), "missing": set()})
        points["hooked"] |= set(report["hooked"])
        points["missing"] |= set(report["missing"])
    return found


def functions_at(file: Path) -> dict[int, set[str]]:
    """Qualified names of the functions around each line of a source file."""
    found: dict[int, set[str]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                inner = f"{name}."
                if not isinstance(child, ast.ClassDef):
                    inner = f"{name}.<locals>."
                    # A function that has just been entered is at its first decorator.
                    first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                    for line in range(first, (child.end_lineno or child.lineno) + 1):
                        found.setdefault(line, set()).add(name)
            visit(child, inner)

    visit(ast.parse(file.read_text("utf-8")), "")
    return found


@pytest.fixture(scope="module")
def vllm_run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The example vllm_offline, recorded."""
    python = engine_python("CCTRACE_VLLM_PYTHON")
    path = tmp_path_factory.mktemp("vllm") / "run"
    return path, recorded(path, python, "vllm_offline/run.py", "--new-tokens", "61")


@pytest.fixture(scope="module")
def hf_run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The example hf_generate, recorded."""
    python = engine_python("CCTRACE_HF_PYTHON")
    path = tmp_path_factory.mktemp("hf") / "run"
    return path, recorded(path, python, "hf_generate/run.py", "--new-tokens", "41")


class TestVllm:
    """vLLM on the CPU, with a tiny model of dummy weights."""

    def test_steps_are_those_that_vllm_counted(self, vllm_run: Recorded) -> None:
        path, own = vllm_run
        steps = query(path, "steps")
        assert len(steps) == own["iterations"] == own["executed_steps"]
        assert {step["engine"] for step in steps} == {"vllm"}
        decode = [step for step in steps if step["phase"] == "decode"]
        assert len(decode) == own["decode_iterations"]

    def test_every_token_was_scheduled_in_a_step(self, vllm_run: Recorded) -> None:
        path, own = vllm_run
        steps = query(path, "steps")
        # Each prompt in full, and each generated token but a request's last.
        expected = own["requests"] * 48 + own["generated_tokens"] - own["requests"]
        assert sum(step["tokens"] for step in steps) == expected

    def test_waits_lead_to_vllms_own_lines(self, vllm_run: Recorded) -> None:
        """Each frame of vLLM's is a line of that function, as its source has it."""
        require_bpf()
        path, _ = vllm_run
        frames = ask(
            path,
            "SELECT DISTINCT frame.function, frame.file, frame.line FROM ("
            "SELECT unnest(frames) AS frame FROM stacks SEMI JOIN sched USING (stack_id)) "
            "WHERE frame.kind = 'python' AND contains(frame.file, '/site-packages/vllm/')",
        )
        named = [f for f in frames if "<" not in f[0].replace("<locals>", "")]
        assert len(named) > 100
        sources: dict[str, dict[int, set[str]]] = {}
        for _, file, _ in named:
            if file not in sources:
                sources[file] = functions_at(Path(file))
        strangers = [f for f in named if f[0] not in sources[f[1]].get(f[2], set())]
        # One that waits for a page while it enters or leaves a function is between two.
        assert len(strangers) <= len(named) // 100, strangers
        assert any(function.startswith("EngineCoreProc.") for function, _, _ in named)

    def test_a_flamegraph_adds_up_to_its_steps(self, vllm_run: Recorded) -> None:
        path, _ = vllm_run
        command = [*CCTRACE, "flamegraph", str(path), "--format", "folded"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        leaves = sum(int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines())
        assert [(leaves,)] == ask(path, "SELECT sum(period_ns)::BIGINT FROM step_parts")

    def test_itl_agrees_with_the_engines_own(self, vllm_run: Recorded) -> None:
        path, own = vllm_run
        [decode] = [row for row in query(path, "itl") if row["phase"] == "decode"]
        assert decode["mean_ns"] == pytest.approx(own["itl_mean_ns"], rel=ITL_TOLERANCE)
        assert decode["p50_ns"] == pytest.approx(own["itl_median_ns"], rel=ITL_TOLERANCE)
        [(periods, mean_ns)] = ask(path, "SELECT count(period_ns), avg(period_ns) FROM steps")
        assert periods == own["periods"]
        assert mean_ns == pytest.approx(own["period_mean_ns"], rel=ITL_TOLERANCE)

    def test_all_of_its_processes_are_there(self, vllm_run: Recorded) -> None:
        path, _ = vllm_run
        names = "SELECT DISTINCT pid FROM nvtx WHERE name = "
        [core] = ask(path, names + "'vllm.step'")
        [worker] = ask(path, names + "'vllm.execute_model'")
        [front_end] = ask(path, names + "'llm_engine step: get_output'")
        assert len({core, worker, front_end}) == 3
        assert ask(path, f"SELECT ppid FROM processes WHERE pid = {core[0]}") == [front_end]
        assert ask(path, f"SELECT ppid FROM processes WHERE pid = {worker[0]}") == [core]

    def test_the_parts_of_a_step_are_there(self, vllm_run: Recorded) -> None:
        path, own = vllm_run
        calls = {(row["domain"], row["name"]): row["calls"] for row in query(path, "nvtx_summary")}
        for name in ("scheduled", "sample_tokens", "prepare_inputs"):
            assert calls["cctrace", f"vllm.{name}"] == own["iterations"], name
        assert calls["cctrace", "vllm.load_model"] == 1
        # vLLM's own scopes, which the adapter turned on.
        for name in ("forward", "sample", "bookkeep"):
            assert calls[None, f"gpu_model_runner: {name}"] == own["iterations"], name

    def test_no_hook_point_is_missing(self, vllm_run: Recorded) -> None:
        path, _ = vllm_run
        found = adapters(path)["vllm"]
        assert found["missing"] == set()
        assert {"EngineCore.step", "Scheduler.schedule", "GPUModelRunner.execute_model"} <= found[
            "hooked"
        ]

    def test_the_output_is_the_same_unrecorded(self, vllm_run: Recorded) -> None:
        path, own = vllm_run
        python = engine_python("CCTRACE_VLLM_PYTHON")
        program = str(EXAMPLES / "vllm_offline" / "run.py")
        plain = run_program([python, program, "--new-tokens", "61"], path.parent)
        assert plain["tokens_checksum"] == own["tokens_checksum"]

    def test_an_engine_in_the_programs_own_process(self, tmp_path: Path) -> None:
        python = engine_python("CCTRACE_VLLM_PYTHON")
        run = tmp_path / "run"
        own = recorded(run, python, "vllm_offline/run.py", "--in-process", "--new-tokens", "31")
        steps = query(run, "steps")
        assert len(steps) == own["iterations"]
        # The pause between two calls of generate is no step's period.
        periods = [step["period_ns"] for step in steps if step["period_ns"] is not None]
        assert len(periods) == own["periods"]
        assert sum(periods) / len(periods) == pytest.approx(
            own["period_mean_ns"], rel=ITL_TOLERANCE
        )

    def test_scopes_that_the_user_turned_off_stay_off(self, tmp_path: Path) -> None:
        python = engine_python("CCTRACE_VLLM_PYTHON")
        run = tmp_path / "run"
        scopes = {"VLLM_NVTX_SCOPES_FOR_PROFILING": "0"}
        arguments = ("--in-process", "--new-tokens", "7")
        own = recorded(run, python, "vllm_offline/run.py", *arguments, **scopes)
        assert ask(run, "SELECT DISTINCT domain FROM nvtx") == [("cctrace",)]
        bookkeeping = "SELECT count(*) FROM nvtx WHERE name = 'vllm.bookkeeping_sync'"
        assert ask(run, bookkeeping) == [(own["iterations"],)]


class TestTransformers:
    """Hugging Face transformers, with a tiny Llama of random weights."""

    def test_steps_are_the_models_forwards(self, hf_run: Recorded) -> None:
        path, own = hf_run
        steps = query(path, "steps")
        assert len(steps) == own["forwards"] == own["calls"] * 41
        assert {step["engine"] for step in steps} == {"transformers"}
        phases = [step["phase"] for step in steps]
        assert phases == (["prefill"] + ["decode"] * 40) * own["calls"]
        assert {step["requests"] for step in steps} == {own["requests"]}
        assert {step["tokens"] for step in steps if step["phase"] == "prefill"} == {3 * 32}

    def test_itl_agrees_with_the_programs_own(self, hf_run: Recorded) -> None:
        path, own = hf_run
        [decode] = [row for row in query(path, "itl") if row["phase"] == "decode"]
        assert decode["n"] == own["calls"] * 39
        assert decode["mean_ns"] == pytest.approx(own["itl_mean_ns"], rel=ITL_TOLERANCE)
        assert decode["p50_ns"] == pytest.approx(own["itl_median_ns"], rel=ITL_TOLERANCE)

    def test_the_parts_of_generate_are_there(self, hf_run: Recorded) -> None:
        path, own = hf_run
        calls = {row["name"]: row["calls"] for row in query(path, "nvtx_summary")}
        parts = ("forward", "prepare_inputs", "sample")
        assert {name: calls[f"transformers.{name}"] for name in parts} == dict.fromkeys(
            parts, own["forwards"]
        )
        assert calls["transformers.generate"] == own["calls"]
        assert adapters(path)["transformers"]["missing"] == set()

    def test_the_output_is_the_same_unrecorded(self, hf_run: Recorded) -> None:
        path, own = hf_run
        python = engine_python("CCTRACE_HF_PYTHON")
        program = str(EXAMPLES / "hf_generate" / "run.py")
        plain = run_program([python, program, "--new-tokens", "41"], path.parent)
        assert plain["tokens_checksum"] == own["tokens_checksum"]

    def test_other_kinds_of_generation_are_the_same_recorded(self, tmp_path: Path) -> None:
        # Beams, an assistant, chunked prefill, streaming, compiled models, threads.
        python = engine_python("CCTRACE_HF_PYTHON")
        program = str(Path(__file__).resolve().parent / "generation_kinds.py")
        plain = run_program([python, program], tmp_path)
        run = tmp_path / "run"
        command = [*CCTRACE, "record", "-o", str(run), "--", python, program]
        assert run_program(command, tmp_path) == plain
        assert plain["graph_breaks"] == 0
        forwards = "SELECT count(*) FROM nvtx WHERE name = 'transformers.forward'"
        assert ask(run, forwards) == [(plain["forwards"],)]
        still_open = "SELECT count(*) FROM nvtx WHERE dur_ns IS NULL"
        assert ask(run, still_open) == [(0,)]


class TestDecodeLoop:
    """A loop that annotates itself, as a small torch model on the CPU."""

    def test_steps_and_itl_are_the_loops_own(self, tmp_path: Path) -> None:
        python = engine_python("CCTRACE_VLLM_PYTHON")  # it has torch and nvtx too
        run = tmp_path / "run"
        switches = ("--backend", "torch", "--steps", "211", "--requests", "3")
        own = recorded(run, python, "decode_loop.py", *switches, "--async-scheduling")
        steps = query(run, "steps")
        assert len(steps) == own["steps"] == 211
        assert {step["engine"] for step in steps} == {"decode_loop"}
        assert [step["phase"] for step in steps] == ["prefill"] + ["decode"] * 210
        assert {step["requests"] for step in steps} == {3}
        assert [step["tokens"] for step in steps] == [3 * 61] + [3] * 210
        [decode] = [row for row in query(run, "itl") if row["phase"] == "decode"]
        assert decode["mean_ns"] == pytest.approx(own["itl_mean_ns"], rel=ITL_TOLERANCE)
        assert decode["p50_ns"] == pytest.approx(own["itl_p50_ns"], rel=ITL_TOLERANCE)
