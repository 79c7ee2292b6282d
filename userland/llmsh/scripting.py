"""Builtins of scripts: variables, loops, input, other scripts."""

import os
import re
from subprocess import DEVNULL
from typing import TextIO

from userland.exits import REFUSED, USAGE, Failure, reason
from userland.llmsh.compound import Jump
from userland.llmsh.state import State

_MAX_SOURCES = 10
_NAME = re.compile(r"[A-Za-z_]\w*")


def export(state: State, args: list[str], out: TextIO) -> int:
    """Hand variables on to programs; NAME=value assigns first."""
    for arg in args:
        name, equals, value = arg.partition("=")
        _check_name("export", name)
        if equals:
            state.variables.assign(name, value)
        state.variables.export(name)
    if not args:
        out.writelines(f"export {name}={value}\n" for name, value in sorted(os.environ.items()))
    return 0


def unset(state: State, args: list[str], out: TextIO) -> int:
    """Take variables away."""
    for arg in args:
        _check_name("unset", arg)
        state.variables.unset(arg)
    return 0


def shift(state: State, args: list[str], out: TextIO) -> int:
    """Drop the first arguments of the script."""
    count = _count("shift", args)
    have = len(state.variables.arguments)
    if count > have:
        raise Failure(f"shift {count}: there are {have} arguments")
    del state.variables.arguments[:count]
    return 0


def leave_loop(state: State, args: list[str], out: TextIO) -> int:
    """Leave a loop, or as many as are said."""
    raise _jump(state, "break", args)


def next_turn(state: State, args: list[str], out: TextIO) -> int:
    """Go on with the next turn of a loop."""
    raise _jump(state, "continue", args)


def _jump(state: State, name: str, args: list[str]) -> Jump:
    count = _count(name, args)
    if not state.loops:
        raise Failure(f"{name}: there is no loop here", exit_code=USAGE)
    return Jump(min(count, state.loops), name == "continue")


def read(state: State, args: list[str], out: TextIO) -> int:
    """Assign the words of a line of input, the rest of it to the last name; 1 at its end."""
    names = [arg for arg in args if arg != "-r"]
    if not names:
        raise Failure("read takes the names of variables", exit_code=USAGE)
    for name in names:
        _check_name("read", name)
    line, ended = _line(state)
    words = line.split(None, len(names) - 1) if len(names) > 1 else [line.strip()]
    for at, name in enumerate(names):
        state.variables.assign(name, words[at].strip() if at < len(words) else "")
    return int(ended and not line)


def _line(state: State) -> tuple[str, bool]:
    """Read up to a newline and not a byte further: what follows belongs to others."""
    if state.stdin is None and state.host_stdin == DEVNULL:
        return "", True
    fd = 0 if state.stdin is None else state.stdin
    if state.terminal is not None:
        state.terminal.unmark()
    data = bytearray()
    try:
        while (byte := os.read(fd, 1)) not in (b"", b"\n"):
            data += byte
    except OSError as error:
        raise Failure(f"read: {error.strerror}", code="EIO") from None
    return data.decode("utf-8", "surrogateescape").replace("\0", ""), not byte


def source(state: State, args: list[str], out: TextIO) -> int:
    """Run a script in this shell; further words are its arguments."""
    from userland.llmsh.script import run_lines
    from userland.llmsh.shell import Shell

    if not args:
        raise Failure("source takes a file", exit_code=USAGE)
    if state.sources >= _MAX_SOURCES:
        raise Failure(f"{args[0]}: {_MAX_SOURCES} scripts within each other")
    before = state.variables.arguments
    try:
        with open(args[0], encoding="utf-8") as lines:
            if args[1:]:
                state.variables.arguments = args[1:]
            state.sources += 1
            state.status = 0
            run_lines(Shell(state), lines, f"{args[0]}: ")
    except REFUSED as error:
        raise Failure(f"cannot read {args[0]}: {reason(error)}") from None
    finally:
        state.sources -= 1
        if args[1:]:
            state.variables.arguments = before
    return state.status


def alias(state: State, args: list[str], out: TextIO) -> int:
    """Let a name stand for the first words of a command; show what does."""
    for arg in args:
        name, equals, text = arg.partition("=")
        if not equals:
            text = state.aliases.get(name, "")
            if not text:
                raise Failure(f"there is no alias {name!r}")
            out.write(f"alias {name}='{text}'\n")
        elif not re.fullmatch(r"[\w.+-]+", name):
            raise Failure(f"{name!r} cannot be an alias", exit_code=USAGE)
        else:
            state.aliases[name] = text
    if not args:
        out.writelines(f"alias {name}='{text}'\n" for name, text in sorted(state.aliases.items()))
    return 0


def unalias(state: State, args: list[str], out: TextIO) -> int:
    """Take aliases away."""
    for arg in args:
        if state.aliases.pop(arg, None) is None:
            raise Failure(f"there is no alias {arg!r}")
    return 0


def _check_name(builtin: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Failure(f"{builtin}: {name!r} cannot be a variable", exit_code=USAGE)


def _count(name: str, args: list[str]) -> int:
    if len(args) > 1 or not all(_is_count(arg) for arg in args):
        raise Failure(f"{name} takes a number, 1 or more", exit_code=USAGE)
    return int(args[0]) if args else 1


def _is_count(arg: str) -> bool:
    return arg.isascii() and arg.isdecimal() and len(arg) < 10 and int(arg) > 0
