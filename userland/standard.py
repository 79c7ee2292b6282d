"""The standard streams, which a program may have been started without, or with few characters."""

import io
import os
import sys


def fill() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed, before a file takes its number.

    What cannot be encoded is replaced: no command ends in the middle of a table because of a name.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  for good
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for the rest
