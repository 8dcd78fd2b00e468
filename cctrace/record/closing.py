"""The end of a recording, which may take long: signals are heard all the while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from cctrace.record.attached import AttachedProcess
from cctrace.record.target import Target

_ROUND_S: Final = 0.05
_HURRY_S: Final = 10.0  # after a signal to us, until whatever is under way is left


def while_waiting(
    running: Target | AttachedProcess,
    body: Callable[[], None],
    hurry: Callable[[], None],
    *,
    is_command: bool,
) -> bool:
    """Do something that may take long, and go on passing signals on and reaping.

    A signal to end the target, where that has ended, is for us: whatever can be left
    out is. So is a second one, and any where the target was not started by us.

    Args:
        running: The target.
        body: What is to be done; in a thread of its own.
        hurry: Has it come to its end.
        is_command: Whether the target is ours, and signals are its own.

    Returns:
        Whether it is done; not, where it went on long after being told to hurry.
    """
    thread = threading.Thread(target=body, name="cctrace-close", daemon=True)
    thread.start()
    before, deadline = running.stop_signals, None
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        thread.join(_ROUND_S)
        running.wait(0)  # the tree is closed: what ends now ended after the recording
        enough = 2 if is_command and running.exit_code is None else 1
        if deadline is None and running.stop_signals - before >= enough:
            deadline = time.monotonic() + _HURRY_S
            hurry()
    return not thread.is_alive()
