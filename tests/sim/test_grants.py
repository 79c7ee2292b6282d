"""Grants: who can open a context, and what may be done with it then."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from kernel.grant import MAX_DEPTH
from syscalls import abi
from syscalls.abi import Access, Event
from syscalls.errors import Errno
from tests.helpers.granting import BOB, OWN, PROMPT, Pair, granted, opened, pid_of
from tests.helpers.oracle import expected, scores
from tests.helpers.sim import Reply


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.sim.leave()


# --- opening ------------------------------------------------------------------------------------


def test_an_opened_context_is_the_granted_one_and_goes_its_own_way(pair: Pair) -> None:
    ctx = pair.opened()
    row = pair.bob.ask("stat_ctx", ctx).result
    assert (row.length, row.computed, row.opened_from) == (40, 39, pid_of(pair.alice))
    assert list(pair.bob.ask("read_ctx", ctx).ids) == PROMPT
    infer = pair.bob.ask("infer", ctx, 9, 0.0, ids=OWN)
    assert infer.tokens == expected(PROMPT + OWN, 9)
    assert list(pair.alice.ask("read_ctx", pair.prompt).ids) == PROMPT, "hers is as it was"
    assert pair.alice.ask("infer", pair.prompt, 9, 0.0).tokens == expected(PROMPT, 9)
    assert list(pair.bob.ask("read_ctx", ctx, 40).ids) == OWN + expected(PROMPT + OWN, 9)
    pair.sim.check()


def test_a_grant_opens_the_context_as_it_is_then(pair: Pair) -> None:
    whole, capped = pair.grant(), pair.grant(length=20)
    pair.alice.ask("append", pair.prompt, ids=OWN)
    assert list(pair.bob.ask("read_ctx", opened(pair.bob, whole)).ids) == PROMPT + OWN
    assert list(pair.bob.ask("read_ctx", opened(pair.bob, capped)).ids) == PROMPT[:20]
    pair.alice.ask("trim_ctx", pair.prompt, 10)
    late = opened(pair.bob, capped)
    assert list(pair.bob.ask("read_ctx", late).ids) == PROMPT[:10], "there are no more"
    assert pair.bob.ask("infer", late, 5, 0.0).tokens == expected(PROMPT[:10], 5)


def test_what_the_grantor_adds_later_is_not_in_what_was_opened(pair: Pair) -> None:
    """Both name the same last block, and she is its writer."""
    ctx = pair.opened()
    pair.alice.ask("append", pair.prompt, ids=[200, 201, 202])
    assert list(pair.bob.ask("read_ctx", ctx).ids) == PROMPT
    pair.alice.ask("free_ctx", pair.prompt)
    assert list(pair.bob.ask("read_ctx", ctx).ids) == PROMPT, "the block is his alone now"
    runs = [abi.BlockRun(*run) for run in pair.bob.ask("pmap", ctx).result.runs]
    assert sum(run.ids for run in runs) == 40
    assert pair.bob.ask("infer", ctx, 5, 0.0).tokens == expected(PROMPT, 5)


def test_openings_are_counted_timed_and_for_whom_they_are(pair: Pair) -> None:
    alice, bob, sim = pair.alice, pair.bob, pair.sim
    other = sim.client(uid=BOB)
    twice = pair.grant(opens=2)
    opened(bob, twice), opened(other, twice)
    for_bob, for_uid = pair.grant(pid=pid_of(bob)), pair.grant(uid=BOB)
    for_her, short = pair.grant(uid=1000), pair.grant(ttl_s=5.0)
    opened(bob, for_bob), opened(bob, for_uid), opened(other, for_uid), opened(bob, short)
    sim.clock.now += 5.0
    for client, grant in ((bob, twice), (other, for_bob), (alice, for_uid), (bob, for_her),
                          (bob, short)):  # fmt: skip
        assert client.ask("open_ctx", grant, client.new_handle()).errno == Errno.EBADCTX
        client.handle -= 1
    assert opened(alice, for_her)
    sim.check()


def test_a_refused_opening_uses_none_up(pair: Pair) -> None:
    once = pair.grant(opens=1)
    pair.bob.ask("alloc_ctx", pair.bob.new_handle())
    assert pair.bob.ask("open_ctx", once, 1).errno == Errno.EEXIST
    assert pair.bob.ask("open_ctx", once, 3 << 24).errno == Errno.EINVAL
    opened(pair.bob, once)


def test_openings_are_contexts_of_the_opener() -> None:
    pair = Pair(max_contexts=3)
    grant = pair.grant()
    opened(pair.bob, grant), opened(pair.bob, grant)
    assert pair.bob.ask("open_ctx", grant, pair.bob.new_handle()).errno == Errno.EAGAIN
    assert pair.bob.ask("stat_task").result.contexts == 2
    pair.sim.leave()


def test_a_task_has_so_many_grants_and_those_that_are_over_do_not_count() -> None:
    pair = Pair(max_grants=3)
    spent, held, short = pair.grant(opens=1), pair.grant(opens=1), pair.grant(ttl_s=1.0)
    first, second = opened(pair.bob, spent), opened(pair.bob, held)
    refused = pair.alice.ask("grant_ctx", pair.prompt, 1)
    assert refused.errno == Errno.EDQUOT and "3" in refused.message
    pair.bob.ask("free_ctx", first)
    again = pair.grant()
    assert pair.alice.ask("grant_ctx", pair.prompt, 1).errno == Errno.EDQUOT
    pair.sim.clock.now += 1.0
    pair.grant()
    assert pair.alice.ask("revoke", held).result.contexts == 1
    assert pair.bob.ask("read_ctx", second).errno == Errno.EREVOKED
    pair.grant()
    for grant in (spent, held, short):
        assert pair.alice.ask("revoke", grant).errno == Errno.EBADCTX, "nothing is left of it"
    assert pair.alice.ask("revoke", again).result.contexts == 0
    pair.sim.leave()


def test_of_grants_that_are_over_and_came_of_each_other_nothing_is_left(pair: Pair) -> None:
    ctx = opened(pair.bob, pair.grant(opens=1))
    last = opened(pair.alice, granted(pair.bob, ctx, opens=1))
    pair.bob.ask("free_ctx", ctx)
    assert len(pair.sim.system.grants) == 2, "through both there is one that was opened"
    pair.alice.ask("free_ctx", last)
    assert len(pair.sim.system.grants) == 0


def test_what_is_cut_of_an_opened_context_is_the_grantors_no_more(pair: Pair) -> None:
    ctx = pair.opened()
    pair.bob.ask("trim_ctx", ctx, 10)
    pair.bob.ask("append", ctx, ids=OWN)
    context = next(c for c in pair.sim.system.contexts() if c.grant is not None)
    assert (context.foreign, context.length) == (10, 15)


def test_grants_of_a_freed_context_open_nothing_and_what_was_opened_lives(pair: Pair) -> None:
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    pair.alice.ask("free_ctx", pair.prompt)
    assert pair.bob.ask("open_ctx", grant, pair.bob.new_handle()).errno == Errno.EBADCTX
    assert pair.bob.ask("infer", ctx, 5, 0.0).tokens == expected(PROMPT, 5)
    assert pair.alice.ask("revoke", grant).result.contexts == 1, "and can be taken back"
    assert pair.bob.ask("read_ctx", ctx).errno == Errno.EREVOKED


# --- ids that nobody can guess ------------------------------------------------------------------


def test_ten_thousand_guesses_and_every_other_no_are_the_same_bytes(pair: Pair) -> None:
    """Never there, another's, over, and taken back: one answer, for opening and for revoking."""
    random = Random(5)
    alice, bob = pair.alice, pair.bob
    live = [pair.grant(pid=pid_of(alice)) for _ in range(50)]
    over, back, freed = pair.grant(ttl_s=1.0), pair.grant(), pair.alice.context([1])
    gone = granted(alice, freed)
    alice.ask("free_ctx", freed)
    alice.ask("revoke", back)
    pair.sim.clock.now += 1.0
    near = [bytes([*grant[:15], grant[15] ^ 1]) for grant in live]
    guesses = [random.randbytes(16) for _ in range(10_000)]
    odd = [b"", bytes(16), b"x", *(grant[:8] for grant in live)]
    names = [*live, *near, over, back, gone, *odd, *guesses]
    bob.take()
    for first in range(0, len(names), 2000):
        for name in names[first : first + 2000]:
            bob.send("open_ctx", name, bob.handle + 1)
            bob.send("revoke", name)
        pair.sim.until(lambda: all(reply.done for reply in bob.calls.values()))
    answers = {repr(event[2:]) for event in bob.take() if event[0] == Event.ERR}
    assert len(answers) == 1 and str(int(Errno.EBADCTX)) in answers.pop()
    assert bob.ask("stat_task").result.contexts == 0
    assert opened(alice, live[0]), "they were right, and not his"


