"""A step is one message: no plan within the limits is larger than what a socket takes."""

from array import array

import pytest

from drivers import base, wire
from kernel.block import MAX_SCRUBS, BlockPool
from kernel.context import Context
from kernel.request import Request
from kernel.step import Entry, StepLimits, step_limits, step_ops
from syscalls.abi import Infer

LOADED = base.Loaded(
    0, "null", 1, 512, 8192, 0, (), (base.KvGroup(1, "full", 0, 1, 4, "uint8"),), 16, 128, 64,
    "float32", 2048, 256, 32768, 1,
)  # fmt: skip
HUGE = 1 << 31


def size_of_fullest_step(limits: StepLimits, block_size: int) -> int:
    """Bytes of a Submit that takes all that the limits allow, and a full load of scrubs."""
    pool = BlockPool(2, block_size)
    seqs = limits.max_seqs
    length, tokens = limits.max_block_refs // seqs * block_size, limits.max_tokens // seqs
    entries = []
    for number in range(seqs):
        ctx = Context(number, 2, "", "null", pool)
        ctx.append(array("i", [1]) * length)
        infer = Infer(number, 9, 1.0, 5, 0.9, 0.1, 7, (), False, 20)
        request = Request(number, ctx, infer, None, number, 2**64 - 1)
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
