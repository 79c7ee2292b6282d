"""Clients that are allowed in and behave badly: on a simulated kernel (null driver)."""

import errno
import os
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from kernel.ipc import Arrival
from syscalls import abi, errors, wire
from syscalls.abi import Event, Finish, Flag, Sig
from syscalls.errors import Errno
from syscalls.session import Pending, Session
from tests.helpers.oracle import VOCAB, expected
from tests.helpers.sim import UID, Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    sim.leave()


def pid_of(sim: Sim, client: SimClient) -> int:
    task = sim.system.sessions[client.route].task
    assert task is not None
    return task.pid


# --- every call at the edges of its arguments ---------------------------------------------------


EDGES: list[Any] = [
    0, 1, 2, -1, 255, 256, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1, True, None,
    0.0, -0.0, 1.0, 1e-320, 1e308, float("nan"), float("inf"), "", "x", "x" * 64, "x" * 65,
    "\x00", "../..", "a\nb", b"", b"x" * 32, b"x" * 33, [], [0], [-1], [2**31], [True],
    list(range(65)), {}, [[0, 1.0]], [[0, 1.0], [0, 1.0]], [[300, 1.0]], [[0]], [[0, 101]],
    [[0, float("nan")]], [[n, 1] for n in range(301)],
]  # fmt: skip
SAMPLES: dict[str, tuple[Any, ...]] = {
    "hello": ("x", None, False, None, 0.0), "spawn": ("x", False, 0, None), "exit": (0,),
    "wait": (0, True), "kill": (99, 15, False, None), "stat_task": (0,),
    "alloc_ctx": (9, None, None, False), "fork_ctx": (1, 9, None),
    "append": (1,), "trim_ctx": (1, 1), "free_ctx": (9,),
    "read_ctx": (1, 0, None), "stat_ctx": (1,), "cancel": (1, None), "list_models": (),
    "infer": (1, 2, 1.0, 0, 1.0, 0.0, None, (), False, None, 1.5, 0.5, 0.5, [[3, 1.0]], None, 2,
              b"a+", None),
    "score": (1, 1, 0),
    "read_model": (None, "tokenizer.json", 0), "list_devices": (), "snapshot": ("tasks", 0),
    "pmap": (1, 0, 0), "log": (0,),
    "load_model": ("other", "null:vocab=17", None, None, 0, 8, 0, None),
    "unload_model": ("other", True), "shutdown": (0.0, False, False),
    "advise_ctx": (1, "retain", 1.0),
    "drop_cache": (), "set_policy": ("fifo",), "explain": (1, 0),
    "grant_ctx": (1, 3, None, None, 0, 0.0, 0), "open_ctx": (b"x" * 16, 9, None),
    "revoke": (b"x" * 16,), "save_ctx": (1, "kept", b""), "load_ctx": (9, "kept", None, None),
    "list_saves": ("",), "drop_save": ("kept",),
    "set_limit": ("output_ids", 5.0, 10.0, 0, None, False),
    "attach": (99, b"x" * 32),
    "bind": ("edge", 4), "call": ("edge", b"x", 0.0), "recv": ("edge", None, 0.0),
    "reply": (1, b"x"), "publish": ("edge", b"x"), "subscribe": ("edge", 4, "refuse", None),
    "fork_task": ("x", (1,), b""), "renice": (0, 3, None), "group": (0, "x"),
}  # fmt: skip
NEED_IDS = ("append", "infer", "score")
BUILT = [row for row in abi.CALLS if row.args is not None]


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.name)
def test_every_argument_at_its_edges(row: abi.Call) -> None:
    """Each field at each edge: one terminal event for each call, and the kernel stands."""
    sim = Sim()
    for place in range(len(row.args._fields)):
        for edge in EDGES:
            client = sim.client()
            client.context([1, 2, 3])
            args = [*SAMPLES[row.name][:place], edge, *SAMPLES[row.name][place + 1 :]]
            reply = client.send(row.name, *args, ids=[1] if row.name in NEED_IDS else None)
            sim.until(lambda: reply.done, turns=2_000)  # noqa: B023
            sim.front.dead.add(client.route)
            sim.turn()
            if sim.system.stop_by is not None:
                sim = Sim()  # it was a shutdown
    sim.leave()


