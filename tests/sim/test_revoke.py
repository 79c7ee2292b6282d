"""Revoking: it holds at once for all that was opened, wherever its blocks are, and for no more."""

from random import Random

import pytest

from drivers.store import base
from kernel import saving
from kernel.block import Move
from kernel.loopback import LoopbackLink
from syscalls.abi import Access, Flag
from syscalls.errors import EREVOKED, Errno
from tests.helpers.granting import BOB, PROMPT, Pair, granted, opened, pid_of
from tests.helpers.oracle import expected
from tests.helpers.sim import SimClient

HOST = 1 << 16


def is_revoked(client: SimClient, ctx: int) -> bool:
    """See whether nothing of a context is left but its name."""
    row = client.ask("stat_ctx", ctx).result
    read = client.ask("read_ctx", ctx)
    assert (read.errno == Errno.EREVOKED) == row.revoked and not (row.revoked and row.length)
    return bool(row.revoked)


def test_the_grantor_and_other_grants_notice_nothing() -> None:
    pair = Pair()
    first, second = pair.grant(), pair.grant()
    ctx, other = opened(pair.bob, first), opened(pair.bob, second)
    assert pair.alice.ask("revoke", first).result.contexts == 1
    assert is_revoked(pair.bob, ctx) and not is_revoked(pair.bob, other)
    later = pair.opened()
    for client, handle in ((pair.bob, other), (pair.bob, later), (pair.alice, pair.prompt)):
        assert client.ask("infer", handle, 5, 0.0).tokens == expected(PROMPT, 5)
    pair.sim.check()
    pair.sim.leave()


def test_only_who_has_granted_can_revoke() -> None:
    pair = Pair()
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    same_user = pair.sim.client()
    for client in (pair.bob, same_user):
        assert client.ask("revoke", grant).errno == Errno.EBADCTX
    assert not is_revoked(pair.bob, ctx)
    assert pair.alice.ask("revoke", grant).errno == 0
    assert pair.alice.ask("revoke", grant).errno == Errno.EBADCTX, "it is taken back already"
    pair.sim.leave()


def test_what_was_passed_on_goes_too_but_not_what_lies_above() -> None:
    """alice -> bob -> carol -> dave; bob takes back what carol has."""
    pair = Pair()
    carol, dave = pair.sim.client(), pair.sim.client(uid=BOB)
    hers = pair.grant()
    at_bob = opened(pair.bob, hers)
    his = granted(pair.bob, at_bob, Access.READ | Access.FORK)
    at_carol = opened(carol, his)
    at_dave = opened(dave, granted(carol, at_carol, Access.READ))
    carol.ask("free_ctx", at_carol)
    assert list(dave.ask("read_ctx", at_dave).ids) == PROMPT, "who passed it on is not needed"
    assert pair.bob.ask("revoke", his).result.contexts == 1
    assert is_revoked(dave, at_dave) and not is_revoked(pair.bob, at_bob)
    assert pair.alice.ask("revoke", hers).result.contexts == 1
    assert is_revoked(pair.bob, at_bob) and len(pair.sim.system.grants) == 0
    pair.sim.leave()


def test_forks_of_an_opened_context_go_with_it_and_free_contexts_do_not_count() -> None:
    pair = Pair()
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    forks = [pair.bob.new_handle() for _ in range(5)]
    for fork in forks:
        pair.bob.ask("fork_ctx", ctx, fork)
        pair.bob.ask("append", fork, ids=[fork])
    pair.bob.ask("free_ctx", forks[0])
    pair.bob.ask("free_ctx", ctx)
    assert pair.alice.ask("revoke", grant).result.contexts == 4
    assert all(is_revoked(pair.bob, fork) for fork in forks[1:])
    pair.sim.check()
    pair.sim.leave()


