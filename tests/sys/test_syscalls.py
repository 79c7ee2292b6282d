"""Every system call, right and wrong, through frames on a simulated kernel (null driver)."""

from array import array
from typing import Any

import pytest

from syscalls import abi, wire
from syscalls.abi import Event, Finish, Flag, Sig
from syscalls.errors import Errno
from tests.helpers import golden
from tests.helpers.oracle import VOCAB, expected
from tests.helpers.sim import Sim, SimClient


@pytest.fixture
def sim() -> Any:
    sim = Sim()
    yield sim
    sim.leave()


def greedy(client: SimClient, handle: int, count: int, **kw: Any) -> Any:
    return client.ask("infer", handle, count, 0.0, **kw)


# --- the path ---------------------------------------------------------------------------------


def test_infer_gives_what_the_ids_say(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1, 2, 3])
    reply = greedy(client, handle, 40)
    assert reply.tokens == expected([1, 2, 3], 40)
    assert reply.result.finish == Finish.LENGTH and reply.result.output == 40
    assert list(client.ask("read_ctx", handle).ids) == [1, 2, 3, *reply.tokens]


def test_calls_pipeline(sim: Sim) -> None:
    """alloc, append, fork, infer sent back to back."""
    client = sim.client()
    client.send("alloc_ctx", 1)
    client.send("append", 1, ids=[5, 6, 7])
    client.send("fork_ctx", 1, 2)
    infer = client.send("infer", 2, 4, 0.0)
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([5, 6, 7], 4)


def test_a_failed_call_fails_the_calls_chained_to_it(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1])
    bad = client.send("append", handle, ids=[VOCAB])
    chained = client.send("infer", handle, 4, 0.0, flags=Flag.CHAIN)
    again = client.send("append", handle, ids=[2], flags=Flag.CHAIN)
    sim.until(lambda: again.done)
    assert [bad.errno, chained.errno, again.errno] == [
        Errno.EINVAL, Errno.ECANCELED, Errno.ECANCELED,
    ]  # fmt: skip
    assert client.ask("stat_ctx", handle).result.length == 1