def test_snapshot_far_behind_the_last_row(sim: Sim) -> None:
    client = sim.client()
    for cursor in (10_000, 2**63 - 300, 2**63, 2**64 - 1):
        reply = client.ask("snapshot", "tasks", cursor)
        assert reply.errno == Errno.EINVAL or (reply.result.rows, reply.result.cursor) == ([], 0)


def test_pages_of_a_snapshot_are_all_rows_once(sim: Sim) -> None:
    client = sim.client()
    for handle in range(1, 601):
        client.send("alloc_ctx", handle)
    rows, cursor, pages = [], 0, 0
    while True:
        result = client.ask("snapshot", "contexts", cursor).result
        rows += [row[0] for row in result.rows]
        cursor, pages = result.cursor, pages + 1
        if not cursor:
            break
    assert (rows, pages) == (list(range(1, 601)), 3)


# --- messages that are no calls -----------------------------------------------------------------


def bad_append(call: int) -> list[bytes]:
    """An append without its argument."""
    return [wire.pack_request(abi.BY_NAME["append"].number, call, 0, ())]


def test_a_bad_message_does_not_end_the_call_whose_id_it_repeats(sim: Sim) -> None:
    client = sim.client()
    infer = client.send("infer", client.context([1, 2]), 20, 0.0)
    sim.turn()
    client.take()
    client.send_raw(bad_append(infer.call))
    sim.until(lambda: infer.done)
    assert infer.errno == 0 and infer.tokens == expected([1, 2], 20)
    assert not client.session_events, "an error of the session would end every call of a client"


def test_a_bad_message_is_answered_by_its_id_every_time(sim: Sim) -> None:
    """New or repeated: one answer for each message, and to nothing else."""
    client = sim.client()
    infer = client.send("infer", client.context([1, 2]), 20, 0.0)
    sim.turn()
    client.take()
    client._last += 1
    for _ in range(2):
        reply = type(infer)(client._last, "append")
        client.calls[client._last] = reply
        client.send_raw([wire.pack_request(34, client._last, 0, (2**40,))])
        sim.turn()
        assert reply.errno == Errno.EINVAL
    sim.until(lambda: infer.done)
    assert infer.errno == 0 and not client.session_events


def test_goodbye_ends_every_call_once_and_tells_why_last(sim: Sim) -> None:
    parent, client = sim.client(), sim.client(hello=False)
    ticket = parent.ask("spawn", "child").result.ticket
    client.ask("hello", "child", ticket)
    waiting = parent.send("wait")
    infers = [client.send("infer", client.context([n]), 50, 0.0) for n in (1, 2)]
    sim.turn()
    client.take()
    for _ in range(3):
        client.send_raw([b"\xc1"])
    sim.kernel.turn()
    assert sim.kernel.timeout() == 0.0 or waiting.done, "the parent's news does not wait"
    sim.turn()
    events = client.take()
    assert [infer.errno for infer in infers] == [Errno.ECANCELED] * 2
    assert events[-1][:3] == [Event.ERR, 0, Errno.EPROTO] and "goodbye" in events[-1][3]
    assert waiting.result.reason == "it broke the protocol"


def test_news_of_a_session_that_ends_late_in_a_turn_do_not_wait(sim: Sim) -> None:
    """The parent comes before the child in the order of replies."""
    parent, child = sim.client(), sim.client(hello=False)
    child.ask("hello", "child", parent.ask("spawn", "child").result.ticket)
    waiting = parent.send("wait")
    sim.turn()
    for _ in range(3):
        child.send_raw([b"\xc1"])
    turns = 0
    while not waiting.done:
        sim.turn()
        turns += 1
        assert waiting.done or sim.kernel.timeout() == 0.0, "it would sleep on the news"
    assert turns <= 2


# --- many calls, much to say --------------------------------------------------------------------


