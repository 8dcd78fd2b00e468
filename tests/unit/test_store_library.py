"""The headers of the SQL library, and what they are checked for."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cctrace.errors import CctraceError
from cctrace.record.bpf import layout as bpf_layout
from cctrace.record.layout import LOSS_REASONS
from cctrace.record.losses import NOT_EVENTS
from cctrace.resources import resource_dir
from cctrace.store.connection import relations
from cctrace.store.library import ColumnDoc, Param, load_library, parse_item
from cctrace.store.losses import REASONS, summarize

FILES = sorted(resource_dir("queries").rglob("*.sql"))

HEADER = """\
-- sample: what it is,
--   and more of it.
-- requires: nvtx, other
-- grain:    one row per thing
-- columns:
--   a  BIGINT          ns, >= 0
--   b  DECIMAL(38, 0)  a long
--                      meaning
-- params:
--   least  BIGINT = 3      at least
--   who    VARCHAR = NULL  only this
-- caveats:  mind
--           the gap
SELECT 1;
"""


def write(folder: Path, kind: str, name: str, text: str) -> Path:
    """Write a file of a library under ``folder``."""
    path = folder / kind / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def view(name: str, requires: str = "") -> str:
    """A whole view."""
    return (
        f"-- {name}: x\n-- requires: {requires}\n-- grain: x\n-- columns:\n--   a  INTEGER  x\n"
        f"CREATE VIEW {name} AS SELECT 1 AS a;\n"
    )


def test_a_header_is_parsed_whole(tmp_path: Path) -> None:
    item = parse_item(write(tmp_path, "reports", "sample", HEADER))
    assert item.name == "sample"
    assert item.description == "what it is, and more of it."
    assert item.requires == ("nvtx", "other")
    assert item.grain == "one row per thing"
    assert item.columns == (
        ColumnDoc("a", "BIGINT", "ns, >= 0"),
        ColumnDoc("b", "DECIMAL(38, 0)", "a long meaning"),
    )
    assert item.params == (
        Param("least", "BIGINT", 3, "at least"),
        Param("who", "VARCHAR", None, "only this"),
    )
    assert item.caveats == "mind the gap"
    assert item.sql == "SELECT 1"
    assert not item.is_private


_WORD = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_DOC = st.from_regex(r"[a-z;,]{1,9}( [a-z:]{1,9}){0,3}", fullmatch=True)
_TYPE = st.sampled_from(["BIGINT", "VARCHAR", "BIGINT[]", "STRUCT(a INTEGER, b VARCHAR)"])


@given(st.lists(st.tuples(_WORD, _TYPE, _DOC), min_size=1, max_size=5), _DOC)
def test_columns_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, columns: list[tuple[str, str, str]], doc: str
) -> None:
    text = f"-- x: {doc}\n-- requires:\n-- grain: {doc}\n-- columns:\n"
    text += "".join(f"--   {name}  {kind}  {meaning}\n" for name, kind, meaning in columns)
    item = parse_item(write(tmp_path_factory.mktemp("h"), "views", "x", f"{text}SELECT 1\n"))
    assert item.columns == tuple(ColumnDoc(*column) for column in columns)
    assert item.requires == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sample:", "other:"), "must start with"),
        (("-- grain:    one row per thing\n", ""), "has no `-- grain:`"),
        (("-- requires: nvtx, other\n", ""), "has no `-- requires:`"),
        (("SELECT 1;", ""), "must start with"),
        (("a  BIGINT          ns, >= 0", "a BIGINT ns"), "expected `name  TYPE  meaning`"),
        (("BIGINT = 3", "BIGINT"), "has no default"),
        (("BIGINT = 3", "BIGINT = many"), "'many' is no BIGINT"),
        (("BIGINT = 3", "DATE = 3"), "cannot be of type DATE"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(CctraceError, match=re.escape(message)):
        parse_item(write(tmp_path, "reports", "sample", HEADER.replace(*change)))


def test_views_come_after_those_they_require(tmp_path: Path) -> None:
    write(tmp_path, "views", "a", view("a", "b, nvtx"))
    write(tmp_path, "views", "b", view("b", "_c"))
    write(tmp_path, "views", "_c", view("_c"))
    found = load_library(["nvtx"], tmp_path)
    assert [item.name for item in found.views] == ["_c", "b", "a"]
    assert found.views[0].is_private


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"a": "nowhere"}, "a requires nowhere"),
        ({"a": "b", "b": "a"}, "require each other"),
        ({"a": "a"}, "require each other"),
        ({"nvtx": ""}, "view nvtx has the name of a table"),
    ],
)
def test_a_library_that_cannot_stand_is_refused(
    tmp_path: Path, views: dict[str, str], message: str
) -> None:
    for name, requires in views.items():
        write(tmp_path, "views", name, view(name, requires))
    with pytest.raises(CctraceError, match=message):
        load_library(["nvtx"], tmp_path)


def test_a_report_may_have_the_name_of_a_view(tmp_path: Path) -> None:
    write(tmp_path, "views", "a", view("a"))
    write(tmp_path, "reports", "a", view("a", "a").replace("CREATE VIEW a AS ", ""))
    assert load_library([], tmp_path).report("a").requires == ("a",)


def test_an_unknown_report_is_told_with_those_there_are() -> None:
    with pytest.raises(CctraceError, match="no report is named 'x'") as caught:
        load_library(relations()).report("x")
    assert caught.value.exit_code == 2
    assert "nvtx_summary" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("BIGINT", "-7", -7),
        ("BIGINT", "null", None),
        ("DOUBLE", "0.5", 0.5),
        ("BOOLEAN", "yes", True),
        ("BOOLEAN", "FALSE", False),
        ("VARCHAR", "a=b", "a=b"),
    ],
)
def test_a_parameter_has_the_type_its_report_says(kind: str, text: str, value: object) -> None:
    assert Param("p", kind, None, "").parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [("BIGINT", "1.5"), ("BIGINT", str(2**63)), ("DOUBLE", "x"), ("BOOLEAN", "maybe")],
)
def test_a_parameter_of_another_type_is_a_mistake_of_the_user(kind: str, text: str) -> None:
    with pytest.raises(CctraceError, match=f"takes a {kind}, not '{text}'") as caught:
        Param("p", kind, None, "").parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_keeps_the_conventions(path: Path) -> None:
    item = parse_item(path)
    text = path.read_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert not re.search(r"\b(DROP|INSERT)\b", item.sql)
    assert "SELECT *" not in item.sql
    is_view = path.parent.name == "views"
    assert item.sql.startswith(f"CREATE VIEW {item.name} AS\n") == is_view
    # Every relation it reads is required, or defined in the file.
    assert _read_by(item.select) == set(item.requires)


def _read_by(select: str) -> set[str]:
    """The relations a query reads, as DuckDB parses it, less those of its WITHs."""
    [(tree,)] = duckdb.execute("SELECT json_serialize_sql(?)", [select]).fetchall()
    read: set[str] = set()
    defined: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for child in node:
                walk(child)
        elif isinstance(node, dict):
            if node.get("type") == "BASE_TABLE":
                read.add(node["table_name"])
            defined.update(entry["key"] for entry in node.get("cte_map", {}).get("map", []))
            walk(list(node.values()))

    walk(json.loads(tree))
    return read - defined


def test_the_recorder_and_the_reader_agree_on_what_a_loss_is() -> None:
    assert {name for name, reason in REASONS.items() if not reason.loses_event} == NOT_EVENTS


def _counted_by_the_recorder() -> set[str]:
    """Reasons that are written out in cctrace/record: in ``ledger.add(source, REASON, ...)``.

    The one reason kept in a variable is ``self._failed`` of the session.
    """
    found = set()
    for path in (Path(__file__).resolve().parents[2] / "cctrace" / "record").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            nodes: list[ast.AST] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ledger.add"):
                nodes += node.args[1:2]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self._count":
                nodes += node.args[:1]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self._failed":
                nodes += ast.walk(node.value)
            found |= {
                n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
    return found


def test_every_reason_that_can_occur_is_documented_and_no_other() -> None:
    of_bpf = set(bpf_layout.LOSS_REASONS.values())
    of_imports = {"bad_event", "not_in_file"}
    assert set(LOSS_REASONS) | of_bpf | of_imports | _counted_by_the_recorder() == set(REASONS)


def test_losses_add_up_by_reason_and_an_unknown_one_counts() -> None:
    found = summarize(
        [("ring_full", 3), ("no_slot", 11), ("ring_full", 2), ("truncated_string", 7), ("new", 1)]
    )
    assert list(found.lost.items()) == [("no_slot", 11), ("ring_full", 5), ("new", 1)]
    assert found.impaired == {"truncated_string": 7}
    assert found.lost_total == 17
