"""Which contexts a person means: those of a task, one by its number, those of a name.

PID           all of a task             @NAME         those of a name, the asker's first
PID CTX       one of it                 PID @NAME     those of a name, of a task
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

import syscalls
from syscalls.abi import CtxRow
from userland.exits import USAGE, Failure


class _Wanted(NamedTuple):
    pid: int | None = None
    ctx: int | None = None
    name: str | None = None


def number_of(word: str) -> int | None:
    """Return the number that a word is, None if it is none."""
    return int(word) if re.fullmatch(r"[0-9]{1,15}", word, re.ASCII) else None


def _parse(command: str, words: Sequence[str]) -> _Wanted:
    wanted = _Wanted()
    for word in words:
        number = number_of(word)
        named = wanted.ctx is not None or wanted.name is not None
        if word.startswith("@") and not named:
            wanted = wanted._replace(name=word[1:])
        elif number is not None and wanted.pid is None and not named:
            wanted = wanted._replace(pid=number)
        elif number is not None and not named:
            wanted = wanted._replace(ctx=number)
        else:
            forms = ", ".join(f"{command} {form}" for form in ("PID", "PID CTX", "@NAME"))
            raise Failure(f"{word!r} is out of place", forms, USAGE)
    return wanted


MAX_ASKED = 1000
"""Contexts that a command asks about one by one. The kernel looks for who shares with each."""


def few(rows: list[CtxRow], command: str) -> list[CtxRow]:
    """Return contexts that are asked about one by one; Failure if they are too many for that."""
    if len(rows) > MAX_ASKED:
        raise Failure(
            f"{len(rows):,} contexts are meant, and at most {MAX_ASKED:,} are looked at in one go",
            f"{command} PID, {command} PID CTX; ctx ls lists them all",
            USAGE,
        )
    return rows


def chosen(task: syscalls.Task, command: str, words: Sequence[str]) -> list[CtxRow]:
    """Return the contexts that are meant, in the order in which the kernel has them.

    Without words: the asker's own, or all if it has none. ESRCH, EBADCTX, ENOENT for what is not
    there.
    """
    wanted = _parse(command, words)
    rows = task.contexts()
    if wanted.pid is not None:
        task.stat(wanted.pid)  # ESRCH if there is no such task
        rows = [row for row in rows if row.pid == wanted.pid]
    if wanted.name is not None:
        return _named(task, rows, wanted.name)
    if wanted.ctx is not None:
        found = [row for row in rows if row.ctx == wanted.ctx]
        if not found:
            there = ", ".join(str(row.ctx) for row in rows[:20]) or "none"
            why = f"task {wanted.pid} has no context {wanted.ctx}"
            raise Failure(why, f"it has: {there}", code="EBADCTX")
        return found
    return _own(task, rows) if wanted.pid is None else rows


def _own(task: syscalls.Task, rows: list[CtxRow]) -> list[CtxRow]:
    return [row for row in rows if row.pid == task.pid] or rows


def _named(task: syscalls.Task, rows: list[CtxRow], name: str) -> list[CtxRow]:
    found = [row for row in rows if row.name == name]
    if not found:
        close = get_close_matches(name, [row.name for row in rows if row.name], 1)
        hint = f"did you mean @{close[0]}?" if close else "ps --contexts lists them"
        raise Failure(f"there is no context {name!r}", hint, code="ENOENT")
    return _own(task, found)