class LibraryClient:
    """The client library's own session on a route of the simulator: it refuses what is wrong."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.library = Session()
        self.route = b"\0library"
        self.messages = 0
        self.ask("hello", "library")

    def send(self, name: str, *args: Any, **options: Any) -> Pending:
        pending, frames = self.library.request(name, *args, **options)
        self.sim.front.arrivals.append(Arrival(self.route, UID, 4999, frames))
        return pending

    def ask(self, name: str, *args: Any) -> Any:
        pending = self.send(name, *args)
        self.turn()
        return pending.value()

    def turn(self) -> None:
        self.sim.turn()
        for frames in self.sim.front.sent.pop(self.route, ()):
            self.messages += 1
            self.library.receive(frames)


@pytest.mark.parametrize("signal", [Sig.INT, Sig.KILL])
def test_a_full_session_that_ends_at_once_is_told_in_messages_it_can_read(signal: Sig) -> None:
    """4,096 calls open; their ends and a word about the session are more than one reply holds."""
    sim = Sim(num_blocks=5000)
    client, other = LibraryClient(sim), sim.client()
    open_calls = []
    for number in range(1, 4097):
        client.send("alloc_ctx", number)
        open_calls.append(client.send("infer", number, 900, 0.0, ids=[number % VOCAB]))
        if number % 512 == 0:
            client.turn()
    refused = client.send("infer", 1, 1)
    client.turn()
    assert isinstance(refused._error, errors.EAGAIN) and client.library.in_flight == 4096
    task = sim.system.sessions[client.route].task
    assert task is not None
    before = client.messages
    assert other.ask("kill", task.pid, int(signal)).errno == 0
    client.turn()
    assert all(call.done for call in open_calls) and client.library.lost is None
    assert client.messages - before >= 2
    if signal is Sig.INT:
        assert {call.value().finish for call in open_calls} == {Finish.CANCELLED}
    sim.front.dead.add(client.route)
    sim.leave()


def test_long_answers_go_in_several_messages(sim: Sim) -> None:
    sim = Sim(num_blocks=600, path=f"null:vocab={VOCAB},max_ctx=8192")
    client = LibraryClient(sim)
    client.ask("alloc_ctx", 1)
    ids = [i % VOCAB for i in range(8000)]
    client.send("append", 1, ids=ids)
    reads = [client.send("read_ctx", 1) for _ in range(200)]
    before = client.messages
    client.turn()
    assert all(list(read.ids) == ids for read in reads)
    assert 200 * 32_000 / (1 << 20) < client.messages - before < 12, "1 MiB each, about"
    sim.front.dead.add(client.route)
    sim.leave()


def test_a_client_that_asks_much_and_reads_nothing_is_bounded() -> None:
    """Its answers wait; then its calls are refused; then it is closed. Others are served."""
    sim = Sim(num_blocks=600, unread_bytes=1 << 20, stalled_messages=10_000)
    greedy, other = sim.client(), sim.client()
    handle = greedy.context([1] * 8000)
    sim.front.blocked.add(greedy.route)
    replies = []
    session = sim.system.sessions[greedy.route]
    for _ in range(20):
        replies += [greedy.send("read_ctx", handle) for _ in range(10)]
        sim.turn()
        assert session.unread < 2 << 20
    sim.front.blocked.clear()
    sim.until(lambda: all(reply.done for reply in replies))
    errnos = [reply.errno for reply in replies]
    assert set(errnos) == {0, Errno.EAGAIN} and errnos[:20] == [0] * 20
    assert greedy.ask("read_ctx", handle).errno == 0, "it has read: it may ask again"
    sim.front.blocked.add(greedy.route)
    for _ in range(40):
        greedy.send("read_ctx", handle)
    for _ in range(100):
        for _ in range(400):
            greedy.send("stat_ctx", handle)
        sim.turn()
        if greedy.route not in sim.system.sessions:
            break
    assert greedy.route not in sim.system.sessions
    assert len(other.ask("snapshot", "tasks").result.rows) == 2
    sim.leave()


def test_a_client_that_reads_slowly_is_no_client_that_does_not_read(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message in 50 s, always more waiting: it is held, and not closed."""
    client = sim.client()
    infer = client.send("infer", client.context([1]), 200, 0.0)
    take, taken = sim.front.send, [0.0]

    def slowly(route: bytes, frames: list[bytes]) -> bool:
        if sim.clock.now < taken[0] + 50 and route == client.route:
            return False
        taken[0] = sim.clock.now
        return take(route, frames)

    monkeypatch.setattr(sim.front, "send", slowly)
    for _ in range(200):
        sim.turn()
    session = sim.system.sessions[client.route]
    assert len(session.outbox) > sim.config.stalled_messages and session.held
    for _ in range(200):
        sim.clock.now += 10
        sim.turn()
    assert session.outbox and client.route in sim.system.sessions
    monkeypatch.undo()
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1], 200)


