"""pmap: the blocks of a context, as a picture or as a list of ranges."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import click

import syscalls
from syscalls.abi import BlockRun, CtxRow, PmapResult
from userland import complete, picture, view
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure
from userland.glyphs import unicode_to
from userland.view import Column, count


class Range(NamedTuple):
    """A run, and the context that it is of."""

    of: PmapResult
    run: BlockRun


COLUMNS = [
    Column("pid", "PID", lambda r: str(r.of.pid)),
    Column("ctx", "CTX", lambda r: str(r.of.ctx)),
    Column("start", "START", lambda r: count(r.run.start)),
    Column("blocks", "BLOCKS", lambda r: count(r.run.blocks)),
    Column("use", "USE", lambda r: picture.word_of(r.run), left=True),
    Column("refs", "REFS", lambda r: count(r.run.refs)),
    Column("block", "BLOCK", lambda r: str(r.run.block or "-")),
    Column("ids", "IDS", lambda r: count(r.run.ids)),
    Column("kv", "KV", lambda r: count(r.run.filled)),
    Column("name", "NAME", lambda r: view.printable(r.of.name) or "-", left=True),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "words", nargs=-1, metavar="[PID] [CTX|@NAME]", shell_complete=complete.tasks_and_contexts
)
@click.option("-x", "--ranges", is_flag=True, help="List ranges of blocks instead.")
@click.option("--no-headers", is_flag=True, help="Rows only, of a list.")
@json_option
@pass_desk
def pmap(desk: Desk, words: tuple[str, ...], ranges: bool, no_headers: bool, as_json: bool) -> None:
    """Show the KV blocks of a context, or of all contexts of a task.

    \b
    Examples:
      pmap @main
      pmap 7
      pmap 7 1 -x

    Without arguments: of the task that asks, or of all tasks if it has no contexts.

    \b
    shared   full, and other contexts have it, too: nothing was copied for them
    private  full, and this context's alone
    filling  on the device, and some of its positions have no KV yet
    absent   ids only; its KV is computed when it is needed
    START is a position; BLOCK the number on the device of the first of BLOCKS; IDS and KV count
    positions that have an id, and that have KV. In a pipe it is a list in any case.
    """
    maps = [desk.task.pmap(row.ctx, row.pid) for row in _chosen(desk.task, words)]
    if as_json:
        desk.say_json("pmap", [_document(found) for found in maps])
    elif ranges or not desk.out.isatty():
        rows = [Range(found, run) for found in maps for run in found.runs]
        view.draw(desk, COLUMNS, rows, not no_headers, lambda row: "")
    else:
        for at, found in enumerate(maps):
            if at:
                desk.say("")
            _draw(desk, found)
    if not maps:
        desk.note("no contexts")


class _Wanted(NamedTuple):
    pid: int | None = None
    ctx: int | None = None
    name: str | None = None


def _parse(words: Sequence[str]) -> _Wanted:
    wanted = _Wanted()
    for word in words:
        number = int(word) if re.fullmatch(r"[0-9]{1,15}", word, re.ASCII) else None
        named = wanted.ctx is not None or wanted.name is not None
        if word.startswith("@") and not named:
            wanted = wanted._replace(name=word[1:])
        elif number is not None and wanted.pid is None and not named:
            wanted = wanted._replace(pid=number)
        elif number is not None and not named:
            wanted = wanted._replace(ctx=number)
        else:
            raise Failure(f"{word!r} is out of place", "pmap PID, pmap PID CTX, pmap @NAME", USAGE)
    return wanted


def _chosen(task: syscalls.Task, words: Sequence[str]) -> list[CtxRow]:
    """Return the contexts that are meant, in the order in which the kernel has them."""
    wanted = _parse(words)
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


def _document(found: PmapResult) -> dict[str, Any]:
    runs = [run._asdict() | {"use": picture.word_of(run)} for run in found.runs]
    document = found._asdict()
    del document["cursor"]
    return document | {"runs": runs, "sharers": [row._asdict() for row in found.sharers]}


def _draw(desk: Desk, found: PmapResult) -> None:
    from rich.text import Text

    console = desk.console()
    fancy = unicode_to(desk.out)
    lines = [[(picture.title(found, console.width, fancy), "bold")]]
    lines += picture.cells(found, fancy)
    if found.runs:
        lines.append(picture.legend(found, fancy))
    if sharing := picture.shared_with(found, console.width):
        lines.append([(sharing, "")])
    with desk.writing():
        for line in lines:
            console.print(Text.assemble(*line), soft_wrap=True)
