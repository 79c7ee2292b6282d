"""The real model, installed by `make models`, and what it must say.

The reference is what transformers generates in float32 (tests/data/make_reference.py): prompts,
greedy ids with end-of-text like any other, and how far the best logit lay above the second.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from drivers.models.store import ModelStore, default_root
from syscalls.client import Task
from syscalls.context import Context, Stream

DATA = Path(__file__).parents[1] / "data" / "reference_smollm2.json"
NEAR_TIE = 1e-3
"""Below this gap another order of summation may pick the other id."""
QUICK = 0, 1, 8
"""Prompts of the short form: 33, 5 and 200 ids."""


class Reference(NamedTuple):
    """One prompt, what follows it, and the gap between the two highest logits at each id."""

    prompt: list[int]
    output: list[int]
    gaps: list[float]


def references() -> list[Reference]:
    """Return the sixteen prompts."""
    prompts = json.loads(DATA.read_text(encoding="ascii"))["prompts"]
    return [Reference(p["prompt_ids"], p["output_ids"], p["gaps"]) for p in prompts]


def kernel_options(*options: str) -> tuple[str, ...]:
    """Return what to start llmosd with, on the CPU and this model.

    One thread, unless `options` say otherwise: threads that wait for each other at barriers are
    several times slower as soon as anything else wants their cores.
    """
    folder = ModelStore(default_root()).find("smollm2").folder
    where = ("--device", "cpu0", "--model", "smollm2", "--model-dir", str(folder))
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
