"""models: the models on this machine, and what can be done with their files. `ls` lists them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from userland import complete, view
from userland.bin.models_show import show
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure
from userland.view import Column, size

HELP = {"help_option_names": ["-h", "--help"]}


class Row(NamedTuple):
    """One installed model."""

    name: str
    title: str
    family: str
    params: int
    quant: str
    bytes: int
    max_ctx: int
    source: str
    place: str
    licence: str
    pulled: str
    folder: str
    loaded: list[str] | None
    """Devices that have it; None: no kernel says."""
    problem: str


def _loaded(row: Row) -> str:
    return ",".join(row.loaded) if row.loaded else "-"


def params(number: int) -> str:
    """134515008 -> 135M."""
    for unit, scale in (("B", 1_000_000_000), ("M", 1_000_000), ("K", 1000)):
        if number >= scale:
            value = number / scale
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(number)


def tokens(number: int) -> str:
    """8192 -> 8k."""
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else f"{number:,}"


COLUMNS = [
    Column("name", "NAME", lambda m: m.name, left=True),
    Column("family", "FAMILY", lambda m: m.family, left=True, spare=True),
    Column("params", "PARAMS", lambda m: params(m.params), sort=lambda m: m.params),
    Column("quant", "QUANT", lambda m: m.quant or "-", left=True),
    Column("size", "SIZE", lambda m: size(m.bytes), sort=lambda m: m.bytes),
    Column("ctx", "CTX", lambda m: tokens(m.max_ctx), sort=lambda m: m.max_ctx),
    Column("source", "SOURCE", lambda m: m.source.partition("#")[0], left=True, spare=True),
    Column("loaded", "LOADED", _loaded, left=True),
    Column("licence", "LICENCE", lambda m: m.licence, left=True, spare=True),
    Column("title", "TITLE", lambda m: m.title, left=True),
    Column("place", "PLACE", lambda m: m.place or "-", left=True),
    Column("pulled", "PULLED", lambda m: m.pulled, left=True),
    Column("folder", "FOLDER", lambda m: m.folder, left=True),
]
DEFAULT = "name,family,params,quant,size,ctx,source,loaded,licence"


def list_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the list takes."""
    for option in reversed(
        [
            click.option("-o", "keys", metavar="COLUMNS", help="Columns, comma-separated."),
            click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN: descending."),
            click.option("--no-headers", is_flag=True, help="Rows only."),
            json_option,
        ]
    ):
        command = option(command)
    return command


