"""docs/queries.md and docs/run-format.md say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def documents() -> dict[Path, str]:
    """What the script would write."""
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "gen_query_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[Path, str] = module.documents()
    return found


@pytest.mark.parametrize("name", ["queries.md", "run-format.md"])
def test_a_generated_document_is_current(name: str) -> None:
    expected = documents()[ROOT / "docs" / name]
    hint = "run scripts/gen_query_docs.py"
    assert (ROOT / "docs" / name).read_text() == expected, hint
