"""The environment that the recorder gives the target."""

from __future__ import annotations

from pathlib import Path

from cctrace import annotate

AGENT = Path("/lib/agent.so")
EMIT = Path("/lib/emit.so")
SOCKET = Path("/run/agent.sock")
HERE = str(annotate.bootstrap_dir())


def test_all_variables_are_set_in_a_plain_environment() -> None:
    assert annotate.environment({}, AGENT, EMIT, SOCKET) == {
        "NVTX_INJECTION64_PATH": "/lib/agent.so",
        "CCTRACE_SOCKET": "/run/agent.sock",
        "CCTRACE_EMIT": "/lib/emit.so",
        "PYTHONPATH": HERE,
    }


def test_a_tool_that_was_to_be_injected_is_chained_to() -> None:
    changes = annotate.environment({"NVTX_INJECTION64_PATH": "/nsys.so"}, AGENT, EMIT, SOCKET)
    assert changes["NVTX_INJECTION64_PATH"] == "/lib/agent.so"
    assert changes["CCTRACE_NVTX_CHAIN"] == "/nsys.so"


def test_the_agent_is_not_chained_to_itself() -> None:
    changes = annotate.environment({"NVTX_INJECTION64_PATH": str(AGENT)}, AGENT, EMIT, SOCKET)
    assert "CCTRACE_NVTX_CHAIN" not in changes


def test_an_existing_path_stays_behind_ours() -> None:
    # The empty element is the user's: it means the current directory.
    changes = annotate.environment({"PYTHONPATH": "/a::/b"}, AGENT, EMIT, SOCKET)
    assert changes["PYTHONPATH"] == f"{HERE}:/a::/b"


def test_an_empty_path_gets_no_empty_element() -> None:
    assert annotate.environment({"PYTHONPATH": ""}, AGENT, EMIT, SOCKET)["PYTHONPATH"] == HERE


def test_a_recorder_inside_a_recorder_adds_the_path_once() -> None:
    outer = annotate.environment({}, AGENT, EMIT, SOCKET)
    assert "PYTHONPATH" not in annotate.environment(outer, AGENT, EMIT, SOCKET)


def test_without_annotation_the_python_path_is_left_alone() -> None:
    changes = annotate.environment({"PYTHONPATH": "/a"}, AGENT, EMIT, SOCKET, annotate=False)
    assert "PYTHONPATH" not in changes
    assert changes["NVTX_INJECTION64_PATH"] == "/lib/agent.so"


def test_without_an_agent_nvtx_is_left_alone() -> None:
    assert "NVTX_INJECTION64_PATH" not in annotate.environment({}, None, EMIT, SOCKET)


def test_the_bootstrap_directory_holds_a_sitecustomize() -> None:
    assert (annotate.bootstrap_dir() / "sitecustomize.py").is_file()
