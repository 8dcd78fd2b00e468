"""docs/report.schema.json describes what ``cctrace report --format json`` writes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_runs import POINT, REPLAY, attribution, crossing_rows, step_rows
from runs import make_run

from cctrace.analyze import attribution as attribution_module
from cctrace.cli.report import as_json

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema as users get it."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))
    return found


def validate(schema: dict[str, Any], text: str) -> None:
    """Raise where ``text`` is not what the schema says."""
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_the_schema_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gen_report_schema.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_field_is_described_and_no_other_allowed(schema: dict[str, Any]) -> None:
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
        assert definition["required"] == list(definition["properties"])
        for name, field in definition["properties"].items():
            assert len(field["description"]) > 3, name
            # A figure that carries a unit names it, in its name or its description.
            if name.endswith("_ns"):
                assert "ns" in field["description"], name


def test_every_dataclass_is_in_the_schema(schema: dict[str, Any]) -> None:
    classes = {
        name for name, kind in vars(attribution_module).items() if dataclasses.is_dataclass(kind)
    }
    assert classes == {*schema["$defs"], "Attribution"}


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"nvtx": step_rows(7)},
        {"cuda_api": crossing_rows(3)},
        {"nvtx": step_rows(1), "cuda_api": crossing_rows(1)},
        {
            "nvtx": step_rows(31),
            "cuda_api": crossing_rows(31),
            "losses": [{"reason": "unheard_of", "count": 3}],
        },
    ],
    ids=["empty", "steps", "calls", "one step", "all"],
)
def test_reports_are_what_the_schema_says(
    tmp_path: Path, schema: dict[str, Any], tables: dict[str, Any]
) -> None:
    validate(schema, as_json(attribution(make_run(tmp_path, **tables))))


def test_a_report_with_points_is_too(tmp_path: Path, schema: dict[str, Any]) -> None:
    assert POINT.remedy is not None
    made = dataclasses.replace(
        attribution(make_run(tmp_path)),
        points=(dataclasses.replace(POINT, alternatives=(POINT.remedy,)),),
        replay=REPLAY,
    )
    validate(schema, as_json(made))


@pytest.mark.parametrize(
    "change",
    [
        {"new": 1},
        {"chunks": "one"},
        {"report_version": 2},
        {"steps": [{"engine": "vllm"}]},
        {"replay": {}},
    ],
    ids=str,
)
def test_anything_else_is_refused(
    tmp_path: Path, schema: dict[str, Any], change: dict[str, Any]
) -> None:
    data = json.loads(as_json(attribution(make_run(tmp_path))))
    with pytest.raises(jsonschema.ValidationError):
        validate(schema, json.dumps(data | change))
