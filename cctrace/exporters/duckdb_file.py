"""Runs as one DuckDB database file: data, views and documentation.

Source: https://duckdb.org/docs/stable/internals/storage (storage versions and
the clients that read them).
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from cctrace.errors import EXIT_BAD_DATA, EXIT_FAILED, CctraceError
from cctrace.store.connection import comments, definitions, literal, roots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cctrace.store.run import Run

# Written for DuckDB 1.0 and later; the newest storage version would shut out
# every client older than the one that wrote the file.
_STORAGE_VERSION = "v1.0.0"


def write_duckdb(runs: Sequence[Run], path: Path) -> None:
    """Write ``runs`` to a new database file.

    Args:
        runs: Runs with labels all different.
        path: File to write; it must not exist.

    Raises:
        CctraceError: Exit code 4 where a part is damaged; 1 where the file
            cannot be written.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        },
    )
    with contextlib.closing(connection), tempfile.TemporaryDirectory() as temporary:
        paths = roots(runs, Path(temporary))
        statements = (
            f"ATTACH {literal(str(path))} AS exported (STORAGE_VERSION '{_STORAGE_VERSION}')",
            "USE exported",
            *definitions(runs, paths, as_tables=True),
            *comments(as_tables=True),
            "USE memory",
            "DETACH exported",
        )
        try:
            for statement in statements:
                connection.execute(statement).fetchall()
        except duckdb.Error as error:
            is_input = any(f"{root}/" in str(error) for root in paths.values())
            raise CctraceError(
                f"cannot {'read the run' if is_input else f'write {path}'}: {error}",
                None,
                EXIT_BAD_DATA if is_input else EXIT_FAILED,
            ) from error