# --- contexts under way -------------------------------------------------------------------------


def test_fork_of_a_fork_during_decode(sim: Sim) -> None:
    """Three generations, forked at different lengths while their parents go on."""
    client = sim.client()
    ids = list(range(30))
    lines = [(client.context(ids), ids)]
    infers = [client.send("infer", lines[0][0], 40, 0.0)]
    for _ in range(4):
        parent, _ = lines[-1]
        grown = len(infers[-1].tokens) + 3
        sim.until(lambda: len(infers[-1].tokens) >= grown)  # noqa: B023
        child = client.new_handle()
        fork = client.ask("fork_ctx", parent, child)
        known = list(client.ask("read_ctx", child).ids)
        assert len(known) == fork.result.length >= len(lines[-1][1])
        lines.append((child, known))
        infers.append(client.send("infer", child, 40, 0.0))
    sim.until(lambda: all(infer.done for infer in infers))
    for (_, known), infer in zip(lines, infers, strict=True):
        assert infer.tokens == expected(known, 40)


def test_trim_to_nothing_while_it_is_prefilled(sim: Sim) -> None:
    client = sim.client()
    handle = client.new_handle()
    client.send("alloc_ctx", handle)
    client.send("append", handle, ids=list(range(200)))
    for _ in range(3):
        sim.turn(pump=0)
    assert sim.model.sched.step is not None, "a chunk is in flight"
    assert client.ask("trim_ctx", handle, 0).result.length == 0
    assert client.ask("infer", handle, 1).errno == Errno.EINVAL, "empty"
    assert client.ask("append", handle, ids=[5, 6]).result.length == 2
    assert client.ask("infer", handle, 9, 0.0).tokens == expected([5, 6], 9)


def test_free_of_a_context_with_a_queue(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1])
    queued = [client.send("infer", handle, 9, 0.0)]
    queued += [client.send("infer", handle, 9, 0.0, flags=Flag.QUEUE) for _ in range(5)]
    sim.turn()
    freed = client.send("free_ctx", handle)
    sim.turn()
    assert freed.errno == 0
    assert [reply.errno for reply in queued] == [Errno.ECANCELED] + [Errno.EBADCTX] * 5


def test_cancel_of_an_infer_that_waits_in_the_queue(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1, 2])
    first = client.send("infer", handle, 8, 0.0)
    second = client.send("infer", handle, 500, 0.0, flags=Flag.QUEUE)
    third = client.send("infer", handle, 4, 0.0, flags=Flag.QUEUE)
    sim.turn()
    assert client.ask("cancel", second.call, 3).errno == Errno.ESRCH, "it has no output to keep"
    assert client.ask("cancel", second.call).errno == 0
    assert second.done and second.result.finish == Finish.CANCELLED and second.result.output == 0
    sim.until(lambda: third.done)
    assert [*first.tokens, *third.tokens] == expected([1, 2], 12)
    assert client.ask("cancel", second.call).errno == Errno.ESRCH


