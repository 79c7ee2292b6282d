"""Models out of Hugging Face folders say what transformers says, however the work is cut."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers import base
from drivers.models import checkpoint
from drivers.models.checkpoint import describe_checkpoint
from tests.helpers.checkpoints import CASES, prompts, reference, write
from tests.helpers.contexts import Ctx, Engine, How, load_of
from tests.helpers.safetensors_writer import Array

BEST = How(logprobs=base.MAX_LOGPROBS)
TOLERANCE = 1e-4
CUTS = {"whole": [90], "uneven": [1, 16, 3, 23, 1, 30, 7, 9], "one by one": [1] * 90}


def open_engine(folder: Path, dtype: str = "float32", deterministic: bool = False) -> Engine:
    """Return a driver with the folder's model, in one thread."""
    load = load_of(str(folder), dtype, num_blocks=64, threads=1, deterministic=deterministic)
    return Engine(load)


def worst(
    engine: Engine, ids: Sequence[int], right: dict[int, Array], cuts: Sequence[int]
) -> float:
    """Return how far the best logprobs after the positions that are known are from the right ones.

    Each cut also ends where a position is known, so that all of them are seen.
    """
    ends = sorted({*np.cumsum(cuts).tolist(), *(row + 1 for row in right)} & {*range(len(ids) + 1)})
    ctx, far, seen = engine.ctx(ids), 0.0, 0
    for end in ends:
        found = best(engine, ctx, end - ctx.computed)
        if end - 1 in right:
            seen += 1
            far = max(far, *(abs(right[end - 1][id] - value) for id, value in found))
    assert seen == len(right)
    engine.free(ctx)
    return far


def best(engine: Engine, ctx: Ctx, count: int) -> list[tuple[int, float]]:
    """Compute so many ids; return the best ids after them with their logprobs."""
    sampled = engine.step([(ctx, count)], BEST)
    ids, values = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    assert len(ids) == BEST.logprobs
    return list(zip(ids, values, strict=True))


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, deterministic: bool) -> None:
    """Computed at once, in uneven chunks, and one by one, as answers are."""
    engine = open_engine(write(tmp_path / "model", name), deterministic=deterministic)
    for ids, right in zip(prompts(), reference(name), strict=True):
        for how, cuts in CUTS.items():
            assert worst(engine, ids, right, cuts) < TOLERANCE, how


@pytest.mark.parametrize("name", CASES)
def test_prompts_of_one_batch(tmp_path: Path, name: str) -> None:
    """All prompts in one step, whole: each is as if it were alone."""
    engine = open_engine(write(tmp_path / "model", name))
    work = [(engine.ctx(ids), len(ids)) for ids in prompts()]
    sampled = engine.step(work, BEST)
    ids, values = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    for number, right in enumerate(reference(name)):
        part = slice(number * BEST.logprobs, (number + 1) * BEST.logprobs)
        last = right[len(work[number][0].ids) - 1]
        assert max(abs(last[list(ids[part])] - np.array(values[part]))) < TOLERANCE


def test_bfloat16_is_near(tmp_path: Path) -> None:
    engine = open_engine(write(tmp_path / "model", "qwen3"), "bfloat16")
    far = worst(engine, prompts()[2], reference("qwen3")[2], [90])
    assert TOLERANCE < far < 0.5


MATTERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"halves": False}), ("llama", {"rope_theta": 10_500.0}), ("llama", {"factors": None}),
    ("llama-old", {"rope_factor": 1.0}), ("llama-old", {"norm_eps": 1e-2}),
    ("mistral", {"window": 23}), ("mistral", {"window": 25}), ("mistral", {"window": 0}),
    ("gemma3", {"window": 19}), ("gemma3", {"window": 21}), ("gemma3", {"global_every": 0}),
    ("gemma3", {"local_rope_theta": 0.0}), ("gemma3", {"attention_scale": 0.0}),
    ("gemma3", {"embedding_scale": 1.0}), ("gemma3", {"activation": "silu"}),
    ("gemma3", {"arch": "without 1 added to norms"}), ("gemma3-images", {"rope_factor": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), MATTERS)
def test_every_setting_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: dict[str, Any]
) -> None:
    """One that is read wrongly is seen: the folders and prompts are such that it shows."""
    real = checkpoint.read_config

    def wrong(*raw: Any) -> Any:
        read = real(*raw)
        if "factors" in change:
            return read._replace(rope_factors=None)
        return read._replace(config=replace(read.config, **change))

    monkeypatch.setattr(checkpoint, "read_config", wrong)
    engine = open_engine(write(tmp_path / "model", name))
    assert worst(engine, prompts()[2], reference(name)[2], [90]) > 10 * TOLERANCE


def test_the_references_differ() -> None:
    """No case stands for another, and every prompt matters."""
    rows = {name: reference(name)[2][89] for name in CASES}
    rows |= {f"{name} short": reference(name)[0][4] for name in CASES}
    names = list(rows)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert np.abs(rows[one] - rows[other]).max() > 0.1, (one, other)


@pytest.mark.parametrize("name", CASES)
def test_what_the_store_sees_is_what_the_driver_computes(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", name)
    found = describe_checkpoint(folder)
    loaded = open_engine(folder).loaded
    assert (found.config.num_layers, found.config.vocab_size) == (loaded.num_layers, loaded.vocab)
    assert found.dtype == CASES[name].dtype
    assert found.config.eos_ids == tuple(loaded.eos_ids)
