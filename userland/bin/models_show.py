"""models show: what a model is, what it takes of memory, and whether it fits now."""

from typing import TYPE_CHECKING, Any

import click

from userland import complete
from userland.desk import Desk, json_option, pass_desk
from userland.exits import Failure
from userland.view import count, size

if TYPE_CHECKING:
    from drivers.models.config import ModelConfig
    from drivers.models.store import InstalledModel

BLOCK_SIZE = 16
"""Tokens in a block of KV, unless a kernel is started with another size."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="MODEL", shell_complete=complete.models)
@click.option(
    "--max-ctx", type=click.IntRange(1, 2**31 - 1), metavar="N", help="As load would get it."
)
@json_option
@pass_desk
def show(desk: Desk, name: str, max_ctx: int | None, as_json: bool) -> None:
    """Show what a model is, and whether it fits into the memory that is free now.

    \b
    Examples:
      llmos models show smollm2
      llmos models show gemma3 --max-ctx 4096

    The memory is counted as the driver of a CPU counts it before it loads.
    """
    from userland.models import installed

    model = installed(name)
    facts = facts_of(desk, model, max_ctx)
    if as_json:
        desk.say_json("models.show", facts)
        return
    for line in lines(facts):
        desk.say(line)


def facts_of(desk: Desk, model: "InstalledModel", max_ctx: int | None) -> dict[str, Any]:
    """Return what `--json` writes."""
    from dataclasses import asdict

    from userland.models import as_failure, rows_of, rows_of_kernel, store

    with as_failure():
        manifest = store().facts(model)
    config = _config(model)
    if max_ctx and max_ctx > config.max_ctx:
        raise Failure(f"{model.full_name} was made for contexts up to {config.max_ctx} tokens")
    rows = rows_of_kernel(desk)
    loaded = [{"name": row.name, "device": row.device} for row in rows_of(model.folder, rows)]
    template = model.folder / "chat_template.jinja"
    return asdict(manifest) | {
        "name": model.full_name,
        "folder": str(model.folder),
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "vocab": config.vocab_size,
        "template": template.exists(),
        "loaded": None if rows is None else loaded,
        **memory(config, max_ctx or config.max_ctx),
    }


def _config(model: "InstalledModel") -> "ModelConfig":
    from drivers.models.config import ModelConfig  # brings numpy

    path = model.folder / "config.json"
    try:
        return ModelConfig.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        again = f"llmos pull {model.manifest.source}"
        raise Failure(f"{path} is damaged: {error}", again, code="ECORRUPT") from None


def memory(config: "ModelConfig", max_ctx: int) -> dict[str, Any]:
    """Return what a model takes with contexts of this length, in each dtype."""
    from drivers.memory import memory_free
    from drivers.sizes import ITEMSIZES, needs

    free, dtypes = memory_free(), {}
    for dtype, itemsize in ITEMSIZES.items():
        need = needs(config, itemsize, BLOCK_SIZE, max_ctx, False)
        room = need.room(free)
        dtypes[dtype] = {
            "weights": need.weights,
            "work": need.work,
            "kv_per_token": need.block // BLOCK_SIZE,
            "kv_of_context": -(-max_ctx // BLOCK_SIZE) * need.block,
            "fits": room >= 2 * need.block,
            "largest_kv": room // need.block * need.block,
        }
    return {"estimated_ctx": max_ctx, "free": free, "dtypes": dtypes}


def lines(facts: dict[str, Any]) -> list[str]:
    """Return what people read."""
    f = facts
    yes = "yes" if f["template"] else "no: it goes on with text as it is, and cannot chat"
    loaded = ", ".join(f"{row['device']} as {row['name']}" for row in f["loaded"] or ())
    table = [
        ("title", f["title"]),
        ("family", f"{f['arch']}, {f['layers']} layers of {f['hidden']}, {f['heads']} heads, "
                   f"{f['kv_heads']} for KV, {count(f['vocab'])} tokens known"),
        ("weights", f"{count(f['params'])} parameters, {f['quant']}, {f['tensors']} tensors, "
                    f"{size(f['bytes'])}"),
        ("where", f["place"] or f"{f['folder']}/{f['file']}"),
        ("source", f["source"] + (f" ({f['revision'][:40]})" if f["revision"] else "")),
        ("sha256", f["sha256"]),
        ("pulled", f["pulled"]),
        ("licence", f["licence"]),
        ("template", yes),
        ("loaded", loaded or ("no" if f["loaded"] is not None else "no kernel says")),
        ("context", f"{count(f['max_ctx'])} tokens"),
    ]  # fmt: skip
    table += [(dtype, _fits(f, numbers)) for dtype, numbers in f["dtypes"].items()]
    return [f["name"], *(f"  {title:<9} {text}" for title, text in table)]


def _fits(facts: dict[str, Any], d: dict[str, Any]) -> str:
    ctx, free = facts["estimated_ctx"], facts["free"]
    kv = f"{size(d['kv_per_token'])} of KV per token, {count(ctx)} tokens = "
    kv += f"{size(d['kv_of_context'])}"
    needs = f"weights {size(d['weights'])} in memory, {size(d['work'])} to work in; {kv}"
    if d["fits"]:
        largest = d["largest_kv"]
        return (
            f"{needs}; fits into {size(free)} free, with --kv-mem up to {largest >> 20}M "
            f"({count(largest // d['kv_per_token'])} tokens)"
        )
    return f"{needs}; does not fit into {size(free)} free (load --max-ctx makes it less)"
