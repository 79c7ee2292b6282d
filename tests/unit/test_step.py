"""A step is one message: no plan within the limits is larger than what a socket takes."""

from array import array

import pytest

from drivers import base, wire
from kernel.account import AccountTable
from kernel.context import Context
from kernel.pool import MAX_SCRUBS, BlockPool
from kernel.request import Request
from kernel.slots import Slots, resets
from kernel.step import Entry, StepLimits, step_limits, step_ops
from syscalls.abi import Infer, Score

LOADED = base.Loaded(
    0, "null", 1, 512, 8192, 0, (), (base.KvGroup(1, "full", 0, 1, 4, "uint8"),), 16, 128, 64,
    "float32", 2048, 256, 32768, 1,
)  # fmt: skip
HUGE = 1 << 31
NOBODY = (AccountTable().root,) * 2


def size_of_fullest_step(limits: StepLimits, block_size: int) -> int:
    """Bytes of a Submit that takes all that the limits allow, and a full load of scrubs."""
    pool = BlockPool(2, block_size)
    seqs = limits.max_seqs
    length, tokens = limits.max_block_refs // seqs * block_size, limits.max_tokens // seqs
    entries = []
    for number in range(seqs):
        ctx = Context(number, 2, "", "null", pool)
        ctx.append(array("i", [1]) * length)
        infer = Infer(number, 9, 1.0, 5, 0.9, 0.1, 7, (), False, 20, 1.5, 1.0, 1.0, ((1, 1.0),))
        request = Request(number, ctx, infer, None, number, 2**64 - 1, *NOBODY)
        request.slot = number
        entries.append(Entry(request, length - tokens, length, [], samples=True))
    ops = step_ops(0, 2**40, entries, [(1, 1)] * seqs, list(range(MAX_SCRUBS)))
    return len(wire.encode(base.Submit(2**40, 0, 2**40, (), 0, ops)))


@pytest.mark.parametrize(
    ("tokens", "seqs", "refs"),
    [(2048, 256, 32768), (HUGE, HUGE, HUGE), (HUGE, 1, HUGE), (1, 1, HUGE), (512, 512, HUGE)],
)
@pytest.mark.parametrize("block_size", [1, 16])
def test_the_fullest_step_fits_into_a_message(
    tokens: int, seqs: int, refs: int, block_size: int
) -> None:
    loaded = LOADED._replace(max_tokens=tokens, max_seqs=seqs, max_block_refs=refs)
    limits = step_limits(loaded, 512, 0)
    assert limits.max_tokens <= tokens and limits.max_seqs <= seqs
    size = size_of_fullest_step(limits, block_size)
    assert wire.MAX_MESSAGE * 0.85 < size <= wire.MAX_MESSAGE


def test_limits_of_the_drivers_that_are_built_are_not_lowered() -> None:
    assert step_limits(LOADED, 512, 9) == StepLimits(2048, 256, 32768, 512, 9, 256)


@pytest.mark.parametrize("rows", [0, 100, HUGE])
def test_a_step_that_scores_as_much_as_it_may_fits_too(rows: int) -> None:
    """One sequence has all rows of logits; the others bring as many blocks and tokens as fit."""
    limits = step_limits(LOADED._replace(max_logit_rows=rows), 512, 0)
    assert limits.max_logit_rows == (min(rows, 256) or 256)
    pool = BlockPool(2, 1)
    entries = []
    for number in range(limits.max_seqs):
        ctx = Context(number, 2, "", "null", pool)
        first = number == 0
        length = 300 if first else (limits.max_block_refs - 300) // (limits.max_seqs - 1)
        ctx.append(array("i", [1]) * (length + 1))
        score = Score(number, 1, 20) if first else None
        request = Request(number, ctx, None, None, number, 0, *NOBODY, score)
        request.slot, end = number, ctx.length - 1
        tokens = limits.max_logit_rows if first else (limits.max_tokens - 256) // 255
        scores = limits.max_logit_rows if first else 0
        entries.append(Entry(request, max(0, end - tokens), end, [], False, scores))
    ops = step_ops(0, 2**40, entries, [(1, 1)] * limits.max_seqs, list(range(MAX_SCRUBS)))
    submit = base.Submit(2**40, 0, 2**40, (), 0, ops)
    assert len(wire.encode(submit)) <= wire.MAX_MESSAGE


def test_resets_fill_messages_and_no_more() -> None:
    """Contexts of a million ids, and many with all biases that there may be."""
    pool = BlockPool(2, 4096)
    sizes, slots = [1_000_000, 3, 70_000] + [50] * 60, Slots(64)
    requests = []
    for number, length in enumerate(sizes):
        ctx = Context(number, 2, "", "null", pool)
        ctx.append(array("i", [n % 500 for n in range(length)]))
        bias = tuple((token, 1.0) for token in range(300))
        infer = Infer(number, 9, presence_penalty=1.0, logit_bias=bias)
        request = Request(number, ctx, infer, None, number, 0, *NOBODY)
        slots.take(request, ())
        requests.append(request)
    told: dict[int, int] = {}
    while ops := resets(requests):
        submit = base.Submit(2**40, 0, 2**40, (), 0, (base.Scrub(base.ints(range(4096))), *ops))
        assert len(wire.encode(submit)) <= wire.MAX_MESSAGE
        for op in ops:
            assert op.start == told.get(op.slot, 0)
            assert (len(op.bias_ids) > 0) == (op.start == 0)
            told[op.slot] = op.start + len(op.ids) // 4
    assert sorted(told.values()) == sorted(sizes)
    assert not any(request.untold for request in requests)
