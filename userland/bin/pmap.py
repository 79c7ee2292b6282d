"""pmap: the blocks of a context, as a picture or as a list of ranges."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from syscalls.abi import BlockRun, PmapResult
from userland import complete, picture, view
from userland.choosing import chosen, few
from userland.desk import Desk, json_option, pass_desk
from userland.exits import REFUSED, USAGE, Failure, reason
from userland.glyphs import unicode_to
from userland.view import Column, count

if TYPE_CHECKING:
    from rich.text import Text


SVG_WIDTH = 80
"""Columns of a picture, at least."""


class Map(NamedTuple):
    """A context block by block, and whether it is pinned."""

    of: PmapResult
    pinned: bool


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
    Column("block", "BLOCK", lambda r: picture.place_of(r.run)),
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
@click.option(
    "--svg",
    "svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the picture to a file, as SVG.",
)
@json_option
@pass_desk
def pmap(
    desk: Desk,
    words: tuple[str, ...],
    ranges: bool,
    no_headers: bool,
    svg: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show the KV blocks of a context, or of all contexts of a task.

    \b
    Examples:
      pmap @main
      pmap 7
      pmap 7 1 -x
      pmap @main --svg main.svg

    Without arguments: of the task that asks, or of all tasks if it has no contexts.

    \b
    shared   full, and other contexts have it, too: nothing was copied for them
    private  full, and this context's alone
    filling  on the device, and some of its positions have no KV yet
    host     in host memory only: it is copied back when it is needed; disk: likewise
    absent   ids only; its KV is computed when it is needed
    START is a position; BLOCK the number of the first of BLOCKS, on the device or in its tier; IDS
    and KV count positions that have an id, and that have KV. In a pipe it is a list in any case.
    """
    if svg is not None and (as_json or ranges):
        raise Failure("--svg is of the picture", "pmap --svg FILE, without --json and -x", USAGE)
    rows = few(chosen(desk.task, "pmap", words), "pmap")
    maps = [Map(desk.task.pmap(row.ctx, row.pid), row.pinned) for row in rows]
    if as_json:
        desk.say_json("pmap", [_document(*found) for found in maps])
    elif svg is not None:
        _write(desk, svg, maps)
    elif ranges or not desk.out.isatty():
        runs = [Range(found.of, run) for found in maps for run in found.of.runs]
        view.draw(desk, COLUMNS, runs, not no_headers, lambda row: "")
    else:
        _draw(desk, maps)
    if not maps:
        desk.note("no contexts")


def _document(found: PmapResult, pinned: bool) -> dict[str, Any]:
    runs = [run._asdict() | {"use": picture.word_of(run)} for run in found.runs]
    document = found._asdict() | {"pinned": pinned}
    del document["cursor"]
    return document | {"runs": runs, "sharers": [row._asdict() for row in found.sharers]}


def _lines(maps: list[Map], width: int, fancy: bool) -> "list[Text]":
    """Return the pictures, an empty line between two."""
    from rich.text import Text

    lines: list[list[picture.Segment]] = []
    for found, pinned in maps:
        lines += [[]] if lines else []
        lines += picture.title(found, width, fancy)
        lines += picture.cells(found, width, fancy)
        if found.runs:
            lines += picture.legend(found, pinned, width, fancy)
        if sharing := picture.shared_with(found, width):
            lines.append([(sharing, "")])
    return [Text.assemble(*line) for line in lines]


def _draw(desk: Desk, maps: list[Map]) -> None:
    console = desk.console()
    with desk.writing():
        for line in _lines(maps, console.width, unicode_to(desk.out)):
            console.print(line, soft_wrap=True)


def _write(desk: Desk, path: Path, maps: list[Map]) -> None:
    """Write the pictures to a file; where there is no context, nothing."""
    from userland.svg import picture_of

    lines = _lines(maps, SVG_WIDTH, fancy=True)
    if not lines:
        return
    width = max(SVG_WIDTH, *(line.cell_len for line in lines))
    try:
        path.write_text(picture_of(lines, width, "llmos pmap", "pmap"), "utf-8")
    except REFUSED as error:
        raise Failure(f"cannot write {path}: {reason(error)}", exit_code=74) from None
    desk.note(f"the picture is in {path}")
