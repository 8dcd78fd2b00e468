"""The ledger: every loss counted once, whatever thread adds and however many there are."""

from __future__ import annotations

import threading

from cctrace.record import layout, losses
from cctrace.record.losses import LossLedger
from cctrace.schema import TABLES


def test_times_widen_and_counts_add_up() -> None:
    """First is the least, last the greatest; unknown times change nothing."""
    ledger = LossLedger()
    ledger.add("nvtx", "ring_full", 3, pid=2, tid=5, first_ns=50, last_ns=60)
    ledger.add("nvtx", "ring_full", 5, pid=2, tid=5, first_ns=40, last_ns=45)
    ledger.add("nvtx", "ring_full", 7, pid=2, tid=5)
    ledger.add("nvtx", "ring_full", 0, pid=9)
    ledger.add("nvtx", "ring_full", -1, pid=9)
    assert ledger.table().to_pylist() == [
        {
            "pid": 2,
            "tid": 5,
            "source": "nvtx",
            "reason": "ring_full",
            "count": 15,
            "first_ns": 40,
            "last_ns": 60,
        }
    ]


def test_rows_are_in_numeric_order_unknown_first() -> None:
    """Pid 10 comes after 9, and what is nobody's before both."""
    ledger = LossLedger()
    for pid, tid in ((10, 1), (9, 11), (9, 2), (None, None), (9, None)):
        ledger.add("nvtx", "ring_full", 1, pid=pid, tid=tid)
    rows = [(row["pid"], row["tid"]) for row in ledger.table().to_pylist()]
    assert rows == [(None, None), (9, None), (9, 2), (9, 11), (10, 1)]


def test_only_lost_events_are_lost_events() -> None:
    """Poorer events and oddities are told by reason but are no lost events."""
    ledger = LossLedger()
    for i, reason in enumerate(sorted(losses.NOT_EVENTS)):
        ledger.add("nvtx", reason, i + 1)
    assert ledger.lost_events() == 0
    for reason in ("ring_full", "stack_overflow", "reentrant", "no_slot", "bad_record"):
        ledger.add("nvtx", reason, 7)
    ledger.add("recorder", "disk_full", 11)
    assert ledger.lost_events() == 46
    assert ledger.by_reason()["no_slot"] == 7
    assert set(layout.LOSS_REASONS) & losses.NOT_EVENTS == {
        "string_table_full",
        "truncated_string",
        "unmatched_pop",
    }


def test_counts_stop_at_what_the_table_can_hold() -> None:
    """Absurd counts from the target cannot make the table unwritable."""
    ledger = LossLedger()
    for _ in range(3):
        ledger.add("nvtx", "ring_full", 1 << 63, pid=1)
    assert ledger.table().to_pylist()[0]["count"] == (1 << 63) - 1


def test_threads_without_end_do_not_fill_the_memory() -> None:
    """Beyond some thousands, losses are counted without pid and tid, none left out."""
    ledger = LossLedger()
    added = losses._MAX_ENTRIES + 1009
    for tid in range(added):
        ledger.add("nvtx", "bad_record", 1, pid=1, tid=tid)
    table = ledger.table()
    assert table.num_rows == losses._MAX_ENTRIES + 1
    assert table.to_pylist()[0] | {"source": "nvtx"} == {
        "pid": None,
        "tid": None,
        "source": "nvtx",
        "reason": "bad_record",
        "count": 1009,
        "first_ns": None,
        "last_ns": None,
    }
    assert ledger.lost_events() == added


def test_threads_add_at_the_same_time() -> None:
    """Four threads adding 5,003 each make 20,012."""
    ledger = LossLedger()

    def add() -> None:
        for _ in range(5003):
            ledger.add("nvtx", "ring_full", 1, pid=1, first_ns=3, last_ns=4)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.by_reason() == {"ring_full": 20012}


def test_empty_ledger_is_an_empty_table_of_the_schema() -> None:
    """Nothing lost is a table, too."""
    assert LossLedger().table().equals(TABLES["losses"].arrow.empty_table())
