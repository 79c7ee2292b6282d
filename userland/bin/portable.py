"""ctx export and ctx import: saves as files, to keep elsewhere or for another machine."""

import hashlib
from array import array
from pathlib import Path

import click

from syscalls import KernelError, Task
from syscalls.abi import MAX_IDS
from userland import complete, portable
from userland.desk import Desk, json_option, pass_desk
from userland.exits import Failure
from userland.passphrase import asking, passphrase_option
from userland.portable import Portable
from userland.running import loaded_as
from userland.view import count, size

_HELP = {"help_option_names": ["-h", "--help"]}
_file = click.argument("file", type=click.Path(path_type=Path))


@click.command("export", context_settings=_HELP)
@click.argument("name", shell_complete=complete.saves)
@_file
@click.option("--encrypt", is_flag=True, help="Seal the file under a passphrase; it is asked for.")
@passphrase_option
@click.option("--kv", is_flag=True, help="With its KV: not in this version.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@json_option
@pass_desk
def export(
    desk: Desk, name: str, file: Path, encrypt: bool, passphrase_file: Path | None, kv: bool,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a save to a file of its own, without its KV.

    \b
    Examples:
      llmos ctx export notes ~/notes.ctx
      llmos ctx export notes /media/usb/notes.ctx --encrypt
      llmos ctx export notes ~/notes.ctx --passphrase-file ./passphrase --force

    It holds the ids and where the messages end, so the kernel that imports it computes the KV
    again. Without a passphrase whoever has the file can read it: its mode is 600.
    """
    task = desk.task
    if kv:
        hint = "leave --kv out: it is computed again"
        raise Failure("this version exports ids, no KV", hint, code="ENOTSUP")
    sealed = encrypt or passphrase_file is not None
    found = _take(task, name)
    ask = asking(passphrase_file, twice=True) if sealed else None
    written = portable.write(file, found, ask, force)
    if as_json:
        data = {"name": name, "file": str(file), "bytes": written, "tokens": len(found.ids),
                "model": found.model, "sealed": sealed}  # fmt: skip
        desk.say_json("ctx.export", data)
        return
    how = "under a passphrase" if sealed else "readable by whoever has it"
    desk.note(f"{file}: {count(len(found.ids))} ids of {found.model}, {size(written)}, {how}")


def _take(task: Task, name: str) -> Portable:
    """Read a save through a context that is made of it."""
    with task.load_ctx(name) as context:
        assert context.loaded is not None
        ids = array("i", context.read())
        loaded = context.loaded
    return Portable(
        loaded.model, _tokenizer(task, loaded.model), int(loaded.saved_wall_s), ids, loaded.extra
    )


def _tokenizer(task: Task, model: str) -> str:
    """Return the SHA-256 of a model's tokenizer.json, empty if it has none."""
    raw = task.run(task.caller.part(model, "tokenizer.json", None))
    return "" if raw is None else hashlib.sha256(raw).hexdigest()


@click.command("import", context_settings=_HELP)
@_file
@click.argument("name")
@click.option(
    "-m",
    "--model",
    shell_complete=complete.loaded,
    help="Model that it is for.  [default: the one that it was saved from]",
)
@passphrase_option
@click.option("--force", is_flag=True, help="Replace the save of that name if there is one.")
@json_option
@pass_desk
def import_(
    desk: Desk, file: Path, name: str, model: str | None, passphrase_file: Path | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a save of a file that was exported.

    \b
    Examples:
      llmos ctx import ~/notes.ctx notes
      llmos ctx import notes.ctx notes --model smollm2 --force

    The model has to be loaded, and to have the tokenizer of the one that it was saved from.
    """
    task = desk.task
    if not force and any(row.name == name for row in task.saves()):
        hint = "take another name, or --force to replace it"
        raise Failure(f"there is a save {name!r} already", hint, code="EEXIST")
    found = portable.read(file, asking(passphrase_file, twice=False))
    used = _keep(task, found, name, loaded_as(task, model or found.model))
    if as_json:
        desk.say_json("ctx.import", {"name": name, "model": used, "tokens": len(found.ids)})
        return
    desk.note(f"saved {name}: {count(len(found.ids))} ids of {used}")


def _keep(task: Task, found: Portable, name: str, model: str | None) -> str:
    """Save what a file holds, through a context that is made of it; return the model's name."""
    try:
        context = task.alloc_ctx(model, name)
    except KernelError as error:
        if error.errno.name != "ENOENT":
            raise
        hint = f"llmos load {model}, or --model NAME for one with its tokenizer"
        raise Failure(f"it is of model {model}, which is not loaded", hint, code="ENOENT") from None
    with context:
        if _tokenizer(task, context.model) != found.tokenizer:
            what = f"its ids are of another tokenizer than that of {context.model}"
            raise Failure(what, "--model NAME for one that has it", code="EINVAL")
        for start in range(0, len(found.ids), MAX_IDS):
            context.append(found.ids[start : start + MAX_IDS])
        task.call_raw("save_ctx", context.handle, name, found.turns)
        return context.model
