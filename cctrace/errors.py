"""The one exception the command line turns into a message and an exit status.

Every layer raises :class:`CctraceError` (or lets a bug's own exception pass);
only ``cctrace/cli`` prints or exits.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSUPPORTED = 3  # missing privilege, kernel feature or device
EXIT_BAD_DATA = 4  # bad or unknown data
EXIT_NOT_EXECUTABLE = 126  # `record`: the target exists but cannot be executed
EXIT_NOT_FOUND = 127  # `record`: the target does not exist
EXIT_SIGNAL_BASE = 128  # `record`: the target died of signal n -> 128 + n
EXIT_INTERRUPTED = EXIT_SIGNAL_BASE + 2  # SIGINT, as a shell reports it


class CctraceError(Exception):
    """Say what failed, with object and value, and how to mend it.

    Args:
        message: What failed, naming the object and the value.
        hint: The fix, or None where there is none to name.
        exit_code: Status the command line ends with; one of the ``EXIT_*`` above.
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
