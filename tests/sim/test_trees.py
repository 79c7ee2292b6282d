"""Trees of tasks: groups, signals to many, graces, and ends in every order."""

from collections.abc import Iterator
from random import Random

import pytest

from kernel.account import MAX_DEPTH
from syscalls.abi import Event, Finish, Resource, Sig
from syscalls.errors import Errno
from tests.helpers.oracle import expected
from tests.helpers.sim import Reply, Sim, SimClient
from tests.helpers.trees import begin, chain, child_of, pid_of, rows, task_of, told


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    sim.leave()


def kill(
    by: SimClient, sig: Sig, pid: int = 0, tree: bool = False, group: str | None = None
) -> int:
    """Send a signal; return how many tasks got it."""
    reply = by.ask("kill", pid, int(sig), tree, group)
    assert reply.errno == 0, reply.message
    count: int = reply.result.tasks
    return count


# --- groups -----------------------------------------------------------------------------------


def test_a_child_stands_below_its_parent_and_in_its_group(sim: Sim) -> None:
    shell, other = sim.client(), sim.client()
    job = child_of(shell, group="jobs", nice=5)
    worker = child_of(job)
    assert repr(task_of(worker).account) == (
        f"1000/{pid_of(shell)}/jobs/{pid_of(job)}/{pid_of(worker)}"
    )
    shown = rows(other)
    assert [(shown[pid_of(c)].group, shown[pid_of(c)].nice) for c in (shell, job, worker)] == [
        ("", 0), ("jobs", 5), ("jobs", 0),
    ]  # fmt: skip
    for client in (worker, job):
        sim.front.dead.add(client.route)
    sim.turn()
    assert other.ask("kill", 0, int(Sig.INT), False, "jobs").errno == Errno.ESRCH, "it has ended"


def test_who_stands_in_a_group_does_not_leave_it_by_himself(sim: Sim) -> None:
    shell, other = sim.client(), sim.client()
    assert other.ask("group", 0, "lab").result.group == "lab"
    job = child_of(shell, group="jobs")
    for name in ("lab", None):
        assert job.ask("group", 0, name).errno == Errno.EPERM
        assert child_of(job).ask("group", pid_of(job), name).errno == Errno.EPERM
    assert job.ask("spawn", "x", False, 0, "lab").errno == Errno.EPERM, "nor do his children"
    assert task_of(job).account.group.name == "jobs"  # type: ignore[union-attr]
    assert job.ask("group", 0, "inner").result.group == "inner", "deeper is no way out"
    assert repr(task_of(job).account) == f"1000/{pid_of(shell)}/jobs/inner/{pid_of(job)}"
    assert shell.ask("group", pid_of(job), None).result.group == "jobs"
    assert other.ask("group", pid_of(job), "lab").result.group == "lab"
    assert shell.ask("group", pid_of(job), None).result.group == ""
    assert repr(task_of(job).account) == f"1000/{pid_of(job)}"


def test_what_moves_takes_its_tree_along_and_no_group_stays_empty(sim: Sim) -> None:
    shell, other = sim.client(), sim.client()
    job = child_of(shell, group="jobs")
    worker = child_of(job)
    other.ask("group", 0, "lab")
    other.ask("group", pid_of(job), "lab")
    assert repr(task_of(worker).account) == f"1000/lab/{pid_of(job)}/{pid_of(worker)}"
    assert task_of(worker).account.depth == 4
    assert sim.system.tasks.accounts.find_group(1000, "jobs") is None
    assert other.ask("group", pid_of(other), "lab").result.group == "lab", "it is there already"
    child_of(job, group="deep")
    wrong = sim.client().ask("group", pid_of(job), "deep")
    assert wrong.errno == Errno.EINVAL and "below task" in wrong.message


