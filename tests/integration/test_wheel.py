"""The built wheel carries everything: it records and queries from an empty venv."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from recording import DEADLINE_S, environment

ROOT = Path(__file__).resolve().parents[2]
RANGES = 11
PROGRAM = f"""
import nvtx
for _ in range({RANGES}):
    with nvtx.annotate("from the wheel", domain="wheel"):
        pass
"""
BUILD_S = 300.0


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("pip", "scikit_build_core", "ninja"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: the wheel cannot be built here")
    directory = tmp_path_factory.mktemp("wheel")
    built = _run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("-C", f"build-dir={directory}/build", "-w", directory, ROOT),
        cwd=directory,
    )
    assert built.returncode == 0, built.stderr
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel and its dependencies alone.

    The dependencies are links to this environment's: to install them again would
    test them, not the wheel.
    """
    place = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    for distribution in _closure("cctrace") - {"cctrace"}:
        for top in _top_level(distribution):
            if not (site / top.name).exists():
                (site / top.name).symlink_to(top)
    python = place / "bin" / "python"
    installed = _run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel),
        cwd=place,
    )
    assert installed.returncode == 0, installed.stderr
    return place / "bin"


def _closure(name: str) -> set[str]:
    """Names of a distribution and all it requires, extras left out."""
    seen: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if not _is_installed(current):
            continue
        for line in metadata.requires(current) or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker:
                queue.append(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])
    return {one for one in seen if _is_installed(one)}


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False  # required on another Python or system
    return True


def _top_level(distribution: str) -> set[Path]:
    files = metadata.files(distribution) or []
    first = {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
    site = Path(str(files[0].locate())).parents[len(files[0].parts) - 1]
    return {site / name for name in first}


def test_wheel_holds_what_the_tree_holds(wheel: Path) -> None:
    # GIVEN the sources beside the Python code
    expected = {
        f"cctrace/_data/{path.relative_to(ROOT).as_posix()}"
        for folder, pattern in (("queries", "*.sql"), ("probes", "*.[ch]"), ("probes", "*.toml"))
        for path in (ROOT / folder).rglob(pattern)
    }
    expected |= {
        f"cctrace/_native/libcctrace_{name}.so" for name in ("agent", "audit", "emit", "host")
    }
    expected |= {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.css", "*.js", "*.html")
        for path in (ROOT / "cctrace").rglob(pattern)
    }
    # WHEN the wheel is opened
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    # THEN it has all of them and nothing else but CMake's lists
    assert {name for name in names if not name.endswith("CMakeLists.txt")} == expected


def test_wheel_is_for_any_python_3_on_linux(wheel: Path) -> None:
    # The libraries use no Python API, so one wheel serves every version.
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")


def test_record_and_query_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    # GIVEN an empty environment with the wheel, and a directory outside the tree
    recorded = _run(
        *(scripts / "cctrace", "record", "-o", "run", "--"),
        *(scripts / "python", "-c", PROGRAM),
        cwd=tmp_path,
    )
    assert recorded.returncode == 0, recorded.stderr
    # WHEN the run is queried, by SQL and by a named query of the wheel
    sql = "SELECT name, count(*) AS calls FROM nvtx WHERE domain = 'wheel' GROUP BY name"
    by_sql = _run(scripts / "cctrace", "query", "run", sql, "--format", "json", cwd=tmp_path)
    named = _run(
        *(scripts / "cctrace", "query", "run", "--name", "nvtx_summary", "--format", "json"),
        cwd=tmp_path,
    )
    # THEN both count every range
    assert by_sql.returncode == 0, by_sql.stderr
    assert json.loads(by_sql.stdout) == [{"name": "from the wheel", "calls": RANGES}]
    assert named.returncode == 0, named.stderr
    assert [row["calls"] for row in json.loads(named.stdout)] == [RANGES]


def test_resources_of_the_wheel_are_its_own(scripts: Path, tmp_path: Path) -> None:
    # GIVEN the empty environment
    shown = _run(
        scripts / "python",
        "-c",
        "from cctrace.resources import native_library, resource_dir\n"
        "print(resource_dir('queries'))\n"
        "print(native_library('libcctrace_agent.so'))",
        cwd=tmp_path,
    )
    # WHEN / THEN nothing is taken from the source tree
    assert shown.returncode == 0, shown.stderr
    assert all(line.startswith(str(scripts.parent)) for line in shown.stdout.splitlines())


def test_doctor_of_the_wheel(scripts: Path, tmp_path: Path) -> None:
    # GIVEN the empty environment; WHEN doctor looks at it
    done = subprocess.run(
        [scripts / "cctrace", "doctor", "--json"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    # THEN it can trace, and nothing that is needed is amiss
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["recording"]["status"] == "ok"
    assert {
        name for name, check in checks.items() if check["status"] == "missing" and check["needed"]
    } == set()
