"""Paged attention in both modes: steps of any mixture against a plain Llama, one by one."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from drivers import base
from drivers.cpu import attention
from drivers.cpu.attention import MIN_WASTE, Arena, Attention, Heads, Part, group
from drivers.cpu.model import CpuModel
from drivers.cpu.ordered import SPAN_BLOCKS, TILE, OrderedAttention
from drivers.pool import KvPool, PoolShape
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


# --- scratch memory -------------------------------------------------------------------------------

LONG = "random:layers=1,hidden=64,heads=4,kv_heads=4,vocab=64,ffn=64,max_ctx=16384"


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_takes_more_than_was_counted(deterministic: bool, dtype: str) -> None:
    load = load_of(LONG, dtype, num_blocks=4, threads=1, deterministic=deterministic)
    model = CpuModel(load, lambda message: None)
    buffers = model._arena._buffers.values()
    kind = OrderedAttention if deterministic else Attention
    counted = kind.work_bytes(model._heads, model.pool.shape, 16384, 256)
    assert counted / 2 < sum(buffer.nbytes for buffer in buffers) <= counted


def parts_of(*shapes: tuple[int, int]) -> list[Part]:
    """Return sequences of (count, kv_len) on the null block."""
    counts = [count for count, _ in shapes]
    return [
        Part(sum(counts[:n]), count, kv_len, np.zeros(-(-kv_len // 16), np.int64))
        for n, (count, kv_len) in enumerate(shapes)
    ]


def attend(kind: type[Attention] | type[OrderedAttention], arena: Arena, parts: list[Part]) -> None:
    rows = sum(part.count for part in parts)
    pool = KvPool(PoolShape(2, 1, 16, 1, 8, torch.float32))
    work = kind(pool, arena, Heads(1, 1, 8), torch.zeros(rows, dtype=torch.int64), parts)
    work.run(0, *torch.zeros(3, rows, 8))


def test_scores_do_not_grow_from_tile_to_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size once would leave the heap full of holes, several times what is in use."""
    monkeypatch.setattr(attention, "SCORES_BYTES", 1024)
    made: list[tuple[int, ...]] = []
    zeros = torch.zeros

    def counted(*size: Any, **how: Any) -> torch.Tensor:
        if how.get("dtype") is torch.float32 and isinstance(size[0], int):
            made.append(size)
        return zeros(*size, **how)

    parts = parts_of((100, 400))
    monkeypatch.setattr(torch, "zeros", counted)
    arena = Arena(torch.float32)
    attend(Attention, arena, parts)
    assert len(made) == len(arena._buffers) == 6


def test_masks_are_small_however_long_the_contexts_are() -> None:
    """In deterministic mode they are one; else they cover what the shortest of a group lacks."""
    pool = KvPool(PoolShape(2, 1, 16, 1, 8, torch.float32))
    parts = parts_of((1, 1000), (1, 990), (40, 3000))
    slots = torch.zeros(42, dtype=torch.int64)
    arena, heads = Arena(torch.float32), Heads(1, 1, 8)
    ordered = OrderedAttention(pool, arena, heads, slots, parts)
    storages = {tile._mask.untyped_storage().data_ptr() for tile in ordered._tiles}
    assert len(storages) == 1 and len(ordered._tiles) > 4
    assert ordered._tiles[0]._mask.untyped_storage().nbytes() == 4 * TILE * (
        TILE + 16 * SPAN_BLOCKS
    )
    decodes = Attention(pool, arena, heads, slots, parts)._work[0]
    assert isinstance(decodes, attention.DecodeGroup)
    assert decodes._bias.shape == (2, 1, 1008 - 990)
