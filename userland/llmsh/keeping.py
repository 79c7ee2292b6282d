"""Keeping: contexts of the shell on the disk and back. `ctx save`, `load`, `saves` and `drop`.

A save has a name of its own, any text; @ marks the name of a context, so the two cannot be mixed
up. Without one of them both have the same.
"""

from typing import TextIO

from syscalls.abi import LoadCtxResult
from userland.bin import saves as listing
from userland.exits import USAGE, Failure
from userland.llmsh.contexts import Named
from userland.llmsh.desk import ShellDesk
from userland.llmsh.state import State

_HINT = "ctx -h lists what there is"


def save(state: State, args: list[str], out: TextIO) -> None:
    """Keep a context: `ctx save [@CONTEXT] [SAVE]`."""
    at, rest = _marked(args)
    if len(rest) > 1:
        raise Failure(
            "ctx save takes @CONTEXT and the name of a save", "ctx save @main NAME", USAGE
        )
    named = state.contexts.open(at)
    keep(state, named, rest[0] if rest else named.name)


def keep(state: State, named: Named, name: str) -> None:
    """Keep a context under a name, and say so."""
    done = named.context.save(name)
    kv = f", KV of {done.kv_tokens:,}" if done.kv_tokens else ""
    said = f"{done.length:,} tokens{kv}; ctx load brings it back"
    state.note(f"saved @{named.name} as {name!r}: {said}")


def load(state: State, args: list[str], out: TextIO) -> None:
    """Make a context of a save and use it: `ctx load SAVE [@CONTEXT]`."""
    at, rest = _marked(args)
    if len(rest) != 1:
        raise Failure("ctx load takes the name of a save, and may take @CONTEXT", _HINT, USAGE)
    bring(state, rest[0], at)


def bring(state: State, name: str, at: str | None) -> None:
    """Make a context of a save and use it; its name is free, or it has nothing in it yet."""
    named = state.contexts.load(name, at)
    loaded = named.context.loaded
    assert loaded is not None
    state.note(f"@{named.name}: {_came(loaded)}")


def _came(loaded: LoadCtxResult) -> str:
    came = f"{loaded.length:,} tokens of {loaded.model}, {loaded.kv_tokens:,} with their KV"
    return f"{came}; {loaded.note}" if loaded.note else came


def saves(state: State, args: list[str], out: TextIO) -> None:
    """List what is kept."""
    if args:
        raise Failure("ctx saves takes no arguments", _HINT, USAGE)
    listing.show(ShellDesk(state, out), headers=True)


def drop(state: State, args: list[str], out: TextIO) -> None:
    """Delete saves for good: `ctx drop SAVE...`."""
    if not args:
        raise Failure("ctx drop takes the names of saves", _HINT, USAGE)
    listing.delete(state.contexts.task(), args)
    state.note(f"deleted: {', '.join(args)}")


def _marked(args: list[str]) -> tuple[str | None, list[str]]:
    """Return the name of the context that is marked with @, if there is one, and the rest."""
    marked = [arg for arg in args if arg.startswith("@")]
    if len(marked) > 1:
        raise Failure(f"{' and '.join(marked)}: one context at a time", _HINT, USAGE)
    return (marked[0][1:] if marked else None), [arg for arg in args if not arg.startswith("@")]
