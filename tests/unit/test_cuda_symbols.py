"""The table of probed calls: what is in it, how it is packed, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cctrace.errors import EXIT_BAD_DATA, CctraceError
from cctrace.record.bpf.cuda import symbols
from cctrace.record.bpf.cuda.symbols import SHAPES, Symbol, api_name, load, symbol_table
from cctrace.resources import resource_dir

BPF = resource_dir("probes") / "bpf"


def table(tmp_path: Path, text: str) -> symbols.SymbolTable:
    path = tmp_path / "symbols.toml"
    path.write_text(text)
    return load(path)


def symbol(name: str, version: int = 13) -> Symbol:
    return symbol_table().by_name(None, version)[name]


def test_sites_are_places_in_the_table() -> None:
    """Records carry them in twelve bits."""
    every = symbol_table().symbols
    assert [s.site for s in every] == list(range(len(every)))
    assert 280 < len(every) < symbols.MAX_SITES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cuMemcpyHtoDAsync_v2_ptsz", "cuMemcpyHtoDAsync"),
        ("cudaMemcpy_ptds", "cudaMemcpy"),
        ("cuCtxSynchronize_v2", "cuCtxSynchronize"),
        ("cuMemcpy2D_v2", "cuMemcpy2D"),
        ("ncclAllReduce", "ncclAllReduce"),
    ],
)
def test_names_for_users_have_no_version(name: str, expected: str) -> None:
    """Whichever variant was called."""
    assert api_name(name) == expected


def test_layers() -> None:
    """NCCL counts as runtime: it is called by the program, and calls the driver."""
    assert symbol("cuLaunchKernel").layer == "driver"
    assert symbol("cudaLaunchKernel").layer == "runtime"
    assert symbol("ncclAllReduce").layer == "runtime"


def test_arguments_that_moved_between_versions() -> None:
    """CUDA 13 dropped failIdx from the runtime's batches, and gave prefetches a location."""
    assert symbol("cudaMemcpyBatchAsync", 12).stream == 9
    assert symbol("cudaMemcpyBatchAsync", 13).stream == 8
    assert symbol("cudaMemPrefetchAsync_ptsz", 12).stream == 4
    assert symbol("cudaMemPrefetchAsync_ptsz", 14).stream == 5
    newest = symbol_table().by_name("cudart")["cudaMemcpyBatchAsync"]
    assert newest is symbol("cudaMemcpyBatchAsync", 13)


def test_copies_say_where_their_kind_comes_from() -> None:
    """Each is fixed, in an argument (or a structure), or left to the addresses."""
    for each in symbol_table().symbols:
        assert (each.copy_kind is not None) == (each.cls == "copy"), each
        if each.copy_kind == "argument":
            assert each.kind or each.shape in (
                "CUDA_MEMCPY2D",
                "CUDA_MEMCPY3D",
                "cudaMemcpy3DParms",
            )
        if each.memory in ("pinned_alloc", "managed_alloc"):
            assert each.out, each
        if each.memory in ("free", "unregister", "register"):
            assert each.dst, each


def test_events_are_an_argument_of_their_own() -> None:
    """Of what records one, waits for one or asks for one; launches and copies have none."""
    on_events = {s.api: s.event for s in symbol_table().symbols if s.event}
    assert on_events == {
        f"{library}{name}": position
        for library in ("cu", "cuda")
        for name, position in (
            ("EventRecord", 1),
            ("EventRecordWithFlags", 1),
            ("EventSynchronize", 1),
            ("EventQuery", 1),
            ("StreamWaitEvent", 2),
        )
    }


def test_the_number_of_the_function_that_measures_is_no_symbols() -> None:
    """It is the last that fits, and a table that is full leaves it free."""
    assert symbols.PROBE_COST_SITE == symbols.MAX_SITES == (1 << symbols.COOKIE_SITE_BITS) - 1


def test_variants_have_the_arguments_of_their_function() -> None:
    """A suffix says which default stream is meant, and nothing else."""
    by_name = symbol_table().by_name(None, 13)
    pairs = [
        (by_name[name], by_name[name.removesuffix(suffix)])
        for name in by_name
        for suffix in ("_ptds", "_ptsz")
        if name.endswith(suffix)
    ]
    assert len(pairs) > 100
    for variant, plain in pairs:
        assert variant.cookie >> 12 == plain.cookie >> 12


def test_the_cookie_is_what_the_program_unpacks() -> None:
    """Each field where the macros of the program look for it."""
    text = (BPF / "cuda_arguments.bpf.c").read_text()
    shifts = {
        name: (int(shift), int(mask, 0))
        for name, shift, mask in re.findall(
            r"#define CUDA_(\w+)\(cookie\) \(\(cookie\) >> (\d+) & (\w+)\)", text
        )
    }
    bits = {
        name: int(bit)
        for name, bit in re.findall(
            r"#define CUDA_(\w+)\(cookie\) \(\(cookie\) & 1 << (\d+)\)", text
        )
    }
    assert set(shifts) == {
        *("SHAPE", "UNIT_LOG2", "SIZE_A", "SIZE_B", "SIZE_C", "KIND", "STREAM", "DST", "SRC")
    }
    assert set(bits) == {*("IS_LAUNCH", "HAS_OUT", "STREAM_IN_CONFIG", "HAS_DATA", "HAS_ADDRESS")}
    for each in symbol_table().symbols:
        cookie = each.cookie
        assert cookie < 1 << 63
        assert cookie & 0xFFF == each.site
        found = {name: cookie >> shift & mask for name, (shift, mask) in shifts.items()}
        a, b, c = (*each.size, 0, 0, 0)[:3]
        is_address = each.cls == "copy" or each.dst or each.src or each.event
        assert found == {
            "SHAPE": list(SHAPES).index(each.shape),
            "UNIT_LOG2": {1: 0, 2: 1, 4: 2, 8: 3}[each.unit_bytes],
            "SIZE_A": a,
            "SIZE_B": b,
            "SIZE_C": c,
            "KIND": each.kind,
            "STREAM": each.stream,
            "DST": each.out or each.dst or each.event,
            "SRC": each.src,
        }
        assert {name for name, bit in bits.items() if cookie & 1 << bit} == {
            *(("IS_LAUNCH",) if each.cls in ("launch", "graph") else ()),
            *(("HAS_OUT",) if each.out else ()),
            *(("STREAM_IN_CONFIG",) if each.stream_in_config else ()),
            *(("HAS_DATA",) if is_address or each.size or each.out else ()),
            *(("HAS_ADDRESS",) if is_address else ()),
        }


