"""Plans by hand: the parts of a step as plain lists, turned into the ops of a Submit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from drivers import base
from drivers.base import ints, reals


class Part(NamedTuple):
    """What one sequence does in a step: `tokens` at positions from `start` on."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    slot: int | None = None  # None: its index in the step
    generation: int = 1
    draws: bool = True  # an id after its last token
    null_write: bool = False  # computed before: stored nowhere
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    num_logprobs: int = 0
    adjust: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def table(self) -> list[int]:
        """The blocks that a step needs."""
        return list(self.blocks)


class Drawn(NamedTuple):
    """One drawn id."""

    id: int
    logprob: float
    top: list[tuple[int, float]]
    flags: int


def execute(parts: Sequence[Part], block_size: int) -> base.Execute:
    """Return the forward step of all parts."""
    tokens, positions, write_slot, rows = [], [], [], []
    qo_indptr, indptr, blocks = [0], [0], []
    for part in parts:
        for position, token in enumerate(part.tokens, part.start):
            tokens.append(token)
            positions.append(position)
            block = base.NULL_BLOCK if part.null_write else part.blocks[position // block_size]
            write_slot.append(block * block_size + position % block_size)
        blocks += part.table
        indptr.append(len(blocks))
        qo_indptr.append(len(tokens))
        if part.draws:
            rows.append(len(tokens) - 1)
    return base.Execute(
        0, 0, ints(tokens), ints(positions), ints(qo_indptr), ints(part.end for part in parts),
        ints(s if part.slot is None else part.slot for s, part in enumerate(parts)),
        ints(part.generation for part in parts), ints(rows),
        (base.BlockTable(ints(indptr), ints(blocks), ints(write_slot)),),
    )  # fmt: skip


def sample(parts: Sequence[Part]) -> base.Sample:
    """Return the draws of all parts that draw."""
    drawing = [(s, part) for s, part in enumerate(parts) if part.draws]
    return base.Sample(
        ints(s for s, _ in drawing),
        reals(part.temperature for _, part in drawing),
        ints(part.top_k for _, part in drawing),
        reals(part.top_p for _, part in drawing),
        reals(part.min_p for _, part in drawing),
        base.seeds(part.seed for _, part in drawing),
        ints(part.end for _, part in drawing),
        ints(part.num_logprobs for _, part in drawing),
        ints(part.adjust for _, part in drawing) if any(p.adjust for p in parts) else b"",
    )


def reset(slot: int, ids: Sequence[int], generation: int = 1, **how: Any) -> base.Reset:
    """Return a Reset; `bias` is a dict."""
    bias = how.pop("bias", {})
    return base.Reset(slot, generation, ints(ids), **how)._replace(
        bias_ids=ints(bias), bias=reals(bias.values())
    )


def step_ops(parts: Sequence[Part], block_size: int) -> tuple[Any, ...]:
    """Return the ops of one step."""
    forward = execute(parts, block_size)
    return (forward, sample(parts)) if any(part.draws for part in parts) else (forward,)


def drawn(sampled: base.Sampled, parts: Sequence[Part]) -> list[Drawn]:
    """Read the result of a Sample."""
    ids, logprobs = base.read_ints(sampled.ids), base.read_reals(sampled.logprobs)
    best = list(zip(base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs),
                    strict=True))  # fmt: skip
    result, first = [], 0
    for row, part in enumerate(part for part in parts if part.draws):
        count = max(0, part.num_logprobs)
        top = best[first : first + count]
        result.append(Drawn(ids[row], logprobs[row], top, sampled.flags[row]))
        first += count
    assert first == len(best) and len(ids) == len(sampled.flags) == len(result)
    return result