def test_int_cancels_what_waits_in_the_queue_too(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    handle = client.context([1, 2])
    infers = [client.send("infer", handle, 500, 0.0, flags=Flag.QUEUE) for _ in range(3)]
    tail = client.send("append", handle, ids=[9], flags=Flag.QUEUE)
    sim.turn()
    other.ask("kill", pid_of(sim, client), int(Sig.INT))
    assert [infer.result.finish for infer in infers] == [Finish.CANCELLED] * 3
    assert tail.errno == 0, "what is no infer goes on"
    sim.settle()


def test_chain_is_of_the_call_before_only(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1])
    bad = client.send("append", handle, ids=[VOCAB])
    other = client.send("stat_ctx", handle)
    chained = client.send("append", handle, ids=[2], flags=Flag.CHAIN)
    sim.turn()
    assert [bad.errno, other.errno, chained.errno] == [Errno.EINVAL, 0, 0]


def test_chain_does_not_mistake_another_calls_end_for_that_of_the_call_before(sim: Sim) -> None:
    client = sim.client()
    one, two = client.context([1]), client.context([2])
    client.ask("append", one, ids=[VOCAB])
    infer = client.send("infer", one, 50, 0.0)
    after = client.send("append", two, ids=[3], flags=Flag.CHAIN)
    sim.turn()
    assert after.errno == 0, "the call before it is the infer, which has not failed"
    client.send("append", two, ids=[VOCAB])
    sim.until(lambda: infer.done)
    late = client.send("append", two, ids=[4], flags=Flag.CHAIN)
    sim.turn()
    assert infer.errno == 0 and late.errno == Errno.ECANCELED, "the append before it has failed"


def test_chain_of_a_queued_call_is_to_the_call_before_it(sim: Sim) -> None:
    client = sim.client()
    one, two = client.context([1]), client.context([2])
    first = client.send("infer", one, 9, 0.0)
    good = client.send("infer", one, 2, 0.0, flags=Flag.QUEUE)
    chained = client.send("append", one, ids=[5], flags=Flag.QUEUE | Flag.CHAIN)
    bad = client.send("append", one, ids=[VOCAB], flags=Flag.QUEUE)
    broken = client.send("append", one, ids=[6], flags=Flag.QUEUE | Flag.CHAIN)
    unrelated = client.send("append", two, ids=[VOCAB])
    sim.until(lambda: broken.done)
    assert [first.errno, good.errno, chained.errno] == [0, 0, 0]
    assert [bad.errno, broken.errno, unrelated.errno] == [
        Errno.EINVAL, Errno.ECANCELED, Errno.EINVAL,
    ]  # fmt: skip


def test_what_is_chained_to_rubbish_does_not_run(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1])
    client.send_raw([b"\xc1"])
    assert client.ask("append", handle, ids=[2], flags=Flag.CHAIN).errno == Errno.ECANCELED
    assert client.ask("append", handle, ids=[2]).errno == 0
    assert client.ask("append", handle, ids=[2], flags=Flag.CHAIN).errno == 0


def test_stopped_requests_do_not_hold_the_slots_of_others(sim: Sim) -> None:
    """As many requests as there are slots are stopped in mid-stream; another one still runs."""
    sim = Sim(num_blocks=2000)
    many, killer, late = sim.client(), sim.client(), sim.client()
    infers = []
    for number in range(256):
        many.send("alloc_ctx", handle := many.new_handle())
        infers.append(many.send("infer", handle, 40, 0.0, ids=[number % VOCAB]))
    sim.until(lambda: all(len(infer.tokens) > 2 for infer in infers))
    killer.ask("kill", pid_of(sim, many), int(Sig.STOP))
    reply = late.send("infer", late.context([5]), 10, 0.0)
    sim.until(lambda: reply.done, turns=50)
    assert reply.tokens == expected([5], 10)
    killer.ask("kill", pid_of(sim, many), int(Sig.CONT))
    sim.until(lambda: all(infer.done for infer in infers))
    for number, infer in enumerate(infers):
        assert infer.tokens == expected([number % VOCAB], 40)
    sim.leave()