def test_shapes_are_the_programs() -> None:
    """In the order of its enum."""
    text = (BPF / "cuda_arguments.bpf.c").read_text()
    body = re.search(r"enum cuda_shape \{(.*?)\};", text, re.DOTALL)
    assert body is not None
    names = re.findall(r"CUDA_SHAPE_(\w+)", body[1])
    told = [name.removeprefix("CUDA_").upper() for name in SHAPES]
    renamed = {"CUDAMEMCPY3DPARMS": "PARMS_3D", "CUDAMEMCPY3DPEERPARMS": "PEER_PARMS_3D"}
    assert names == [renamed.get(name, name) for name in told]


def test_a_line_may_be_added(tmp_path: Path) -> None:
    """Suffix in brackets, class from the table, product of two arguments."""
    added = table(
        tmp_path,
        '[cuda.copy]\n"cuNew_v7[_ptsz]" = { copy = "h2d", size = [3, 4], unit_bytes = 4 }\n',
    )
    assert [s.name for s in added.symbols] == ["cuNew_v7", "cuNew_v7_ptsz"]
    assert {s.api for s in added.symbols} == {"cuNew"}
    assert added.symbols[0].shape == "product"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[opencl.copy]\n", "unknown library opencl"),
        ("[cuda.teleport]\n", r"unknown class cuda\.teleport"),
        ("cuda = 3\n", "unknown library cuda"),
        ("[cuda.sync]\ncuX = 3\n", "cuX: not a table"),
        ('[cuda.sync]\n"cu X" = {}\n', "cu X: not a symbol"),
        ("[cuda.sync]\ncuX = { steam = 1 }\n", "cuX: unknown key steam"),
        ("[cuda.sync]\ncuX = { stream = 0 }\n", "stream is an argument's number"),
        ("[cuda.sync]\ncuX = { stream = 16 }\n", "stream is an argument's number"),
        ("[cuda.sync]\ncuX = { stream = true }\n", "stream is an argument's number"),
        ("[cuda.sync]\ncuX = { size = [1, 2, 3, 4] }\n", "shape product takes 1 to 3"),
        ('[cuda.sync]\ncuX = { size = 1, shape = "pile" }\n', "unknown shape pile"),
        ("[cuda.copy]\ncuX = { size = 3 }\n", "copies, and only they"),
        ('[cuda.sync]\ncuX = { copy = "h2d" }\n', "copies, and only they"),
        ("[cuda.memset]\ncuX = { size = 3, unit_bytes = 3 }\n", "unit_bytes is 1, 2, 4 or 8"),
        ('[cuda.alloc]\ncuX = { memory = "stolen" }\n', "unknown memory stolen"),
        ("[cuda.alloc]\ncuX = { out = 1, dst = 2 }\n", "out or dst, not both"),
        ("[cuda.event]\ncuX = { event = 16 }\n", "event is an argument's number"),
        ("[cuda.event]\ncuX = { event = 1, dst = 2 }\n", "an event, or addresses and a size"),
        ("[cuda.event]\ncuX = { event = 1, size = 2 }\n", "an event, or addresses and a size"),
        ('[cuda.alloc]\ncuX = { size = [8, 9], shape = "pitched_3d" }\n', "needs out"),
        ('[cuda.launch]\ncuX = { stream = 1, stream_in = "bed" }\n', "unknown stream_in bed"),
        ("[cuda.sync]\ncuX = {}\n[cuda.event]\ncuX = {}\n", "cuX is there twice"),
        ("[cuda.sync]\ncuX = [{ until = 13 }, { since = 12 }]\n", "cuX is there twice"),
        ('[cuda.sync]\ncuX = { since = "13" }\n', "since is a number"),
        ("[cuda.sync\n", "symbols.toml"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, text: str, said: str) -> None:
    """With the function and what is wrong."""
    with pytest.raises(CctraceError, match=said) as caught:
        table(tmp_path, text)
    assert caught.value.exit_code == EXIT_BAD_DATA
    assert "symbols.toml" in caught.value.message


def test_versions_that_follow_each_other_are_no_doubles(tmp_path: Path) -> None:
    """The one ends where the other begins."""
    added = table(tmp_path, "[cuda.sync]\ncuX = [{ since = 13, stream = 1 }, { until = 13 }]\n")
    assert added.by_name("cuda", 12)["cuX"].stream == 0
    assert added.by_name("cuda", 13)["cuX"].stream == 1
