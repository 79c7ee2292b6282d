"""Patience: what a program does whose kernel has saved its task and stopped.

The kernel is expected to be up again soon: `llmos down --save && llmos up`. A program waits for it
here, and says so; Ctrl-C gives up, and whatever needs the kernel next waits again.
"""

import time
from collections.abc import Callable

import syscalls
from syscalls import ECONNRESET

PATIENCE_S = 30.0
_POLL_S, _QUIET_S, _LEAST_S = 0.2, 0.5, 1.0
"""Nothing tells when a kernel listens; how long nothing is said of the wait; for an answer."""


def come_back(
    task: syscalls.Task, note: Callable[[str], None], patience_s: float = PATIENCE_S
) -> None:
    """Attach to the task again as soon as its kernel is up.

    ECONNRESET: it is not, after all this time; ETIMEDOUT: it is, and the task's contexts are not
    back yet; ESRCH: it does not have the task.
    """
    begin, said = time.monotonic(), False
    while True:
        try:
            task.reattach(max(_LEAST_S, patience_s))
            return
        except ECONNRESET as error:
            waited = time.monotonic() - begin
            if waited >= patience_s:
                raise ECONNRESET(
                    f"{error.message}; it was stopped, and has saved everything",
                    "llmos up, then again",
                ) from None
        if not said and waited >= _QUIET_S:
            note(f"the kernel has saved everything and stopped; waiting {patience_s:g} s for it")
            said = True
        time.sleep(_POLL_S)
