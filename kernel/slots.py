"""Slots: which request has which of the driver's slots, and what the driver knows of it there.

A request has a slot from its first step on, until it ends or another one that is to run has none.
Each time it takes one it has a new generation: what the driver keeps is of that (slot, generation)
and no other. A request whose logits are adjusted (penalties, bias, grammar) samples only after
Resets have told the driver its ids, all of them: `Request.told` follows what it knows. Resets go in
messages of their own, in parts if they are long, so that no step is smaller for them.
"""

from collections.abc import Iterable

from drivers import base, wire
from kernel.request import Request

RESET_BYTES = 96
"""Of a Reset in a message, without its ids and biases."""
MESSAGE_BYTES = wire.MAX_MESSAGE // 2
"""Of the Resets in one message: scrubs go with them, and steps wait behind them."""
LEAST_BYTES = RESET_BYTES + 8 * base.MAX_BIAS + 1024
"""For a Reset: with less room left, it goes in the next message."""


class Slots:
    """The slots of one driver."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._generation = 0

    def take(self, request: Request, others: Iterable[Request]) -> None:
        """Give a request a slot; if there is none, the first of `others` that has one loses it."""
        if request.slot is not None:
            return
        if not self._free:
            self.give(next(other for other in others if other.slot is not None))
        request.slot = self._free.pop()
        self._generation = (self._generation + 1) & 0x7FFFFFFF
        request.generation = self._generation

    def give(self, request: Request) -> None:
        """Take a request's slot back, if it has one."""
        if request.slot is not None:
            self._free.append(request.slot)
            request.slot, request.told = None, 0


def resets(requests: Iterable[Request]) -> list[base.Reset]:
    """Return the Resets of one message for requests that have slots; they count as sent."""
    ops: list[base.Reset] = []
    room = MESSAGE_BYTES
    for request in requests:
        while request.untold and room >= LEAST_BYTES:
            op, size = _part(request, room)
            room -= size
            ops.append(op)
    return ops


def _part(request: Request, room: int) -> tuple[base.Reset, int]:
    """Return the next part of a request's Reset, and the bytes that it takes."""
    infer, ctx = request.infer, request.ctx
    assert infer is not None and request.slot is not None
    slot, start = (request.slot, request.generation), request.told
    bias_bytes = 0 if start else 8 * len(infer.logit_bias)
    if not request.counted:  # the ids do not matter, but a Reset has one
        end, ids, first = ctx.length, ctx.read(ctx.length - 1, ctx.length), -1
    else:
        end = min(ctx.length, start + (room - RESET_BYTES - bias_bytes) // 4)
        ids, first = ctx.read(start, end), request.penalize_from
    request.told = end
    size = RESET_BYTES + bias_bytes + 4 * len(ids)
    if start:
        return base.Reset(*slot, ids.tobytes(), start), size
    return base.Reset(
        *slot, ids.tobytes(), 0, first, float(infer.repetition_penalty),
        float(infer.presence_penalty), float(infer.frequency_penalty),
        base.ints(token for token, _ in infer.logit_bias),
        base.reals(bias for _, bias in infer.logit_bias),
        *((request.grammar.number, request.grammar_from) if request.grammar else ()),
    ), size  # fmt: skip
