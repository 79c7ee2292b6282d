"""The real models, smollm2 unless another is named, and what they must say.

The first is installed by `make models`; gemma3 is where somebody has pulled it. The reference is
what transformers generates in float32 (tests/data/make_reference.py): prompts, greedy ids with
end-of-text like any other, and how far the best logit lay above the second.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drivers.models.store import ModelStore, default_root
from syscalls.client import Task
from syscalls.context import Context, Stream

DATA = Path(__file__).parents[1] / "data"
SMOLLM2 = "smollm2"
NEAR_TIE = 1e-3
"""Below this gap another order of summation may pick the other id."""
QUICK = 0, 1, 8
"""Prompts of the short form: 33, 5 and 200 ids."""


class Reference(NamedTuple):
    """One prompt, what follows it, and the gap between the two highest logits at each id."""

    prompt: list[int]
    output: list[int]
    gaps: list[float]


def references(model: str = SMOLLM2) -> list[Reference]:
    """Return a model's prompts."""
    path = DATA / f"reference_{model}.json"
    prompts = json.loads(path.read_text(encoding="ascii"))["prompts"]
    return [Reference(p["prompt_ids"], p["output_ids"], p["gaps"]) for p in prompts]


def kernel_options(*options: str, model: str = SMOLLM2) -> tuple[str, ...]:
    """Return what to start llmosd with, on the CPU and a model.

    One thread, unless `options` say otherwise: threads that wait for each other at barriers are
    several times slower as soon as anything else wants their cores.
    """
    folder = ModelStore(default_root()).find(model).folder
    where = ("--device", "cpu0", "--model", model, "--model-dir", str(folder))
    return (*where, "--num-blocks", "600", "--threads", "1", *options)


def context(task: Task, ids: Sequence[int]) -> Context:
    """Return a context that holds these ids."""
    ctx = task.alloc_ctx()
    ctx.append(ids)
    return ctx


def greedy(ctx: Context, count: int) -> Stream:
    """Start to generate `count` ids."""
    return ctx.infer(max_tokens=count, temperature=0, ignore_eos=True, logprobs=0, text=False)


def ids_of(stream: Stream) -> list[int]:
    """Read a stream to its end."""
    return [piece.id for piece in stream]


def alone(task: Task, wanted: Sequence[Reference], count: int) -> None:
    """One prompt after the other gives what it must."""
    check(wanted, [ids_of(greedy(context(task, r.prompt), count)) for r in wanted])


def together(task: Task, wanted: Sequence[Reference], count: int) -> None:
    """All prompts at once do."""
    streams = [greedy(context(task, r.prompt), count) for r in wanted]
    check(wanted, [ids_of(stream) for stream in streams])


def forked(task: Task, wanted: Sequence[Reference], count: int) -> None:
    """Parent and child do, that go on at once from the middle of a block that they share."""
    early = count // 3
    parents = [context(task, r.prompt) for r in wanted]
    heads = [ids_of(stream) for stream in [greedy(parent, early) for parent in parents]]
    children = [parent.fork() for parent in parents]
    streams = [greedy(ctx, count - early) for ctx in (*children, *parents)]
    tails = [ids_of(stream) for stream in streams]
    both = [head + tail for head, tail in zip((*heads, *heads), tails, strict=True)]
    check(wanted, both[: len(parents)])
    check(wanted, both[len(parents) :])


def trimmed(task: Task, wanted: Sequence[Reference], count: int) -> None:
    """Half of a prompt with another end, computed, trimmed away, and the right end, does."""
    contexts = []
    for reference in wanted:
        keep = len(reference.prompt) // 2
        ctx = context(task, [*reference.prompt[:keep], *range(1000, 1025)])
        ids_of(greedy(ctx, 2))
        ctx.trim(keep)
        ctx.append(reference.prompt[keep:])
        contexts.append(ctx)
    streams = [greedy(ctx, count) for ctx in contexts]
    check(wanted, [ids_of(stream) for stream in streams])


def check(wanted: Sequence[Reference], got: Sequence[list[int]]) -> None:
    """Outputs are those of the reference; one of sixteen may part from it at a near tie."""
    parted = 0
    for number, (reference, output) in enumerate(zip(wanted, got, strict=True)):
        expected = reference.output[: len(output)]
        pairs = zip(expected, output, strict=True)
        first = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        if first is not None:
            gap = reference.gaps[first]
            assert gap < NEAR_TIE, f"prompt {number}, id {first}: gap {gap}\n{output}\n{expected}"
            parted += 1
    assert parted <= len(wanted) // 16, f"{parted} of {len(wanted)} prompts part at near ties"