@pytest.mark.parametrize("fed", ["decode", "prefill", "score"])
def test_what_runs_ends_in_the_middle_of_a_step(fed: str) -> None:
    """The step is at the driver: its result comes to nobody, and the next has no block of hers."""
    pair = Pair()
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    if fed == "score":
        call = pair.bob.send("score", ctx, 40, ids=[5] * 60)
    else:
        call = pair.bob.send("infer", ctx, 99, 0.0, ids=[5] * (1 if fed == "decode" else 100))
    queued = pair.bob.send("infer", ctx, 5, 0.0, flags=Flag.QUEUE)
    if fed == "decode":
        pair.sim.until(lambda: len(call.tokens) > 3)
    pair.sim.turn(pump=0)
    assert pair.sim.model.sched.step is not None and not call.done
    told = len(call.tokens)
    revoke = pair.alice.send("revoke", grant)
    pair.sim.turn(pump=0)
    assert revoke.done and (call.errno, queued.errno) == (Errno.EREVOKED, Errno.EREVOKED)
    assert not any(ctx.blocks for ctx in pair.sim.system.contexts() if ctx.grant), "at once"
    pair.sim.check()
    pair.sim.settle()
    assert len(call.tokens) == told and pair.sim.model.sched.wasted == (fed != "prefill")
    assert pair.alice.ask("infer", pair.prompt, 5, 0.0).tokens == expected(PROMPT, 5)
    pair.sim.leave()


def swapping(seed: int) -> Pair:
    """A host tier, and a driver that copies beside its steps."""
    link = LoopbackLink("null0", host_bytes=HOST, beside=Random(seed))
    return Pair(num_blocks=16, host_bytes=HOST, link=link)


@pytest.mark.parametrize("move", [Move.OUT, Move.IN])
@pytest.mark.parametrize("hers", [True, False])
def test_revoke_in_the_middle_of_a_copy(move: Move, hers: bool) -> None:
    """Blocks of the opened context are on their way; its grantor's context is there, or has gone.

    Nobody else names them then, and the places of both tiers are to be given back.
    """
    pair = swapping(3)
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    pair.bob.ask("append", ctx, ids=[5] * 40)
    pair.sim.settle()
    if not hers:
        pair.alice.ask("free_ctx", pair.prompt)
    if move is Move.IN:
        pair.bob.ask("advise_ctx", ctx, "demote")
        pair.sim.settle()
        assert pair.bob.ask("stat_ctx", ctx).result.host_blocks >= 2
    advice = pair.bob.send("advise_ctx", ctx, "demote" if move is Move.OUT else "prefetch")
    pair.sim.turn(pump=0)
    assert advice.result.blocks and pair.sim.model.swap.busy
    assert any(b.moving is move for c in pair.sim.system.contexts() if c.grant for b in c.blocks)
    revoke = pair.alice.send("revoke", grant)
    pair.sim.turn(pump=0)
    assert revoke.result.contexts == 1
    pair.sim.check()
    pair.sim.settle()
    pair.sim.check()
    if hers:
        assert pair.alice.ask("infer", pair.prompt, 5, 0.0).tokens == expected(PROMPT, 5)
    pair.sim.leave()


@pytest.mark.parametrize("how", ["exit", "kill", "death"])
def test_the_end_of_the_grantor_takes_all_its_grants_back(how: str) -> None:
    pair = Pair()
    closed = granted(pair.alice, pair.alice.context([1, 2, 3]))
    grants = [pair.grant(), pair.grant(), closed]
    contexts = [opened(pair.bob, grant) for grant in grants for _ in range(2)]
    infer = pair.bob.send("infer", contexts[0], 99, 0.0)
    pair.sim.until(lambda: len(infer.tokens) > 3)
    pid = pid_of(pair.alice)
    if how == "death":
        pair.sim.front.dead.add(pair.alice.route)
        pair.sim.turn()
    else:
        who = pair.alice if how == "exit" else pair.sim.client()
        who.ask(*(("exit",) if how == "exit" else ("kill", pid, 9)))
    assert infer.errno == Errno.EREVOKED
    assert all(is_revoked(pair.bob, ctx) for ctx in contexts)
    assert len(pair.sim.system.grants) == 0
    pair.sim.leave()


