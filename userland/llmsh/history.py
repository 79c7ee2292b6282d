"""The lines that were typed: a plain file, because they are a person's prompts, and `!` on them.

    !!   the last line      !12   line 12 of `history`      !git   the last that begins so

As the editor writes it: `# time`, then each row of the line behind a +. Several shells append to
one file, each whole line at once; a line that begins with a blank is in no file and no list.
"""

import fcntl
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from userland.daemon import state_dir
from userland.exits import USAGE, Failure
from userland.llmsh.state import State

_MAX_BYTES = 4 << 20
"""What is read of the file."""
_EVENT = re.compile(
    r"!(?:(?P<last>!)|(?P<number>-?[0-9]+)|(?P<prefix>[A-Za-z./@?][^\s;|&<>()\"']*))"
)
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"|\\.", re.DOTALL)
_FREE = re.compile(r"\s*(?:@\S*\s+)?\?")


def history_path(name: str = "llmsh_history") -> Path | None:
    """Return $LLMSH_HISTORY, else a file in the state directory; None if none is wanted."""
    given = os.environ.get("LLMSH_HISTORY")
    if given is None:
        return state_dir() / name
    return Path(given).expanduser() if given else None


def make_private(path: Path) -> None:
    """Create the file if need be, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)


def append(path: Path, line: str) -> None:
    """Add a line to the file, in one piece whoever else adds one."""
    rows = "".join(f"+{row}\n" for row in line.split("\n"))
    data = f"\n# {datetime.now()}\n{rows}".encode("utf-8", "replace")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def load(path: Path) -> list[str]:
    """Return the lines of the file, the oldest first; of a very long one the last."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_BYTES))
        text = file.read().decode("utf-8", "replace")
    found: list[str] = []
    rows: list[str] = []
    for row in [*text.split("\n"), ""]:
        if row.startswith("+"):
            rows.append(row[1:])
        elif rows:
            found.append("\n".join(rows))
            rows = []
    return found


def show(state: State, args: list[str], out: TextIO) -> int:
    """Write the lines of the history with their numbers, or only the last N."""
    if len(args) > 1 or not all(arg.isascii() and arg.isdecimal() for arg in args):
        raise Failure("history takes a number of lines", exit_code=USAGE)
    if not state.interactive:
        raise Failure("a script has no history")
    lines = state.history
    first = max(0, len(lines) - int(args[0])) if args else 0
    for number in range(first, len(lines)):
        rows = lines[number].replace("\n", "\n" + " " * 7)
        out.write(f"{number + 1:5}  {rows}\n")
    return 0


def expanded(line: str, lines: Sequence[str]) -> str:
    """Replace each `!` that stands for an earlier line; Failure if there is none such.

    In quotes, in a prompt after ?, and before a blank, ! stands for itself.
    """
    if "!" not in line or _FREE.match(line):
        return line
    parts, at = [], 0
    while at < len(line):
        if found := _QUOTED.match(line, at):
            parts.append(found.group())
        elif (at == 0 or line[at - 1] in " \t\n;|&(") and (found := _EVENT.match(line, at)):
            parts.append(_event(found, lines))
        else:
            parts.append(line[at])
        at = found.end() if found else at + 1
    return "".join(parts)


def _event(found: "re.Match[str]", lines: Sequence[str]) -> str:
    if found["last"]:
        if lines:
            return lines[-1]
    elif found["number"]:
        number = int(found["number"])
        index = number - 1 if number > 0 else len(lines) + number
        if number and 0 <= index < len(lines):
            return lines[index]
    else:
        for line in reversed(lines):
            if line.startswith(found["prefix"]):
                return line
    raise Failure(f"{found.group()}: there is no such line; history lists them")