def test_the_id_of_a_grant_is_told_once_and_kept_nowhere(pair: Pair) -> None:
    grant = pair.grant()
    ctx = opened(pair.bob, grant)
    told = [pair.bob.ask(*call) for call in (
        ("stat_ctx", ctx), ("pmap", ctx), ("explain", ctx), ("snapshot", "contexts"),
        ("snapshot", "tasks"), ("snapshot", "kernel"),
    )]  # fmt: skip
    assert not any(grant.hex() in repr(reply.result).encode().hex() for reply in told)
    assert grant not in pair.sim.system.grants._grants
    assert len(grant) == 16 and len({pair.grant() for _ in range(100)}) == 100


# --- the authority matrix -----------------------------------------------------------------------

NEW = {"alloc_ctx", "open_ctx", "load_ctx"}  # their handle is of a context to come
CASES: dict[str, list[tuple[tuple[Any, ...], Access]]] = {
    "fork_ctx": [((1, 9), Access.FORK)],
    "append": [((1,), Access.INFER)],
    "trim_ctx": [((1, 39), Access.READ), ((1, 0), Access.READ), ((1, 40), Access(0))],
    "free_ctx": [((1,), Access(0))],
    "read_ctx": [((1,), Access.READ), ((1, 39), Access.READ), ((1, 40), Access(0)),
                 ((1, 0, 0), Access.READ)],
    "save_ctx": [((1, "notes"), Access.READ | Access.COPY)],
    "stat_ctx": [((1,), Access(0))],
    "advise_ctx": [((1, "prefetch"), Access(0)), ((1, "pin"), Access(0))],
    "grant_ctx": [((1, int(access)), access | Access.FORK) for access in map(Access, range(1, 16))]
    + [((1, 4, 39), Access.FORK | Access.READ), ((1, 4, 40), Access.FORK)],
    "infer": [((1, 2, 0.0), Access.INFER),
              (abi.Infer(1, 2, 0.0, repetition_penalty=1.5), Access.INFER | Access.READ),
              (abi.Infer(1, 2, 0.0, presence_penalty=1.0, penalize_from=39),
               Access.INFER | Access.READ),
              (abi.Infer(1, 2, 0.0, frequency_penalty=1.0), Access.INFER),
              (abi.Infer(1, 2, 0.0, grammar_kind=2, grammar=b"a+"), Access.INFER),
              (abi.Infer(1, 2, 0.0, grammar_kind=2, grammar=b"(.|[^.])*", grammar_from=39),
               Access.INFER | Access.READ)],
    "score": [((1, 39), Access.INFER | Access.READ), ((1, 40), Access.INFER)],
    "pmap": [((1,), Access(0))],
    "explain": [((1,), Access(0))],
    "subscribe": [(("news", 64, "refuse", 1), Access.INFER)],
}  # fmt: skip
ROWS = [(name, args, need) for name, cases in CASES.items() for args, need in cases]


