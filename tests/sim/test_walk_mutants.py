"""Bugs, one at a time, where KV is shared, cached and moved: a walk or a test finds each."""

import hashlib
import re
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any

import pytest

from drivers import base
from kernel.block import Block, BlockState, Move
from kernel.context import Context
from kernel.device import Device
from kernel.hosttier import HostTier
from kernel.loopback import LoopbackLink
from kernel.model import Model
from kernel.places import Places
from kernel.pool import BlockPool
from kernel.prefix import PrefixIndex
from kernel.swap import Swap
from tests.helpers.books import Books
from tests.helpers.ground import Ground
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim
from tests.helpers.walker import Op, draw
from tests.helpers.walks import failure, walk
from tests.sim.test_room import (
    test_the_oldest_goes_on_though_a_younger_one_decodes as oldest_goes_on,
)

Plant = Callable[[pytest.MonkeyPatch], None]


def key_without_the_owner(patch: pytest.MonkeyPatch) -> None:
    def of_all(self: PrefixIndex, owner: int) -> bytes:
        return hashlib.blake2b(b"all", digest_size=32, key=self._secret).digest()

    patch.setattr(PrefixIndex, "_key", of_all)


def key_without_what_lies_before(patch: pytest.MonkeyPatch) -> None:
    hashed = PrefixIndex._hash
    patch.setattr(PrefixIndex, "_hash", lambda self, before, ids, key: hashed(self, b"", ids, key))


def ids_change_under_their_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixIndex, "changed", lambda self, block: None)


def cached_block_taken_as_it_is(patch: pytest.MonkeyPatch) -> None:
    take_scrubs = BlockPool.take_scrubs
    patch.setattr(BlockPool, "take_scrubs", lambda self, value: ([], take_scrubs(self, value)[1]))


def _waits_for_nothing(patch: pytest.MonkeyPatch, which: base.Queue) -> None:
    submit = Device._submit_copy

    def at_once(self: Device, queue: base.Queue, model: Model, op: Any) -> None:
        if queue != which:
            submit(self, queue, model, op)
            return
        value = self._flights.take_off(queue, model)
        self.link.send(base.Submit(self.epoch, queue, value, (), model.number, (op,)))

    patch.setattr(Device, "_submit_copy", at_once)


def copied_out_before_the_step_that_writes_it(patch: pytest.MonkeyPatch) -> None:
    _waits_for_nothing(patch, base.Queue.COPY_OUT)


def copied_in_where_something_is_on_its_way(patch: pytest.MonkeyPatch) -> None:
    """A step in flight still has to zero it, or to read it before."""
    _waits_for_nothing(patch, base.Queue.COPY_IN)
    target = BlockPool.target

    def too_early(self: BlockPool, block: Block) -> None:
        target(self, block)
        coming = self._scrubbing[-1][1] if self._scrubbing else self._dirty
        if coming:
            del self._targets[block.target]
            self._move(block.target, BlockState.FREE)
            self._free.append(block.target)
            block.target = coming.pop()
            self._coming -= 1
            self._targets[block.target] = block

    patch.setattr(BlockPool, "target", too_early)


def released_before_the_fence_of_its_copy(patch: pytest.MonkeyPatch) -> None:
    take = Swap.take

    def and_land(self: Swap, move: Move) -> Any:
        op = take(self, move)
        if op is not None and move is Move.OUT:
            self.landed(move, 0)
        return op

    patch.setattr(Swap, "take", and_land)


def host_copy_outlives_a_trim(patch: pytest.MonkeyPatch) -> None:
    own_tail = Context._own_tail

    def blind(self: Context, offset: int) -> Block:
        tail, kept = self.blocks[-1], self.blocks[-1].kept
        tail.kept = min(kept, offset)
        found = own_tail(self, offset)
        tail.kept = kept
        return found

    patch.setattr(Context, "_own_tail", blind)


def more_kept_than_copied(patch: pytest.MonkeyPatch) -> None:
    arrived = HostTier.arrived
    patch.setattr(
        HostTier,
        "arrived",
        lambda self, block, kept: arrived(self, block, min(len(block.ids), kept + 1)),
    )


def unfinished_copy_outlives_the_driver(patch: pytest.MonkeyPatch) -> None:
    lose_all = Swap.lose_all

    def keeping(self: Swap) -> None:
        if self._flying[Move.OUT]:
            self.landed(Move.OUT, 0)
        lose_all(self)

    patch.setattr(Swap, "lose_all", keeping)


def host_places_are_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LoopbackLink, "zero_host", lambda self, *args: None)


def origin_goes_while_it_is_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Block, "held", property(lambda self: bool(self.moving)))


def oldest_waits_for_a_younger_decode(patch: pytest.MonkeyPatch) -> None:
    make_room = Places.make_room

    def first_only(self: Places, active: Any) -> Any:
        self._starved = dict(list(self._starved.items())[:1])
        return make_room(self, active)

    patch.setattr(Places, "make_room", first_only)