def test_ids_in_the_infer_call(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([])
    reply = greedy(client, handle, 3, ids=[9, 8])
    assert reply.tokens == expected([9, 8], 3) and reply.result.prompt == 2


def test_stop_id_ends_and_stays_out(sim: Sim) -> None:
    client = sim.client()
    ids = [1, 2, 3]
    out = expected(ids, 5)
    handle = client.context(ids)
    stop = next(token for i, token in enumerate(out) if token not in out[:i] and i >= 2)
    reply = client.ask("infer", handle, 40, 0.0, 0, 1.0, 0.0, None, [stop])
    assert reply.result.finish == Finish.STOP
    assert reply.tokens == out[: out.index(stop)]
    assert reply.result.overrun == 1
    assert client.ask("stat_ctx", handle).result.length == 3 + len(reply.tokens)


def test_eos_of_the_model_stops_unless_ignored() -> None:
    eos = expected([1, 2, 3], 1)[0]
    sim = Sim(path=f"null:vocab={VOCAB},eos={eos}")
    client = sim.client()
    first, second = client.context([1, 2, 3]), client.context([1, 2, 3])
    assert greedy(client, first, 9).tokens == []
    kept = client.ask("infer", second, 2, 0.0, 0, 1.0, 0.0, None, [], True)
    assert kept.tokens[0] == eos and kept.result.finish == Finish.LENGTH


def test_seed_is_reported_and_repeats(sim: Sim) -> None:
    client = sim.client()
    one, two, three = (client.context([4, 4]) for _ in range(3))
    drawn = client.ask("infer", one, 8, 1.0)
    again = client.ask("infer", two, 8, 1.0, 0, 1.0, 0.0, drawn.result.seed)
    other = client.ask("infer", three, 8, 1.0, 0, 1.0, 0.0, drawn.result.seed ^ 1)
    assert drawn.tokens == again.tokens != other.tokens


def test_logprobs_come_as_asked(sim: Sim) -> None:
    client = sim.client()
    for want, shape in ((None, (0, 0)), (0, (1, 0)), (3, (1, 3))):
        handle = client.context([1])
        call = client.ask("infer", handle, 1, 0.0, 0, 1.0, 0.0, None, [], False, want).call
        token = next(e for e in client.take() if e[0] == Event.TOKEN and e[1] == call)
        assert (len(token[3] or ()), len((token[4] or [[]])[0])) == shape


# --- sharing ----------------------------------------------------------------------------------


def test_fork_copies_nothing_and_each_writer_one_block(sim: Sim) -> None:
    """8,000 ids in full blocks: a fork's next id begins a block of its own, nothing to copy.
    With the last block partly filled: one copy for each fork that writes."""
    sim = Sim(num_blocks=600, prefill_chunk=512)
    client = sim.client()
    for length, copies in ((8000, 0), (8001, 8), (8005, 8)):
        handle = client.context([i % VOCAB for i in range(length)])
        sim.settle()
        before, used = sim.pool.copied, sim.pool.counts.used
        forks = [client.new_handle() for _ in range(8)]
        for fork in forks:
            assert client.ask("fork_ctx", handle, fork).result.length == length
        assert sim.pool.copied == before and sim.pool.counts.used == used
        replies = [client.send("infer", fork, 2, 0.0) for fork in forks]
        sim.until(lambda: all(r.done for r in replies))  # noqa: B023
        assert sim.pool.copied - before == copies
        assert sim.pool.counts.used <= used + 9
        assert len({tuple(r.tokens) for r in replies}) == 1
        for ctx in (handle, *forks):
            client.ask("free_ctx", ctx)
        sim.settle()


def test_forks_of_an_uncomputed_prompt_compute_it_once(sim: Sim) -> None:
    client = sim.client()
    client.send("alloc_ctx", 1)
    client.send("append", 1, ids=list(range(100)))
    infers = []
    for child in range(2, 10):
        client.send("fork_ctx", 1, child)
        infers.append(client.send("infer", child, 1, 0.0))
    tokens = count_tokens(sim)
    sim.until(lambda: all(r.done for r in infers))
    assert len({tuple(r.tokens) for r in infers}) == 1
    assert tokens[0] <= 100 + 8, "the prompt once, and one token each"


def count_tokens(sim: Sim) -> list[int]:
    """Count the tokens of every Execute from now on."""
    total, driver = [0], sim.link._driver
    assert driver is not None
    submit = driver.submit

    def counting(message: Any) -> None:
        for op in message.ops:
            if type(op).__name__ == "Execute":
                total[0] += len(op.tokens) // 4
        submit(message)

    driver.submit = counting  # type: ignore[method-assign]
    return total


def test_decodes_of_eight_clients_share_a_step(sim: Sim) -> None:
    clients = [sim.client() for _ in range(8)]
    replies = []
    for client in clients:
        handle = client.context([1, 2])
        replies.append(client.send("infer", handle, 20, 0.0))
    steps = sim.model.sched.steps
    sim.until(lambda: all(r.done for r in replies))
    assert sim.model.sched.steps - steps <= 21


def test_shares_add_up_to_the_blocks_in_use(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    handle = client.context(list(range(50)))
    for _ in range(3):
        client.ask("fork_ctx", handle, client.new_handle())
    other.context(list(range(50, 83)))
    sim.settle()
    rows = [abi.TaskRow(*row) for row in client.ask("snapshot", "tasks").result.rows]
    pool = abi.PoolRow(*client.ask("snapshot", "pools").result.rows[0])
    assert sum(row.blocks for row in rows) == pytest.approx(pool.used)
    assert pool.saved == 3 * 4


# --- cancel, trim, free -----------------------------------------------------------------------


def test_cancel_keeps_what_is_asked_for(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1, 2, 3])
    infer = client.send("infer", handle, 50, 0.0)
    sim.until(lambda: len(infer.tokens) >= 10)
    reply = client.ask("cancel", infer.call, 4)
    assert infer.done and infer.result.finish == Finish.CANCELLED
    assert reply.result.length == 7 and infer.result.output == 4
    assert greedy(client, handle, 3).tokens == expected([1, 2, 3], 7)[4:]


def test_cancel_of_what_is_no_infer(sim: Sim) -> None:
    client = sim.client()
    assert client.ask("cancel", 77).errno == Errno.ESRCH
    infer = client.send("infer", client.context([1]), 9, 0.0)
    sim.turn()
    assert client.ask("cancel", infer.call, 10_000).errno == Errno.EINVAL
    stranger = sim.client()
    assert stranger.ask("cancel", infer.call).errno == Errno.ESRCH


def test_trim_and_append_again(sim: Sim) -> None:
    client = sim.client()
    ids = list(range(40))
    handle = client.context(ids)
    greedy(client, handle, 5)
    assert client.ask("trim_ctx", handle, 21).result.length == 21
    client.ask("append", handle, ids=[7, 7])
    assert greedy(client, handle, 5).tokens == expected([*ids[:21], 7, 7], 5)
    assert client.ask("trim_ctx", handle, 1000).errno == Errno.EINVAL


def test_busy_context_refuses_or_queues(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1, 2, 3])
    infer = client.send("infer", handle, 6, 0.0)
    refused = [
        client.send("append", handle, ids=[1]),
        client.send("trim_ctx", handle, 1),
        client.send("infer", handle, 1, 0.0),
    ]
    queued = client.send("append", handle, ids=[9], flags=Flag.QUEUE)
    second = client.send("infer", handle, 2, 0.0, flags=Flag.QUEUE)
    fork = client.send("fork_ctx", handle, client.new_handle())
    sim.until(lambda: second.done)
    assert [reply.errno for reply in refused] == [Errno.EBUSY] * 3
    assert fork.result.length == 3, "a fork during an infer sees what was committed"
    assert infer.tokens == expected([1, 2, 3], 6)
    assert queued.result.length == 10
    assert second.tokens == expected([1, 2, 3, *infer.tokens, 9], 2)