def several(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an argument of installed models."""
    metavar = "MODEL..." if required else "[MODEL]..."
    return click.argument(
        "names", metavar=metavar, nargs=-1, required=required, shell_complete=complete.models
    )


@click.group(invoke_without_command=True, context_settings=HELP)
@list_options
@click.pass_context
@pass_desk
def models(desk: Desk, context: click.Context, /, **options: Any) -> None:
    """List the models on this machine; show, check and remove them.

    \b
    Examples:
      llmos models
      llmos models show smollm2
      llmos models rm smollm2

    \b
    SIZE     of the model's files; PLACE is where it is used, if not in the store
    LOADED   devices of the running kernel that have it, - if none or no kernel answers
    Further columns for -o: title, place, pulled, folder.
    """
    if context.invoked_subcommand is None:
        _list(desk, **options)
    elif any(options.values()):
        raise click.UsageError(f"options go after {context.invoked_subcommand}", context)


@click.command("ls", context_settings=HELP)
@list_options
@pass_desk
def ls(desk: Desk, /, **options: Any) -> None:
    """List the models on this machine.

    \b
    Examples:
      llmos ls
      llmos ls -o name,size,place --sort -size

    The same as llmos models, which explains the columns.
    """
    _list(desk, **options)


models.add_command(ls, "list")
models.add_command(show)


def _list(
    desk: Desk, *, keys: str | None, sort: str | None, no_headers: bool, as_json: bool
) -> None:
    if as_json and keys:
        raise Failure("-o is for the table; --json has every field", "models --json", USAGE)
    columns = view.choose(COLUMNS, keys or DEFAULT)
    rows: Sequence[Row] = _rows(desk)
    if sort:
        rows = view.ordered(COLUMNS, rows, sort)
    if as_json:
        desk.say_json("models", [row._asdict() for row in rows])
        return
    if rows:
        view.draw(desk, columns, rows, not no_headers, lambda m: "red" if m.problem else "")
    else:
        desk.note("no model is installed; llmos pull smollm2 installs one")
    for row in rows:
        if row.problem:
            desk.note(f"{row.name} cannot be used: {row.problem}")


def _rows(desk: Desk) -> list[Row]:
    from userland.models import as_failure, rows_of, rows_of_kernel, store

    ours = store()
    with as_failure():
        found = ours.list()
    loaded = rows_of_kernel(desk)
    rows = []
    for model in found:
        about, problem = model.manifest, ""
        try:
            with as_failure():
                model.check()
                about = ours.facts(model)
        except Failure as failure:
            problem = failure.message
        rows.append(
            Row(
                model.full_name, about.title, about.arch, about.params, about.quant, about.bytes,
                about.max_ctx, about.source, about.place, about.licence, about.pulled,
                str(model.folder),
                None if loaded is None else [row.device for row in rows_of(model.folder, loaded)],
                problem,
            )
        )  # fmt: skip
    return rows


@models.command(context_settings=HELP)
@several(required=False)
@json_option
@pass_desk
def verify(desk: Desk, names: tuple[str, ...], as_json: bool) -> int:
    """Read models whole and compare their sums with those of their pull.

    \b
    Examples:
      llmos models verify
      llmos models verify smollm2 gemma3

    Without a MODEL, all. The exit code is 74 if one is damaged or gone.
    """
    from userland.bin.pull import shown
    from userland.models import as_failure, installed, store

    ours = store()
    with as_failure():
        wanted = [installed(name) for name in names] if names else ours.list()
    results = []
    for model in wanted:
        problem = ""
        try:
            with as_failure(), shown(desk.err) as bars:
                ours.verify(model, bars.progress)
        except Failure as failure:
            problem = failure.message
        results.append({"name": model.full_name, "ok": not problem, "problem": problem})
        if not as_json:
            sha256 = f"sha256 {model.manifest.sha256[:12]}… ok"
            desk.say(f"{model.full_name}: {problem or sha256}")
    if as_json:
        desk.say_json("models.verify", results)
    return 0 if all(result["ok"] for result in results) else 74


@models.command(context_settings=HELP)
@several(required=True)
@click.option("-f", "--force", is_flag=True, help="Also if the running kernel has it loaded.")
@json_option
@pass_desk
def rm(desk: Desk, names: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove models from this machine.

    \b
    Examples:
      llmos models rm smollm2
      llmos models rm --force qwen3:0.6b

    A model that is used in place loses only its folder in the store: its files stay where they are.
    """
    from userland.models import as_failure, place_of, rows_of, rows_of_kernel, store

    ours, removed = store(), []
    loaded = rows_of_kernel(desk)
    for name in names:
        with as_failure():
            folder = ours.folder(name)
        full_name = f"{folder.parent.name}:{folder.name}"
        rows = rows_of(folder, loaded)
        if rows and not force:
            where = ", ".join(f"{row.name} on {row.device}" for row in rows)
            hint = f"llmos unload {rows[0].name}; with --force it stays loaded, but new programs"
            hint += " find no tokenizer, so only those that have it already can give it text"
            raise Failure(f"{full_name} is loaded, as {where}", hint, code="EBUSY")
        place = place_of(folder)
        with as_failure():
            freed = ours.remove(folder)
        removed.append({"name": full_name, "freed": freed, "place": place})
        if not as_json:
            stays = f"; {place} stays" if place else ""
            desk.note(f"{full_name} is removed: {size(freed)} freed{stays}")
    if as_json:
        desk.say_json("models.rm", removed)


@models.command(context_settings=HELP)
@json_option
@pass_desk
def du(desk: Desk, as_json: bool) -> None:
    """Say what models take on the disk.

    \b
    Examples:
      llmos models du
      llmos models du --json

    Files that are used in place are not counted. What pulls that did not end have left is: the next
    pull of that model goes on with it or removes it, and so does llmos models rm.
    """
    from drivers.models.store import disk_bytes
    from userland.models import as_failure, store

    ours = store()
    with as_failure():
        rows = [(model.full_name, disk_bytes(model.folder)) for model in ours.list()]
        left = [(path.name, number) for path, number in ours.leftovers()]
    total = sum(number for _, number in rows + left)
    if as_json:
        data = {
            "folder": str(ours.root), "total": total,
            "models": [{"name": name, "bytes": number} for name, number in rows],
            "left": [{"name": name, "bytes": number} for name, number in left],
        }  # fmt: skip
        desk.say_json("models.du", data)
        return
    for name, number in rows + left + [(str(ours.root), total)]:
        desk.say(f"{size(number):>10}  {name}")
