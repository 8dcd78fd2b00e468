"""Reports on the three bounce paths, over rows small enough to check by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bulk_rows import MIB, MS, T0, S, attached, copy, found, only, steps
from query_rows import Row
from runs import make_run

import cctrace

if TYPE_CHECKING:
    from pathlib import Path

REPORTS = (
    "bounce_paths",
    "kv_restore",
    "model_load",
    "page_conversion_storms",
    "speculative_crossings",
    "swiotlb_pressure",
)


def test_an_empty_run_says_that_nothing_was_recorded(tmp_path: Path) -> None:
    with cctrace.open(make_run(tmp_path)) as session:
        for report in REPORTS:
            for _, answer, evidence, *_ in session.report(report).fetchall():
                assert answer == "unknown", report
                assert "not recorded" in evidence or "no steps" in evidence, report


def test_runs_are_told_apart(tmp_path: Path) -> None:
    """Each has its rows, whatever the others hold."""
    one = make_run(tmp_path, "one", nvtx=steps(T0, MS, 7), cuda_api=[copy(T0, 10, 5)])
    two = make_run(tmp_path, "two")
    with cctrace.open(one, two) as both, cctrace.open(two) as alone:
        for report in REPORTS:
            rows = both.report(report).fetchall()
            assert sorted({row[0] for row in rows}) == ["one", "two"], report
            assert [row for row in rows if row[0] == "two"] == alone.report(report).fetchall()


# swiotlb_pressure


def bounce(op: str, size: int, dur_ns: int | None = 10, **more: Any) -> Row:
    return {
        "ts_ns": T0,
        "dur_ns": dur_ns,
        "op": op,
        "device": "0000:00:04.0",
        "direction": "to_device",
        "size_bytes": size,
        **more,
    }


def sample(name: str, value: float, ts_ns: int = T0, **more: Any) -> Row:
    return {
        "ts_ns": ts_ns,
        "pid": None,
        "tid": None,
        "name": name,
        "value": value,
        "unit": "bytes",
    } | more


def pool(capacity: int, used: list[int], hiwater: list[int]) -> list[Row]:
    return [
        sample("swiotlb.capacity", capacity),
        *[sample("swiotlb.used", value, T0 + i) for i, value in enumerate(used)],
        *[sample("swiotlb.used_hiwater", value, T0 + i) for i, value in enumerate(hiwater)],
    ]


def test_a_pool_that_runs_out_is_told_from_a_mapping_too_large(tmp_path: Path) -> None:
    # GIVEN mappings that found room, one refused at the limit of a mapping and two beyond it
    rows = [
        bounce("map", 4096, 70),
        bounce("bounce", 4096, 50),
        bounce("map", 8192, 90, device="0000:00:05.0", direction="from_device"),
        bounce("bounce", 8192, 60, direction="from_device"),
        bounce("full", 256 << 10, ts_ns=T0 + 5),
        bounce("full", (256 << 10) + 1),
        bounce("full", 2 << 20),
    ]
    run = make_run(tmp_path, swiotlb=rows)
    row = only(run, "swiotlb_pressure")
    assert row["answer"] == "yes"
    assert (row["full"], row["over_size"], row["first_full_ns"]) == (1, 2, T0 + 5)
    assert (row["maps"], row["mapped_bytes"], row["devices"]) == (2, 12_288, 2)
    assert (row["map_ns"], row["map_p50_ns"], row["map_max_ns"]) == (160, 70, 90)
    assert (row["bounced_bytes"], row["bounce_ns"]) == (12_288, 110)
    assert row["bounced_per_s"] == pytest.approx(12_288 / 2.5)  # a run of 2.5 s
    assert row["evidence"] == (
        "1 mapping(s) were refused for want of room, of 5; 2 were refused because they exceed "
        "256 KiB, which no pool holds"
    )
    # A larger pool would not help those alone.
    run = make_run(tmp_path, "large", swiotlb=[bounce("map", 4096), bounce("full", 2 << 20)])
    row = only(run, "swiotlb_pressure")
    assert (row["answer"], row["full"], row["over_size"]) == ("no", 0, 1)


def test_a_pool_that_is_nearly_full(tmp_path: Path) -> None:
    maps = [bounce("map", 4096), bounce("bounce", 4096)]
    # GIVEN high-water marks that rose during the run, and one that is the boot's
    risen = make_run(
        tmp_path, "risen", swiotlb=maps, counters=pool(64 * MIB, [MIB, 3 * MIB], [MIB, 60 * MIB])
    )
    boots = make_run(
        tmp_path, "boots", swiotlb=maps, counters=pool(64 * MIB, [MIB, 3 * MIB], [60 * MIB] * 2)
    )
    row = only(risen, "swiotlb_pressure")
    assert (row["answer"], row["used_bytes"], row["hiwater_bytes"]) == ("yes", 3 * MIB, 60 * MIB)
    assert row["capacity_bytes"] == 64 * MIB
    assert row["used_ratio"] == pytest.approx(60 / 64)
    assert row["evidence"] == (
        "1 mapping(s) of 0.0 MB found room; at most 62.9 of 67.1 MB were in use (94%)"
    )
    assert only(risen, "swiotlb_pressure", min_ratio=0.95)["answer"] == "no"
    row = only(boots, "swiotlb_pressure")
    assert (row["answer"], row["hiwater_bytes"]) == ("no", None)
    assert row["used_ratio"] == pytest.approx(3 / 64)
    assert row["evidence"].endswith("at most 3.1 of 67.1 MB were in use (5%, as far as sampled)")


def test_the_tracepoint_alone_does_not_tell_refusals(tmp_path: Path) -> None:
    maps = [bounce("map", 4096, None, direction=None), bounce("map", 13, None, direction=None)]
    row = only(make_run(tmp_path, "a", swiotlb=maps), "swiotlb_pressure")
    assert (row["answer"], row["full"], row["over_size"]) == ("unknown", None, None)
    assert (row["maps"], row["mapped_bytes"], row["bounced_bytes"]) == (2, 4109, None)
    # A mark that was never high says that there was room; one that was may be of any time.
    low = make_run(tmp_path, "b", swiotlb=maps, counters=pool(64 * MIB, [MIB], [MIB, MIB]))
    assert only(low, "swiotlb_pressure")["answer"] == "no"
    high = make_run(tmp_path, "c", swiotlb=maps, counters=pool(64 * MIB, [MIB], [63 * MIB]))
    assert only(high, "swiotlb_pressure")["answer"] == "unknown"


def test_nothing_bounced_is_an_answer_where_it_was_looked_for(tmp_path: Path) -> None:
    row = only(make_run(tmp_path, manifest=attached("cuda", "swiotlb")), "swiotlb_pressure")
    assert (row["answer"], row["evidence"], row["full"]) == ("no", "nothing was bounced", 0)


# page_conversion_storms


def conversion(ts_ns: int, dur_ns: int | None = 3000, to: str = "shared", pages: int = 2) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "to": to, "pages": pages}


def test_conversions_in_bursts_while_serving(tmp_path: Path) -> None:
    # GIVEN 4 s of steps: 11 conversions in the second of the seconds, 10 in the third, 9 in the
    # last; some before the first step, one of them at its start, and some after the last
    at = [T0 + S + i * 90 * MS for i in range(11)]
    at += [T0 + 2 * S + i for i in range(10)] + [T0 + 4 * S - 1 - i for i in range(9)]
    rows = [conversion(ts, to="private" if i % 2 else "shared") for i, ts in enumerate(at)]
    rows += [conversion(T0 - 1 - i, 100, pages=512) for i in range(3)]
    rows += [conversion(T0 + 4 * S + i) for i in range(20)]
    run = make_run(
        tmp_path,
        manifest=attached("page_conversion", tee={"kind": "tdx"}),
        nvtx=steps(T0, 100 * MS, 40),
        page_conversion=rows,
    )
    row = only(run, "page_conversion_storms")
    assert (row["answer"], row["storms"], row["worst"]) == ("yes", 2, 11)
    assert (row["serving_ns"], row["conversions"], row["to_shared"]) == (4 * S, 30, 15)
    assert (row["pages"], row["total_ns"]) == (60, 90_000)
    assert row["total_ratio"] == pytest.approx(90_000 / (4 * S))
    assert (row["worst_pages"], row["worst_ns"], row["worst_at_ns"]) == (22, 33_000, T0 + S)
    assert (row["before"], row["before_pages"], row["before_ns"]) == (3, 1536, 300)
    assert row["evidence"] == (
        "30 conversion(s) of 0.2 MB while serving, in 2 burst(s): up to 11 in 1.0 s; "
        "they took 0.1 ms"
    )
    calm = only(run, "page_conversion_storms", min_conversions=12)
    assert (calm["answer"], calm["storms"]) == ("no", 0)
    assert calm["evidence"] == (
        "30 conversion(s) in 4.0 s of serving, never more than 11 in 1.0 s; 3 came before"
    )
    # Two seconds at once hold them all but the last nine.
    wide = only(run, "page_conversion_storms", window_ns=2 * S)
    assert (wide["worst"], wide["storms"], wide["worst_at_ns"]) == (19, 2, T0 + 2 * S)


def test_conversions_that_say_nothing(tmp_path: Path) -> None:
    rows = [conversion(T0 + i, None) for i in range(13)]
    nvtx = steps(T0, S, 3)
    # Without steps, start-up and serving are one.
    row = only(make_run(tmp_path, "a", page_conversion=rows), "page_conversion_storms")
    assert (row["answer"], row["before"], row["conversions"]) == ("unknown", 13, 0)
    # Outside of a confidential guest they do nothing.
    none = attached(tee={"kind": "none"})
    run = make_run(tmp_path, "b", manifest=none, nvtx=nvtx, page_conversion=rows)
    row = only(run, "page_conversion_storms")
    assert (row["answer"], row["storms"], row["total_ns"]) == ("no", 1, None)
    # None at all, where they were looked for.
    run = make_run(tmp_path, "c", manifest=attached("page_conversion"), nvtx=nvtx)
    row = only(run, "page_conversion_storms")
    assert (row["answer"], row["conversions"], row["worst_at_ns"]) == ("no", 0, None)
    # One whose length is not known.
    run = make_run(tmp_path, "d", nvtx=nvtx, page_conversion=rows)
    row = only(run, "page_conversion_storms")
    assert row["answer"] == "yes"
    assert row["evidence"].endswith("how long they took is not known")


# bounce_paths


def crypto(direction: str, size: int, dur_ns: int | None, ts_ns: int = T0) -> Row:
    return {"ts_ns": ts_ns, "dur_ns": dur_ns, "direction": direction, "size_bytes": size}


def test_the_three_paths_are_kept_apart(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        manifest=attached("swiotlb", "uvm_crypto", "ioctl"),
        swiotlb=[
            bounce("map", 4096, 60, ts_ns=T0 + 7),
            bounce("bounce", 4096, 40),
            bounce("map", 8192, 20, direction="from_device"),
            bounce("bounce", 8192, 10),
            bounce("bounce", 8192, 30, direction="from_device"),
            bounce("sync", 8192, 31, direction="from_device"),
            bounce("full", 4096),
        ],
        uvm_crypto=[
            crypto("encrypt", 2 * MIB, 1000, T0 + 3),
            crypto("encrypt", 4096, None),
            crypto("decrypt", 4096, 500),
        ],
        counters=[
            sample("get_kmb", 1, T0, pid=100, unit="requests"),
            sample("get_kmb", 3, T0 + 5, pid=100, unit="requests"),
            sample("get_kmb", 2, T0, pid=200, unit="requests"),
        ],
    )
    swiotlb, libcuda, uvm = found(run, "bounce_paths")
    assert {row["answer"] for row in (swiotlb, libcuda, uvm)} == {"yes"}
    assert swiotlb["evidence"] == (
        "swiotlb: 0.0 MB in 2 mapping(s), 0.0 ms; libcuda: not recorded (5 request(s) for keys: it "
        "encrypts); nvidia-uvm: 2.1 MB in 3 call(s), 0.0 ms"
    )
    figures = ("state", "operations", "bytes", "to_device", "from_device", "copy_ns", "keys")
    assert [swiotlb[name] for name in figures] == ["recorded", 2, 12_288, 4096, 8192, 80, None]
    # Copied: 4096 in 40 ns, and 8192 twice in 10 and 30.
    assert swiotlb["gb_per_s"] == pytest.approx(20_480 / 80)
    assert swiotlb["first_ns"] == T0
    assert [libcuda[name] for name in figures] == ["not recorded", *[None] * 5, 5]
    size = 2 * MIB + 8192
    assert [uvm[name] for name in figures] == [
        *("recorded", 3, size, 2 * MIB + 4096, 4096, 1500, None)
    ]
    assert uvm["gb_per_s"] == pytest.approx((2 * MIB + 4096) / 1500)


def test_no_bounce_is_an_answer_where_all_were_looked_for(tmp_path: Path) -> None:
    every = attached("swiotlb", "uvm_crypto", "user_crypto")
    rows = found(make_run(tmp_path, "a", manifest=every), "bounce_paths")
    assert {(row["answer"], row["state"], row["bytes"]) for row in rows} == {("no", "recorded", 0)}
    assert [row["keys"] for row in rows] == [None] * 3
    some = attached("swiotlb", "user_crypto", "ioctl")
    rows = found(make_run(tmp_path, "b", manifest=some), "bounce_paths")
    assert [(row["answer"], row["state"]) for row in rows] == [
        *[("unknown", "recorded")] * 2,
        ("unknown", "not recorded"),
    ]
    assert [row["keys"] for row in rows] == [None, 0, None]
    # By the tracepoint alone nothing is known of directions and times.
    maps = [bounce("map", 4096, None, direction=None)]
    first = found(make_run(tmp_path, "c", swiotlb=maps), "bounce_paths")[0]
    assert (first["answer"], first["bytes"], first["to_device"]) == ("yes", 4096, None)
    assert (first["copy_ns"], first["gb_per_s"]) == (None, None)
