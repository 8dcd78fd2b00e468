"""The dictionary log: read as it grows, stopped for good at what makes no sense."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from fake_agent import dict_entry
from hypothesis import given, settings

from cctrace.record import layout
from cctrace.record.dictionary import ProcessKeys, RunKeys

TEXT = layout.DICT_HAS_TEXT


def key_entry(ident: int, name: bytes, domain: int = 0, category: int = 0) -> bytes:
    """A KEY entry with a message."""
    return dict_entry(layout.DICT_KEY, ident, domain, category, 0, TEXT, name)


def names(keys: ProcessKeys, run: RunKeys, used: list[int]) -> list[str | None]:
    """Messages of events with these keys."""
    indices, _ = keys.run_keys(np.array(used, np.uint32))
    read: list[str | None] = run.columns(indices).name.to_pylist()
    return read


def test_two_processes_share_the_keys_of_the_run() -> None:
    """The same combination has one index, whatever each process calls it."""
    run = RunKeys()
    first, second = ProcessKeys(run), ProcessKeys(run)
    first.feed(key_entry(1, b"a") + key_entry(2, b"b"))
    second.feed(key_entry(1, b"b") + key_entry(2, b"c") + key_entry(3, b"a"))
    assert first.run_keys(np.array([0, 1, 2], np.uint32))[0].tolist() == [0, 1, 2]
    assert second.run_keys(np.array([0, 1, 2, 3], np.uint32))[0].tolist() == [0, 2, 3, 1]


def test_columns_hold_only_the_strings_that_occur() -> None:
    """A part does not carry the names of the whole run, nor one name twice."""
    run = RunKeys()
    keys = ProcessKeys(run)
    domain = dict_entry(layout.DICT_DOMAIN, 1, 0, 0, 0, 0, b"d")
    keys.feed(domain + b"".join(key_entry(i, b"n%d" % i) for i in range(1, 98)))
    keys.feed(key_entry(98, b"n7", domain=1))
    indices, unknown = keys.run_keys(np.array([7, 98, 7, 31, 0], np.uint32))
    columns = run.columns(indices)
    assert unknown == 0
    assert columns.name.to_pylist() == ["n7", "n7", "n7", "n31", None]
    assert sorted(columns.name.dictionary.to_pylist()) == ["n31", "n7"]
    assert columns.domain.to_pylist() == [None, "d", None, None, None]
    assert columns.color.type == pa.uint32()
    assert columns.color.null_count == 5


def test_no_events_have_no_strings() -> None:
    """Columns of nothing are empty and of the right type."""
    columns = RunKeys().columns(np.zeros(0, np.int32))
    assert len(columns.name) == len(columns.color) == 0
    assert columns.category.type == pa.dictionary(pa.int32(), pa.string())


def test_domain_and_category_without_names_are_shown_by_number() -> None:
    """A key that names an unregistered domain is kept."""
    run = RunKeys()
    keys = ProcessKeys(run)
    keys.feed(key_entry(1, b"a", domain=9, category=4))
    columns = run.columns(keys.run_keys(np.array([1], np.uint32))[0])
    assert (columns.domain.to_pylist(), columns.category.to_pylist()) == (["domain 9"], ["4"])


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 65535])
def test_entries_are_read_across_feeds_whatever_their_padding(size: int) -> None:
    """Text of every padding, fed entry by entry and all at once."""
    entries = [key_entry(i, b"%d" % i + b"x" * (size - 1)) for i in (1, 2, 3)]
    for feeds in (entries, [b"".join(entries)], [entries[0], entries[1] + entries[2]]):
        run = RunKeys()
        keys = ProcessKeys(run)
        for log in feeds:
            keys.feed(log)
        assert keys.offset == sum(map(len, entries))
        assert names(keys, run, [1, 2, 3]) == [f"{i}" + "x" * (size - 1) for i in (1, 2, 3)]
        assert keys.bad == 0


BROKEN = {
    "type 0": dict_entry(0, 2, 0, 0, 0, TEXT, b"b"),
    "type 5": dict_entry(5, 2, 0, 0, 0, TEXT, b"b"),
    "a number skipped": key_entry(3, b"b"),
    "a number again": key_entry(1, b"b"),
    "text too long": dict_entry(layout.DICT_KEY, 2, 0, 0, 0, TEXT, b"b" * 65536),
    "text beyond the head": key_entry(2, b"b" * 100)[:-8],
    "half an entry": key_entry(2, b"")[:24],
    "size of 2^32-1": key_entry(2, b"")[:24] + b"\xff\xff\xff\xff" + bytes(4),
}


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN.keys())
def test_entry_that_makes_no_sense_ends_the_reading(bad: bytes) -> None:
    """What was read stays, what follows is not guessed at, and it is counted once."""
    run = RunKeys()
    keys = ProcessKeys(run)
    keys.feed(key_entry(1, b"a") + bad)
    keys.feed(key_entry(2, b"c"))
    assert keys.bad == 1
    assert keys.run_keys(np.array([2], np.uint32))[1] == 1
    assert names(keys, run, [1]) == ["a"]
    # The offset goes on: a broken log is not copied out again at every flush.
    assert keys.offset == len(key_entry(1, b"a") + bad + key_entry(2, b"c"))


def test_renaming_a_category_of_many_keys_many_times_is_not_quadratic() -> None:
    """20,011 keys and as many names of their category take seconds at the very most."""
    run = RunKeys()
    keys = ProcessKeys(run)
    count = 20011
    log = [key_entry(i, b"n%d" % i, category=1) for i in range(1, count + 1)]
    log += [dict_entry(layout.DICT_CATEGORY, 1, 0, 0, 0, 0, b"c%d" % i) for i in range(count)]
    begun_s = time.process_time()
    keys.feed(b"".join(log))
    assert time.process_time() - begun_s < 10
    columns = run.columns(keys.run_keys(np.array([1, count], np.uint32))[0])
    assert columns.category.to_pylist() == [f"c{count - 1}"] * 2


@settings(deadline=None)
@given(st.lists(st.binary(max_size=97), max_size=7))
def test_arbitrary_bytes_never_raise(feeds: list[bytes]) -> None:
    """Any log is read or refused; keys resolve afterwards."""
    run = RunKeys()
    keys = ProcessKeys(run)
    for log in feeds:
        keys.feed(log)
    assert keys.bad in (0, 1)
    indices, _ = keys.run_keys(np.arange(99, dtype=np.uint32))
    assert len(run.columns(indices).name) == 99


WORDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 1, 1, 2, 3, 4]), st.integers(0, 9), WORDS, WORDS, WORDS, WORDS
        ),
        max_size=31,
    ),
    st.binary(max_size=31),
)
def test_arbitrary_entries_never_raise(
    entries: list[tuple[int, int, int, int, int, int]], text: bytes
) -> None:
    """Well-formed entries with any numbers in them; keys numbered as they must be."""
    run = RunKeys()
    keys = ProcessKeys(run)
    number = 0
    for kind, ident, *rest in entries:
        number += kind == layout.DICT_KEY
        chosen = number if kind == layout.DICT_KEY else ident
        domain, category, color, flags = rest
        keys.feed(dict_entry(kind, chosen, domain, category, color, flags, text))
    assert keys.bad == 0
    indices, unknown = keys.run_keys(np.arange(number + 1, dtype=np.uint32))
    assert unknown == 0
    columns = run.columns(indices)
    expected = text.decode("utf-8", "replace")
    assert set(columns.name.to_pylist()) <= {None, expected}
