"""What all tests share: golden files and the flag that writes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Golden = Callable[[str, str | bytes], None]

GOLDEN = Path(__file__).resolve().parent / "golden"
INTEGRATION = Path(__file__).resolve().parent / "integration"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the files of tests/golden anew from what the code makes now",
    )


# Of the integration tests, those that compare no times: they mind no company.
SOCIABLE = {
    "test_agent.py",
    "test_agent_processes.py",
    "test_agent_sanitizers.py",
    "test_audit.py",
    "test_bpf_refusals.py",
    "test_cuda_arguments.py",
    "test_cuda_hardships.py",
    "test_cuda_record.py",
    "test_driver_symbols.py",
    "test_flame_real.py",
    "test_import_real.py",
    "test_perfetto_real.py",
    "test_record_command.py",
    "test_record_exact.py",
    "test_record_faults.py",
    "test_record_hardships.py",
    "test_report_recorded.py",
    "test_stacks.py",
    "test_stacks_waits.py",
    "test_wheel.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what wants the machine for itself, so that its recordings are of nothing else."""
    for item in items:
        if INTEGRATION in item.path.parents and item.path.name not in SOCIABLE:
            item.add_marker(pytest.mark.quiet)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare with ``tests/golden/NAME``; ``--update-golden`` writes that anew.

    Text is compared as text, so that a difference reads well; bytes as bytes.
    """

    def compare(name: str, made: str | bytes) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made.encode() if isinstance(made, str) else made)
        assert path.is_file(), f"{path} is not there: pytest --update-golden makes it"
        expected = path.read_text("utf-8") if isinstance(made, str) else path.read_bytes()
        assert made == expected

    return compare
