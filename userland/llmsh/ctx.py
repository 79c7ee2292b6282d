"""ctx: list, make, use, free and name contexts."""

from collections.abc import Callable
from typing import TextIO

from userland.exits import USAGE, Failure
from userland.llmsh.state import State

_USAGE = "ctx [ls] | new NAME [-s SYSTEM] | use NAME | rm NAME... | name NEW"


def run(state: State, args: list[str], out: TextIO) -> int:
    """Do what the first argument says; list without one."""
    verb, *rest = args or ["ls"]
    if verb in ("-h", "--help"):
        out.write(f"{_USAGE}\n")
        return 0
    if verb not in VERBS:
        raise Failure(f"ctx has no {verb!r} in this version", _USAGE, USAGE)
    VERBS[verb](state, rest, out)
    return 0


def _ls(state: State, args: list[str], out: TextIO) -> None:
    """Write a line for each context; * marks the current one."""
    if args:
        raise Failure("ctx ls takes no arguments", _USAGE, USAGE)
    rows = [("", "NAME", "TOK", "TURNS", "BLOCKS", "SHARED")]
    for named in state.contexts:
        row = named.context.stat()
        mark = "*" if named.name == state.contexts.current else ""
        turns = str(len(named.turns))
        rows.append((mark, named.name, f"{row.length:,}", turns, str(row.blocks), str(row.shared)))
    if len(rows) == 1:
        state.note("no contexts yet: @main is made by the first prompt")
        return
    wide = max(len(row[1]) for row in rows)
    for mark, name, *numbers in rows:
        out.write(f"{mark:1} {name:{wide}}" + "".join(f" {text:>7}" for text in numbers) + "\n")


def _new(state: State, args: list[str], out: TextIO) -> None:
    if len(args) == 3 and args[1] == "-s":
        state.contexts.new(_name(args[0]), args[2])
    elif len(args) == 1:
        state.contexts.new(_name(args[0]), None)
    else:
        raise Failure("ctx new takes a name, and a system prompt after -s", _USAGE, USAGE)


def _use(state: State, args: list[str], out: TextIO) -> None:
    state.contexts.use(_one("use", args))


def _rm(state: State, args: list[str], out: TextIO) -> None:
    if not args:
        raise Failure("ctx rm takes the names of contexts", _USAGE, USAGE)
    before = state.contexts.current
    for arg in args:
        state.contexts.remove(_name(arg))
    if state.contexts.current != before:
        state.note(f"@{before} is gone, the current context is @{state.contexts.current}")


def _rename(state: State, args: list[str], out: TextIO) -> None:
    state.contexts.rename(_one("name", args))


def _one(verb: str, args: list[str]) -> str:
    if len(args) != 1:
        raise Failure(f"ctx {verb} takes one name", _USAGE, USAGE)
    return _name(args[0])


def _name(word: str) -> str:
    return word.removeprefix("@")


VERBS: dict[str, Callable[[State, list[str], TextIO], None]] = {
    "ls": _ls,
    "new": _new,
    "use": _use,
    "rm": _rm,
    "name": _rename,
}
