"""ctx: list, make, use, free and name contexts, and say where their KV is to be."""

import re
from collections.abc import Callable
from typing import TextIO

from userland.bin.ctx import grow
from userland.bin.ps import swapped
from userland.exits import USAGE, Failure
from userland.llmsh import keeping
from userland.llmsh.contexts import Named
from userland.llmsh.desk import ShellDesk
from userland.llmsh.state import State

_USAGE = """\
ctx [ls] | tree | new NAME [-s SYSTEM] | use NAME | rm NAME... | name NEW
ctx save [@NAME] [SAVE] | load SAVE [@NAME] | saves | drop SAVE...
ctx pin [NAME] | unpin [NAME] | prefetch [NAME] | demote [NAME] | retain SECONDS [NAME]
"""
_HINT = "ctx -h lists what there is"


def run(state: State, args: list[str], out: TextIO) -> int:
    """Do what the first argument says; list without one."""
    verb, *rest = args or ["ls"]
    if verb in ("-h", "--help"):
        out.write(_USAGE)
        return 0
    if verb not in VERBS:
        hint = "fork [NAME]... branches the current one" if verb == "fork" else _HINT
        raise Failure(f"ctx has no {verb!r} in this version", hint, USAGE)
    VERBS[verb](state, rest, out)
    return 0


def _ls(state: State, args: list[str], out: TextIO) -> None:
    """Write a line for each context; * marks the current one."""
    if args:
        raise Failure("ctx ls takes no arguments", _HINT, USAGE)
    if state.contexts.connected:
        state.contexts.task()  # it may have to come back first
    rows: list[tuple[str, ...]] = [("", "NAME", "TOK", "TURNS", "BLOCKS", "SHARED", "SWP", "PIN")]
    for named in state.contexts:
        row = named.context.stat()
        mark = "*" if named.name == state.contexts.current else ""
        turns, pin = str(len(named.turns)), "yes" if row.pinned else "-"
        blocks = (f"{number:,}" for number in (row.blocks, row.shared, swapped(row)))
        rows.append((mark, named.name, f"{row.length:,}", turns, *blocks, pin))
    if len(rows) == 1:
        state.note("no contexts yet: @main is made by the first prompt")
        return
    wide = max(len(row[1]) for row in rows)
    for mark, name, *numbers in rows:
        out.write(f"{mark:1} {name:{wide}}" + "".join(f" {text:>7}" for text in numbers) + "\n")


def _tree(state: State, args: list[str], out: TextIO) -> None:
    """Write the tree of what the shell's contexts share; of all contexts if it has none."""
    if args:
        raise Failure("ctx tree takes no arguments; llmos ctx tree PID does", _HINT, USAGE)
    own = [str(state.contexts.task().pid)] if any(True for _ in state.contexts) else []
    grow(ShellDesk(state, out), own, headers=True, as_json=False)


def _new(state: State, args: list[str], out: TextIO) -> None:
    if len(args) == 3 and args[1] == "-s":
        state.contexts.new(_name(args[0]), args[2])
    elif len(args) == 1:
        state.contexts.new(_name(args[0]), None)
    else:
        raise Failure("ctx new takes a name, and a system prompt after -s", _HINT, USAGE)


def _use(state: State, args: list[str], out: TextIO) -> None:
    state.contexts.use(_one("use", args))


def _rm(state: State, args: list[str], out: TextIO) -> None:
    if not args:
        raise Failure("ctx rm takes the names of contexts", _HINT, USAGE)
    before = state.contexts.current
    for arg in args:
        state.contexts.remove(_name(arg))
    if state.contexts.current != before:
        state.note(f"@{before} is gone, the current context is @{state.contexts.current}")


def _rename(state: State, args: list[str], out: TextIO) -> None:
    state.contexts.rename(_one("name", args))


def _pin(state: State, args: list[str], out: TextIO) -> None:
    named = _named(state, "pin", args)
    state.note(
        f"@{named.name}: {_blocks(named.context.pin())} stay on the device; ctx unpin ends it"
    )


def _unpin(state: State, args: list[str], out: TextIO) -> None:
    named = _named(state, "unpin", args)
    freed = named.context.unpin()
    state.note(f"@{named.name}: {_blocks(freed)} may leave the device again")


def _prefetch(state: State, args: list[str], out: TextIO) -> None:
    named = _named(state, "prefetch", args)
    state.note(f"@{named.name}: {_blocks(named.context.prefetch())} come back to the device")


def _demote(state: State, args: list[str], out: TextIO) -> None:
    named = _named(state, "demote", args)
    state.note(f"@{named.name}: {_blocks(named.context.demote())} leave the device")


def _retain(state: State, args: list[str], out: TextIO) -> None:
    seconds = args[0] if args else ""
    if not re.fullmatch(r"\d{1,5}(\.\d{1,6})?", seconds, re.ASCII) or not float(seconds):
        raise Failure("ctx retain takes seconds, above 0, and may take a name", _HINT, USAGE)
    named = _named(state, "retain", args[1:])
    kept = _blocks(named.context.retain(float(seconds)))
    state.note(f"@{named.name}: {kept} leave after those of others, for {seconds} s")


def _named(state: State, verb: str, args: list[str]) -> Named:
    """Return the context that is meant, the current one without a name."""
    if len(args) > 1:
        raise Failure(f"ctx {verb} takes one name, or none for the current context", _HINT, USAGE)
    return state.contexts.open(_name(args[0]) if args else None)


def _blocks(number: int) -> str:
    return "1 block" if number == 1 else f"{number:,} blocks"


def _one(verb: str, args: list[str]) -> str:
    if len(args) != 1:
        raise Failure(f"ctx {verb} takes one name", _HINT, USAGE)
    return _name(args[0])


def _name(word: str) -> str:
    return word.removeprefix("@")


VERBS: dict[str, Callable[[State, list[str], TextIO], None]] = {
    "ls": _ls,
    "new": _new,
    "use": _use,
    "rm": _rm,
    "name": _rename,
    "tree": _tree,
    "pin": _pin,
    "unpin": _unpin,
    "prefetch": _prefetch,
    "demote": _demote,
    "retain": _retain,
    "save": keeping.save,
    "load": keeping.load,
    "saves": keeping.saves,
    "drop": keeping.drop,
}
OF_SAVES = ("load", "drop")
"""Those that take the name of a save first."""
NAMING = ("use", "rm", "pin", "unpin", "prefetch", "demote")
"""Those of them that take the name of a context first."""
