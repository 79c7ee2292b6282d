"""Blocks of two users in one context: who pays for them, who finds them, and who learns nothing."""

import hashlib
from array import array
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import drivers.null
from kernel.block import Block
from kernel.prefix import PrefixIndex
from syscalls.abi import Access
from tests.helpers.granting import BOB, OWN, SIZE, Pair, granted, opened
from tests.helpers.oracle import expected
from tests.helpers.sim import SimClient


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.sim.leave()


def cached(client: SimClient, ids: list[int], ctx: int = 0) -> int:
    """Return how many ids of a prompt were found computed; without ctx it is a new one's."""
    handle = ctx or client.context([])
    reply = client.ask("infer", handle, 1, 0.0, ids=ids)
    client.sim.settle()
    client.ask("free_ctx", handle)
    found: int = reply.result.cached
    return found


def test_a_shared_block_counts_half_to_each_and_work_to_whom_it_was_done_for(pair: Pair) -> None:
    ctx = pair.opened()
    rows = [client.ask("stat_task").result for client in (pair.alice, pair.bob)]
    assert [row.blocks for row in rows] == [1.5, 1.5]
    infer = pair.bob.ask("infer", ctx, 4, 0.0, ids=OWN)
    assert (infer.result.prompt, infer.result.cached) == (45, 39)
    her, his = [client.ask("stat_task").result for client in (pair.alice, pair.bob)]
    assert (her.prompt_tokens, her.output_tokens) == (0, 0)
    assert (his.prompt_tokens, his.cached_tokens, his.output_tokens) == (45, 39, 4)
    assert (her.blocks, his.blocks) == (2.0, 2.0), "two are shared, the third he has copied"


def test_an_openers_blocks_are_found_where_the_prefix_is_opened_again() -> None:
    """By him, and by nobody's prompt: not by his own, not by hers, which equals all of it."""
    pair = Pair(ids=list(range(48)), num_blocks=256)
    own = list(range(100, 140))
    assert cached(pair.bob, own, pair.opened()) == 47
    assert cached(pair.bob, own, pair.opened()) == 80, "the prefix, and two blocks of his"
    assert cached(pair.bob, pair.ids + own) == 0, "her blocks are not his"
    assert cached(pair.alice, pair.ids + own) == 48, "nor his hers"
    other = pair.sim.client(uid=BOB)
    assert cached(other, own, opened(other, pair.grant())) == 80, "he is the same user"
    pair.sim.leave()


def test_a_prefix_that_an_opener_has_computed_is_the_grantors() -> None:
    """It was dropped, and he computes it: he pays, and her prompts find it, his do not."""
    pair = Pair(ids=list(range(48)), num_blocks=256)
    ctx = pair.opened(Access.INFER)
    system = pair.sim.system
    for block in next(iter(system.contexts())).blocks:
        pair.sim.pool.evict(block)
    pair.sim.settle()
    infer = pair.bob.ask("infer", ctx, 1, 0.0, ids=[9])
    assert infer.result.cached == 0 and infer.tokens == expected([*pair.ids, 9], 1)
    assert cached(pair.bob, [*pair.ids, 9]) == 0
    assert cached(pair.alice, [*pair.ids, 9]) == 48
    pair.sim.leave()


@pytest.mark.parametrize("length", [10, 26])
@pytest.mark.parametrize("alone", [False, True])
def test_a_block_of_two_users_tells_neither_what_the_other_has(length: int, alone: bool) -> None:
    """A short prefix ends in the middle of a block: who may not read it, could else guess it.

    With the grantor's context gone he adds his ids to her block itself.
    """
    pair = Pair(ids=list(range(length)), num_blocks=256)
    own = list(range(100, 150))
    again = pair.opened(Access.INFER)
    ctx = pair.opened(Access.INFER)
    if alone:
        pair.bob.ask("free_ctx", again)
        pair.alice.ask("free_ctx", pair.prompt)
    cached(pair.bob, own, ctx)
    whole = length % SIZE
    assert cached(pair.bob, pair.ids + own) == 0, "equal ids, and another prefix"
    assert cached(pair.alice, pair.ids + own) == length - whole
    if not alone:
        assert cached(pair.bob, own, again) == (length + len(own)) // SIZE * SIZE
    pair.sim.leave()


@pytest.mark.parametrize("forked", [False, True])
def test_a_block_of_two_users_that_is_cut_or_forked_tells_nothing_either(forked: bool) -> None:
    """Her context has gone, and what is left of it was never computed: he writes in her block."""
    pair = Pair(ids=list(range(14)), num_blocks=256)
    ctx = pair.opened(Access.INFER | Access.FORK, length=10)
    for block in next(iter(pair.sim.system.contexts())).blocks:
        pair.sim.pool.evict(block)
    pair.alice.ask("free_ctx", pair.prompt)
    own = list(range(100, 150))
    if forked:
        assert pair.bob.ask("append", ctx, ids=own[:3]).errno == 0
        fork = pair.bob.new_handle()
        assert pair.bob.ask("fork_ctx", ctx, fork).errno == 0
        ctx = fork
    answer = pair.bob.ask("infer", ctx, 3, 0.0, ids=own[3:] if forked else own)
    assert answer.tokens == expected([*range(10), *own], 3)
    pair.sim.check()
    assert cached(pair.bob, [*range(10), *own]) == 0
    assert cached(pair.alice, [*range(10), *own]) == 0
    pair.sim.leave()


