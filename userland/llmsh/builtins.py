"""Builtins: contexts, sampling, the working directory; the tasks' commands are those of `llmos`."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TextIO

import click

from userland.desk import Desk
from userland.exits import REFUSED, USAGE, Failure, reason
from userland.llmsh import ctx
from userland.llmsh.history import history_path
from userland.llmsh.manual import MANUAL
from userland.llmsh.state import State
from userland.llmsh.variables import set_sampling

Function = Callable[[State, list[str], TextIO], int]


class Leave(Exception):
    """The shell ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def cd(state: State, args: list[str], out: TextIO) -> int:
    """Change the directory: home without an argument, back with -."""
    if len(args) > 1:
        raise Failure("cd takes one directory", exit_code=USAGE)
    target = args[0] if args else "~"
    if target == "-":
        target = os.environ.get("OLDPWD", "")
        if not target:
            raise Failure("cd -: there is no directory to go back to")
        out.write(f"{target}\n")
    before = _here()
    try:
        os.chdir(Path(target).expanduser() if target == "~" else target)
    except REFUSED as error:
        raise Failure(f"cd: {target}: {reason(error)}") from None
    os.environ["OLDPWD"], os.environ["PWD"] = before, _here()
    return 0


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return os.environ.get("PWD", "")


def pwd(state: State, args: list[str], out: TextIO) -> int:
    """Write the directory."""
    _none("pwd", args)
    out.write(f"{_here()}\n")
    return 0


def fork(state: State, args: list[str], out: TextIO) -> int:
    """Make contexts that go on from the current one."""
    names = [name.removeprefix("@") for name in args] or [state.contexts.fresh()]
    origin = state.contexts.fork(names)
    shared = origin.context.stat().blocks
    many = ", ".join(f"@{name}" for name in names)
    state.note(f"forked @{origin.name}: {many}; {shared} blocks shared, none copied")
    return 0


def undo(state: State, args: list[str], out: TextIO) -> int:
    """Take back the last turns of the current context."""
    if len(args) > 1 or not all(arg.isdecimal() and len(arg) < 10 and int(arg) for arg in args):
        raise Failure("undo takes a number of turns, 1 or more", exit_code=USAGE)
    named = state.contexts.open()
    before = named.context.length
    named.undo(int(args[0]) if args else 1)
    state.note(f"@{named.name}: {before:,} to {named.context.length:,} tokens")
    return 0


def leave(state: State, args: list[str], out: TextIO) -> int:
    """End the shell."""
    if len(args) > 1 or not all(arg.isdecimal() and len(arg) < 10 for arg in args):
        raise Failure("exit takes a status of 0 to 255", exit_code=USAGE)
    raise Leave(int(args[0]) & 255 if args else state.status)


def show_help(state: State, args: list[str], out: TextIO) -> int:
    """Write what there is."""
    _none("help", args)
    path = history_path()
    where = f"{path} (mode 0600)" if path else "not kept (LLMSH_HISTORY is empty)"
    out.write(MANUAL.format(history=where))
    return 0


def _none(name: str, args: list[str]) -> None:
    if args:
        raise Failure(f"{name} takes no arguments", exit_code=USAGE)


def _command(name: str) -> Function:
    """Return a command of `llmos`, run at the shell's own task."""

    def run(state: State, args: list[str], out: TextIO) -> int:
        command: click.Command = getattr(import_module(f"userland.bin.{name}"), name)
        desk = Desk(out, state.err, state.contexts.task(), name="llmsh")
        try:
            with redirect_stdout(out):  # --help, which click writes by itself
                result = command.main(args, name, standalone_mode=False, obj=desk)
        except click.Abort:  # this is what click makes of Ctrl-C
            raise KeyboardInterrupt from None
        return result if isinstance(result, int) else 0

    return run


BUILTINS: dict[str, Function] = {
    "cd": cd,
    "ctx": ctx.run,
    "dmesg": _command("dmesg"),
    "exit": leave,
    "fork": fork,
    "free": _command("free"),
    "help": show_help,
    "kill": _command("kill"),
    "load": _command("load"),
    "lsdev": _command("lsdev"),
    "models": _command("models"),
    "pmap": _command("pmap"),
    "ps": _command("ps"),
    "pull": _command("pull"),
    "pwd": pwd,
    "set": set_sampling,
    "top": _command("top"),
    "undo": undo,
    "unload": _command("unload"),
}

UNBUILT = {
    "alias", "ask", "at", "bg", "chat", "continue", "disown", "export", "fg", "history",
    "jobs", "lsmod", "map", "model", "read", "redo",
    "renice", "retry", "schema", "source", "strace", "system", "table", "tools", "trap",
    "type", "ulimit", "vmstat", "wait", ".", "merge-log",
}  # fmt: skip
"""Names that the shell is to have one day, and a host may or may not have."""
