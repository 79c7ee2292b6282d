"""Swap: whoever waits for an op is told of that one, and once."""

from drivers import base
from kernel.block import Move
from kernel.pool import BlockPool
from kernel.swap import Swap


def test_of_a_model_that_has_gone_each_direction_is_told_when_its_own_op_has_ended() -> None:
    """Found by a walk: a copy in landed, the export in flight was taken for lost, the bulk window
    was wiped, and then the driver wrote KV there."""
    swap, told = Swap(BlockPool(4, 4), 64), []
    swap.run(Move.OUT, base.Export(base.ints([1]), 0), lambda well: told.append(("out", well)))
    swap.run(Move.IN, base.Import(base.ints([2]), 0), lambda well: told.append(("in", well)))
    assert swap.take(Move.OUT) and swap.take(Move.IN)
    swap.lose_ops(flying=False)
    assert told == [], "the driver is at both"
    swap.lose_op(Move.IN)
    assert told == [("in", False)]
    swap.lose_op(Move.IN)
    swap.lose_op(Move.OUT)
    assert told == [("in", False), ("out", False)]
