"""Books: what every byte and key of a Sim's KV must be, worked out from the ids of its tables.

A table says what each of its blocks holds: the null driver's digests of these ids after those of
the blocks before. The books note that for every Block that a table has named, look at the bytes of
both tiers directly (driver and kernel do not know), and look every key of the prefix index up:

    device, host   the positions that count are as the ids say; what lies behind them is zero, or
                   something that this Block, or the one it began as a copy of, held before
    free places    are zero, in both tiers, at any moment
    a Block        is in tables of one user only, after the same ids in each; once it is sealed its
                   ids never change
    the index      finds full blocks under the key that their user's secret gives, and no others

Keys and digests are written down here once more, apart from kernel/prefix.py and the driver's pool.
"""

import hashlib
import os
from typing import Any

from drivers import base
from drivers.null_model import SLOT, ZERO, slot_digest
from kernel.block import NO_PLACE, NOT_RESIDENT, Block, Move
from kernel.device import DeviceState
from kernel.model import Model, ModelState
from kernel.pool import BlockPool
from kernel.request import RequestState
from tests.helpers.sim import Sim

PRUNE = 64
"""Checks after which Blocks that nothing knows any more are forgotten."""


class Page:
    """What is known of a Block."""

    __slots__ = ("at", "before", "chain", "content", "head", "ids", "owner", "past", "sealed")

    def __init__(self, owner: int, at: int, before: bytes, head: bytes) -> None:
        self.owner = owner
        self.at = at  # its place in every table
        self.before = before  # the slot before its first
        self.head = head  # the key of the block before it
        self.ids = b""
        self.content = b""  # what the ids say
        self.chain = b""  # its own key, if it is full
        self.past: set[bytes] = {ZERO}  # slots that may lie behind what counts
        self.sealed = False

    def read(self, block: Block, size: int, secret: bytes) -> None:
        """Take the block's ids, if they have changed."""
        ids = block.ids.tobytes()
        if ids == self.ids:
            return
        sealed = self.sealed and block.have == size  # a block that has lost its KV is not
        assert not sealed, f"the ids of sealed block {block.id} have changed"
        self.sealed = False
        slots, slot = [], self.before
        for position, token in enumerate(block.ids, self.at * size):
            slot = slot_digest(token, position, slot)
            slots.append(slot)
        self.ids, self.content = ids, b"".join(slots)
        self.past.update(slots)
        full = len(block.ids) == size
        self.chain = _chain(self.head + block.salt, ids, self.owner, secret) if full else b""


def _chain(head: bytes, ids: bytes, owner: int, secret: bytes) -> bytes:
    key = hashlib.blake2b(str(owner).encode(), digest_size=32, key=secret).digest()
    return hashlib.blake2b(head + ids, digest_size=32, key=key).digest()


