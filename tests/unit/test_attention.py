"""Paged attention in both modes: steps of any mixture against a plain model, one by one.

On one model that sees all, one that sees a window, and one whose layers do one or the other.
"""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from drivers import base, sizes
from drivers.cpu import attention
from drivers.cpu.attention import MIN_WASTE, Arena, Attention, Heads, Part, group
from drivers.cpu.model import CpuModel
from drivers.cpu.ordered import OrderedAttention
from drivers.int8_pool import Int8Pool
from drivers.models import weights
from drivers.pool import KvPool, PoolShape
from tests.helpers import tiny_model
from tests.helpers.contexts import Ctx, Engine, How, load_of
from tests.helpers.plain_decoder import Plain
from tests.helpers.tiny_model import CONFIGS, VOCAB

TOP = 8
TILE = sizes.ORDERED_TILE
BOTH = pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
KINDS = "llama", "mistral", "gemma3"
EVERY = pytest.mark.parametrize("kind", KINDS)
WEIGHTS = {kind: tiny_model.values(tiny_model.shapes(config=CONFIGS[kind])) for kind in KINDS}
PLAIN = {kind: Plain(WEIGHTS[kind], CONFIGS[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: tiny_model.write(folder / f"{kind}.gguf", WEIGHTS[kind], config=CONFIGS[kind])
        for kind in KINDS
    }


@pytest.fixture
def engine(paths: dict[str, Path], kind: str, deterministic: bool) -> Engine:
    path = str(paths[kind])
    return Engine(load_of(path, num_blocks=400, threads=1, deterministic=deterministic))


def check(engine: Engine, kind: str, work: list[tuple[Ctx, int]]) -> None:
    """Run a step that samples after every sequence; its best logprobs must be right."""
    sampled = engine.step(work, How(logprobs=TOP))
    ids, values = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    for row, (ctx, _) in enumerate(work):
        right = PLAIN[kind].logprobs(ctx.ids[: ctx.computed])[-1]
        best = slice(row * TOP, (row + 1) * TOP)
        assert np.abs(right[list(ids[best])] - np.array(values[best])).max() < 1e-4, row


def sequence(engine: Engine, length: int, random: Random) -> Ctx:
    return engine.ctx(random.randrange(VOCAB) for _ in range(length))


@BOTH
@EVERY
@pytest.mark.parametrize("seed", range(2))
def test_steps_of_any_mixture(engine: Engine, kind: str, seed: int) -> None:
    """Decodes near and far, prefills of one chunk or many, in any order, in every step."""
    random = Random(seed)
    ctxs = [sequence(engine, random.choice((20, 60, 200, 400)), random) for _ in range(8)]
    for _ in range(6):
        left = [ctx for ctx in ctxs if ctx.computed < len(ctx.ids)]
        random.shuffle(left)
        counts = [random.choice((1, 1, 2, 15, 16, 33, 150)) for _ in left]
        check(
            engine,
            kind,
            [(c, min(n, len(c.ids) - c.computed)) for c, n in zip(left, counts, strict=True)],
        )


@BOTH
@EVERY
def test_many_decodes_between_two_prefills(engine: Engine, kind: str) -> None:
    """The rows of a group of decodes need not be adjacent."""
    random = Random(5)
    ctxs = [sequence(engine, 40 + n, random) for n in range(12)]
    engine.step([(ctx, 39 + n) for n, ctx in enumerate(ctxs)], [None] * 12)
    first, middle, last = (sequence(engine, n, random) for n in (30, 17, 3))
    half = [(ctx, 1) for ctx in ctxs]
    check(engine, kind, [(first, 30), *half[:5], (middle, 17), *half[5:], (last, 3)])


@BOTH
@EVERY
def test_what_lies_behind_a_length_is_never_read(engine: Engine, kind: str) -> None:
    """Not even multiplied by zero: every slot that no sequence has stored is NaN."""
    blocks = engine.loaded.num_blocks
    engine.bulk[: engine.loaded.block_bytes] = np.full(
        engine.loaded.block_bytes // 4, math.nan, np.float32
    ).tobytes()
    for block in range(blocks):
        engine.submit(base.Import(base.ints([block]), 0))
    random = Random(9)
    ctxs = [sequence(engine, n, random) for n in (3, 35, 48, 100)]
    check(engine, kind, [(ctx, len(ctx.ids) - 2) for ctx in ctxs])
    check(engine, kind, [(ctx, 1) for ctx in ctxs])
    check(engine, kind, [(ctxs[0], 1), (ctxs[3], 1)])


@BOTH
@EVERY
def test_a_fork_and_a_trim_change_nothing(engine: Engine, kind: str) -> None:
    """Uneven chunks, a fork in the middle of a block, another end trimmed away: the same ids."""
    prompt = [(n * n * 5 + n) % VOCAB for n in range(130)]
    (wanted,) = engine.generate([engine.ctx(prompt)], 30)
    (chunked,) = engine.generate([engine.ctx(prompt)], 30, chunk=7)
    parent = engine.ctx(prompt)
    (head,) = engine.generate([parent], 12)
    tails = engine.generate([parent, engine.fork(parent)], 18)
    again = engine.ctx([*prompt[:61], *range(100, 140)])
    engine.generate([again], 3)
    engine.trim(again, 61)
    again.ids += prompt[61:]
    (trimmed,) = engine.generate([again], 30)
    assert [chunked, trimmed, *(head + tail for tail in tails)] == [wanted] * 4


@BOTH
def test_keys_that_nobody_can_see_are_not_read(deterministic: bool) -> None:
    """They are NaN here, which even a weight of zero would spread.

    The first query sees from position 121 on, or 109 with those that share its ordered tile; what
    is read begins at the block or the span of blocks that this lies in.
    """
    heads = Heads(2, 1, 8, window=20, sliding=frozenset([1]))
    pool = KvPool(PoolShape(20, 2, 16, 1, 8, torch.float32))
    pool._blocks.fill_(math.nan)
    stored = torch.arange(16 + (64 if deterministic else 112), 16 + 200)
    for layer in range(2):
        pool.store(layer, pool.key_slots(stored), *torch.ones(2, len(stored), 8))
    blocks = np.arange(1, 14)
    parts = [Part(0, 60, 200, blocks), Part(60, 1, 200, blocks)]
    kind = OrderedAttention if deterministic else Attention
    slots = torch.cat([torch.arange(16 + 140, 16 + 200), torch.tensor([16 + 199])])
    work = kind(pool, Arena(torch.float32), heads, slots, parts)
    ones = torch.ones(61, 8)
    assert work.run(1, torch.ones(61, 16), ones, ones).allclose(torch.ones(()))
    assert work.run(0, torch.ones(61, 16), ones, ones).isnan().all()


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
@pytest.mark.parametrize("kv_dtype", ["", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_takes_more_than_was_counted(
    deterministic: bool, dtype: str, kv_dtype: str
) -> None:
    load = load_of(LONG, dtype, num_blocks=4, threads=1, deterministic=deterministic)
    model = CpuModel(load._replace(kv_dtype=kv_dtype), lambda message: None)
    buffers = [*model._arena._buffers.values()]
    if isinstance(model.pool, Int8Pool):
        buffers.append(model.pool._raw)
    count = sizes.ordered_bytes if deterministic else sizes.attention_bytes
    config, itemsize = weights.open_source(LONG).config, sizes.ITEMSIZES[dtype]
    counted = count(config, itemsize, 16, 16384, kv_dtype == "int8")
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
    for module in (attention, sizes):
        monkeypatch.setattr(module, "SCORES_BYTES", 1024)
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
    tiles = ordered._tiles[0]
    storages = {tile._behind.untyped_storage().data_ptr() for tile in tiles}
    assert len(storages) == 1 and len(tiles) > 4
    assert tiles[0]._behind.untyped_storage().nbytes() == 4 * TILE * (TILE + 16 * sizes.SPAN_BLOCKS)
    decodes = Attention(pool, arena, heads, slots, parts)._work[0][0]
    assert isinstance(decodes, attention.DecodeGroup)
    assert decodes._bias.shape == (2, 1, 1008 - 990)


def test_prefills_of_many_lengths_meet_few_shapes(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OneDNN keeps code for each shape: a process that always meets new ones would grow."""
    engine = Engine(load_of(str(paths["llama"]), num_blocks=400, threads=1, deterministic=False))
    shapes, bmm = set(), torch.bmm

    def seen(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        shapes.add((left.shape, right.shape))
        return bmm(left, right, out=out)

    monkeypatch.setattr(torch, "bmm", seen)
    random = Random(3)
    for length in range(2, 50):
        engine.step([(sequence(engine, length, random), length)], [None])
    assert len(shapes) <= 20, "by 8 rows and whole blocks; there are 96 without that"