FOUND_AT: list[tuple[Plant, int]] = [
    (key_without_the_owner, 0), (key_without_what_lies_before, 0),
    (ids_change_under_their_key, 0), (cached_block_taken_as_it_is, 0),
    (copied_out_before_the_step_that_writes_it, 28), (released_before_the_fence_of_its_copy, 3),
    (host_copy_outlives_a_trim, 3), (more_kept_than_copied, 3),
    (unfinished_copy_outlives_the_driver, 11), (host_places_are_not_zeroed, 5),
    (origin_goes_while_it_is_copied, 27),
]  # fmt: skip
"""Bugs, and the seed of a walk that soon comes upon each; others are tried if it does not."""
OTHERS = range(20)


@pytest.mark.parametrize(("plant", "seed"), FOUND_AT, ids=lambda it: getattr(it, "__name__", ""))
def test_a_walk_finds_it(plant: Plant, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = (failure(Ground.of(each), draw(each, 300)) for each in (seed, *OTHERS))
    assert any(found), "no walk has seen this bug"


def test_what_fails_is_told_as_a_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    more_kept_than_copied(monkeypatch)
    with pytest.raises(AssertionError, match=r"after \[.*\]$") as raised:
        walk(2, 300)
    story = str(raised.value).partition(" after ")[2]
    ops = [Op(name, int(seed)) for name, seed in re.findall(r'\("(\w+)", (\d+)\)', story)]
    assert 0 < len(ops) < 12
    assert failure(Ground.of(2), ops) is not None
    monkeypatch.undo()
    assert failure(Ground.of(2), ops) is None, "without the bug the same story ends well"


def come_back_beside_a_scrub(seed: int) -> None:
    """Bring a context back while places that others have left are still being zeroed."""
    link = LoopbackLink("null0", host_bytes=4096, beside=Random(seed))
    sim = Sim(link=link, num_blocks=17, host_bytes=4096)
    client, books, ids = sim.client(), Books(sim), list(range(40))
    handle, other = client.context(ids), client.context(list(range(50, 250)))
    assert client.ask("infer", other, 1, 0.0).errno == 0
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    assert client.ask("advise_ctx", handle, "demote").result.blocks == 3
    sim.settle()
    client.ask("free_ctx", other)
    client.send("drop_cache")
    sim.turn(pump=0)
    assert client.ask("advise_ctx", handle, "prefetch").result.blocks == 3
    sim.settle()
    books.check()
    sim.leave()


def test_copies_come_beside_a_scrub() -> None:
    for seed in range(8):
        come_back_beside_a_scrub(seed)


def test_a_copy_into_what_is_being_zeroed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    copied_in_where_something_is_on_its_way(monkeypatch)
    with pytest.raises(AssertionError):
        test_copies_come_beside_a_scrub()


@pytest.mark.parametrize("host", [0, 1])
def test_the_oldest_that_waits_for_a_younger_one_is_found(
    host: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest_waits_for_a_younger_decode(monkeypatch)
    with pytest.raises(AssertionError, match="not reached"):
        oldest_goes_on(host)


# --- hits: right ones only, and as many as there can be -----------------------------------------


def hits_after_a_loss() -> int:
    """Compute a prompt of ten blocks, need room for four others; return how much is found again."""
    sim = Sim(num_blocks=13, block_size=4)
    client, prompt = sim.client(), list(range(41))
    assert client.ask("infer", client.context(prompt), 1, 0.0).errno == 0
    client.ask("free_ctx", 1)
    assert client.ask("infer", client.context(list(range(100, 116))), 1, 0.0).errno == 0
    client.ask("free_ctx", 2)
    again = client.ask("infer", client.context(prompt), 1, 0.0)
    assert again.tokens == expected(prompt, 1)
    sim.leave()
    return int(again.result.cached)


def test_a_cached_prompt_is_lost_from_its_end() -> None:
    assert hits_after_a_loss() >= 6 * 4


def test_one_that_is_lost_from_its_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_head(self: Context, length: int) -> None:
        keep = -(-length // self.pool.block_size)
        for block in self.blocks[keep:]:
            self.pool.unref(block)
        del self.blocks[keep:]
        self.length = length
        self._settled = min(self._settled, keep)
        del self._table[self._settled :]

    monkeypatch.setattr(Context, "trim", from_the_head)
    assert hits_after_a_loss() == 0


def _collide(patch: pytest.MonkeyPatch) -> None:
    """A hash that says nothing of the ids, only of how many blocks there are."""
    patch.setattr(PrefixIndex, "_hash", lambda self, before, ids, key: before + b"x")


def colliding() -> None:
    """Prompts of two blocks, each block one of two, and all that differ have the same keys."""
    sim = Sim(block_size=4, prefill_chunk=4)
    client = sim.client()
    for first, second, after in product([1, 2], [3, 4], [5, 6]):
        prompt = [first] * 4 + [second] * 4 + [after] * 4
        reply = client.ask("infer", client.context([]), 2, 0.0, ids=prompt)
        assert reply.tokens == expected(prompt, 2), "a hit on another prompt"
    sim.leave()


def test_a_forced_collision_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    _collide(monkeypatch)
    colliding()


def test_a_hit_without_comparing_ids_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(self: PrefixIndex, blocks: Any, at: int) -> Block | None:
        return self._blocks.get(self._chain(blocks, at))

    _collide(monkeypatch)
    monkeypatch.setattr(PrefixIndex, "find", trusting)
    with pytest.raises(AssertionError, match="another prompt"):
        colliding()