def test_groups_are_of_one_user(sim: Sim) -> None:
    mine, root = sim.client(), sim.client(uid=0)
    mine.ask("group", 0, "lab")
    calls = [
        ("kill", 0, 15, False, "lab"), ("renice", 0, 5, "lab"), ("group", pid_of(mine), "x"),
        ("renice", pid_of(mine), 5),
    ]  # fmt: skip
    for call in calls:
        assert root.ask(*call).errno == Errno.ESRCH
    assert root.ask("group", 0, "lab").errno == 0
    assert repr(task_of(root).account) == f"0/lab/{pid_of(root)}"


def test_no_group_and_no_move_makes_the_tree_deeper_than_it_may_be(sim: Sim) -> None:
    top, other = sim.client(), sim.client()
    deep = chain(top, 2 * MAX_DEPTH)
    refused = deep[-1].ask("group", 0, "cellar")
    assert refused.errno == Errno.EINVAL and str(MAX_DEPTH) in refused.message
    assert deep[-1].ask("spawn", "x", False, 0, "cellar").errno == Errno.EINVAL
    assert other.ask("group", 0, "lab").errno == 0
    refused = other.ask("group", pid_of(top), "lab")
    assert refused.errno == Errno.EINVAL and f"level {MAX_DEPTH + 1}" in refused.message
    assert sim.system.tasks.accounts.find_group(1000, "cellar") is None
    for account in sim.system.tasks.accounts.root.below():
        assert account.depth == len(list(account.path())) - 1 <= MAX_DEPTH


# --- nice -------------------------------------------------------------------------------------


def test_a_nice_is_seen_at_once_and_told_from_what(sim: Sim) -> None:
    shell = sim.client()
    job = child_of(shell, group="jobs")
    assert shell.ask("renice", pid_of(job), 10).result.before == 0
    assert shell.ask("renice", pid_of(job), -20).result.before == 10
    assert shell.ask("renice", 0, 7, "jobs").result.before == 0
    group = sim.system.tasks.accounts.find_group(1000, "jobs")
    assert group is not None and (group.nice, group.weight) == (7, 215)
    assert shell.ask("stat_task", pid_of(job)).result.nice == -20
    assert shell.ask("renice", pid_of(job), 3, "jobs").errno == Errno.EINVAL


def test_more_weight_than_ones_own_is_the_operators(sim: Sim) -> None:
    """Root is served by this kernel, and is not the uid that it runs as."""
    guest, operator = sim.client(uid=0), sim.client()
    child = child_of(guest, nice=4)
    assert guest.ask("renice", pid_of(child), 2).errno == 0, "not below its own"
    for call in (("renice", pid_of(child), -1), ("renice", 0, -1), ("spawn", "x", False, -1)):
        assert guest.ask(*call).errno == Errno.EPERM
    assert guest.ask("renice", 0, 10).errno == 0
    assert guest.ask("renice", 0, 9).errno == Errno.EPERM, "nor back"
    assert child.ask("renice", 0, 2).errno == 0
    assert operator.ask("renice", 0, -20).errno == 0


# --- signals ----------------------------------------------------------------------------------


