"""Paged attention in both modes: steps of any mixture against a plain Llama, one by one."""

import math
from pathlib import Path
from random import Random

import numpy as np
import pytest

from drivers import base
from drivers.cpu.attention import MIN_WASTE, Part, group
from tests.helpers import tiny_model
from tests.helpers.contexts import Ctx, Engine, How, load_of
from tests.helpers.plain_llama import Plain
from tests.helpers.tiny_model import VOCAB

TOP = 8
BOTH = pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
WEIGHTS = tiny_model.values(tiny_model.shapes())
PLAIN = Plain(WEIGHTS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny.gguf", WEIGHTS)


@pytest.fixture
def engine(path: Path, deterministic: bool) -> Engine:
    load = load_of(str(path), num_blocks=400, threads=1, deterministic=deterministic)
    return Engine(load)


def check(engine: Engine, work: list[tuple[Ctx, int]]) -> None:
    """Run a step that samples after every sequence; its best logprobs must be right."""
    sampled = engine.step(work, How(logprobs=TOP))
    ids, values = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    for row, (ctx, _) in enumerate(work):
        right = PLAIN.logprobs(ctx.ids[: ctx.computed])[-1]
        best = slice(row * TOP, (row + 1) * TOP)
        assert np.abs(right[list(ids[best])] - np.array(values[best])).max() < 1e-4, row


def sequence(engine: Engine, length: int, random: Random) -> Ctx:
    return engine.ctx(random.randrange(VOCAB) for _ in range(length))


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_steps_of_any_mixture(engine: Engine, seed: int) -> None:
    """Decodes near and far, prefills of one chunk or many, in any order, in every step."""
    random = Random(seed)
    ctxs = [sequence(engine, random.choice((20, 60, 200, 400)), random) for _ in range(8)]
    for _ in range(6):
        left = [ctx for ctx in ctxs if ctx.computed < len(ctx.ids)]
        random.shuffle(left)
        counts = [random.choice((1, 1, 2, 15, 16, 33, 150)) for _ in left]
        check(
            engine,
            [(c, min(n, len(c.ids) - c.computed)) for c, n in zip(left, counts, strict=True)],
        )


@BOTH
def test_many_decodes_between_two_prefills(engine: Engine) -> None:
    """The rows of a group of decodes need not be adjacent."""
    random = Random(5)
    ctxs = [sequence(engine, 40 + n, random) for n in range(12)]
    engine.step([(ctx, 39 + n) for n, ctx in enumerate(ctxs)], [None] * 12)
    first, middle, last = (sequence(engine, n, random) for n in (30, 17, 3))
    half = [(ctx, 1) for ctx in ctxs]
    check(engine, [(first, 30), *half[:5], (middle, 17), *half[5:], (last, 3)])


@BOTH
def test_what_lies_behind_a_length_is_never_read(engine: Engine) -> None:
    """Not even multiplied by zero: every slot that no sequence has stored is NaN."""
    blocks = engine.loaded.num_blocks
    engine.bulk[: engine.loaded.block_bytes] = np.full(
        engine.loaded.block_bytes // 4, math.nan, np.float32
    ).tobytes()
    for block in range(blocks):
        engine.submit(base.Import(base.ints([block]), 0))
    random = Random(9)
    ctxs = [sequence(engine, n, random) for n in (3, 35, 48, 100)]
    check(engine, [(ctx, len(ctx.ids) - 2) for ctx in ctxs])
    check(engine, [(ctx, 1) for ctx in ctxs])
    check(engine, [(ctxs[0], 1), (ctxs[3], 1)])


def part(blocks: int) -> Part:
    return Part(0, 1, blocks * 16, np.zeros(blocks, np.int64))


def test_groups_hold_sequences_of_similar_length() -> None:
    sizes = [100, 80, 75, 74, 30, 8, 5, 4, 1]
    groups = [[len(p.blocks) for p in g] for g in group([part(n) for n in sizes], 1000)]
    assert groups == [[100, 80, 75], [74], [30], [8, 5, 4], [1]]
    assert 8 - 4 <= MIN_WASTE < 8 - 1
    assert [len(g) for g in group([part(10)] * 7, 30)] == [3, 3, 1], "the gather is bounded"