def test_free_ends_the_infer(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1])
    infer = client.send("infer", handle, 50, 0.0)
    queued = client.send("append", handle, ids=[1], flags=Flag.QUEUE)
    sim.turn()
    assert client.ask("free_ctx", handle).errno == 0
    assert infer.errno == Errno.ECANCELED and queued.errno == Errno.EBADCTX
    for call in ("free_ctx", "stat_ctx", "read_ctx"):
        assert client.ask(call, handle).errno == Errno.EBADCTX


# --- bad input --------------------------------------------------------------------------------


def test_contexts_of_others_do_not_exist(sim: Sim) -> None:
    owner, thief = sim.client(), sim.client()
    handle = owner.context([1, 2])
    calls = [("free_ctx", handle), ("read_ctx", handle), ("fork_ctx", handle, 1), ("infer", handle)]
    not_yours = [thief.ask(*call) for call in calls]
    not_there = [thief.ask(call[0], 99, *call[2:]) for call in calls]
    assert {r.errno for r in (*not_yours, *not_there)} == {Errno.EBADCTX}
    for mine, none in zip(not_yours, not_there, strict=True):
        assert mine.message.replace(str(handle), "N") == none.message.replace("99", "N")


def test_handles_rise_and_are_never_used_again(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([])
    assert client.ask("alloc_ctx", handle).errno == Errno.EEXIST
    client.ask("free_ctx", handle)
    assert client.ask("alloc_ctx", handle).errno == Errno.EINVAL
    assert client.ask("alloc_ctx", 1 << 24).errno == Errno.EINVAL, "another connection's"


def test_prompt_longer_than_the_context() -> None:
    sim = Sim(path=f"null:vocab={VOCAB},max_ctx=100", num_blocks=64)
    client = sim.client()
    handle = client.context([1] * 90)
    reply = client.ask("append", handle, ids=[1] * 11)
    assert reply.errno == Errno.E2BIG and "101" in reply.message and "100" in reply.message
    last = greedy(client, handle, 50)
    assert last.result.finish == Finish.LENGTH and last.result.length == 100
    full = greedy(client, handle, 1)
    assert full.errno == Errno.E2BIG


def test_what_never_fits_the_pool_is_refused_at_once(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1] * 100)
    reply = client.send("infer", handle, 5000, 0.0)
    sim.turn()
    assert reply.errno == Errno.ENOMEM and "319" in reply.message and "63" in reply.message
    assert client.ask("append", handle, ids=[1] * 2000).errno == Errno.ENOMEM
    assert client.ask("stat_ctx", handle).result.length == 100