def test_a_program_that_never_frees_what_was_revoked_holds_no_block() -> None:
    pair = Pair()
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    pair.bob.ask("advise_ctx", ctx, "pin")
    pair.bob.ask("infer", ctx, 20, 0.0)
    pair.alice.ask("revoke", grant)
    pair.alice.ask("free_ctx", pair.prompt)
    pair.sim.drop_cache()
    assert pair.sim.pool.counts.used == 0 and pair.sim.model.sched.pager.pinned == 0
    assert pair.bob.ask("free_ctx", ctx).errno == 0
    pair.sim.leave()


def test_no_step_is_planned_of_what_was_revoked() -> None:
    """Also in the turns before its table is emptied."""
    pair = Pair()
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    infer = pair.bob.send("infer", ctx, 99, 0.0)
    pair.sim.until(lambda: len(infer.tokens) > 3)
    pair.sim.kernel.collect()
    found = pair.sim.system.grants.find(grant)
    assert found is not None and pair.sim.model.sched.step is None
    found.revoked = True
    assert pair.sim.model.sched.plan() == ([], [])
    found.revoked = False
    entries, _ = pair.sim.model.sched.plan()
    assert len(entries) == 1


def test_a_save_has_nothing_of_what_lies_behind_the_granted_length() -> None:
    """The last block that was opened is full, and ends with ids that were not."""
    pair = Pair()
    opened(pair.bob, pair.grant(length=20))
    ctx = next(ctx for ctx in pair.sim.system.contexts() if ctx.grant is not None)
    begin = next(saving.save(ctx, lambda: 7, BOB, "notes", b"", 1 << 20))
    assert (begin.meta.length, begin.meta.num_blocks) == (20, 1)
    assert pair.alice.ask("stat_ctx", pair.prompt).result.computed > 32
    pair.sim.leave()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_revoke_in_the_middle_of_a_save(after: int) -> None:
    """The store has got so many messages: the rest does not come, and the save is given up."""
    pair = Pair(path="null:vocab=251,max_ctx=8192", num_blocks=600)
    pair.alice.ask("append", pair.prompt, ids=[5] * 4000)
    pair.sim.settle()
    grant = pair.grant()
    opened(pair.bob, grant)
    ctx = next(ctx for ctx in pair.sim.system.contexts() if ctx.grant is not None)
    frozen = ctx.fork(0, ctx.pid, "")
    save = saving.save(frozen, lambda: 7, BOB, "notes", b"", 1 << 20)
    sent = [next(save)]
    for _ in range(after):
        sent.append(save.send(True))
    pair.alice.ask("revoke", grant)
    rest = []
    with pytest.raises(EREVOKED):
        while True:
            rest.append(save.send(True))
    assert rest == [base.AbortSave(7)], sent
    frozen.free()
    pair.sim.leave()


# --- many ---------------------------------------------------------------------------------------

OPENERS = 10_000
A_TURN, GRANTS_A_TURN = 64, 512
"""Contexts that one turn empties, grants that go in one: a millisecond's work."""


