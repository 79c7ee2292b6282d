"""load and unload: models of a running kernel."""

import time

import click

from syscalls import Progress
from userland import complete
from userland.bin.up import telling
from userland.desk import Desk, json_option, pass_desk
from userland.keys import parse_size
from userland.view import count, size


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", shell_complete=complete.models)
@click.option("--as", "name", metavar="NAME", help="What the kernel calls it.  [default: MODEL]")
@click.option("--device", shell_complete=complete.devices, help="Where to load it.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of weights and KV.  [default: as the kernel was started]",
)
@click.option(
    "--deterministic/--no-deterministic",
    default=None,
    help="Same ids whatever else is in the batch.  [default: as the kernel was started]",
)
@click.option("--kv-mem", metavar="SIZE", help="Memory for its KV, as 720M or 2GiB.")
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="Of the KV; int8 takes about half.  [default: as the weights]",
)
@click.option(
    "--max-ctx", type=click.IntRange(1, 2**31 - 1), metavar="N", help="Longest context, in tokens."
)
@json_option
@pass_desk
def load(
    desk: Desk,
    model: str,
    name: str | None,
    device: str | None,
    dtype: str | None,
    deterministic: bool | None,
    kv_mem: str | None,
    kv_dtype: str | None,
    max_ctx: int | None,
    as_json: bool,
) -> None:
    """Load an installed model into the running kernel, beside those that are there.

    \b
    Examples:
      llmos load smollm2 --as exact --dtype float32 --kv-mem 512M
      llmos load gemma3 --max-ctx 8192

    The models that are there go on meanwhile, more slowly. Ctrl-C stops the waiting, not the
    loading.
    """
    from userland.models import installed

    folder, begin = str(installed(model).folder), time.monotonic()
    kv_bytes = parse_size(kv_mem) if kv_mem else 0
    with telling(desk.err) as tell:

        def progress(event: Progress) -> None:
            if desk.err.isatty():  # elsewhere it would be a line for each layer
                tell(f"loading {model}: {event.phase} {event.done}/{event.total}")

        tell(f"loading {model}")
        row = desk.task.load_model(
            name or model, folder, device, dtype, kv_bytes, max_ctx or 0, deterministic, progress,
            kv_dtype,
        )  # fmt: skip
    if as_json:
        desk.say_json("load", row._asdict())
        return
    desk.note(
        f"{row.name} is up on {row.device} after {time.monotonic() - begin:.1f} s: {row.arch} in "
        f"{row.dtype}, {size(row.weights_bytes)} of weights, "
        f"{size(row.num_blocks * row.block_bytes)} for KV in {row.kv_dtype}, "
        f"contexts up to {count(row.max_ctx)} tokens"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", shell_complete=complete.loaded)
@click.option("-f", "--force", is_flag=True, help="Also if contexts use it: they cannot go on.")
@pass_desk
def unload(desk: Desk, model: str, force: bool) -> None:
    """Unload a model of the running kernel, and give its memory back.

    \b
    Examples:
      llmos unload exact
      llmos unload exact --force
    """
    lost = desk.task.unload_model(model, force)
    desk.note(f"{model} is unloaded" + (f"; {lost} contexts have lost it" if lost else ""))