@pytest.mark.parametrize("seed", range(4))
def test_ends_of_all_kinds_race_with_steps(seed: int) -> None:
    """At every moment of a step one of cancel, free, kill, exit, death and stop strikes."""
    random = Random(seed)
    sim = Sim(seed, num_blocks=40)
    for _ in range(60):
        client, killer = sim.client(), sim.client()
        ids = [random.randrange(VOCAB) for _ in range(random.randint(1, 90))]
        handle = client.new_handle()
        client.send("alloc_ctx", handle)
        client.send("append", handle, ids=ids)
        infer = client.send("infer", handle, random.randint(1, 20), 0.0)
        for _ in range(random.randint(0, 8)):
            sim.turn(pump=random.randint(0, 1))
        strike = random.choice(["cancel", "free", "kill", "exit", "death", "stop", "int"])
        task = sim.system.sessions[client.route].task
        assert task is not None
        if strike == "cancel":
            client.send("cancel", infer.call, random.choice([None, 0, 1]))
        elif strike == "free":
            client.send("free_ctx", handle)
        elif strike == "exit":
            client.send("exit", 3)
        elif strike == "death":
            sim.front.dead.add(client.route)
        else:
            killer.send("kill", task.pid, int(Sig[strike.upper()]))
        for _ in range(random.randint(0, 3)):
            sim.turn(pump=random.randint(0, 1))
        assert infer.tokens == expected(ids, len(infer.tokens)) if infer.tokens else True
        killer.send("exit")
        sim.front.dead.add(client.route)
        sim.turn()
        sim.check()
    sim.leave()


# --- tasks --------------------------------------------------------------------------------------


def test_a_ticket_is_good_once_and_for_its_task_only(sim: Sim) -> None:
    parent = sim.client()
    ticket = parent.ask("spawn", "child").result.ticket
    first, second = sim.client(hello=False), sim.client(hello=False)
    replies = [peer.send("hello", "c", ticket) for peer in (first, second)]
    sim.turn()
    assert [reply.errno for reply in replies] == [0, Errno.ESTALE]
    assert first.ask("hello", "c", ticket).errno == Errno.EBUSY
    killed = parent.ask("spawn", "killed").result
    parent.ask("kill", killed.pid)
    assert second.ask("hello", "c", killed.ticket).errno == Errno.ESTALE, "its task has ended"
    assert second.ask("hello", "c").errno == 0, "a refused hello may be said again"


def test_wait_is_for_ones_own_children_only(sim: Sim) -> None:
    parent, stranger = sim.client(), sim.client()
    child = sim.client(hello=False)
    spawned = parent.ask("spawn", "child").result
    child.ask("hello", "child", spawned.ticket)
    for pid in (spawned.pid, pid_of(sim, parent), pid_of(sim, stranger), 1, 2**53):
        assert stranger.ask("wait", pid).errno == Errno.ESRCH
    grandchild = child.ask("spawn", "grandchild").result.pid
    assert parent.ask("wait", grandchild).errno == Errno.ESRCH
    child.ask("exit", 4)
    assert stranger.ask("wait", spawned.pid).errno == Errno.ESRCH
    result = parent.ask("wait", spawned.pid).result
    assert (result.pid, result.status) == (spawned.pid, 4)
    assert parent.ask("wait", spawned.pid).errno == Errno.ESRCH, "waited for once"


def test_two_waits_for_two_children(sim: Sim) -> None:
    parent = sim.client()
    spawned = [parent.ask("spawn", f"c{n}").result.pid for n in range(2)]
    waits = [parent.send("wait"), parent.send("wait", spawned[0]), parent.send("wait", spawned[1])]
    sim.turn()
    for pid in spawned:
        parent.ask("kill", pid)
    ended = [(wait.result.pid if wait.result else wait.errno) for wait in waits]
    assert ended[0] == spawned[0] and sorted(map(str, ended[1:])) == sorted(
        map(str, [Errno.ESRCH, spawned[1]])
    )


def test_zombies_of_a_parent_that_dies_are_gone(sim: Sim) -> None:
    parent = sim.client()
    for number in range(20):
        parent.ask("kill", parent.ask("spawn", f"z{number}").result.pid)
    assert len(sim.system.tasks) == 22
    sim.front.dead.add(parent.route)
    sim.turn()
    assert len(sim.system.tasks) == 1