def busy_tree(sim: Sim, top: SimClient) -> tuple[list[SimClient], list[Reply]]:
    """Return programs in a tree below `top`, each with an infer that runs."""
    programs, infers = [top], list[Reply]()
    for number in range(6):
        programs.append(child_of(programs[number // 2]))
    for number, client in enumerate(programs):
        infers.append(client.send("infer", client.context([number]), 60, 0.0))
    sim.until(lambda: all(len(infer.tokens) > 2 for infer in infers))
    return programs, infers


@pytest.mark.parametrize("how", ["tree", "group"])
def test_a_tree_stops_in_one_moment_and_goes_on_with_the_same_ids(sim: Sim, how: str) -> None:
    top, killer = sim.client(), sim.client()
    programs, infers = busy_tree(sim, top)
    mine = killer.send("infer", killer.context([99]), 200, 0.0)
    args = (pid_of(top), True, None)
    if how == "group":
        killer.ask("group", pid_of(top), "busy")
        args = (0, False, "busy")
    assert kill(killer, Sig.STOP, *args) == len(programs)
    sim.turn()
    before = [len(infer.tokens) for infer in infers]
    sim.until(lambda: len(mine.tokens) > 30)
    assert [len(infer.tokens) for infer in infers] == before
    assert {row.state for pid, row in rows(killer).items() if row.parent > 1} == {"T"}
    assert kill(killer, Sig.CONT, *args) == len(programs)
    sim.until(lambda: all(infer.done for infer in infers))
    for number, infer in enumerate(infers):
        assert infer.tokens == expected([number], 60)


def test_no_step_has_a_part_of_a_tree_that_stops(sim: Sim) -> None:
    """Each step that is planned has all of the tree, or nothing of it."""
    top, killer = sim.client(), sim.client()
    programs, infers = busy_tree(sim, top)
    pids = {pid_of(client) for client in programs}
    for round_ in range(6):
        signal = Sig.CONT if round_ % 2 else Sig.STOP
        reply = killer.send("kill", pid_of(top), int(signal), True)
        while not reply.done:
            sim.turn()
        for _ in range(3):
            step = sim.model.sched.step
            planned = {entry.request.ctx.pid for entry in step.entries} if step else set()
            assert planned & pids in (set(), pids), "half of a tree is in a step"
            sim.turn()
    sim.until(lambda: all(infer.done for infer in infers))


def test_int_keeps_what_was_generated_of_every_turn(sim: Sim) -> None:
    top, killer = sim.client(), sim.client()
    programs, infers = busy_tree(sim, top)
    waiting = top.send("wait")
    assert kill(killer, Sig.INT, pid_of(top), True) == len(programs)
    for number, (client, infer) in enumerate(zip(programs, infers, strict=True)):
        assert infer.result.finish == Finish.CANCELLED
        count = len(infer.tokens)
        assert 2 < count < 60 and infer.result.output == count
        read = client.ask("read_ctx", 1)
        assert list(read.ids) == [number, *expected([number], count)]
        assert told(client) == [Sig.INT]
    assert waiting.errno == Errno.ECANCELED


def test_a_program_hears_of_what_it_has_missed_once(sim: Sim) -> None:
    shell = sim.client()
    spawned = shell.ask("spawn", "late").result
    for sig in (Sig.USR1, Sig.HUP, Sig.USR1, Sig.INT):
        assert kill(shell, sig, spawned.pid) == 1
    late = begin(sim, spawned.ticket)
    assert told(late) == [Sig.USR1, Sig.HUP, Sig.INT]
    kill(shell, Sig.HUP, spawned.pid)
    assert told(late) == [Sig.USR1, Sig.HUP, Sig.INT, Sig.HUP]
    assert shell.ask("stat_task", spawned.pid).result.state == "S", "neither ends it"


def test_term_without_a_grace_ends_at_once(sim: Sim) -> None:
    shell = sim.client()
    child = child_of(shell)
    pid = pid_of(child)
    assert kill(shell, Sig.TERM, pid) == 1
    result = shell.ask("wait").result
    assert (result.status, result.reason) == (143, "TERM")
    assert child.session_events[-1][:2] == [Event.EXIT, 0]


def test_term_with_a_grace_is_told_and_ends_when_it_is_over(sim: Sim) -> None:
    shell = sim.client()
    polite, deaf = (begin(sim, shell.ask("spawn", "x").result.ticket, grace_s=5.0) for _ in "12")
    handle = polite.context([1])
    infer = polite.send("infer", handle, 60, 0.0)
    sim.until(lambda: len(infer.tokens) > 2)
    pids = [pid_of(polite), pid_of(deaf)]
    for pid in pids:
        kill(shell, Sig.TERM, pid)
    assert infer.result.finish == Finish.CANCELLED, "the program has its attention back"
    assert told(polite) == told(deaf) == [Sig.TERM]
    assert sim.kernel.timeout() is not None, "it wakes up for that by itself"
    assert polite.ask("append", handle, ids=[5]).errno == 0, "and can still tidy up"
    sim.clock.now += 3.0
    kill(shell, Sig.TERM, pids[0])
    polite.ask("exit", 0)
    assert shell.ask("wait", pids[0]).result[1:] == (0, "exit")
    assert shell.ask("wait", pids[1], True).result.pid == 0
    sim.clock.now += 1.9
    kill(shell, Sig.TERM, pids[1])
    sim.clock.now += 1.2  # asking again is no new grace
    sim.turn()
    assert shell.ask("wait", pids[1], True).result[1:] == (143, "TERM")
    assert sim.kernel.timeout() is None


def test_kill_does_not_wait_for_a_grace(sim: Sim) -> None:
    shell = sim.client()
    child = begin(sim, shell.ask("spawn", "x").result.ticket, grace_s=60.0)
    pid = pid_of(child)
    kill(shell, Sig.TERM, pid)
    kill(shell, Sig.KILL, pid)
    assert shell.ask("wait").result[1:] == (137, "KILL")


# --- the end of trees -------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [Sig.KILL, Sig.TERM])
def test_a_tree_that_spawns_while_it_is_ended_does_not_escape(signal: Sig) -> None:
    """Forks are on their way when the signal is, before it, behind it, and in the grace."""
    sim = Sim(max_tasks=5000)
    shell = sim.client()
    root = begin(sim, shell.ask("spawn", "x").result.ticket, grace_s=5.0)
    programs = [root, *(begin(sim, root.ask("spawn", "x").result.ticket, grace_s=5.0)
                        for _ in range(8))]  # fmt: skip
    pid, tickets = pid_of(root), []
    for client in programs:
        client.context([1, 2, 3])
        client.send("spawn", "early")
        tickets.append(client.send("fork_task", "early"))
    reply = shell.send("kill", pid, int(signal), True)
    late = [client.send(name, "late") for client in programs for name in ("spawn", "fork_task")]
    sim.until(lambda: reply.done and all(call.done for call in late))
    assert reply.result.tasks == 3 * 9, "those that were made before it are in it"
    assert {call.errno for call in late} <= {Errno.ECANCELED, Errno.ESRCH}
    assert all(call.errno for call in late)
    for call in tickets:
        stray = sim.client(hello=False).ask("hello", "x", call.result.ticket)
        assert stray.errno == Errno.ESTALE, "nor does a ticket that is out"
    for _ in range(8):
        sim.clock.now += 1.0
        sim.turn()
    assert [row.name for row in rows(shell).values()] == ["init", "c1", "x"]
    assert shell.ask("wait").result.pid == pid
    sim.leave()


def test_orphans_of_a_tree_end_with_it(sim: Sim) -> None:
    shell = sim.client()
    programs = chain(shell, 5)
    leaf = pid_of(programs[-1])
    root = pid_of(programs[0])
    for client in programs[1:-1]:
        sim.front.dead.add(client.route)
    sim.turn()
    assert rows(shell)[leaf].parent == 1
    assert kill(shell, Sig.KILL, root, tree=True) == 2
    assert leaf not in rows(shell)


def test_a_child_in_another_group_is_of_its_parents_tree_all_the_same(sim: Sim) -> None:
    shell, other = sim.client(), sim.client()
    root = child_of(shell)
    moved = child_of(root)
    other.ask("group", 0, "lab")
    other.ask("group", pid_of(moved), "lab")
    assert kill(shell, Sig.USR1, pid_of(root), tree=True) == 2 and told(moved) == [Sig.USR1]
    assert kill(shell, Sig.USR1, group="lab") == 2 and told(root) == [Sig.USR1]


def test_ending_ones_own_tree_is_answered(sim: Sim) -> None:
    shell = sim.client()
    root = child_of(shell)
    chain(root, 4)
    reply = root.send("kill", pid_of(root), int(Sig.KILL), True)
    sim.until(lambda: reply.done)
    assert reply.result.tasks == 5
    assert shell.ask("wait").result.reason == "KILL"


def test_thousands_end_in_slices_and_stop_at_once() -> None:
    """What is to end does not run any more, and makes nothing, while others are still served."""
    sim = Sim(max_tasks=6000, max_contexts=6000)
    shell, other = sim.client(), sim.client()
    root = child_of(shell)
    first = child_of(root)
    ticket = first.ask("spawn", "late").result.ticket
    mine = other.send("infer", other.context([7]), 400, 0.0)
    for _ in range(3000):
        root.send("spawn", "x")
    last = child_of(root)
    sim.until(lambda: all(reply.done for reply in root.calls.values()))
    programs = (root, first, last)
    running = [client.send("infer", client.context([1]), 500, 0.0) for client in programs]
    sim.until(lambda: all(len(infer.tokens) > 3 for infer in running))
    reply = shell.send("kill", pid_of(root), int(Sig.KILL), True)
    sim.turn(pump=0)
    assert not reply.done, "it takes more than one turn"
    sim.turn()
    count, before = [len(infer.tokens) for infer in running], len(mine.tokens)
    other.send("kill", pid_of(first), int(Sig.CONT))
    stray = sim.client(hello=False).send("hello", "late", ticket)
    sim.turn()
    assert stray.errno == Errno.ESTALE and not reply.done, "they are there, and begin nothing"
    sim.until(lambda: reply.done)
    assert reply.result.tasks == 3004 and [len(infer.tokens) for infer in running] == count
    assert len(mine.tokens) > before + 5
    assert len(sim.system.tasks) == 4 and shell.ask("wait").result.reason == "KILL"
    sim.leave()


def test_a_tree_of_a_hundred_levels_ends_in_every_order(sim: Sim) -> None:
    for order in ("down", "up", "random"):
        shell = sim.client()
        programs = chain(shell, 100)
        pids = [pid_of(client) for client in programs]
        ends = list(range(100))
        if order == "up":
            ends.reverse()
        elif order == "random":
            Random(3).shuffle(ends)
        for at in ends:
            programs[at].ask("exit", at)
        result = shell.ask("wait").result
        assert (result.pid, result.status) == (pids[0], 0)
        assert shell.ask("wait").errno == Errno.ESRCH
        shell.ask("exit")
        left = [task.name for task in sim.system.tasks]
        assert left == ["init"], f"{order}: {left}"
        accounts = list(sim.system.tasks.accounts.root.below())
        assert [account.name for account in accounts] == ["", "system", "1000", "1"]


@pytest.mark.parametrize("how", ["one by one", "as a group", "by themselves"])
def test_as_many_waits_as_children_get_one_each(sim: Sim, how: str) -> None:
    shell, random = sim.client(), Random(5)
    children = [child_of(shell, group="jobs") for _ in range(20)]
    pids = [pid_of(child) for child in children]
    waits = [shell.send("wait", pid if n % 2 else 0) for n, pid in enumerate(pids)]
    waits += [shell.send("wait") for _ in range(3)]
    ends = random.sample(range(20), 20)
    if how == "as a group":
        kill(shell, Sig.KILL, group="jobs")
    for number in ends if how != "as a group" else ():
        if how == "one by one":
            kill(shell, Sig.KILL, pids[number])
        else:
            children[number].send("exit", number)
    sim.until(lambda: all(wait.done for wait in waits))
    taken = [wait.result for wait in waits if wait.errno == 0]
    assert sorted({result.pid for result in taken}) == sorted(result.pid for result in taken)
    assert {wait.errno for wait in waits} == {0, Errno.ESRCH}
    for result in taken:
        status = pids.index(result.pid) if how == "by themselves" else 137
        assert result.status == status
    left = len(pids) - len(taken)
    assert [shell.ask("wait").errno for _ in range(left + 1)] == [0] * left + [Errno.ESRCH]


def test_ten_thousand_children_are_waited_for_one_by_one() -> None:
    sim = Sim(max_tasks=10_002, zombie_s=1e6, ticket_s=1e6)
    shell = sim.client()
    for _ in range(10_000):
        shell.send("spawn", "x")
        if len(sim.front.arrivals) == 500:
            sim.turn()
    sim.until(lambda: all(reply.done for reply in shell.calls.values()))
    assert shell.ask("spawn", "x").errno == Errno.EAGAIN
    pids = {reply.result.pid for reply in shell.calls.values() if reply.name == "spawn" and
            reply.result}  # fmt: skip
    assert kill(shell, Sig.KILL, pid=max(pids)) == 1
    assert shell.ask("wait", 0, True).result.pid == max(pids), "found behind all that live"
    for pid in sorted(pids - {max(pids)})[:300]:
        shell.send("kill", pid, 9)
        shell.send("wait", 0, True)
    sim.until(lambda: all(reply.done for reply in shell.calls.values()))
    waits = [reply.result.pid for reply in shell.calls.values() if reply.name == "wait"]
    assert sorted(waits[1:]) == sorted(pids - {max(pids)})[:300]
    sim.leave()


# --- limits -----------------------------------------------------------------------------------


def limit(by: SimClient, resource: Resource, hard: float, group: str) -> None:
    assert by.ask("set_limit", resource.value, None, hard, 0, group).errno == 0


def test_what_comes_into_a_group_counts_there_and_no_more_where_it_was(sim: Sim) -> None:
    shell, other = sim.client(), sim.client()
    job = child_of(shell, group="jobs")
    worker = child_of(job)
    other.ask("group", 0, "lab")
    worker.context(list(range(40)))
    sim.settle()
    shell_usage = task_of(shell).account.usage
    lab = sim.system.tasks.accounts.find_group(1000, "lab")
    assert lab is not None
    assert (shell_usage.tasks, shell_usage.contexts, shell_usage.blocks[1]) == (3, 1, 3)
    for resource, hard in (
        (Resource.CHILDREN, 2), (Resource.CONTEXTS, 0), (Resource.DEPTH, 1),
        (Resource.DEVICE_BLOCKS, 2),
    ):  # fmt: skip
        limit(shell, resource, hard, "lab")
        refused = other.ask("group", pid_of(job), "lab")
        assert refused.errno == Errno.EDQUOT and "group lab" in refused.message, resource
        limit(shell, resource, hard + 1, "lab")
    assert (shell_usage.tasks, lab.usage.tasks) == (3, 1), "nothing has moved"
    assert other.ask("group", pid_of(job), "lab").errno == 0
    assert (shell_usage.tasks, shell_usage.contexts, shell_usage.blocks[1]) == (1, 0, 0)
    assert (lab.usage.tasks, lab.usage.contexts, lab.usage.blocks[1]) == (3, 1, 3)
    assert job.ask("spawn", "x").errno == Errno.EDQUOT
    assert worker.ask("fork_task", "x").errno == Errno.EDQUOT
    assert worker.ask("alloc_ctx", worker.new_handle()).errno == Errno.EDQUOT
    assert other.ask("group", pid_of(job), "inner").errno == 0, "it is in lab as before"
    assert (lab.usage.tasks, lab.usage.blocks[1]) == (3, 3)
    worker.ask("exit")
    assert (lab.usage.tasks, lab.usage.contexts, lab.usage.blocks[1]) == (2, 0, 0)


def test_the_limit_of_a_group_is_for_who_is_born_into_it(sim: Sim) -> None:
    shell = sim.client()
    first = child_of(shell, group="jobs")
    limit(shell, Resource.CHILDREN, 1, "jobs")
    assert shell.ask("spawn", "x", False, 0, "jobs").errno == Errno.EDQUOT
    assert shell.ask("spawn", "x").errno == 0, "beside it there is room"
    first.context([1])
    limit(shell, Resource.CHILDREN, 9, "jobs")
    limit(shell, Resource.CONTEXTS, 1, "jobs")
    refused = first.ask("fork_task", "x")
    assert refused.errno == Errno.EDQUOT and "contexts" in refused.message
    assert len(sim.system.tasks) == 4 and sim.system.num_contexts == 1
