"""Swap: copies of Blocks between the device and the host tier, beside the forward pass.

    OUT   a copy to the host tier; when its fence has passed, the device place is let go
    IN    a copy to a free device place; the Block is resident once its fence has passed

Copies are batched: one Submit per queue is in flight, and what is asked for meanwhile goes with the
next. A copy OUT waits for the COMPUTE fence before it, so that it sees what that step has written.
What happens to a Block in between decides at the fence what its copy was good for: one that was
written again keeps its device place, one that nobody names any more is cached or gone.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from drivers import base
from kernel.block import NOT_RESIDENT, Block, Move
from kernel.ledger import copied
from kernel.panic import check
from kernel.pool import BlockPool

BATCH_BYTES = 64 << 20
"""Of one Submit: some tens of milliseconds, so that nobody waits long for the one in flight."""
MAX_BATCH = 8192
"""Blocks of one Submit: what a message holds."""


class Flight(NamedTuple):
    """A Block on its way: `positions` of it, from one place to another."""

    block: Block
    src: int
    dst: int
    positions: int


Landed = Callable[[bool], None]
"""Is told whether an op was done; False: the epoch has ended."""


class Swap:
    """The copies of one model."""

    def __init__(self, pool: BlockPool, block_bytes: int) -> None:
        self.pool = pool
        self.block_bytes = block_bytes
        self.moved = {Move.OUT: 0, Move.IN: 0}  # blocks
        self.copy_us = 0
        self.us_per_block = 0.0
        self._batch = min(MAX_BATCH, max(1, BATCH_BYTES // block_bytes))
        self._asked: dict[Move, deque[Block]] = {Move.OUT: deque(), Move.IN: deque()}
        self._flying: dict[Move, list[Flight]] = {Move.OUT: [], Move.IN: []}
        self._ops: dict[Move, deque[tuple[Any, Landed]]] = {Move.OUT: deque(), Move.IN: deque()}
        self._op_flying: dict[Move, Landed] = {}

    # --- asking -------------------------------------------------------------------------------

    def out(self, block: Block) -> bool:
        """Ask for a copy of a resident Block to the host tier; False if there is no place."""
        check(block.moving is Move.NONE and block.id != NOT_RESIDENT, "out of a block in motion")
        if block.kept:  # its first positions are there already
            if block.heirs:
                return False
            self.pool.host.drop(block)
        if not self.pool.host.alloc(block, self.pool.index.discard):
            return False
        block.moving = Move.OUT
        self._asked[Move.OUT].append(block)
        return True

    def bring(self, block: Block) -> None:
        """Ask for a copy of a Block to the device; the caller has seen that a place is free."""
        check(block.moving is Move.NONE and block.source is not None, "bring of nothing")
        self.pool.target(block)
        block.moving = Move.IN
        self._asked[Move.IN].append(block)

    @property
    def leaving(self) -> int:
        """Device places that copies will have let go."""
        return len(self._asked[Move.OUT]) + len(self._flying[Move.OUT])

    @property
    def busy(self) -> bool:
        """Whether anything is asked for or on its way."""
        return any(self._asked.values()) or any(self._flying.values())

    def run(self, move: Move, op: Any, landed: Landed) -> None:
        """Run an op that moves blocks through the bulk window, on the queue of that direction."""
        self._ops[move].append((op, landed))

    # --- submitting ---------------------------------------------------------------------------

    def take(self, move: Move) -> Any | None:
        """Return the next op of a direction, if there is anything for it; it is in flight."""
        if self._ops[move]:
            op, self._op_flying[move] = self._ops[move].popleft()
            return op
        asked = self._asked[move]
        flights: list[Flight] = []
        while asked and len(flights) < self._batch:
            flights.append(_flight(asked.popleft(), move))
        if not flights:
            return None
        self._flying[move] = flights
        way = base.Direction.D2H if move is Move.OUT else base.Direction.H2D
        return base.Copy(
            way, base.ints(flight.src for flight in flights),
            base.ints(flight.dst for flight in flights),
        )  # fmt: skip

    def landed(self, move: Move, took_us: int) -> None:
        """Note that the op in flight is done."""
        op = self._op_flying.pop(move, None)
        if op is not None:
            op(True)
            return
        flights, self._flying[move] = self._flying[move], []
        self.moved[move] += len(flights)
        self.copy_us += took_us
        blocks = (flight.block for flight in flights)
        copied(blocks, "out_blocks" if move is Move.OUT else "in_blocks")
        each = took_us / max(1, len(flights))
        self.us_per_block = 0.8 * (self.us_per_block or each) + 0.2 * each
        for flight in flights:
            flight.block.moving = Move.NONE
            (self._left if move is Move.OUT else self._came)(flight)

    def _left(self, flight: Flight) -> None:
        block, pool = flight.block, self.pool
        pool.host.arrived(block, flight.positions)
        if block.refs == 0:
            pool.leave(block)
        elif block.planned == flight.positions and not block.readers:
            pool.release(block)  # else it was written meanwhile, or is in use

    def _came(self, flight: Flight) -> None:
        block, pool = flight.block, self.pool
        if block.kept:
            pool.arrived(block, flight.positions)
        else:
            pool.arrived(block, min(flight.positions, block.origin_len))
            pool.copied += 1
            pool.drop_origin(block)
        if block.refs == 0:
            pool.leave(block)

    # --- ending -------------------------------------------------------------------------------

    def lose_all(self) -> None:
        """Forget all copies: the epoch has ended. What was on its way out has not arrived."""
        pool = self.pool
        for move in (Move.OUT, Move.IN):
            blocks = [*self._asked[move], *(flight.block for flight in self._flying[move])]
            self._asked[move].clear()
            self._flying[move] = []
            for block in blocks:
                block.moving = Move.NONE
                block.target = NOT_RESIDENT
                if move is Move.OUT:
                    pool.host.drop(block)
                if block.refs == 0:
                    pool.drop_origin(block)
                    pool.leave(block)

    def lose_op(self, move: Move) -> None:
        """Tell whoever waits for the op in flight that it has landed, and is of no use any more."""
        landed = self._op_flying.pop(move, None)
        if landed is not None:
            landed(False)

    def lose_ops(self, *, flying: bool = True) -> None:
        """Tell whoever waits for an op that it will not be done; the books are right by now.

        Not `flying`: the driver may still be at the one in flight, and so in the bulk window.
        Whoever waits for that is told when it has landed.
        """
        lost = [landed for ops in self._ops.values() for _, landed in ops]
        for ops in self._ops.values():
            ops.clear()
        if flying:
            lost = [*self._op_flying.values(), *lost]
            self._op_flying.clear()
        for landed in lost:
            landed(False)


def _flight(block: Block, move: Move) -> Flight:
    if move is Move.OUT:
        return Flight(block, block.id, block.host, block.planned)  # its step is before it
    if block.kept:
        return Flight(block, block.host, block.target, block.kept)
    origin = block.origin
    assert origin is not None and origin.kept, "a copy without a source"
    return Flight(block, origin.host, block.target, min(block.origin_len, origin.kept))