@pytest.mark.parametrize(
    ("call", "errno"),
    [
        (("alloc_ctx", 50, "nosuchmodel"), Errno.ENOENT),
        (("alloc_ctx", 50, None, None, True), Errno.ENOTSUP),
        (("wait",), Errno.ESRCH),
        (("wait", 99), Errno.ESRCH),
        (("kill", 99), Errno.ESRCH),
        (("kill", 1), Errno.EPERM),
        (("kill", 2, 44), Errno.EINVAL),
        (("stat_task", 99), Errno.ESRCH),
        (("snapshot", "secrets"), Errno.EINVAL),
        (("read_model", None, "weights"), Errno.EINVAL),
        (("read_model",), Errno.ENOENT),
        (("infer", 50), Errno.EBADCTX),
        (("append", 50), Errno.EBADCTX),
        (("hello", "again"), Errno.EBUSY),
        (("infer", 1, 0), Errno.EINVAL),
        (("infer", 1, True), Errno.EINVAL),
        (("infer", 1, 5, float("nan")), Errno.EINVAL),
        (("infer", 1, 5, 1.0, 0, 1.5), Errno.EINVAL),
        (("infer", 1, 5, 1.0, 0, 1.0, 0.0, None, [VOCAB]), Errno.EINVAL),
        (("infer", 1), Errno.EINVAL),  # an empty context
        (("append", 1), Errno.EINVAL),  # no ids
        (("read_ctx", 1, 1), Errno.EINVAL),
    ],
)
def test_bad_arguments(sim: Sim, call: tuple[Any, ...], errno: Errno) -> None:
    client = sim.client()
    client.context([])
    reply = client.ask(*call)
    assert reply.errno == errno and reply.message


@pytest.mark.parametrize("ids", [array("i", [-1]), [VOCAB], [0, 2**31 - 1]])
def test_ids_outside_the_vocabulary(sim: Sim, ids: list[int]) -> None:
    client = sim.client()
    handle = client.context([1])
    assert client.ask("append", handle, ids=ids).errno == Errno.EINVAL
    assert client.ask("infer", handle, 1, ids=ids).errno == Errno.EINVAL
    assert client.ask("stat_ctx", handle).result.length == 1


def test_reserved_calls_say_so(sim: Sim) -> None:
    client = sim.client()
    for row in abi.CALLS:
        if row.args is None:
            client._last += 1
            client.calls[client._last] = reply = type(client.ask("stat_task"))(0, row.name)
            client.calls.pop(client._last)
            client._last += 1
            client.calls[client._last] = reply
            client.send_raw([wire.pack_request(row.number, client._last, 0, ())])
            sim.turn()
            assert reply.errno == Errno.ENOTSUP and row.name in reply.message


def test_before_hello_nothing_is_allowed(sim: Sim) -> None:
    client = sim.client(hello=False)
    for row in abi.CALLS:
        if row.args is not None and row.name not in ("hello", "attach"):
            assert client.ask(row.name, *golden.REQUESTS[row.name]).errno == Errno.EPERM


def test_three_messages_of_rubbish_close_the_session(sim: Sim) -> None:
    client, bystander = sim.client(), sim.client()
    handle = bystander.context([1, 2])
    infer = bystander.send("infer", handle, 30, 0.0)
    for rubbish in ([b"\xc1"], [b"", b"", b""], [b"GET / HTTP/1.1"]):
        client.send_raw(rubbish)
        sim.turn()
    errors = [event for event in client.session_events if event[0] == Event.ERR]
    assert len(errors) == 3 and {event[2] for event in errors} == {Errno.EPROTO}
    assert client.route not in sim.system.sessions
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1, 2], 30)


def test_wrong_version_gets_an_answer_to_its_call(sim: Sim) -> None:
    client = sim.client()
    client._last += 1
    client.calls[client._last] = reply = type(client.ask("stat_task"))(0, "stat_task")
    frame = wire.pack_request(11, client._last, 0, ())
    client.calls[client._last + 1] = reply
    client.send_raw([frame[:1] + b"\x63" + frame[2:-2] + b"\x00\x90"])
    sim.turn()
    assert any(e[0] == Event.ERR and e[2] == Errno.EPROTO for e in client.take())


# --- tasks ------------------------------------------------------------------------------------


def test_spawn_ticket_and_wait(sim: Sim) -> None:
    parent = sim.client()
    spawned = parent.ask("spawn", "child").result
    child = sim.client(hello=False)
    assert child.ask("hello", "child", spawned.ticket).result.pid == spawned.pid
    late = sim.client(hello=False)
    assert late.ask("hello", "thief", spawned.ticket).errno == Errno.ESTALE
    assert late.ask("hello", "thief", b"\0" * 32).errno == Errno.ESTALE
    waiting = parent.send("wait", spawned.pid)
    sim.turn()
    assert not waiting.done
    child.ask("exit", 7)
    sim.until(lambda: waiting.done)
    assert (waiting.result.pid, waiting.result.status) == (spawned.pid, 7)
    assert parent.ask("wait").errno == Errno.ESRCH


