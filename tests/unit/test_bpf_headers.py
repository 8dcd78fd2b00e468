"""Kernel headers as distributions lay them out, and the choice among them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cctrace.errors import EXIT_UNSUPPORTED, CctraceError
from cctrace.record.bpf import headers
from cctrace.record.bpf.headers import find_headers

RELEASE = "6.18.44-made-up"
SHARED = ("include/linux/kconfig.h", "arch/x86/include/asm/ptrace.h", "include/linux/types.h")
OWN = ("include/generated/autoconf.h", "arch/x86/include/generated/asm/unistd.h", "Makefile")


class Machine:
    """A made-up /usr/src, /lib/modules and kheaders."""

    def __init__(self, root: Path) -> None:
        self.sources = root / "usr/src"
        self.modules = root / "lib/modules"
        self.kheaders = root / "sys/kheaders.tar.xz"
        for folder in (self.sources, self.modules, self.kheaders.parent):
            folder.mkdir(parents=True)

    def put(self, tree: Path, *groups: tuple[str, ...]) -> Path:
        for group in groups:
            for name in group:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_text(f"{tree.name} {name}\n")
        return tree

    def link(self, release: str, **links: Path) -> None:
        for name, target in links.items():
            (self.modules / release).mkdir(exist_ok=True)
            (self.modules / release / name).symlink_to(target)

    def debian(self, version: str, flavour: str, *, common: str = "common") -> Path:
        self.put(self.sources / f"linux-headers-{version}-{common}", SHARED)
        tree = self.sources / f"linux-headers-{version}-{flavour}"
        return self.put(tree, OWN)

    def ubuntu(self, version: str, flavour: str) -> Path:
        shared = self.put(self.sources / f"linux-headers-{version}", SHARED)
        tree = self.put(self.sources / f"linux-headers-{version}-{flavour}", OWN)
        (tree / "include/linux").symlink_to(f"../../{shared.name}/include/linux")
        (tree / "arch/x86/include/asm").symlink_to(
            f"../../../../{shared.name}/arch/x86/include/asm"
        )
        return tree


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(headers, "_SOURCES", made.sources)
    monkeypatch.setattr(headers, "_MODULES", made.modules)
    monkeypatch.setattr(headers, "_KHEADERS", (made.kheaders,))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return made


def left_over(machine: Machine) -> list[Path]:
    return list((machine.sources.parents[1] / "tmp").iterdir())


def test_the_running_kernels_own(machine: Machine) -> None:
    tree = machine.put(machine.sources / "kernels" / RELEASE, SHARED, OWN)
    machine.link(RELEASE, build=tree)
    machine.debian("6.1.0-50", "amd64")
    with closing(find_headers(RELEASE)) as found:
        assert (found.kind, found.tree, found.path) == ("running", str(tree), None)
    assert left_over(machine) == []


def test_the_running_kernels_own_as_debian_splits_them(machine: Machine) -> None:
    tree = machine.debian("6.18.44+deb14", "amd64")
    machine.link(RELEASE, build=tree, source=tree.with_name("linux-headers-6.18.44+deb14-common"))
    with closing(find_headers(RELEASE)) as found:
        assert (found.kind, found.tree) == ("running", str(tree))


@pytest.mark.parametrize("lost", ["linux-headers-6.18.44+deb14-common", "nothing"])
def test_half_an_installation_is_not_taken_for_one(machine: Machine, lost: str) -> None:
    # GIVEN the running kernel's tree without what it shares, or its link alone
    tree = machine.debian("6.18.44+deb14", "amd64")
    shutil.rmtree(machine.sources / "linux-headers-6.18.44+deb14-common")
    if lost == "nothing":
        shutil.rmtree(tree)
    machine.link(RELEASE, build=tree)
    other = machine.debian("6.1.0-50", "amd64")
    # WHEN / THEN the whole one of another kernel is chosen
    with closing(find_headers(RELEASE)) as found:
        assert (found.kind, found.tree) == ("overlay", str(other))


@pytest.mark.parametrize("tools", [("tar", "xz"), ("tar",), ()])
def test_headers_in_the_kernel(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tools: tuple[str, ...]
) -> None:
    machine.kheaders.write_bytes(b"")
    other = machine.debian("6.1.0-50", "amd64")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in tools else None)
    # WHEN what unpacks them is there or not
    with closing(find_headers(RELEASE)) as found:
        # THEN they are used or not
        expected = ("kheaders", "kheaders") if len(tools) == 2 else ("overlay", str(other))
        assert (found.kind, found.tree) == expected


LAYOUTS: dict[str, Callable[[Machine], Path]] = {
    "debian 12 cloud": lambda m: m.debian("6.1.0-50", "cloud-amd64"),
    "debian 12 rt": lambda m: m.debian("6.1.0-50", "rt-amd64", common="common-rt"),
    "debian 13": lambda m: m.debian("6.12.43+deb13", "amd64"),
    "debian backports": lambda m: m.debian("6.12.9+bpo", "cloud-amd64"),
    "ubuntu generic": lambda m: m.ubuntu("6.8.0-40", "generic"),
    "ubuntu cloud": lambda m: m.ubuntu("6.8.0-1015", "azure"),
    "fedora": lambda m: m.put(m.sources / "kernels/6.11.4-301.fc41.x86_64", SHARED, OWN),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_kernels_tree_is_merged_whole(machine: Machine, layout: str) -> None:
    # GIVEN headers of another kernel, laid out as that distribution does
    tree = LAYOUTS[layout](machine)
    # WHEN they are chosen
    found = find_headers(RELEASE)
    # THEN one private tree shows all of them, and is deleted in the end
    assert (found.kind, found.tree) == ("overlay", str(tree))
    assert found.path is not None
    for name in SHARED + OWN:
        assert (found.path / name).read_text().endswith(f" {name}\n")
    assert found.path.stat().st_mode & 0o077 == 0
    assert left_over(machine) == [found.path]
    found.close()
    assert left_over(machine) == []
    assert (tree / OWN[0]).is_file(), "deleting the links deleted what they led to"


def test_a_tree_of_its_own_wins_over_the_shared_one(machine: Machine) -> None:
    tree = machine.debian("6.1.0-50", "amd64")
    (tree / "include/linux").mkdir(parents=True)
    (tree / "include/linux/types.h").write_text("own")
    with closing(find_headers(RELEASE)) as found:
        assert found.path is not None
        assert (found.path / "include/linux/types.h").read_text() == "own"


def test_ubuntus_tree_without_what_it_shares_is_no_tree(machine: Machine) -> None:
    machine.ubuntu("6.8.0-40", "generic")
    shutil.rmtree(machine.sources / "linux-headers-6.8.0-40")
    with pytest.raises(CctraceError, match="no kernel headers"):
        find_headers(RELEASE)


def test_trees_elsewhere_are_found_by_their_modules(machine: Machine, tmp_path: Path) -> None:
    tree = machine.put(tmp_path / "opt/linux-6.17", SHARED, OWN)
    machine.link("6.17.2-other", build=tree)
    with closing(find_headers(RELEASE)) as found:
        assert (found.kind, found.tree) == ("overlay", str(tree))


def test_the_nearest_version_is_chosen(machine: Machine) -> None:
    for version in ("4.19.0-27", "5.10.0-33", "6.1.0-50", "6.12.43+deb13"):
        machine.debian(version, "amd64")
    nearest = {"6.18.44": "6.12.43+deb13", "6.2.1": "6.1.0-50", "5.15.0": "5.10.0-33"}
    for release, version in nearest.items():
        with closing(find_headers(release)) as found:
            assert Path(found.tree).name == f"linux-headers-{version}-amd64"


def test_none_at_all(machine: Machine) -> None:
    with pytest.raises(CctraceError) as caught:
        find_headers(RELEASE)
    assert caught.value.message == f"no kernel headers for {RELEASE}, nor any other"
    assert "apt-get install linux-headers-amd64" in str(caught.value.hint)
    assert caught.value.exit_code == EXIT_UNSUPPORTED
    assert left_over(machine) == []
