"""Messages through the client library and a real kernel: both twins, and a server that dies."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls import EAGAIN, EDEADLK, EEXIST, ENOENT, EPIPE, ESRCH, ETIMEDOUT, Port, Task, aio
from tests.helpers.daemon import ROOT, Daemon, daemon, eventually
from tests.helpers.oracle import expected

ECHO = """
import sys
from syscalls import connect
with connect("echo", address=sys.argv[1]) as task:
    port = task.bind("echo")
    print("bound", flush=True)
    while True:
        message = port.recv()
        if message.body == b"stop":
            print("taken", flush=True)
            sys.stdin.read()
        message.reply(message.body.upper())
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running
        with running.connect("checker") as task:
            eventually(lambda: [row.name for row in task.ps()] == ["init", "checker"], "tasks gone")
            assert task.ports() == []
            task.call_raw("drop_cache")
            eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")


def served(task: Task, port: Port, count: int) -> None:
    with task:
        for _ in range(count):
            message = port.recv()
            message.reply(b"you are %d, %s" % (message.pid, message.body))


def test_a_tool_in_a_thread_of_its_own(kernel: Daemon) -> None:
    tools = kernel.connect("tools")
    port = tools.bind("tools", depth=2)
    assert port.name == "tools"
    thread = threading.Thread(target=served, args=(tools, port, 100))
    thread.start()
    with kernel.connect("agent") as agent:
        with pytest.raises(EEXIST, match="tools"):
            agent.bind("tools")
        for number in range(100):
            answer = agent.call("tools", b"%d" % number, timeout=60.0)
            assert answer == b"you are %d, %d" % (agent.pid, number)
        thread.join()
        eventually(lambda: agent.ports() == [], "the port ends with its task")
        with pytest.raises(ENOENT, match="tools"):
            agent.call("tools")


def test_a_server_that_is_killed_with_a_call_in_its_hands(kernel: Daemon) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ECHO, kernel.address]
    pipe = subprocess.PIPE
    with (
        kernel.connect("agent") as agent,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process,
    ):
        assert process.stdout is not None and process.stdout.readline() == b"bound\n"
        assert agent.call("echo", b"hello") == b"HELLO"
        assert agent.ports()[0].usual_s > 0
        errors: list[EPIPE] = []

        def call() -> None:
            with kernel.connect("other") as other, pytest.raises(EPIPE) as error:
                other.call("echo", b"stop")
            errors.append(error.value)

        thread = threading.Thread(target=call)
        thread.start()
        assert process.stdout.readline() == b"taken\n"
        (row,) = [row for row in agent.ps() if row.name == "other"]
        assert (row.state, row.wait) == ("S", "port:echo")
        process.send_signal(signal.SIGKILL)
        thread.join()
        assert "not answered" in errors[0].message


def test_the_asyncio_twin(kernel: Daemon) -> None:
    async def main() -> None:
        async with (
            await aio.connect("tools", address=kernel.address) as tools,
            await aio.connect("agent", address=kernel.address) as agent,
        ):
            port = await tools.bind("tools", depth=2)
            calls = [asyncio.create_task(agent.call("tools", b"%d" % n)) for n in range(2)]
            first = await port.recv()
            with pytest.raises(EAGAIN, match="1 messages waiting and 1 taken"):
                await agent.call("tools")
            with pytest.raises(EDEADLK):
                await tools.call("tools")
            second = await port.recv(timeout=60.0)
            await second.reply(b"second")
            await first.reply()
            assert await asyncio.gather(*calls) == [b"", b"second"]
            with pytest.raises(ETIMEDOUT):
                await port.recv(timeout=0)
            with pytest.raises(ETIMEDOUT, match="not taken"):
                await agent.call("tools", b"", timeout=0.05)
            await port.close()
            with pytest.raises(ENOENT):
                await agent.call("tools")

    asyncio.run(main())


def test_a_recv_that_is_interrupted_loses_no_message(kernel: Daemon) -> None:
    """Cancelled at every moment around the arrival of a message: the next recv has it."""

    async def main() -> None:
        async with (
            await aio.connect("tools", address=kernel.address) as tools,
            await aio.connect("agent", address=kernel.address) as agent,
        ):
            port = await tools.bind("tools")
            for turns in range(12):
                recv = asyncio.create_task(port.recv())
                await asyncio.sleep(0)  # its call is on its way
                call = asyncio.create_task(agent.call("tools", b"%d" % turns))
                for _ in range(turns):
                    await asyncio.sleep(0)
                recv.cancel()
                result = (await asyncio.gather(recv, return_exceptions=True))[0]
                if isinstance(result, BaseException):
                    result = await port.recv()
                assert result.body == b"%d" % turns
                await result.reply(b"ok")
                assert await call == b"ok"

    asyncio.run(main())


def test_a_call_that_is_interrupted_takes_its_message_back(kernel: Daemon) -> None:
    async def main() -> None:
        async with (
            await aio.connect("tools", address=kernel.address) as tools,
            await aio.connect("agent", address=kernel.address) as agent,
        ):
            port = await tools.bind("tools")
            call = asyncio.create_task(agent.call("tools", b"taken"))
            message = await port.recv()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert (await agent.stat()).wait == "program"
            with pytest.raises(ESRCH, match="nobody waits"):
                await message.reply(b"late")

    asyncio.run(main())


def test_topics(kernel: Daemon) -> None:
    with kernel.connect("news") as news, kernel.connect("a") as a, kernel.connect("b") as b:
        assert news.publish("weather", b"rain") == 0
        kept, latest = a.subscribe("weather", 2), b.subscribe("weather", 2, drop=True)
        assert kept.topic == "weather"
        assert [news.publish("weather", b"%d" % n, ids=[n]) for n in range(2)] == [2, 2]
        with pytest.raises(EAGAIN, match=f"task {a.pid}"):
            news.publish("weather", b"2")
        first = kept.recv()
        assert (first.body, first.ids, first.waiting, first.number) == (b"0", [0], 1, 0)
        assert (first.pid, first.sender) == (news.pid, "news")
        assert news.publish("weather", b"2") == 2
        got = [latest.recv(0) for _ in range(2)]
        assert [(m.body, m.missing) for m in got] == [(b"1", 1), (b"2", 0)]
        assert {row.missing for row in a.ports()} == {0, 1}
        latest.close()
        with pytest.raises(ESRCH):
            first.reply(b"to a topic")


def test_a_context_that_feeds_on_a_topic(kernel: Daemon) -> None:
    ids = [n % 251 for n in range(300)]
    with kernel.connect("news") as news, kernel.connect("reader") as reader:
        ctx = reader.alloc_ctx()
        ctx.append(ids[:10])
        ctx.feed("wire", window=64)
        for start in range(10, 300, 29):
            eventually(lambda at=start: sent(news, ids[at : at + 29]), "the window has room")
        eventually(lambda: ctx.stat().computed >= 299, "it is computed ahead")
        ask = ctx.fork()
        assert [piece.id for piece in ask.infer(4, 0.0, text=False)] == expected(ids, 4)
        assert [row.kind for row in news.ports()] == ["feed"]
        ctx.feed("wire", window=0)
        assert news.publish("wire", ids=[1]) == 0


def sent(task: Task, ids: list[int]) -> bool:
    try:
        return task.publish("wire", ids=ids) == 1
    except EAGAIN:
        return False
