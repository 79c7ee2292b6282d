"""Programs that fork themselves, in a real kernel: what the child finds, and how both end."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import syscalls
from syscalls import EPERM, ESRCH, Access, Signalled, Task, aio, turnmarks
from syscalls.abi import MAX_NOTE, AllocCtxResult, Sig
from syscalls.ctxflow import ContextFlow
from syscalls.heritage import marks_of, packed
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.shell import talking

CHILD = """
import sys, syscalls
with syscalls.connect("twin") as task:
    (ctx,) = task.inherited
    ctx.append([int(sys.argv[1])])
    stream = ctx.infer(max_tokens=3, temperature=0, text=False)
    stream.read()
    task.exit(len(stream.ids) + ctx.length)
"""
POLITE = """
import sys, syscalls
from syscalls.abi import MAX_NOTE, AllocCtxResult, Sig
from syscalls.ctxflow import ContextFlow
from syscalls.heritage import marks_of, packed
task = syscalls.connect("polite", grace_s=30)
print("ready", flush=True)
try:
    task.wait(task.spawn("never").pid)
except syscalls.ECANCELED:
    assert [event.signal for event in task.events()] == [Sig.TERM]
    task.close(7)
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    with talking(home) as running:
        running.host_pid()
        yield running


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect() as task:
        yield task
    with kernel.connect() as after:
        names = {row.name for row in after.ps()}
        assert names <= {"init", "test"}, "nothing is left"


def test_a_program_forks_and_its_child_goes_on(task: Task) -> None:
    context = task.alloc_ctx()
    context.append(list(range(100)))
    children = [task.fork([sys.executable, "-c", CHILD, str(n)], [context]) for n in range(3)]
    assert [child.wait().status for child in children] == [3 + 104] * 3
    assert context.read() == list(range(100))


def test_what_is_inherited_is_a_context_like_others(kernel: Daemon, task: Task) -> None:
    first, second = task.alloc_ctx(name="first"), task.alloc_ctx(name="second")
    first.append([1, 2, 3])
    child = task.fork("twin", [second, first])
    assert child.ticket is not None
    with kernel.connect(ticket=child.ticket) as twin:
        assert twin.pid == child.pid
        assert [(c.handle, c.length) for c in twin.inherited] == [
            (second.handle, 0), (first.handle, 3)
        ]  # fmt: skip
        (own,) = [c for c in twin.inherited if c.length]
        assert own.max_ctx == first.max_ctx and own.access == Access(15)
        assert own.read() == [1, 2, 3] and own.fork().length == 3
        assert twin.alloc_ctx().handle not in (first.handle, second.handle)
    assert child.wait().reason == "exit"
    assert task.inherited == []


def test_a_chat_goes_on_in_the_child(kernel: Daemon, task: Task) -> None:
    context = task.alloc_ctx(system="You are brief.")
    context.user("Hello")
    context.infer(max_tokens=4, temperature=0).read()
    context.user("And now?")
    children = [task.fork("twin") for _ in range(2)]
    with kernel.connect(ticket=children[0].ticket) as twin:
        (own,) = twin.inherited
        assert own.turns == context.turns and len(own.turns) == 4
        said = own.infer(max_tokens=4, temperature=0).read()
        own.user("Once more")
        length = own.length
    assert context.infer(max_tokens=4, temperature=0).read() == said
    context.user("Once more")
    assert context.length == length
    with kernel.connect(ticket=children[1].ticket) as twin:
        assert [turn.text for turn in twin.inherited[0].turns][::3] == [
            "You are brief.",
            "And now?",
        ]
    for child in children:
        assert child.wait().reason == "exit"


def test_the_asyncio_twin_forks_too(kernel: Daemon, task: Task) -> None:
    async def run() -> None:
        async with await aio.connect("parent", address=kernel.address) as parent:
            context = await parent.alloc_ctx()
            await context.append([7, 8])
            child = await parent.fork([sys.executable, "-c", CHILD, "5"])
            assert (await child.wait()).status == 3 + 6
            named = await parent.fork("twin", [context])
            async with await aio.connect(ticket=named.ticket, address=kernel.address) as twin:
                assert await twin.inherited[0].read() == [7, 8]
                assert await twin.group("lab") == "lab" and await twin.renice(3) == 0
                assert await parent.kill(0, Sig.USR1, group="lab") == 1
                await twin.stat()
                assert twin.events() == [Signalled(Sig.USR1)]
            with pytest.raises(ESRCH):
                await parent.kill(0, Sig.USR1, group="lab")

    asyncio.run(run())


def test_a_fork_that_cannot_start_is_not_there(task: Task) -> None:
    task.alloc_ctx()
    with pytest.raises(syscalls.ENOENT):
        task.fork(["/nowhere/program"])
    with pytest.raises(syscalls.EINVAL):
        task.fork("")
    assert [row.parent for row in task.ps()].count(task.pid) == 0


def test_groups_nice_and_signals_of_the_library(kernel: Daemon, task: Task) -> None:
    child = task.spawn("child", nice=5, group="lab")
    with kernel.connect(ticket=child.ticket) as program:
        row = program.stat()
        assert (row.nice, row.group) == (5, "lab")
        assert task.renice(9, child.pid) == 5 and task.renice(2, group="lab") == 0
        with pytest.raises(EPERM):
            program.group(None)
        assert task.group(None, child.pid) == ""
        assert task.kill(task.pid, Sig.HUP, tree=True) == 2
        program.stat()
        assert program.events() == [Signalled(Sig.HUP)]


def test_a_program_with_a_grace_tidies_up_after_term(task: Task) -> None:
    child = task.spawn([sys.executable, "-c", POLITE], stdout=subprocess.PIPE)
    assert child.process is not None and child.process.stdout is not None
    assert child.process.stdout.readline() == b"ready\n"
    eventually(lambda: task.stat(child.pid).wait == "child", "it waits")
    child.kill(Sig.TERM)
    assert child.wait()[1:] == (7, "exit")
    child.process.stdout.close()


def test_a_note_is_believed_only_if_it_fits() -> None:
    for note in (b"", b"\x01", b"\x02\x91", b"\x01\xc1", b"\x01\x91\x93\x01\x02\x03", b"\x01\x05",
                 b"\x01\x91\x92\xa1x\xc4\x00", b"\x01\x91\x92\x01\x02", b"\x01\x91\x92\x90\xc4\x00",
                 b"\x01" + b"\x91" * 40_000):  # fmt: skip
        assert marks_of(note) == {}
    assert marks_of(b"\x01\x91\x92\x07\xc4\x01x") == {7: b"x"}


def test_marks_of_many_chats_fit_the_note() -> None:
    caller: Any = SimpleNamespace(enter=lambda context: None)
    about = AllocCtxResult("null", 8192, 16)
    chats = [ContextFlow(caller, handle, about) for handle in range(60)]
    for chat in chats:
        for length in range(1, 200):
            chat.conversation.said("user", "", length)
    note = packed(chats)
    assert len(note) <= MAX_NOTE
    marks = {handle: turnmarks.marks_of(extra, 199) for handle, extra in marks_of(note).items()}
    assert list(marks) == list(range(60))
    assert all(rows[-1].end == 199 and len(rows) > 100 for rows in marks.values()), "the newest"