class Books:
    """The pages of all Blocks of a Sim."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.pages: dict[Block, Page] = {}
        self.looked_at = 0  # blocks whose bytes were compared
        self._begun: list[tuple[Block, Block]] = []  # as copies, and of what
        self._watched: set[BlockPool] = set()
        self._checks = 0

    def check(self) -> None:
        """Compare everything, after a turn."""
        self._read_tables()
        for model in self.sim.loaded:
            self._watch(model.pool)
            if model.state is not ModelState.FAILED:
                self._check_index(model)
                self._check_counts(model)
        self.check_bytes()
        self._check_gone()
        self._check_waiting()
        self._checks += 1
        if self._checks % PRUNE == 0:
            self._prune()

    def check_bytes(self) -> None:
        """Compare what lies in the tiers: also in the middle of the driver's work."""
        for model in self.sim.loaded:
            if model.state is not ModelState.FAILED:
                self._check_device(model)
                self._check_host(model)

    def _watch(self, pool: BlockPool) -> None:
        """Note from now on which blocks begin as copies: a step may end that within a turn."""
        if pool in self._watched:
            return
        self._watched.add(pool)
        pin_origin = pool.pin_origin

        def noting(block: Block, origin: Block, positions: int) -> None:
            self._begun.append((block, origin))
            pin_origin(block, origin, positions)

        pool.pin_origin = noting  # type: ignore[method-assign]

    def _read_tables(self) -> None:
        pages = self.pages
        for ctx in self.sim.tables():
            size, secret = ctx.pool.block_size, ctx.pool.index._secret
            before, head = ZERO, b""
            for at, block in enumerate(ctx.blocks):
                page = pages.get(block)
                if page is None:
                    page = pages[block] = Page(ctx.owner, at, before, head)
                if not page.ids:  # an empty block may come before the one in front of it is full
                    page.before, page.head = before, head
                owners = page.owner, block.owner  # a walk has no grants
                assert owners == (ctx.owner,) * 2, f"block {block.id} is in tables of two users"
                assert (page.at, page.before) == (at, before), "shared after different ids"
                page.read(block, size, secret)
                before, head = page.content[-SLOT:], page.chain
            assert ctx.length <= sum(len(block.ids) for block in ctx.blocks)
        for block, origin in self._begun:
            if block in pages:  # else it has gone again
                pages[block].past |= pages[origin].past
        # once more after the copy went out: the origin may have got an id in that very turn
        self._begun = [(block, origin) for block, origin in self._begun if block.origin is origin]

    def _check_index(self, model: Model) -> None:
        index = model.pool.index
        for chain, block in index._blocks.items():
            page = self.pages[block]
            assert len(block.ids) == model.pool.block_size, "an open block is indexed"
            assert chain == block.chain == page.chain, "a key that its ids do not give"
            assert block.owner == page.owner, "a block is indexed for somebody else"
            placed = (block.id, block.host, block.disk) != (NOT_RESIDENT, NO_PLACE, NO_PLACE)
            assert block.refs > 0 or placed or block.moving, "the index finds what is nowhere"

    def _check_counts(self, model: Model) -> None:
        for total, *states in (model.pool.counts, model.pool.host.counts):
            assert sum(states) == total, f"{states} of {total}"

    def _check_device(self, model: Model) -> None:
        """Only while no step is on its way to the driver: until then old bytes are in their places,
        but those of free places are zero."""
        driver: Any = self.sim.link._driver
        memory = driver.models.get(model.number) if driver is not None else None
        if memory is None or model.state is not ModelState.UP:
            return
        nothing = bytes(model.desc.block_bytes)
        for place in model.pool.free():
            assert memory.pool[memory.block(place)] == nothing, f"free block {place} is not zero"
        if any(getattr(message, "queue", None) == base.Queue.COMPUTE
               for message in self.sim.link.inbox):  # fmt: skip
            return
        for block in model.pool.resident():
            self._compare(block, memory.pool[memory.block(block.id)], block.planned, "device")

    def _check_host(self, model: Model) -> None:
        tier, size = model.pool.host, model.desc.block_bytes
        if not tier.num_blocks:
            return
        raw = os.pread(self.sim.link.host_fd, tier.num_blocks * size, model.host_offset)
        nothing = bytes(size)
        for place in tier._free:
            free = raw[place * size : (place + 1) * size] == nothing
            assert free, f"free host block {place} is not zero"
        for place, block in tier._blocks.items():
            if block.moving is not Move.OUT:
                content = raw[place * size : (place + 1) * size]
                self._compare(block, content, block.kept, "host")

    def _compare(self, block: Block, raw: bytes | bytearray, count: int, tier: str) -> None:
        page, end = self.pages[block], count * SLOT
        where = f"{tier} block {block.id if tier == 'device' else block.host}"
        assert raw[:end] == page.content[:end], f"{where} does not hold what its ids say"
        assert count * SLOT <= len(page.content), f"{where} has more KV than ids"
        tail = bytes(raw[end:])
        if tail.strip(b"\0"):
            first = page.at * len(raw) // SLOT + count
            for place in range(len(tail) // SLOT):
                slot = tail[place * SLOT : (place + 1) * SLOT]
                known = slot in page.past or self._is_ahead(page, slot, first + place)
                assert known, f"{where} holds something of another block behind its KV"
        page.sealed = page.sealed or end == len(raw)
        self.looked_at += 1

    def _is_ahead(self, page: Page, slot: bytes, position: int) -> bool:
        """Whether a slot was stored for an id that was sampled behind what was there, as it was;
        it may not have become part of a context."""
        noted: dict[bytes, tuple[int, bytes]] = getattr(self.sim.link, "ahead", {})
        where, before = noted.get(slot, (-1, b""))
        if where != position or before not in {*page.past, page.before, *noted}:
            return False
        page.past.add(slot)
        return True

    def _check_gone(self) -> None:
        """A model that has gone has left no KV; its host memory is zero once the driver knows."""
        models = self.sim.system.device.models
        for ctx in self.sim.tables():
            if ctx.model.state is ModelState.GONE:
                for block in ctx.blocks:
                    nowhere = (block.id, block.host) == (NOT_RESIDENT, NO_PLACE)
                    # what the store is at work on ends by itself
                    moves = block.moving in (Move.OUT, Move.IN)
                    assert nowhere and not moves, "KV of a model that has gone"
        taken = {model.host_offset for model in (*models, *models.leaving)}
        for offset in range(0, self.sim.link._host.num_bytes, self.sim.config.host_bytes or 1):
            if offset not in taken:
                raw = os.pread(self.sim.link.host_fd, self.sim.config.host_bytes, offset)
                assert not raw.strip(b"\0"), f"host memory of nobody at {offset} is not zero"

    def _check_waiting(self) -> None:
        """Nobody waits without a reason; what that was may be over until the next plan."""
        device = self.sim.system.device
        busy = base.Queue.COMPUTE in device._flights or device._loading.model is not None
        planned = device.state is DeviceState.UP and not busy
        for request in device.requests if planned else ():
            if request.state is RequestState.BLOCKED:
                coming = any(block.moving for block in request.ctx.blocks)
                assert request.lacks > 0 or coming or request.held, "it waits for nothing"

    def _prune(self) -> None:
        known = {block for ctx in self.sim.tables() for block in ctx.blocks}
        for model in self.sim.loaded:
            known.update(model.pool.resident(), model.pool.host.blocks())
            known.update(model.pool.index._blocks.values())
        known.update({block.origin for block in known if block.origin is not None})
        self.pages = {block: page for block, page in self.pages.items() if block in known}