def test_zombie_waits_for_its_parent_then_for_nobody(sim: Sim) -> None:
    parent = sim.client()
    pid = parent.ask("spawn", "child").result.pid
    killer = sim.client()
    assert killer.ask("kill", pid).errno == 0
    assert killer.ask("stat_task", pid).result.state == "Z"
    assert killer.ask("kill", pid).errno == Errno.ESRCH
    assert parent.ask("wait", 0, True).result.pid == pid
    second = parent.ask("spawn", "other").result.pid
    killer.ask("kill", second)
    sim.clock.now += 100
    sim.turn()
    assert killer.ask("stat_task", second).errno == Errno.ESRCH, "forgotten after zombie_s"


def test_unused_ticket_expires(sim: Sim) -> None:
    parent = sim.client()
    spawned = parent.ask("spawn", "late").result
    sim.clock.now += 61
    sim.turn()
    assert sim.client(hello=False).ask("hello", "x", spawned.ticket).errno == Errno.ESTALE
    assert parent.ask("wait").result.pid == spawned.pid


def test_orphans_go_to_init(sim: Sim) -> None:
    parent = sim.client()
    spawned = parent.ask("spawn", "child").result
    child = sim.client(hello=False)
    child.ask("hello", "child", spawned.ticket)
    sim.front.dead.add(parent.route)
    sim.turn()
    assert child.ask("stat_task").result.parent == 1
    child.ask("exit")
    assert len(sim.system.tasks) == 1


@pytest.mark.parametrize("signal", [Sig.KILL, Sig.TERM])
def test_kill_frees_everything_and_spares_others(sim: Sim, signal: Sig) -> None:
    victim, killer = sim.client(), sim.client()
    mine = killer.send("infer", killer.context([4, 5]), 25, 0.0)
    running = victim.send("infer", victim.context([1]), 50, 0.0)
    sim.turn()
    pid = sim.system.sessions[victim.route].task.pid  # type: ignore[union-attr]
    assert killer.ask("kill", pid, int(signal)).errno == 0
    assert running.errno == Errno.ECANCELED
    assert victim.ask("stat_task").errno == Errno.ESRCH
    sim.until(lambda: mine.done)
    assert mine.tokens == expected([4, 5], 25)
    assert victim.session_events[-1][0] == Event.EXIT


def test_stop_and_continue(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    infer = client.send("infer", client.context([1]), 30, 0.0)
    sim.until(lambda: len(infer.tokens) > 3)
    pid = sim.system.sessions[client.route].task.pid  # type: ignore[union-attr]
    other.ask("kill", pid, int(Sig.STOP))
    sim.turn()
    stopped_at = len(infer.tokens)
    for _ in range(20):
        sim.turn()
    assert len(infer.tokens) == stopped_at
    assert other.ask("stat_task", pid).result.state == "T"
    other.ask("kill", pid, int(Sig.CONT))
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1], 30)


