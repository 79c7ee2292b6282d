"""config: which settings count, where they come from, and whether they are right."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import syscalls
from userland import view
from userland.config import PROJECT, Config, Place, gather, places
from userland.desk import Desk, json_option, pass_desk
from userland.exits import BAD_SETUP, Failure
from userland.keys import Key, Value
from userland.running import differing
from userland.running import running as running_of
from userland.view import Column

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def config() -> None:
    """Show and check the configuration.

    \b
    Examples:
      llmos config show --origin
      llmos config check
      LLMOS_CONFIG=/etc/other.toml llmos config show

    \b
    From the weakest to the strongest:
      built-in
      /etc/llmos/config.toml
      ~/.config/llmos/config.toml, in LLMOS_HOME if that is set, or what LLMOS_CONFIG names
      ./.llmos.toml                 what commands go by, nothing of the kernel
      LLMOS_MODEL, LLMOS_KV_MEM     and so on, the key in capitals
      options                       of the command

    The keys of the kernel stand in the table [kernel] and are read when it starts.
    """


@dataclass(frozen=True, slots=True)
class Shown:
    """One line of `config show`."""

    key: Key
    value: Value | None
    origin: str
    running: Value | None
    """What the kernel that runs uses; None: it does not, or there is none."""


@config.command(context_settings=_HELP)
@click.option("--origin", is_flag=True, help="Also show where each value comes from.")
@json_option
@pass_desk
def show(desk: Desk, origin: bool, as_json: bool) -> None:
    """Show the value of every key, and what a running kernel uses instead.

    \b
    Examples:
      llmos config show
      llmos config show --origin
      llmos config show --json
    """
    found = gather(of_kernel=True).refuse()
    used = _used(desk)
    rows = [
        Shown(s.key, s.value, s.origin, used.get(s.key.name) if s.key.of_kernel else None)
        for s in found
    ]
    if as_json:
        desk.say_json("config.show", [_fact(row) for row in rows])
    else:
        columns = [column for column in COLUMNS if origin or column.key != "origin"]
        if not used:
            columns = [column for column in columns if column.key != "running"]
        view.draw(desk, columns, rows, True, lambda row: "" if _agrees(row, found) else "yellow")
    for line in found.notes:
        desk.note(line)
    for setting in differing(found, used) if used else ():
        value = text(setting.key, used.get(setting.key.name))
        desk.note(
            f"the kernel runs with {setting.key.name} = {value}, not with that of "
            f"{setting.origin}: llmos down && llmos up applies it"
        )


def _used(desk: Desk) -> Mapping[str, Value]:
    """Return what the running kernel uses; nothing if none runs."""
    try:
        return running_of(desk.task) or {}
    except syscalls.ECONNRESET:
        return {}


def _agrees(row: Shown, found: Config) -> bool:
    return (
        row.running is None
        or not found.settings[row.key.shown].explicit
        or (row.running == row.value)
    )


def _fact(row: Shown) -> dict[str, Any]:
    return {
        "key": row.key.shown,
        "value": row.value,
        "origin": row.origin,
        "running": row.running,
    }


def text(key: Key, value: Value | None) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if key.kind == "size" and isinstance(value, int) and value:
        return view.size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


COLUMNS = [
    Column("key", "KEY", lambda row: row.key.shown, left=True),
    Column("value", "VALUE", lambda row: text(row.key, row.value), left=True),
    Column("running", "RUNNING", lambda row: text(row.key, row.running), left=True),
    Column("origin", "ORIGIN", lambda row: row.origin, left=True),
]


@config.command(context_settings=_HELP)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
@pass_desk
def check(desk: Desk, file: Path | None, as_json: bool) -> None:
    """Check the files and variables, or one file, without starting anything.

    \b
    Examples:
      llmos config check
      llmos config check ./new.toml && cp new.toml ~/.config/llmos/config.toml

    It ends with 78 if something is wrong, and names all of it.
    """
    files = [_as_place(file)] if file is not None else places(os.environ, Path())
    found = gather(of_kernel=True, files=files)
    set_keys = [setting.key.shown for setting in found if setting.explicit]
    if as_json:
        facts = {"problems": found.problems, "notes": found.notes, "set": set_keys}
        desk.say_json("config.check", facts)
    for line in [*found.notes, *(() if as_json else found.problems)]:
        desk.note(line)
    if found.problems:
        count = len(found.problems)
        things = "one thing" if count == 1 else f"{count} things"
        raise Failure(f"{things} in the configuration cannot be used", exit_code=BAD_SETUP)
    if not as_json:
        read = [str(place.path) for place in files if place.path.exists()]
        desk.say(f"{', '.join(read) or 'no file'}: keys set: {len(set_keys)}; nothing is wrong")


def _as_place(file: Path) -> Place:
    """Return a file as the configuration would read it."""
    return Place("file", file, of_kernel=file.name != PROJECT, must_exist=True)


@config.command(context_settings=_HELP)
@json_option
@pass_desk
def path(desk: Desk, as_json: bool) -> None:
    """List the files that are read, the later ones winning.

    \b
    Examples:
      llmos config path
      $EDITOR "$(llmos config path --json | jq -r '.data[1].path')"
    """
    files = places(os.environ, Path())
    if as_json:
        facts = [
            {"layer": p.layer, "path": str(p.path.absolute()), "exists": p.path.exists()}
            for p in files
        ]
        desk.say_json("config.path", facts)
        return
    view.draw(desk, PATH_COLUMNS, files, True, lambda place: "" if place.path.exists() else "dim")


PATH_COLUMNS = [
    Column("layer", "LAYER", lambda place: place.layer, left=True),
    Column("exists", "THERE", lambda place: "yes" if place.path.exists() else "no", left=True),
    Column("path", "PATH", lambda place: str(place.path.absolute()), left=True),
]