def test_revoking_ten_thousand_openers_is_done_in_slices_and_holds_at_once() -> None:
    pair = Pair(num_blocks=600)
    grant = pair.grant()
    first = opened(pair.bob, grant)
    on = [granted(pair.bob, first) for _ in range(2)]
    while pair.bob.handle < OPENERS:
        for _ in range(2000):
            how = pair.bob.handle % 4
            handle = pair.bob.new_handle()
            names = grant, on[0], on[1]
            call = ("fork_ctx", first, handle) if how == 3 else ("open_ctx", names[how], handle)
            pair.bob.send(*call)
        pair.sim.until(lambda: all(reply.done for reply in pair.bob.calls.values()))
    count = pair.bob.ask("stat_task").result.contexts
    assert count == pair.bob.handle > OPENERS
    infers = [pair.bob.send("infer", ctx, 400, 0.0) for ctx in range(1, count, 99)]
    queued = [pair.bob.send("infer", ctx, 9, flags=Flag.QUEUE) for ctx in range(1, count, 99)]
    pair.sim.until(lambda: all(infer.tokens for infer in infers))
    pair.sim.turn(pump=0)
    told = [len(infer.tokens) for infer in infers]
    contexts = [ctx for ctx in pair.sim.system.contexts() if ctx.grant is not None]
    before, left, turns = pair.sim.model.sched.step, count, 0
    revoke = pair.alice.send("revoke", grant)
    while not revoke.done:
        pair.sim.turn(pump=10 * (turns > 2))
        turns += 1
        now = sum(bool(ctx.blocks) for ctx in contexts)
        assert left - now <= 2 * A_TURN, "a slice of the call, and one of the turn"
        left = now
        assert pair.sim.model.sched.step in (None, before), "none of them is in a step again"
        if turns == 1:
            late = [ctx.handle for ctx in contexts if ctx.blocks]
            busy = [ctx.handle for ctx in contexts if ctx.blocks and ctx.queued]
            calls = [pair.bob.send("read_ctx", ctx) for ctx in late[:: len(late) // 50]]
            calls += [pair.bob.send("append", ctx, ids=[5], flags=Flag.QUEUE) for ctx in busy]
            opens = [pair.bob.send("open_ctx", n, pair.bob.handle + 1) for n in (grant, *on)]
            opens.append(pair.alice.send("revoke", grant))
        if turns == 2:
            assert len(busy) > 50 and {call.errno for call in calls} == {Errno.EREVOKED}
            assert {call.errno for call in opens} == {Errno.EBADCTX}
            read = pair.alice.send("read_ctx", pair.prompt)
        if turns == 3:
            assert read.done and read.errno == 0, "others are served in between"
    assert turns >= count / (2 * A_TURN) and revoke.result.contexts == count
    assert {infer.errno for infer in (*infers, *queued)} == {Errno.EREVOKED}
    assert [len(infer.tokens) for infer in infers] == told, "not one id after the revoke"
    pair.sim.check()
    pair.sim.leave()


def test_revoking_ten_thousand_grants_is_done_in_slices() -> None:
    """Each opener has granted it on, and nobody has opened that."""
    pair = Pair(num_blocks=600, max_grants=20_000)
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    for _ in range(5):
        granting = [pair.bob.send("grant_ctx", ctx, 1) for _ in range(2000)]
        pair.sim.until(lambda: all(reply.done for reply in granting))  # noqa: B023
    assert len(pair.sim.system.grants) == 10_001
    revoke = pair.alice.send("revoke", grant)
    left = 10_001
    while not revoke.done:
        pair.sim.turn()
        now = len(pair.sim.system.grants)
        assert left - now <= 2 * GRANTS_A_TURN
        left = now
    assert left == 0 and revoke.result.contexts == 1
    pair.sim.leave()


def test_the_grantors_end_in_the_middle_of_a_revoke_finishes_it() -> None:
    pair = Pair()
    grant = pair.grant()
    contexts = [opened(pair.bob, grant) for _ in range(300)]
    pair.alice.send("revoke", grant)
    pair.sim.turn()
    assert pair.sim.system.jobs
    pair.sim.front.dead.add(pair.alice.route)
    pair.sim.turn()
    pair.bob.ask("free_ctx", contexts[150])
    assert pair.bob.ask("free_ctx", contexts[-1]).errno == 0
    pair.sim.settle()
    pair.sim.check()
    assert not any(ctx.blocks for ctx in pair.sim.system.contexts())
    assert len(pair.sim.system.grants) == 0
    pair.sim.leave()
