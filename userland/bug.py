"""A bug of ours: the person gets one line and goes on, whoever looks into it gets the traceback."""

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TextIO

from userland.daemon import state_dir
from userland.exits import BUG


def save(program: str, err: TextIO) -> int:
    """Keep the traceback of the exception that is being handled; say where; return the status."""
    error = sys.exception()
    what = f"{type(error).__name__}: {error}"
    text = f"{datetime.now().isoformat(' ', 'seconds')} {program}\n{traceback.format_exc()}\n"
    try:
        err.write(f"{program}: bug: {what}; saved at {_append(text)}\n")
    except OSError as unsaved:
        err.write(f"{program}: bug: {what}; not saved: {unsaved.strerror}\n{text}")
    err.flush()
    return BUG


def _append(text: str) -> Path:
    """Add to the file of bugs, which only its owner may read: a message may quote a prompt."""
    path = state_dir() / "bugs"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return path
