"""Where the streams of a stage go, from what is written to files that are open.

Redirections take effect from left to right, after the pipes: `2>&1 > f` leaves stderr where stdout
was. The text of a here-document waits in a file of its own that has no name.
"""

import os
from io import FileIO

from userland.exits import REFUSED, Failure, reason
from userland.llmsh.nodes import Part, Redirect, Word

_MODES = {"<": "r", ">": "w", ">>": "a"}


# --- from what is written -------------------------------------------------------------------------


def redirect(operator: str, target: Word) -> Redirect:
    """Return what `>`, `2>>`, `<`, `<<<` or `<<` and a word mean."""
    fd = int(operator[0]) if operator[0].isdigit() else 1 if ">" in operator else 0
    kind = operator.lstrip("012")
    return Redirect(fd, "<<" if kind == "<<-" else kind, target)


def duplicate(operator: str, column: int) -> Redirect:
    """Return what `2>&1` means."""
    number, _, other = operator.partition("&")
    fd = int(number[0]) if number[0].isdigit() else 1 if ">" in number else 0
    return Redirect(fd, "&", Word((Part(other),), column))


def both(operator: str, target: Word, column: int) -> tuple[Redirect, Redirect]:
    """Return what `&>` and a word mean."""
    return Redirect(1, operator[1:], target), duplicate("2>&1", column)


# --- to files -------------------------------------------------------------------------------------


def opened(operator: str, text: str) -> FileIO:
    """Return the file, or the file of the text, that a stream is redirected to."""
    if operator in ("<<", "<<<"):
        return document(text + "\n" * (operator == "<<<"))
    try:
        return FileIO(text, _MODES[operator])
    except REFUSED as error:
        raise Failure(f"cannot open {text}: {reason(error)}") from None


def document(text: str) -> FileIO:
    """Return a file without a name that has the text, and is at its beginning."""
    file = FileIO(os.memfd_create("llmsh-document"), "r+")
    file.write(text.encode("utf-8", "surrogateescape"))
    file.seek(0)
    return file
