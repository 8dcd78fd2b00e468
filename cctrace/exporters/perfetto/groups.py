"""Rows with the same values in some columns, found for all rows of a table at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]


def group(table: Any, columns: Sequence[str]) -> tuple[Ints, list[dict[str, Any]]]:
    """Group rows by columns; NULL is a value of its own.

    Args:
        table: ``pyarrow.Table``.
        columns: Names of the columns.

    Returns:
        Number of each row's group, and the columns of each group, in order of the groups'
        first rows.
    """
    number = np.zeros(table.num_rows, np.int64)
    first = np.zeros(min(table.num_rows, 1), np.int64)
    for name in columns:
        values = table[name].combine_chunks().dictionary_encode()
        # Places in the dictionary, and what is left for NULL.
        place = pc.fill_null(values.indices, len(values.dictionary)).to_numpy().astype(np.int64)
        both = number * (len(values.dictionary) + 1) + place
        _, first, number = np.unique(both, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    found = table.select(columns).take(first[order]).to_pylist()
    return rank[number], found
