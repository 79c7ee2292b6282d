"""Exit codes, and how an expected error looks: what and why, then what to do next.

0 ok                    69 no kernel reachable     78 bad configuration
1 failed                70 bug                     124 took too long
2 usage                 74 input or output         126 run: cannot be run
3 not found             75 try again               127 run: no such program
4 cut (--fail-on)       77 not permitted           128+N killed by signal N (130: Ctrl-C)
"""

import json
from typing import Any, TextIO

import click

from syscalls import KernelError

FAILED = 1
USAGE = 2
CUT = 4
NO_KERNEL = 69
BUG = 70
BAD_SETUP = 78
TIMED_OUT = 124
INTERRUPTED = 130
PIPE_CLOSED = 141

_CODES = {
    "ENOENT": 3,
    "ESRCH": 3,
    "EBADCTX": 3,
    "ECONNRESET": NO_KERNEL,
    "ENETUNREACH": NO_KERNEL,  # where a model comes from
    "EIO": 74,
    "ENOSPC": 74,
    "ECORRUPT": 74,
    "EAGAIN": 75,
    "EBUSY": 75,
    "ENOMEM": 75,
    "EPERM": 77,
    "ETIMEDOUT": 124,
}


def code_of(errno: str) -> int:
    """Return the exit code of an error by its errno's name."""
    return _CODES.get(errno, FAILED)


class Failure(Exception):
    """A command cannot do what it was asked for. `code` is an errno name, where there is one."""

    def __init__(
        self, message: str, hint: str = "", exit_code: int | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.exit_code = code_of(code) if exit_code is None else exit_code


REFUSED = (OSError, ValueError)
"""What the system raises for a path or an argument; ValueError where it cannot even be passed."""


def reason(error: OSError | ValueError) -> str:
    """Say why the system refused a path or an argument."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it has a NUL or half a character in it"


class PipeClosed(Exception):
    """Whoever read the output has gone: no error, and nothing more to say."""


Expected = KernelError | Failure | click.ClickException
"""What a person may cause and should read; everything else is a bug and has a traceback."""
EXPECTED = (KernelError, Failure, click.ClickException)


def exit_code(error: Expected) -> int:
    """Return the exit code of an expected error."""
    if isinstance(error, KernelError):
        return code_of(error.errno.name)
    return error.exit_code


def report(error: Expected, err: TextIO, program: str = "llmos", as_json: bool = False) -> int:
    """Write an expected error and return its exit code."""
    code, message, hint = _parts(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        err.write(f"{message}\n")  # the help, whole
    elif as_json:
        row: dict[str, Any] = {"code": code, "message": message, "hint": hint}
        if isinstance(error, KernelError) and error.details:
            row["details"] = dict(error.details)
        err.write(json.dumps({"error": row}) + "\n")
    else:
        tail = f" ({code})" if code else ""
        err.write(f"{program}: {message}{tail}\n")
        if hint:
            err.write(f"  try   {hint}\n")
    err.flush()
    return exit_code(error)


def _parts(error: Expected) -> tuple[str, str, str]:
    if isinstance(error, KernelError):
        return error.errno.name, error.message, error.hint
    if isinstance(error, Failure):
        return error.code, error.message, error.hint
    context = getattr(error, "ctx", None)
    return "", error.format_message(), f"{context.command_path} --help" if context else ""