def test_the_task_table_fills_and_empties() -> None:
    sim = Sim(max_tasks=50)
    parent, other = sim.client(), sim.client()
    spawned = [parent.ask("spawn", "x") for _ in range(50)]
    assert [reply.errno for reply in spawned].count(Errno.EAGAIN) == 3
    assert "50" in spawned[-1].message
    assert sim.client(hello=False).ask("hello", "y").errno == Errno.EAGAIN
    assert other.ask("stat_task").errno == 0
    parent.ask("exit")
    assert other.ask("spawn", "x").errno == 0
    sim.leave()


# --- sessions -----------------------------------------------------------------------------------


def test_a_thousand_sessions_and_one_too_many() -> None:
    sim = Sim(num_blocks=1100)
    clients = [sim.client(hello=False) for _ in range(1024)]
    hellos = [client.send("hello", "c") for client in clients]
    sim.turn()
    assert {hello.errno for hello in hellos} == {0}
    late = sim.client(hello=False)
    late.send("hello", "late")
    sim.turn()
    assert late.session_events[-1][2] == Errno.EAGAIN and "1024" in late.session_events[-1][3]
    infers = []
    for client in clients:
        client.send("alloc_ctx", 1)
        infers.append(client.send("infer", 1, 2, 0.0, ids=[7]))
    sim.until(lambda: all(infer.done for infer in infers))
    want = expected([7], 2)
    assert all(infer.tokens == want for infer in infers)
    sim.front.dead.add(clients[0].route)
    sim.turn()
    assert sim.client(hello=False).ask("hello", "next").errno == 0
    sim.leave()


@pytest.mark.parametrize("how", ["EMFILE", "EINVAL"])
def test_a_program_that_cannot_be_watched_is_told_so(
    sim: Sim, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def welcome(route: bytes, pid: int) -> bool:
        raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

    bystander = sim.client()
    monkeypatch.setattr(sim.front, "welcome", welcome)
    client = sim.client(hello=False)
    client.send("hello", "c")
    sim.turn()
    assert client.session_events[-1][:3] == [Event.ERR, 0, Errno.EAGAIN]
    assert bystander.ask("stat_task").errno == 0


@pytest.mark.parametrize("state", ["new", "idle", "prefill", "decode", "queued", "wait", "stopped"])
def test_death_of_a_program_in_each_state(sim: Sim, state: str) -> None:
    client, other = sim.client(hello=state != "new"), sim.client()
    if state == "new":
        client.send_raw([b"\xc1"])
    elif state == "wait":
        client.ask("spawn", "child")
        client.send("wait")
    elif state != "idle":
        handle = client.new_handle()
        client.send("alloc_ctx", handle)
        client.send("append", handle, ids=list(range(150)))
        infer = client.send("infer", handle, 100, 0.0)
        client.send("infer", handle, 9, 0.0, flags=Flag.QUEUE)
        if state in ("decode", "stopped"):
            sim.until(lambda: len(infer.tokens) > 2)
        if state == "stopped":
            other.ask("kill", pid_of(sim, client), int(Sig.STOP))
    sim.turn(pump=0)
    assert client.route in sim.system.sessions
    sim.front.dead.add(client.route)
    sim.turn()
    assert client.route not in sim.system.sessions
    sim.settle()
    assert sim.pool.counts.used == 0
    assert [task.name for task in sim.system.tasks] == ["init", "c2"]


def test_shutdown_with_calls_in_every_state() -> None:
    """SIGTERM in mid-step: one end for each call, cancelled streams keep what they had."""
    sim = Sim()
    client = sim.client()
    handle = client.context([1, 2])
    infers = [client.send("infer", handle, 900, 0.0, flags=Flag.QUEUE) for _ in range(3)]
    client.ask("spawn", "child")
    waiting = client.send("wait")
    sim.until(lambda: len(infers[0].tokens) > 3)
    sim.turn(pump=0)
    assert sim.system.device._flights
    sim.system.stop_by = sim.clock.now
    sim.turn()
    sim.kernel.reply()
    client.read()
    assert sim.kernel.stopped
    assert infers[0].result.finish == Finish.CANCELLED
    assert infers[0].tokens == expected([1, 2], len(infers[0].tokens))
    assert all(reply.done for reply in (*infers, waiting))