def test_int_cancels_the_infers_of_a_task(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    infer = client.send("infer", client.context([1]), 50, 0.0)
    sim.turn()
    pid = sim.system.sessions[client.route].task.pid  # type: ignore[union-attr]
    other.ask("kill", pid, int(Sig.INT))
    assert infer.result.finish == Finish.CANCELLED
    assert client.ask("stat_task").errno == 0


# --- clients that fail ------------------------------------------------------------------------


def test_death_of_a_program_frees_everything(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    client.send("infer", client.context([1, 2]), 50, 0.0)
    mine = other.send("infer", other.context([3]), 30, 0.0)
    sim.turn()
    sim.front.dead.add(client.route)
    sim.until(lambda: mine.done)
    assert mine.tokens == expected([3], 30)
    assert len(sim.system.tasks) == 2


def test_client_that_does_not_read_is_held_then_closed(sim: Sim) -> None:
    sim = Sim(stalled_messages=4)
    slow, other = sim.client(), sim.client()
    infer = slow.send("infer", slow.context([1]), 500, 0.0)
    sim.turn()
    sim.front.blocked.add(slow.route)
    for _ in range(30):
        sim.turn()
    held = sim.model.sched.steps
    for _ in range(30):
        sim.turn()
    assert sim.model.sched.steps == held, "it does not decode for nobody"
    assert greedy(other, other.context([2]), 5).tokens == expected([2], 5)
    sim.front.blocked.discard(slow.route)
    sim.until(lambda: len(infer.tokens) > 100)
    assert infer.tokens == expected([1], len(infer.tokens)), "no gap, nothing twice"
    sim.front.blocked.add(slow.route)
    sim.clock.now += 1
    for _ in range(10):
        sim.turn()
    sim.clock.now += 61
    sim.turn()
    assert slow.route not in sim.system.sessions
    sim.settle()


def test_same_call_sent_twice_runs_once(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([])
    reply = client.send("append", handle, ids=[1, 2, 3])
    sim.turn()
    assert reply.result.length == 3
    reply.done = False
    frames = [wire.pack_request(34, reply.call, 0, (handle,)), wire.pack_ids([1, 2, 3])]
    client.send_raw(frames)
    sim.turn()
    assert reply.done and reply.result.length == 3, "the same answer again"
    assert client.ask("stat_ctx", handle).result.length == 3


def test_very_old_call_is_stale(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([])
    old = client.ask("append", handle, ids=[1])
    for _ in range(abi.KEPT_RESULTS + 1):
        client.send("append", handle, ids=[1])
        if client._last % 200 == 0:
            sim.turn()
            client.ask("trim_ctx", handle, 1)
    sim.turn()
    old.done = False
    client.send_raw([wire.pack_request(34, old.call, 0, (handle,)), wire.pack_ids([1])])
    sim.turn()
    assert old.errno == Errno.ESTALE


# --- devices that fail ------------------------------------------------------------------------


def test_driver_death_is_not_seen_in_the_stream(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(list(range(40)))
    fork = client.new_handle()
    client.ask("fork_ctx", handle, fork)
    infers = [client.send("infer", ctx, 20, 0.0) for ctx in (handle, fork)]
    for _ in range(3):
        sim.until(lambda: len(infers[0].tokens) >= 5)
        sim.link.die()
        sim.turn()
    sim.until(lambda: all(infer.done for infer in infers))
    assert infers[0].tokens == infers[1].tokens == expected(list(range(40)), 20)
    assert sim.system.device.epoch == 4


def test_request_that_kills_the_driver_is_given_up(sim: Sim) -> None:
    client = sim.client()
    infer = client.send("infer", client.context([1]), 20, 0.0)
    sim.clock.now += 0.001
    while not infer.done:
        sim.kernel.turn()
        client.read()
        if sim.system.device._flights:
            sim.link.die()
        else:
            sim.link.pump()
    assert infer.errno == Errno.EIO and "3 times" in infer.message


def test_device_out_of_restarts_fails_everything_and_ps_goes_on() -> None:
    sim = Sim(max_restarts=2)
    client = sim.client()
    infer = client.send("infer", client.context([1]), 500, 0.0)
    waiting = client.send("append", client.context([]), ids=[1] * 50)
    for _ in range(3):
        sim.link.die()
        sim.turn()
    assert infer.errno in (Errno.ENODEV, Errno.EIO) and waiting.errno == 0
    assert client.ask("infer", 1, 5).errno == Errno.ENODEV
    assert client.ask("snapshot", "tasks").errno == 0
    assert client.ask("list_devices").result.rows[0][2] == "failed"


def test_silent_driver_is_replaced(sim: Sim) -> None:
    client = sim.client()
    infer = client.send("infer", client.context([1]), 10, 0.0)
    sim.turn(pump=0)
    assert sim.kernel.timeout() == pytest.approx(sim.config.hang_s, abs=0.1)
    sim.clock.now += sim.config.hang_s
    sim.turn()
    assert sim.system.device.epoch == 2
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1], 10)


# --- shutdown ---------------------------------------------------------------------------------


def test_shutdown_lets_requests_end_then_cancels() -> None:
    sim = Sim()
    client = sim.client()
    short = client.send("infer", client.context([1]), 5, 0.0)
    long = client.send("infer", client.context([2]), 900, 0.0)
    sim.turn()
    client.send("shutdown", 5.0)
    late = client.send("infer", client.context([3]), 5, 0.0)
    sim.until(lambda: short.done)
    assert late.errno == Errno.ECANCELED and not sim.kernel.stopped
    sim.clock.now += 5
    sim.turn()
    assert sim.kernel.stopped and long.result.finish == Finish.CANCELLED
    assert [task.pid for task in sim.system.tasks] == [1]


def test_idle_kernel_sleeps_until_something_comes(sim: Sim) -> None:
    client = sim.client()
    greedy(client, client.context([1]), 3)
    sim.settle()
    assert sim.kernel.timeout() is None
