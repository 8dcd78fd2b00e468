"""BCC that is missing, another package of that name, or broken; programs that are wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import bpf_here
import pytest

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import frontend
from cctrace.record.bpf.headers import Headers, find_headers


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    """``sys.modules`` without BCC, put back afterwards."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "bcc"]

    kept = {name: sys.modules.pop(name) for name in ours()}
    yield sys.modules
    for name in ours():
        del sys.modules[name]
    sys.modules.update(kept)


def package(root: Path, text: str, *, whole: bool = True) -> Path:
    place = root / "bcc"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(text)
    if whole:
        (place / "libbcc.py").write_text("")
    return place


def load_from(monkeypatch: pytest.MonkeyPatch, *places: Path) -> ModuleType:
    monkeypatch.setattr(frontend, "_PLACES", places)
    return frontend.load_bcc()


@pytest.mark.usefixtures("modules")
def test_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CctraceError) as caught:
        load_from(monkeypatch, tmp_path / "gone")
    assert caught.value.message == "BCC is not installed"
    assert "apt-get install python3-bpfcc" in str(caught.value.hint)
    assert caught.value.exit_code == EXIT_UNSUPPORTED


@pytest.mark.usefixtures("modules")
def test_pypis_package_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # GIVEN a package bcc without libbcc.py, as PyPI's is, before the right one
    wrong = package(tmp_path / "pypi", "lattice = 1\n", whole=False)
    right = package(tmp_path / "debian", "class BPF: pass\n")
    # WHEN / THEN
    assert load_from(monkeypatch, wrong, right).__file__ == str(right / "__init__.py")


def test_pypis_package_that_is_imported_already(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN PyPI's in sys.modules, with a part of the name that BCC has, too
    for name in ("bcc", "bcc.table"):
        modules[name] = ModuleType(name)
    place = package(tmp_path, "from .table import RIGHT\nclass BPF: pass\n")
    (place / "table.py").write_text("RIGHT = 7\n")
    # WHEN / THEN all of the right one is loaded
    assert load_from(monkeypatch, place).RIGHT == 7
    assert frontend.load_bcc() is modules["bcc"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise OSError('libbcc.so.0: cannot open shared object file')\n", "libbcc.so.0"),
        ("import ctypes\nctypes.CDLL(None).bcc_no_such_call\n", "bcc_no_such_call"),
        ("from . import gone\n", "gone"),
        ("print 'Python 2'\n", "print"),
        ("nothing = 1\n", "is no BCC: it has no BPF"),
    ],
)
def test_broken(
    modules: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str,
    words: str,
) -> None:
    place = package(tmp_path, text)
    with pytest.raises(CctraceError) as caught:
        load_from(monkeypatch, place)
    assert words in caught.value.message
    assert str(place) in caught.value.message
    assert caught.value.hint == "apt-get install --reinstall python3-bpfcc libbpfcc"
    assert "bcc" not in modules


def test_nothing_but_bcc_comes_onto_the_path() -> None:
    bpf_here.require_compiler()
    before = list(sys.path)
    assert hasattr(frontend.load_bcc(), "BPF")
    assert sys.path == before


@pytest.fixture
def headers() -> Iterator[Headers]:
    bpf_here.require_bpf()
    with closing(find_headers()) as found:
        yield found


def compile_text(headers: Headers, folder: Path, **files: str) -> frontend.Module:
    paths = []
    for name, text in files.items():
        paths.append(folder / f"{name}.bpf.c")
        paths[-1].write_text(text)
    return frontend.Module(paths, [], headers)


def test_an_error_names_file_and_line(
    headers: Headers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN two files, of which the second is wrong in its third line
    wrong = "/* one */\n/* two */\nint broken(void *ctx) { return nobody_declared_this; }\n"
    with pytest.raises(CctraceError) as caught:
        compile_text(headers, tmp_path, sound="int fine(void *ctx) { return 0; }\n", broken=wrong)
    # THEN that place is named, with what the compiler says and the headers in use
    assert "broken.bpf.c:3:" in caught.value.message
    assert "nobody_declared_this" in caught.value.message
    assert headers.tree in str(caught.value.hint)
    assert caught.value.exit_code == EXIT_UNSUPPORTED
    # AND nothing of it goes to the terminal
    assert capfd.readouterr() == ("", "")


def test_a_program_that_the_verifier_refuses(
    headers: Headers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a program that follows a pointer nobody has checked
    text = "int unsafe(void *ctx) { return *(int *)(*(long *)ctx); }\n"
    with closing(compile_text(headers, tmp_path, unsafe=text)) as module:
        # WHEN / THEN the verifier's words are in the error
        with pytest.raises(OSError, match="the kernel refuses program unsafe: ") as caught:
            module.load("unsafe", frontend.KPROBE)
        assert str(caught.value).endswith("program unsafe: R1 invalid mem access 'scalar'")
        with pytest.raises(OSError, match="the kernel refuses program gone: "):
            module.load("gone", frontend.KPROBE)
    assert capfd.readouterr() == ("", "")


def test_environment_is_as_before(
    headers: Headers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "int fine(void *ctx) { return 0; }\n"
    for before in (None, "/somewhere"):
        if before is None:
            monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
        else:
            monkeypatch.setenv("BCC_KERNEL_SOURCE", before)
        compile_text(headers, tmp_path, fine=text).close()
        assert os.environ.get("BCC_KERNEL_SOURCE") == before
