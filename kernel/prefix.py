"""Prefix index: sealed blocks, found again by what they hold and what lies before it.

The key of a block is a chain: BLAKE2b, 32 bytes, over the key of the block before it and its own
ids, under a secret of the owner and of this boot. So a block is found by its owner only, at its own
place after its own prefix; nobody else can compute the key, or make two that are equal; and the ids
are compared on a hit all the same, those of the whole prefix (security.md A19, A20; vLLM's opt-in
cache_salt is what not to do: vllm#53347).

The owner is of a block, not of whoever looks: a context that was opened through a grant has blocks
of its grantor before its own. Those are found, by whom they are computed all the same, under the
grantor's key; its own lie after that prefix, and are found where it is opened again, by no prompt.

A block is entered when a step that fills it is planned: its ids are final then. Whoever finds it
before that step is done shares it as a fork would, and nobody computes it twice.

It counts nothing and frees nothing. What of its blocks is in no table is the pool's to keep.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from kernel.block import Block

MAX_EVICTED = 4096
"""Evictions of cached blocks that are remembered, to tell who asks why a prompt was not found."""


class Eviction(NamedTuple):
    """A cached block was given up."""

    at: float
    by_pid: int


class PrefixIndex:
    """The blocks of one model that can be found by their ids."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._blocks: dict[bytes, Block] = {}
        self._before: dict[Block, Block | None] = {}  # of each, the one that it comes after
        self._keys: dict[int, bytes] = {}  # by owner
        self._evicted: OrderedDict[bytes, Eviction] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: Block) -> bool:
        return self._blocks.get(block.chain) is block

    def find(self, blocks: Sequence[Block], at: int) -> Block | None:
        """Return a block of its owner that holds what blocks[at] does after the same prefix."""
        found = self._blocks.get(self._chain(blocks, at))
        return found if found is not None and self._alike(found, blocks, at) else None

    def _alike(self, found: Block | None, blocks: Sequence[Block], at: int) -> bool:
        """Compare ids, back to where both tables have the same block: that is soon, as a rule."""
        while at >= 0 and found is not blocks[at]:
            if found is None or found not in self._before:
                return False
            if (found.ids, found.owner) != (blocks[at].ids, blocks[at].owner):
                return False
            found, at = self._before[found], at - 1
        return at >= 0 or found is None

    def add(self, blocks: Sequence[Block], at: int) -> Block | None:
        """Enter blocks[at], whose ids are final, unless one that has KV is found there.

        Return what was there in vain: without KV, or after a prefix of which a block has gone.
        """
        block = blocks[at]
        chain = self._chain(blocks, at)
        there = self._blocks.get(chain)
        if there is block:
            return None
        if there is not None:
            if (there.planned or there.have) and self._alike(there, blocks, at):
                return None
            del self._before[there]
        self._blocks[chain], self._before[block] = block, blocks[at - 1] if at else None
        self._evicted.pop(chain, None)
        return there

    def discard(self, block: Block) -> None:
        """Take a block out, if it is there."""
        if block in self:
            del self._blocks[block.chain], self._before[block]

    def changed(self, block: Block) -> None:
        """Forget the key of a block whose ids change."""
        self.discard(block)
        block.chain = b""

    def evicted(self, block: Block, at: float, by_pid: int) -> None:
        """Take a block out that nobody named, and remember why."""
        self.discard(block)
        self._evicted[block.chain] = Eviction(at, by_pid)
        while len(self._evicted) > MAX_EVICTED:
            self._evicted.popitem(last=False)

    def eviction(self, block: Block) -> Eviction | None:
        """Return why a block that was looked for is not there, if it once was."""
        return self._evicted.get(block.chain)

    # --- keys ---------------------------------------------------------------------------------

    def _chain(self, blocks: Sequence[Block], at: int) -> bytes:
        first = at
        while first >= 0 and not blocks[first].chain:
            first -= 1
        chain = blocks[first].chain if first >= 0 else b""
        for block in blocks[first + 1 : at + 1]:
            before = chain + block.salt
            chain = block.chain = self._hash(before, block.ids, self._key(block.owner))
        return chain

    def _hash(self, before: bytes, ids: "array[int]", key: bytes) -> bytes:
        return hashlib.blake2b(before + ids.tobytes(), digest_size=32, key=key).digest()

    def _key(self, owner: int) -> bytes:
        key = self._keys.get(owner)
        if key is None:
            name = str(owner).encode()
            key = hashlib.blake2b(name, digest_size=32, key=self._secret).digest()
            self._keys[owner] = key
        return key
