"""ctx: the contexts of the kernel, as a list or as a tree of what they share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import click

from syscalls import KernelError
from syscalls.abi import CtxRow, SharerRow, TaskRow
from userland import complete, view
from userland.bin.portable import export, import_
from userland.bin.ps import COLORS, OF_CONTEXTS, Facts, context_columns, swapped
from userland.bin.saves import rm, saves
from userland.choosing import chosen
from userland.desk import Desk, json_option, pass_desk
from userland.families import Branch, Key, Relative, branches, key_of, relatives
from userland.glyphs import unicode_to
from userland.view import Column, count

KEPT = ("pid", "ctx", "tok", "blocks", "name")
"""Columns of the list that the narrowest terminal has."""
_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def ctx() -> None:
    """List contexts, and show what they share; list, move and delete those that are saved.

    \b
    Examples:
      llmos ctx ls
      llmos ctx tree
      llmos ctx saves

    A context belongs to its task: what changes or saves one is in llmsh (ctx there) and in the
    library.
    """


for command in (saves, rm, export, import_):
    ctx.add_command(command)

_words = click.argument(
    "words", nargs=-1, metavar="[PID] [CTX|@NAME]", shell_complete=complete.tasks_and_contexts
)


@ctx.command("ls", context_settings=_HELP)
@_words
@click.option("--no-headers", is_flag=True, help="Rows only.")
@json_option
@pass_desk
def ls(desk: Desk, words: tuple[str, ...], no_headers: bool, as_json: bool) -> None:
    """List contexts: all of them, those of a task, or those of a name.

    \b
    Examples:
      llmos ctx ls
      llmos ctx ls 7
      llmos ctx ls @main --json

    The same as llmos ps --contexts, which explains the columns and has more.
    """
    task = desk.task
    rows = chosen(task, "ctx ls", words) if words else task.contexts()
    if as_json:
        desk.say_json("contexts", [row._asdict() for row in rows])
        return
    facts = Facts()
    facts.feed([], task.pools())
    known = view.choose(context_columns(facts), OF_CONTEXTS)
    columns = [replace(column, spare=column.key not in KEPT) for column in known]
    view.draw(desk, columns, rows, not no_headers, lambda row: COLORS.get(row.state, ""))
    if not rows:
        desk.note("no contexts")


class Line(NamedTuple):
    """A line of the tree: a task, or a context of it."""

    task: TaskRow
    branch: Branch | None = None

    @property
    def row(self) -> CtxRow | None:
        return self.branch.of.row if self.branch else None


@ctx.command("tree", context_settings=_HELP)
@_words
@click.option("--no-headers", is_flag=True, help="Rows only.")
@json_option
@pass_desk
def tree(desk: Desk, words: tuple[str, ...], no_headers: bool, as_json: bool) -> None:
    """Show contexts by task, and below each those that share its blocks.

    \b
    Examples:
      llmos ctx tree
      llmos ctx tree 7
      llmos ctx tree --json

    \b
    Below a context stand later ones that share more blocks with it than with any other: its
    forks, and prompts that begin as it does.
    COMMON  blocks in common with the context above, or with the one behind "of"
    OWN     blocks of the device that no other context has; SWP: blocks in a lower tier only
    """
    grow(desk, words, not no_headers, as_json)


def grow(desk: Desk, words: Sequence[str], headers: bool, as_json: bool) -> None:
    """Write the tree."""
    task = desk.task
    rows = chosen(task, "ctx tree", words) if words else task.contexts()

    def ask(row: CtxRow) -> list[SharerRow]:
        try:
            sharers: list[SharerRow] = task.pmap(row.ctx, row.pid).sharers
        except KernelError:
            if task.lost:
                raise
            return []  # it has gone since the list was made
        return sharers

    found, left = relatives(rows, ask)
    if as_json:
        desk.say_json("ctx.tree", [_fact(*relative) for relative in found])
    else:
        names = {key_of(row): row.name for row in rows}
        fancy = desk.out.isatty() and unicode_to(desk.out)
        lines = _lines(task.ps(), branches_by_task(found))
        view.draw(desk, _columns(fancy, names), lines, headers, _style)
        if not rows:
            desk.note("no contexts")
    if left:
        desk.note(
            f"too many to compare all: of {count(left)} contexts that share blocks, "
            "not all is shown that they share"
        )


def branches_by_task(found: Sequence[Relative]) -> dict[int, list[Branch]]:
    """Return the tree of each task; who shares with another task's context begins one."""
    of: dict[int, list[Relative]] = {}
    for relative in found:
        of.setdefault(relative.row.pid, []).append(relative)
    return {pid: branches(relatives) for pid, relatives in of.items()}


def _fact(row: CtxRow, parent: Key | None, common: int) -> dict[str, Any]:
    pid, handle = parent or (None, None)
    return row._asdict() | {"common_pid": pid, "common_ctx": handle, "common_blocks": common}


def _lines(tasks: Sequence[TaskRow], trees: dict[int, list[Branch]]) -> list[Line]:
    """Return each task that has contexts, and its tree behind it."""
    lines: list[Line] = []
    for task in tasks:
        if task.pid in trees:
            lines += [Line(task), *(Line(task, branch) for branch in trees[task.pid])]
    return lines


def _columns(fancy: bool, names: dict[Key, str]) -> list[Column]:
    def limb(line: Line) -> str:
        if line.branch is None:
            return f"{line.task.pid} {line.task.name}"
        row = line.branch.of.row
        return _twigs(line.branch, fancy) + (view.printable(row.name) or f"ctx {row.ctx}")

    def common(line: Line) -> str:
        return count(line.branch.of.common) if line.branch and line.branch.of.parent else "-"

    def other(line: Line) -> str:
        """Name the context in common with, if it is not the one above."""
        parent = line.branch.of.parent if line.branch else None
        if parent is None or parent[0] == line.task.pid:
            return "-"
        name = view.printable(names.get(parent, ""))
        return f"{parent[0]}/{parent[1]}" + (f" @{name}" if name else "")

    def number(of: Any) -> Any:
        return lambda line: count(of(line.row)) if line.row else "-"

    return [
        Column("tree", "CONTEXT", limb, left=True),
        Column("s", "S", lambda line: line.row.state or "-" if line.row else line.task.state,
               left=True, spare=True),
        Column("tok", "TOK", lambda line: count(line.row.length if line.row
                                                 else line.task.tokens)),
        Column("blocks", "BLOCKS", number(lambda row: row.blocks)),
        Column("common", "COMMON", common),
        Column("own", "OWN", number(lambda row: row.blocks - row.shared)),
        Column("swp", "SWP", number(swapped), spare=True),
        Column("pin", "PIN", lambda line: "yes" if line.row and line.row.pinned else "-",
               left=True, spare=True),
        Column("of", "OF", other, left=True),
    ]  # fmt: skip


def _twigs(branch: Branch, fancy: bool) -> str:
    """Return what stands before a name: a branch for each level above it."""
    if not fancy:
        return "  " * branch.depth + "\\_ "
    above = "".join("   " if last else "│  " for last in branch.last[:-1])
    return above + ("└─ " if branch.last[-1] else "├─ ")


def _style(line: Line) -> str:
    return COLORS.get(line.row.state, "") if line.row else "bold"
