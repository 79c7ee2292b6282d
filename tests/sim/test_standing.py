"""Groups, nice and places in the tree, and signals that wait: kept when the kernel stops."""

import re

from kernel.account import Kind
from kernel.journal import Place
from kernel.standing import place_of
from syscalls.abi import Sig
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import HibernatingSim
from tests.helpers.sim import Sim, SimClient
from tests.helpers.trees import chain, child_of, pid_of, rows, task_of, told


def shape(sim: Sim) -> set[tuple[str, int]]:
    """Return the accounts that are there, each with its nice; closed ones marked."""
    root = sim.system.tasks.accounts.root
    return {(repr(a) + "!" * a.closed, a.nice) for a in root.below() if a.kind is not Kind.OWNER}


def forest(sim: Sim) -> tuple[SimClient, list[SimClient]]:
    """Return a shell, and programs in groups, in a tree, with a parent that has gone."""
    shell, lab = sim.client(), sim.client()
    lab.ask("group", 0, "lab")
    shell.ask("renice", 0, 5, "lab")
    root = child_of(shell, group="jobs", nice=3)
    gone = child_of(root, nice=-7)
    orphan, late = child_of(gone), child_of(gone, group="inner")
    moved = child_of(root)
    lab.ask("group", pid_of(moved), "lab")
    early = child_of(root)
    lab.ask("group", pid_of(early), "inner")  # below a task with a higher pid than its own
    deep = chain(late, 15)
    sim.front.dead.add(gone.route)
    sim.turn()
    return shell, [lab, root, orphan, late, moved, early, *deep]


def test_a_tree_of_accounts_comes_back_as_it_was() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    shell, programs = forest(sim)
    pids = [pid_of(client) for client in programs]
    before, seen = shape(sim), rows(shell)
    assert any("!" in name for name, _ in before) and any("inner" in name for name, _ in before)
    assert sim.hibernate().errno == 0
    sim = HibernatingSim(files)
    assert shape(sim) == before
    after = rows(sim.client())
    for pid in pids:
        kept = (after[pid].nice, after[pid].group, after[pid].parent)
        assert kept == (seen[pid].nice, seen[pid].group, seen[pid].parent)
    killer = sim.client()
    reply = killer.ask("kill", pids[1], int(Sig.KILL), True)
    left = {pid for pid, row in rows(killer).items() if pid in pids and row.state != "Z"}
    assert left == {pids[0]} and reply.result.tasks == len(pids) - 1
    for group in ("jobs", "inner"):
        assert sim.system.tasks.accounts.find_group(1000, group) is None, "they end as ever"


def test_a_second_stop_keeps_it_as_well() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    forest(sim)
    before = shape(sim)
    for _ in range(2):
        assert sim.hibernate().errno == 0
        sim = HibernatingSim(files)
        assert shape(sim) == before


def test_signals_wait_for_a_program_that_attaches() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client = sim.client(hello=False)
    known = client.ask("hello", "x").result
    assert sim.hibernate().errno == 0
    sim = HibernatingSim(files)
    killer = sim.client()
    assert killer.ask("kill", known.pid, int(Sig.HUP)).errno == 0
    assert sim.hibernate().errno == 0
    sim = HibernatingSim(files)
    sim.client().ask("kill", known.pid, int(Sig.USR1))
    client = sim.client(hello=False)
    assert client.ask("attach", known.pid, known.token).errno == 0
    assert told(client) == [Sig.HUP, Sig.USR1]


def test_a_task_in_its_grace_does_not_come_back() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, killer = sim.client(hello=False), sim.client()
    pid = client.ask("hello", "x", None, False, None, 60.0).result.pid
    killer.ask("kill", pid, int(Sig.TERM))
    assert sim.hibernate().errno == 0
    assert pid not in rows(HibernatingSim(files).client())


def test_every_place_can_be_written() -> None:
    sim = Sim()
    client = sim.client()
    client.ask("group", 0, "a" * 64)
    for number in range(20):
        client = child_of(client, nice=-20, **({"group": f"{number:064}"} if number < 4 else {}))
        place, (text,) = place_of(task_of(client).account), Place.__metadata__  # type: ignore[attr-defined]
        assert len(place) <= text.max_bytes and text.pattern.fullmatch(place)
    for wrong in ("x:0/", "1:21/", "1:-21/", "1:0", "@:0/", "1:0/" * 13, "@a/b:0/", "1:00/"):
        assert not re.fullmatch(text.pattern, wrong), wrong
