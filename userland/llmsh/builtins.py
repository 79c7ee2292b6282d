"""Builtins, by name. Those that look at the kernel are commands of `llmos`, at the shell's task."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TextIO

import click

from userland.cli import COMMANDS
from userland.exits import REFUSED, USAGE, Failure, reason
from userland.llmsh import clipboard, ctx, history, scripting, settings
from userland.llmsh.desk import ShellDesk
from userland.llmsh.history import history_path
from userland.llmsh.manual import MANUAL
from userland.llmsh.state import State

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
    more = [name for name in SHARED if name not in ("ps", "free", "kill")]
    commands = f"{'   '.join(more)}: NAME --help says more"
    out.write(MANUAL.format(history=where, commands=commands))
    return 0


def chat(state: State, args: list[str], out: TextIO) -> int:
    """Talk: each line is a prompt, until Ctrl-D."""
    from userland.llmsh.chat import run

    return run(state, args, out)


def _none(name: str, args: list[str]) -> None:
    if args:
        raise Failure(f"{name} takes no arguments", exit_code=USAGE)


def _command(name: str) -> Function:
    """Return a command of `llmos`, run at the shell's own task."""

    def run(state: State, args: list[str], out: TextIO) -> int:
        command = click_command(name)
        desk = ShellDesk(state, out)
        try:
            with redirect_stdout(out):  # --help, which click writes by itself
                result = command.main(args, name, standalone_mode=False, obj=desk)
        except click.Abort:  # this is what click makes of Ctrl-C
            raise KeyboardInterrupt from None
        return result if isinstance(result, int) else 0

    return run


def click_command(name: str) -> click.Command:
    """Return a command of `llmos` by its name."""
    command: click.Command = getattr(import_module(COMMANDS[name]), name.replace("-", "_"))
    return command


_OWN: dict[str, Function] = {
    "alias": scripting.alias,
    "break": scripting.leave_loop,
    "cd": cd,
    "chat": chat,
    "continue": scripting.next_turn,
    "copy": clipboard.copy,
    "ctx": ctx.run,
    "exit": leave,
    "export": scripting.export,
    "fork": fork,
    "help": show_help,
    "history": history.show,
    "pwd": pwd,
    "read": scripting.read,
    "set": settings.run,
    "shift": scripting.shift,
    "source": scripting.source,
    "unalias": scripting.unalias,
    "undo": undo,
    "unset": scripting.unset,
}
_OF_LLMOS = (
    "ps", "top", "free", "vmstat", "pmap", "strace", "dmesg", "lsdev", "lsmod", "models", "pull",
    "load", "unload", "kill", "nice", "renice", "group", "ports", "usage", "limit",
    "policy", "run", "doctor", "explain",
)  # fmt: skip
"""Commands of `llmos` that the shell has under the same name, if this version has them."""

SHARED = tuple(name for name in _OF_LLMOS if name in COMMANDS)
BUILTINS: dict[str, Function] = _OWN | {name: _command(name) for name in SHARED}

UNBUILT = {
    "at", "bg", "disown", "fg", "jobs", "lsmod", "map", "model", "redo", "retry",
    "schema", "strace", "system", "table", "tools", "trap", "type", "ulimit", "wait", ".",
    "merge-log",
}  # fmt: skip
"""Names that the shell is to have one day, and a host may or may not have."""
