"""copy: the last answer, or a block of code in it, to the terminal's clipboard."""

import re
from base64 import b64encode
from typing import TextIO

from userland.exits import USAGE, Failure
from userland.llmsh.state import State

_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)
_MAX_BYTES = 74_000
"""What terminals take; they drop more without a word."""


def copy(state: State, args: list[str], out: TextIO) -> int:
    """Copy the raw text of the last answer, or of its Nth block of code."""
    if len(args) > 1 or not all(arg.isascii() and arg.isdecimal() and int(arg) for arg in args):
        raise Failure("copy takes the number of a block of code, 1 or more", exit_code=USAGE)
    if not state.answer:
        raise Failure("there is no answer to copy")
    text = blocks(state.answer, int(args[0])) if args else state.answer
    data = text.encode("utf-8", "replace")
    if len(data) > _MAX_BYTES:
        raise Failure(f"{len(data):,} bytes, a terminal takes {_MAX_BYTES:,}", 'echo "$_" > FILE')
    if state.terminal is None:
        raise Failure("copy needs a terminal", 'echo "$_"')
    state.terminal.send(f"\x1b]52;c;{b64encode(data).decode()}\a")
    state.note(f"{len(text):,} characters handed to the terminal's clipboard")
    return 0


def blocks(answer: str, number: int) -> str:
    """Return the Nth block of code."""
    found = [match[2] for match in _BLOCK.finditer(answer)]
    if number > len(found):
        raise Failure(f"the last answer has {len(found)} blocks of code")
    return found[number - 1]