def test_every_call_that_names_a_context_is_in_the_matrix() -> None:
    """A call that is built later fails here until somebody has said what it needs."""
    named = {row.name for row in abi.CALLS if row.args and "ctx" in row.args._fields}
    assert named - NEW == set(CASES)


@pytest.mark.parametrize(("name", "args", "need"), ROWS, ids=lambda value: str(value)[:40])
def test_authority_matrix(name: str, args: tuple[Any, ...], need: Access) -> None:
    """Each call with each set of rights: EPERM if one lacks, and nothing has changed."""
    pair = Pair()
    for access in map(Access, range(1, 16)):
        bob = pair.sim.client(uid=BOB)
        assert opened(bob, pair.grant(access)) == 1
        if name == "grant_ctx":
            pair.alice.ask("stat_task")
        ids = [5] if name == "append" or (name == "score" and args[1] == 40) else None
        before = bob.ask("stat_ctx", 1).result
        reply = bob.ask(name, *args, ids=ids)
        if need in access:
            ended = Errno.ENOTSUP if name == "save_ctx" else 0  # it came as far as to the disk
            assert reply.errno == ended, (access, reply.message)
        else:
            assert reply.errno == Errno.EPERM and "right" in reply.message, access
            assert bob.ask("stat_ctx", 1).result == before
            assert bob.ask("stat_task").result.contexts == 1
        pair.sim.front.dead.add(bob.route)
        pair.sim.turn()
    pair.sim.leave()


