"""The simulated device exports CUDA's own ABI, each function its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simcuda_build import LIBRARIES, ROOT, simcuda_environment, simcuda_library_dir

PUSH_RBP = 0x55


def _names(text: str, *suffixes: str) -> list[str]:
    """Names, each with every suffix; {a,b} in a name stands for either."""
    names = []
    for word in text.split():
        parts = [""]
        for plain, choice in re.findall(r"([^{]+)|\{([^}]*)\}", word):
            parts = [p + c for p in parts for c in ([plain] if plain else choice.split(","))]
        names += [part + suffix for part in parts for suffix in ("", *suffixes)]
    return names


# What a tracer of CUDA looks for, from the headers of CUDA 12.8 and 13 and of NCCL 2:
# calls that copy, allocate, launch, synchronise.
DRIVER = [
    *_names(
        "cuMemcpy{HtoD,DtoH,DtoD,HtoA,AtoH}_v2 cuMemcpy cuMemcpyPeer cuMemcpy3DPeer "
        "cuMemcpy{2D,2DUnaligned,3D}_v2 cuMemsetD{8,16,32}_v2 cuMemsetD2D{8,16,32}_v2",
        "_ptds",
    ),
    *_names(
        "cuMemcpy{HtoD,DtoH,DtoD,HtoA,AtoH}Async_v2 cuMemcpyAsync cuMemcpyPeerAsync "
        "cuMemcpy3DPeerAsync cuMemcpy{2D,3D}Async_v2 cuMemcpy{,3D}BatchAsync{,_v2} "
        "cuMemcpy{,3D}WithAttributesAsync cuMemsetD{8,16,32}Async cuMemsetD2D{8,16,32}Async "
        "cuMemAllocAsync cuMemAllocFromPoolAsync cuMemFreeAsync cuMemPrefetchAsync{,_v2} "
        "cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel cuGraphLaunch "
        "cuLaunchHostFunc{,_v2} cuStreamSynchronize cuStreamQuery cuStreamWaitEvent "
        "cuEventRecord{,WithFlags} cuStreamWaitValue{32,64}_v2",
        "_ptsz",
    ),
    *_names(
        "cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemFree_v2 cuMemCreate cuMemMap cuMemAllocManaged "
        "cuMemHostAlloc cuMemAllocHost_v2 cuMemFreeHost cuMemHostRegister_v2 "
        "cuMemHostUnregister cuEventSynchronize cuEventQuery cuCtxSynchronize{,_v2} "
        "cuGetProcAddress{,_v2} cuGraphAddMemcpyNode"
    ),
]
RUNTIME = [
    *_names(
        "cudaMemcpy cudaMemcpy2D cudaMemcpy3D cudaMemcpy3DPeer cudaMemcpy{To,From}Symbol "
        "cudaMemset cudaMemset2D cudaMemset3D",
        "_ptds",
    ),
    *_names(
        "cudaMemcpyAsync cudaMemcpy2DAsync cudaMemcpy3DAsync cudaMemcpy3DPeerAsync "
        "cudaMemcpy{To,From}SymbolAsync cudaMemcpy{,3D}BatchAsync "
        "cudaMemcpy{,3D}WithAttributesAsync cudaMemsetAsync cudaMemset2DAsync "
        "cudaMemset3DAsync cudaMallocAsync cudaMallocFromPoolAsync cudaFreeAsync "
        "cudaLaunchKernel cudaLaunchKernelExC cudaLaunchCooperativeKernel cudaGraphLaunch "
        "cudaLaunchHostFunc cudaStreamSynchronize cudaStreamWaitEvent cudaEventRecord "
        "cudaMemPrefetchAsync",
        "_ptsz",
    ),
    *_names(
        "cudaMemcpyPeer cudaMemcpyPeerAsync cudaMalloc cudaMallocHost cudaMallocManaged "
        "cudaMallocPitch cudaMalloc3D cudaHostAlloc cudaHostRegister cudaHostUnregister "
        "cudaFree cudaFreeHost cudaEventSynchronize cudaDeviceSynchronize cudaGetLastError "
        "cudaGraphAddMemcpyNode{,1D}"
    ),
]
NCCL = _names(
    "ncclAllReduce ncclAllGather ncclReduceScatter ncclBroadcast ncclReduce ncclSend "
    "ncclRecv ncclGroupStart ncclGroupEnd ncclCommInitRank ncclCommInitAll "
    "ncclGetUniqueId ncclCommDestroy"
)
EXPECTED = dict(zip(LIBRARIES, (DRIVER, RUNTIME, NCCL), strict=True))


def _exports(library: Path) -> dict[str, int]:
    """Exported functions and where they begin in the file's address space."""
    if shutil.which("nm") is None:
        pytest.skip("no nm: apt-get install binutils")
    text = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in text.splitlines()]
    return {row[2].split("@")[0]: int(row[0], 16) for row in rows if row[1] == "T"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_function_is_exported_at_an_address_of_its_own(name: str) -> None:
    # GIVEN what a library exports
    exports = _exports(simcuda_library_dir() / name)
    # WHEN / THEN nothing that is traced is missing, and nothing shares an address
    assert sorted(set(EXPECTED[name]) - set(exports)) == []
    assert len(set(exports.values())) == len(exports)


@pytest.mark.parametrize("name", LIBRARIES)
def test_functions_begin_as_nvidias_do(name: str) -> None:
    # GIVEN the first byte of each traced function (text is mapped as it lies in the file)
    library = simcuda_library_dir() / name
    data = library.read_bytes()
    exports = _exports(library)
    # WHEN / THEN it is push %rbp
    assert [n for n in EXPECTED[name] if data[exports[n]] != PUSH_RBP] == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_are_named_as_nvidias_and_need_only_libc(name: str) -> None:
    # GIVEN the dynamic section
    if shutil.which("readelf") is None:
        pytest.skip("no readelf: apt-get install binutils")
    text = subprocess.run(
        ["readelf", "-d", simcuda_library_dir() / name], check=True, capture_output=True, text=True
    ).stdout
    # WHEN / THEN the runtime and NCCL find the driver by dlopen
    assert f"soname: [{name}]" in text
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert [n for n in needed if not n.startswith(("libc.", "ld-linux", "libpthread"))] == []


POINTERS = r"""
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
def address(symbol):
    try:
        return ctypes.cast(getattr(cuda, symbol), ctypes.c_void_p).value
    except AttributeError:
        return None
def asked(base, version, flags):
    found, status = ctypes.c_void_p(), ctypes.c_int()
    result = cuda.cuGetProcAddress_v2(base.encode(), ctypes.byref(found), version,
                                      ctypes.c_uint64(flags), ctypes.byref(status))
    return found.value if result == 0 else (result, status.value)
"""


def _python(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text],
        env=simcuda_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_cu_get_proc_address_gives_the_exported_symbols() -> None:
    # GIVEN a function by its plain name, and which symbol a version and stream mean
    cases = [
        ("cuMemcpyHtoD", 13000, 1, "cuMemcpyHtoD_v2"),
        ("cuMemcpyHtoD", 13000, 2, "cuMemcpyHtoD_v2_ptds"),
        ("cuMemcpyHtoDAsync", 13000, 2, "cuMemcpyHtoDAsync_v2_ptsz"),
        ("cuLaunchKernel", 12000, 0, "cuLaunchKernel"),
        ("cuLaunchKernel", 12000, 2, "cuLaunchKernel_ptsz"),
        ("cuMemcpyBatchAsync", 12080, 0, "cuMemcpyBatchAsync"),
        ("cuMemcpyBatchAsync", 13000, 0, "cuMemcpyBatchAsync_v2"),
        ("cuCtxSynchronize", 12000, 0, "cuCtxSynchronize"),
        ("cuMemAlloc", 13000, 2, "cuMemAlloc_v2"),
        ("cuMemcpyHtoD_v2", 13000, 0, "cuMemcpyHtoD_v2"),
    ]
    # WHEN it is asked for
    done = _python(
        POINTERS + f"for b, v, f, s in {cases!r}: assert asked(b, v, f) == address(s), (b, v, f)\n"
        "print(asked('cuNoSuchThing', 13000, 0))\n"
        "table = ctypes.c_void_p(1)\n"
        "print(cuda.cuGetExportTable(ctypes.byref(table), b'0' * 16), table.value)\n"
    )
    # THEN the pointer is dlsym's, what there is none of is an error, and so are NVIDIA's tables
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(500, 1)", "500 None"]


def test_headers_with_the_project_compile_without_the_compilers_wheel(tmp_path: Path) -> None:
    # GIVEN a C program that uses the runtime's own header, with the one file it lacks
    source = tmp_path / "program.c"
    source.write_text(
        "#include <cuda_runtime_api.h>\n"
        "int main(void) { int n = 0; return cudaGetDeviceCount(&n) != cudaSuccess || n != 8; }\n"
    )
    include = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cuda_include.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    library = simcuda_library_dir() / "libcudart.so.13"
    program = tmp_path / "program"
    compat = ROOT / "examples" / "simcuda" / "compat"
    # WHEN it is compiled, linked with the runtime and run
    subprocess.run(
        ["gcc", "-isystem", include, "-isystem", compat, "-o", program, source, library],
        check=True,
    )
    done = subprocess.run([program], env=simcuda_environment(), check=False, timeout=60)
    # THEN it finds its devices
    assert done.returncode == 0