def told(ids: list[int], guess: list[int], by: str, length: int | None) -> list[Any]:
    """Return all that the kernel tells whoever has opened `ids` unread, and guesses them."""
    pair = Pair(ids=ids, num_blocks=64)
    who = pair.bob if by == "bob" else pair.alice
    ctx = opened(who, pair.grant(Access.INFER, length=length))
    own = list(range(100, 130))
    calls = [
        who.ask("infer", ctx, 3, 0.0, ids=own),
        who.ask("read_ctx", ctx),
        who.ask("trim_ctx", ctx, 1),
    ]
    for prompt in (guess, guess + own, guess[:length] + own, own):
        other = who.context([])
        calls.append(who.ask("infer", other, 1, 0.0, ids=prompt))
        calls.append(who.ask("explain", other))
        who.ask("free_ctx", other)
    names = (("stat_ctx", ctx), ("pmap", ctx), ("explain", ctx), ("stat_task",), ("drop_cache",))
    calls += [who.ask(*call) for call in names]
    calls += [who.ask("snapshot", what) for what in ("tasks", "contexts", "pools", "usage")]
    pair.sim.leave()
    return [(call.errno, call.message, timeless(call.result)) for call in calls]


def timeless(result: Any) -> Any:
    """Return a row without what the null driver has really taken."""
    return result._replace(device_us=0) if hasattr(result, "device_us") else result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [5, 16, 26, 48])
@pytest.mark.parametrize("cut", [None, 12])
def test_who_may_not_read_cannot_tell_a_right_guess_from_a_wrong_one(
    seed: int, size: int, cut: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worlds that differ in the granted ids: every row that Bob gets is the same."""
    clock = SimpleNamespace(monotonic_ns=lambda: 0)
    monkeypatch.setattr(drivers.null, "time", clock)  # how long a step takes differs by chance
    random = Random(seed)
    right, other = ([random.randrange(251) for _ in range(size)] for _ in range(2))
    seen = [told(ids, right, "bob", cut) for ids in (right, other)]
    assert seen[0] == seen[1]
    if size >= SIZE:
        hers = [told(ids, right, "alice", cut) for ids in (right, other)]
        assert hers[0] != hers[1], "the kernel does tell her: her own prompt is found"


def test_the_key_of_a_block_is_its_owners_whoever_looks_first() -> None:
    index = PrefixIndex(b"secret")

    def block(token: int, owner: int) -> Block:
        return Block(array("i", [token] * SIZE), None, owner)

    hers, his = block(1, 1000), block(2, BOB)
    hers.planned = SIZE
    index.add([hers, his], 0)
    index.add([hers, his], 1)
    again = block(1, 1000)
    index.add([again], 0)
    assert again.chain == hers.chain
    assert index.find([block(1, 1000), block(2, BOB)], 1) is his
    assert index.find([block(1, 1000), block(2, 1000)], 1) is None
    assert index.find([block(1, BOB), block(2, BOB)], 1) is None


def test_users_share_nothing_by_a_hash_that_collides(monkeypatch: pytest.MonkeyPatch) -> None:
    def keyless(self: PrefixIndex, before: bytes, ids: "array[int]", key: bytes) -> bytes:
        return hashlib.blake2b(before + ids.tobytes(), digest_size=32).digest()

    monkeypatch.setattr(PrefixIndex, "_hash", keyless)
    pair = Pair(ids=list(range(48)))
    assert cached(pair.alice, [*pair.ids, 1]) == 32, "hers alone, of the full ones"
    assert cached(pair.bob, [*pair.ids, 1]) == 0
    pair.sim.leave()


def test_within_one_user_grants_share_as_forks_do() -> None:
    pair = Pair(ids=list(range(48)), num_blocks=256)
    other = pair.sim.client()
    own = list(range(100, 132))
    assert cached(other, own, opened(other, pair.grant())) == 47
    assert cached(pair.alice, pair.ids + own) == 79
    pair.sim.leave()


def test_drop_cache_is_of_ones_own_blocks() -> None:
    pair = Pair(ids=list(range(48)), num_blocks=256)
    cached(pair.bob, list(range(100, 132)), pair.opened())
    pair.alice.ask("free_ctx", pair.prompt)
    assert pair.bob.ask("drop_cache").result.blocks == 2
    assert pair.alice.ask("drop_cache").result.blocks == 3
    short = granted(pair.alice, pair.alice.context([1, 2, 3]))
    ctx = opened(pair.bob, short)
    pair.alice.ask("free_ctx", pair.alice.handle)
    cached(pair.bob, list(range(100, 132)), ctx)
    assert pair.alice.ask("drop_cache").result.blocks == 0, "he has added to hers: it is his"
    assert pair.bob.ask("drop_cache").result.blocks == 2
    pair.sim.leave()