@pytest.mark.parametrize(("name", "args", "need"), ROWS, ids=lambda value: str(value)[:40])
def test_after_a_revoke_only_stat_and_free_answer(
    name: str, args: tuple[Any, ...], need: Access
) -> None:
    pair = Pair()
    grant = pair.grant()
    assert opened(pair.bob, grant) == 1
    assert pair.alice.ask("revoke", grant).result.contexts == 1
    ids = [5] if name in ("append", "score") else None
    right = 0 if name in ("stat_ctx", "free_ctx") else Errno.EREVOKED
    assert pair.bob.ask(name, *args, ids=ids).errno == right
    if name != "free_ctx":
        row = pair.bob.ask("stat_ctx", 1).result
        assert (row.length, row.blocks, row.revoked) == (0, 0, True)
    pair.sim.leave()


@pytest.mark.parametrize("access", [Access.INFER, Access.INFER | Access.FORK])
def test_without_read_the_own_part_is_ones_own(access: Access) -> None:
    pair = Pair()
    bob, ctx = pair.bob, pair.opened(access)
    infer = bob.ask("infer", ctx, 4, 0.0, ids=OWN)
    output = expected(PROMPT + OWN, 4)
    assert infer.tokens == output
    assert list(bob.ask("read_ctx", ctx, 40).ids) == OWN + output
    own = bob.send("score", ctx, 40)
    pair.sim.until(lambda: own.done)
    assert own.tokens == OWN + output
    assert bob.ask("trim_ctx", ctx, 42).errno == 0
    assert list(bob.ask("read_ctx", ctx, 40).ids) == OWN[:2]
    assert bob.ask("trim_ctx", ctx, 39).errno == Errno.EPERM
    pair.sim.leave()


def test_forks_have_the_rights_of_what_they_are_forks_of(pair: Pair) -> None:
    ctx = pair.opened(Access.INFER | Access.FORK)
    fork = pair.bob.new_handle()
    pair.bob.ask("fork_ctx", ctx, fork)
    assert pair.bob.ask("read_ctx", fork).errno == Errno.EPERM
    assert pair.bob.ask("stat_ctx", fork).result.opened_from == pid_of(pair.alice)
    assert pair.bob.ask("append", fork, ids=OWN).errno == 0
    plain = pair.opened(Access.READ)
    assert pair.bob.ask("fork_ctx", plain, pair.bob.new_handle()).errno == Errno.EPERM


def test_score_of_an_opened_prefix_is_that_of_the_grantor(pair: Pair) -> None:
    ctx = pair.opened(Access.READ | Access.INFER)
    score = pair.bob.send("score", ctx, 1)
    pair.sim.until(lambda: score.done)
    told = [event[3] for event in pair.bob.take() if event[:2] == [Event.TOKEN, score.call]]
    logprobs = [value for part in told for value in part]
    assert score.tokens == PROMPT[1:]
    assert logprobs == pytest.approx(scores(PROMPT, 1), abs=1e-4)


def test_a_tree_of_grants_is_only_so_deep() -> None:
    pair = Pair()
    ctx, client = pair.prompt, pair.alice
    for depth in range(MAX_DEPTH + 1):
        reply = client.ask("grant_ctx", ctx, 15)
        if depth == MAX_DEPTH:
            assert reply.errno == Errno.EINVAL and str(MAX_DEPTH) in reply.message
            break
        client = pair.bob
        ctx = opened(client, reply.result.grant)
    pair.sim.check()
    pair.sim.leave()


# --- in between ---------------------------------------------------------------------------------


def test_a_context_can_be_opened_in_the_middle_of_an_infer(pair: Pair) -> None:
    grant = pair.grant()
    infer = pair.alice.send("infer", pair.prompt, 30, 0.0)
    pair.sim.until(lambda: len(infer.tokens) > 5)
    ctx = opened(pair.bob, grant)
    ids = list(pair.bob.ask("read_ctx", ctx).ids)
    assert PROMPT + infer.tokens[: len(ids) - 40] == ids and len(ids) > 45
    assert pair.bob.ask("infer", ctx, 5, 0.0).tokens == expected(ids, 5)
    pair.sim.until(lambda: infer.done)
    assert infer.tokens == expected(PROMPT, 30)


@pytest.mark.parametrize("when", [lambda p: p.sim.link.die(), lambda p: None])
def test_an_opened_context_goes_on_after_the_driver_has_died(when: Callable[[Pair], None]) -> None:
    pair = Pair()
    ctx = pair.opened(Access.INFER)
    infer: Reply = pair.bob.send("infer", ctx, 20, 0.0, ids=OWN)
    pair.sim.until(lambda: len(infer.tokens) > 3)
    when(pair)
    pair.sim.until(lambda: infer.done)
    assert infer.tokens == expected(PROMPT + OWN, 20)
    pair.sim.leave()
