"""The standard streams, which a program may have been started without."""

import os
import sys


def fill() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed, before a file takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  for good
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
