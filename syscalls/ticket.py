"""How a spawned program gets its ticket: through an inherited pipe, and nothing else.

The kernel's `spawn` makes a task without a program, and a secret that lets one host process become
that program. Arguments and environment of a process can be read by others and are inherited by
its children, so they carry the number of a file descriptor only; the secret is in the pipe, and
whoever reads it has taken it out.
"""

import os
import stat
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from syscalls.errors import EINVAL, ENOENT, EPERM, KernelError

VARIABLE = "LLMOS_TICKET_FD"
_TICKET_BYTES = 32


def launch(
    argv: Sequence[str], ticket: bytes, address: str, env: Mapping[str, str] | None, **popen: Any
) -> "subprocess.Popen[bytes]":
    """Start a host process that can take the ticket; ENOENT or EPERM if it cannot be started."""
    reader, writer = os.pipe()
    try:
        try:
            os.write(writer, ticket)
        finally:
            os.close(writer)
        variables = {**(os.environ if env is None else env), "LLMOS_HOST": address}
        variables[VARIABLE] = str(reader)
        return subprocess.Popen(list(argv), env=variables, pass_fds=(reader,), **popen)
    except OSError as error:
        raise _cannot_start(argv, error) from None
    finally:
        os.close(reader)


def _cannot_start(argv: Sequence[str], error: OSError) -> KernelError:
    why = f"cannot start {argv[0]}: {error.strerror}"
    return EPERM(why) if isinstance(error, PermissionError) else ENOENT(why)


def inherited(environ: MutableMapping[str, str]) -> bytes | None:
    """Take the ticket that this process was started with, None if there is none or it is taken."""
    number = environ.pop(VARIABLE, None)
    if number is None:
        return None
    try:
        return _read(int(number))
    except (ValueError, OSError):
        raise EINVAL(
            f"{VARIABLE}={number} is not the pipe of a ticket",
            f"it is for the program that was spawned; unset {VARIABLE} for others",
        ) from None


def _read(fd: int) -> bytes:
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        raise ValueError("not a pipe")
    # The ticket was written before this process was started: it is there, or never comes.
    os.set_blocking(fd, False)
    ticket = os.read(fd, _TICKET_BYTES + 1)
    if not 0 < len(ticket) <= _TICKET_BYTES:
        raise ValueError("not a ticket")
    os.close(fd)
    return ticket
