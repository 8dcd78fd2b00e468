"""Who made a call: the frames of a stack that a report names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runs import make_run

import cctrace

if TYPE_CHECKING:
    from pathlib import Path


def frame(function: str, kind: str = "python", **more: Any) -> dict[str, Any]:
    known = {"function": function, "module": None, "file": None, "line": None, "kind": kind}
    return {**known, **more}


def native(function: str, module: str | None = "/lib/libx.so.1", **more: Any) -> dict[str, Any]:
    return frame(function, "native", module=module, **more)


def callers(run: Path) -> dict[int, list[str]]:
    with cctrace.open(run) as session:
        rows = session.sql("SELECT stack_id, callers FROM stack_callers").fetchall()
    return dict(rows)


def test_the_innermost_python_frames_are_told(tmp_path: Path) -> None:
    # GIVEN a stack of C, four Python frames, and one below them
    frames = [
        native("ffi_call"),
        frame("copy", file="/env/lib/torch/_tensor.py", line=7),
        frame("Runner.step", file="runner.py", line=131),
        frame("Engine.run", file="/srv/engine/core.py"),
        frame("<module>", file="/srv/serve.py", line=3),
    ]
    run = make_run(tmp_path, stacks=[{"stack_id": 5, "frames": frames}])
    # THEN three of them, each with what is known of its place
    assert callers(run) == {
        5: [
            "copy (torch/_tensor.py:7)",
            "Runner.step (runner.py:131)",
            "Engine.run (engine/core.py)",
        ]
    }


def test_without_python_native_frames_with_a_name_are_told(tmp_path: Path) -> None:
    frames = [
        native("0x6f7a"),
        native("at::copy_", file="/src/aten/Copy.cpp", line=11),
        native("libx.so.1+0x40"),
        native("[truncated]", module=None),
    ]
    run = make_run(
        tmp_path,
        stacks=[
            {"stack_id": -7, "frames": frames},
            # One of which nothing has a name, an empty one, and one of the kernel alone.
            {"stack_id": 8, "frames": [native("0x10"), native("0x20")]},
            {"stack_id": 9, "frames": []},
            {"stack_id": 10, "frames": [frame("schedule", "kernel", module="[kernel]")]},
        ],
    )
    assert callers(run) == {-7: ["at::copy_ (aten/Copy.cpp:11)"]}


def test_no_stacks(tmp_path: Path) -> None:
    assert callers(make_run(tmp_path)) == {}
