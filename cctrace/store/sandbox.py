"""What a query may be: the guard in front of DuckDB.

The connection itself is closed to everything but the run's parts (see
connection.py). That does not keep a query from writing to those parts, since
DuckDB knows no read-only path, and its parser takes COPY inside a WITH of a
SELECT. So each statement is parsed by DuckDB, its syntax tree is walked, and a
node or table function that is not on the lists below is refused. The lists name
what is allowed: what a later DuckDB adds is refused until someone looks at it.

Source: https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
(the settings), https://duckdb.org/docs/stable/data/json/sql_to_and_from_json
(json_serialize_sql, which takes SELECT statements only).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from cctrace.errors import EXIT_USAGE, CctraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_QUERY_NODES = frozenset(
    {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE", "STATEMENT_NODE"}
)
# Functions of FROM. No `read_*`, since the views are there to read from; no
# `query`, which would parse SQL that this module never saw.
_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_memory",
        "duckdb_settings",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "json_each",
        "json_tree",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "summary",
        "unnest",
    }
)
_HINT = (
    "a query reads the run and changes nothing: SELECT, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, "
    "EXPLAIN, and CREATE VIEW, TABLE or MACRO ... AS in memory; save results with -o FILE"
)
_CREATABLE = frozenset({"view", "table", "macro", "function"})
_CREATE_WORDS = frozenset({"create", "or", "replace", "temp", "temporary", "local"})


class Statement(NamedTuple):
    """One statement that may run.

    Attributes:
        text: Its SQL.
        parameters: Names of the ``$parameters`` in it.
        is_query: Whether it yields rows; CREATE does not.
        reads: Names of the tables and views it reads, lower case, and of its WITHs;
            none for EXPLAIN, which need not compute them.
    """

    text: str
    parameters: frozenset[str]
    is_query: bool
    reads: frozenset[str] = frozenset()


class _Token(NamedTuple):
    start: int
    text: str  # lower case


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Statement]:
    """Split ``sql`` into statements and refuse any that does more than read.

    Args:
        connection: Used for its parser only.
        sql: What the user typed.

    Returns:
        The statements, one at least, of which the last one is a query.

    Raises:
        CctraceError: Exit code 2; a syntax error, nothing to run, or a statement
            that is refused, by name.
    """
    try:
        sql.encode()
        parsed = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise CctraceError(f"the query is not SQL: {error}", None, EXIT_USAGE) from error
    except UnicodeEncodeError as error:
        raise CctraceError("the query is not valid UTF-8", None, EXIT_USAGE) from error
    guard = _Guard(connection)
    statements = [guard.check(statement) for statement in parsed]
    if not statements:
        raise CctraceError("the query is empty", "name a SELECT statement", EXIT_USAGE)
    if not statements[-1].is_query:
        raise CctraceError(
            "the last statement yields no rows", "end with a SELECT statement", EXIT_USAGE
        )
    return statements


class _Guard:
    """Checks the statements of one query, in order."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._macros: set[str] = set()  # table macros that earlier statements make

    def check(self, statement: duckdb.Statement) -> Statement:
        """Check one statement."""
        text = statement.query
        tokens = _tokens(text)
        word = tokens[0].text if tokens else ""
        try:
            kind = statement.type
        except ValueError:  # a kind that DuckDB's own Python enumeration lacks
            raise _refusal(word) from None
        names = frozenset(str(name) for name in statement.named_parameters)
        reads = frozenset[str]()
        if kind == duckdb.StatementType.SELECT:
            reads = self._check_select(text, word)
        elif kind == duckdb.StatementType.EXPLAIN:
            self._check_explain(text, tokens)
        elif kind == duckdb.StatementType.CREATE:
            reads = self._check_create(text, tokens)
            return Statement(text, names, is_query=False, reads=reads)
        elif kind == duckdb.StatementType.MULTI and word == "pivot":
            raise CctraceError(
                "PIVOT without its values is not allowed here: it would run several statements",
                "name the values: PIVOT t ON c IN (a, b) USING ...",
                EXIT_USAGE,
            )
        else:
            raise _refusal(word)
        return Statement(text, names, is_query=True, reads=reads)

    def _tree(self, text: str) -> Any:
        """Syntax tree of a SELECT, or None where ``text`` is anything else."""
        # fetchall, since a connection with an unfinished result takes no other query.
        ((answer,),) = self._connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
        tree = json.loads(answer)
        if tree.get("error") or len(tree.get("statements", ())) != 1:
            return None
        return tree["statements"]

    def _check_select(self, text: str, word: str) -> frozenset[str]:
        """Check a SELECT; returns the names of what it reads."""
        tree = self._tree(text)
        if tree is None:
            raise _refusal(word)
        reads = set[str]()
        for node in _nodes(tree):
            kind = node.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERY_NODES:
                raise _refusal(f"{kind.split('_')[0]} inside a query")
            if kind == "BASE_TABLE":
                reads.add(str(node.get("table_name")).lower())
            if kind == "TABLE_FUNCTION":
                function = node.get("function")
                name = str(function.get("function_name")) if isinstance(function, dict) else "?"
                if name.lower() not in _TABLE_FUNCTIONS and not self._is_macro(name):
                    raise CctraceError(
                        f"the table function {name} is not allowed in a query",
                        "read from the run's views; `cctrace query RUN 'SHOW TABLES'` lists them",
                        EXIT_USAGE,
                    )
        return frozenset(reads)

    def _is_macro(self, name: str) -> bool:
        """Whether ``name`` is a table macro made by this session, hence checked.

        A macro of the same name as a built-in function does not count, so that none
        can stand in for one.
        """
        rows = self._connection.execute(
            "SELECT internal, function_type FROM duckdb_functions() WHERE lower(function_name) = ?",
            [name.lower()],
        ).fetchall()
        known = bool(rows) or name.lower() in self._macros
        return known and all(row == (False, "table_macro") for row in rows)

    def _check_explain(self, text: str, tokens: Sequence[_Token]) -> None:
        """Check what is explained: EXPLAIN ANALYZE runs it."""
        rest = list(tokens[1:])
        if rest and rest[0].text == "analyze":
            rest = rest[1:]
        options = 0
        if rest and rest[0].text == "(" and self._tree(_tail(text, rest[0])) is None:
            while options < len(rest) and rest[options].text != ")":
                options += 1
            options += 1
        if options >= len(rest):
            raise _refusal("explain")
        self._check_select(_tail(text, rest[options]), f"explain {rest[options].text}")

    def _check_create(self, text: str, tokens: Sequence[_Token]) -> frozenset[str]:
        """Allow CREATE VIEW, TABLE and MACRO whose body is a checked SELECT."""
        words = [t.text for t in tokens]
        at = next((i for i, w in enumerate(words) if w not in _CREATE_WORDS), len(words))
        kind = words[at] if at < len(words) else ""
        if kind not in _CREATABLE:
            raise _refusal(f"create {kind}")
        try:
            body = words.index("as", at)
        except ValueError:
            raise CctraceError(
                f"CREATE {kind.upper()} without AS is not allowed in a query", _HINT, EXIT_USAGE
            ) from None
        head = words[at:body]
        # Between the name and AS there is at most a flat list of columns or parameters,
        # so that no expression hides there.
        if "select" in head or "with" in head or sum(w.count("(") for w in head) > 1:
            raise _refusal(f"create {kind} with expressions before AS")
        rest = list(tokens[body + 1 :])
        is_macro = kind in {"macro", "function"}
        if is_macro and rest and rest[0].text == "table":
            rest, is_macro = rest[1:], False
            self._macros.add(words[at + 1].strip('"'))
        if not rest:
            raise _refusal(f"create {kind}")
        tail = _tail(text, rest[0])
        return self._check_select(f"SELECT {tail}" if is_macro else tail, f"create {kind}")


def _refusal(what: str) -> CctraceError:
    return CctraceError(f"{what.upper()} is not allowed in a query", _HINT, EXIT_USAGE)


def _tokens(text: str) -> list[_Token]:
    """Tokens of ``text``, less the comments."""
    # The tokenizer counts bytes.
    data = text.encode()
    found = duckdb.tokenize(text)
    tokens = []
    for i, (start, kind) in enumerate(found):
        end = found[i + 1][0] if i + 1 < len(found) else len(data)
        piece = data[start:end].decode(errors="replace").strip().lower()
        if kind != duckdb.token_type.comment and piece:
            tokens.append(_Token(start, piece))
    return tokens


def _tail(text: str, token: _Token) -> str:
    return text.encode()[token.start :].decode(errors="replace")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a syntax tree."""
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
