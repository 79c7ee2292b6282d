"""The asyncio client against a scripted kernel. What both twins share is tested in test_client."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from syscalls import Exited, KernelError, Signalled, abi, aio, wire
from syscalls.abi import Event
from syscalls.errors import (
    EBUSY,
    ECONNRESET,
    EINVAL,
    EIO,
    ENOENT,
    ENOTSUP,
    EPERM,
    EPROTO,
    ETIMEDOUT,
)
from tests.helpers.fake_kernel import DIE, HOLD, FakeKernel, Reply

ROOT = Path(__file__).resolve().parents[2]
Body = Callable[[aio.Task], Coroutine[Any, Any, None]]
Play = Callable[[Body], None]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as kernel:
        yield kernel


@pytest.fixture
def play(kernel: FakeKernel) -> Play:
    """Run a coroutine with a connected task."""

    async def connected(body: Body) -> None:
        async with await aio.connect("tester", address=kernel.address) as task:
            await body(task)

    return lambda body: asyncio.run(connected(body), debug=True)


def names_of(twin: type) -> set[str]:
    return {name for name in dir(twin) if not name.startswith("_")}


def test_the_twins_have_the_same_names() -> None:
    import syscalls

    for name in ("Task", "Context", "Stream", "Grant", "Child", "Port", "Subscription", "Message"):
        mine, other = getattr(aio, name, None), getattr(syscalls, name)
        assert mine is not None and mine is not other
        differ = names_of(mine) ^ names_of(other)
        how_each_waits = {"news", "wait_beside"}  # and asyncio has wait_for
        assert differ <= how_each_waits | ({"wait"} if name == "Stream" else set())


def test_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(ECONNRESET, match="no kernel is running"):
        asyncio.run(aio.connect(address=f"ipc://{tmp_path}/kernel.sock"))


def test_a_kernel_that_does_not_answer(kernel: FakeKernel) -> None:
    kernel.replace["hello"] = lambda request: None
    with pytest.raises(ETIMEDOUT, match="did not answer"):
        asyncio.run(aio.connect(address=kernel.address, timeout=0.05))


def test_calls(kernel: FakeKernel, play: Play) -> None:
    async def body(task: aio.Task) -> None:
        assert task.pid == 41
        assert [row.pid for row in await task.ps()] == [0, 1, 2, 3, 4]
        assert (await task.models())[0].name == "null"
        assert (await task.devices())[0].device == "null0"
        assert (await task.stat()).pid == 41
        await task.kill(9)
        for call in (task.pools(), task.contexts(), task.kernel(), task.call_raw("embed")):
            with pytest.raises(ENOTSUP):
                await call
        assert await task.text_model("null") is None
        async with await task.alloc_ctx() as ctx:
            assert await ctx.append([1, 2, 3]) == 3
            assert await task.call_raw("read_ctx", ctx.handle, 1) == ((1, 3), [2, 3])
        assert kernel.contexts == {}

    play(body)


def test_calls_at_the_same_time(kernel: FakeKernel, play: Play) -> None:
    async def body(task: aio.Task) -> None:
        contexts = await asyncio.gather(*[task.alloc_ctx() for _ in range(20)])
        lengths = await asyncio.gather(*[c.append([1] * n) for n, c in enumerate(contexts, 1)])
        assert lengths == list(range(1, 21))
        assert len({ctx.handle for ctx in contexts}) == 20

    play(body)


def test_contexts(kernel: FakeKernel, play: Play) -> None:
    kernel.page = 2

    async def body(task: aio.Task) -> None:
        ctx = await task.alloc_ctx()
        await ctx.append([1, 2, 3, 4, 5])
        one, (two, three) = await ctx.fork(), await ctx.fork(2)
        assert await one.read(1, 3) == [2, 3, 4]
        assert await two.trim(2) == two.length == 2
        assert (await three.stat()).length == 5
        with pytest.raises(EINVAL, match="no tokenizer"):
            await ctx.user("text")
        with pytest.raises(EINVAL, match="no tokenizer"):
            await ctx.system("text")

    play(body)


def test_streams_at_the_same_time(kernel: FakeKernel, play: Play) -> None:
    kernel.gate = 3
    kernel.outputs.extend([10 * n + i for i in range(n + 2)] for n in range(1, 4))

    async def body(task: aio.Task) -> None:
        contexts = [await task.alloc_ctx() for _ in range(3)]
        streams = [await ctx.infer() for ctx in contexts]
        await asyncio.gather(*[stream.read() for stream in streams])
        assert [s.ids for s in streams] == [[10, 11, 12], [20, 21, 22, 23], [30, 31, 32, 33, 34]]
        assert {stream.finish for stream in streams} == {"stop"}

    play(body)


def test_cancel(kernel: FakeKernel, play: Play) -> None:
    kernel.outputs.append([11, 12, 13, HOLD])

    async def body(task: aio.Task) -> None:
        ctx = await task.alloc_ctx()
        stream = await ctx.infer()
        assert [(await anext(stream)).id for _ in range(3)] == [11, 12, 13]
        with pytest.raises(EBUSY):
            await ctx.append([1])
        assert await ctx.cancel(2) == 2
        assert (stream.finish, stream.ids) == ("cancelled", [11, 12])
        assert [piece async for piece in stream] == []
        assert await stream.cancel() == 2

    play(body)


def test_a_cancelled_wait_is_not_a_cancelled_call(kernel: FakeKernel, play: Play) -> None:
    kernel.outputs.append([11, HOLD])

    async def body(task: aio.Task) -> None:
        ctx = await task.alloc_ctx()
        stream = await ctx.infer()
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(stream)
        assert await ctx.cancel() == 1
        assert (stream.finish, stream.ids) == ("cancelled", [11])

    play(body)


def test_calls_time_out_where_that_was_asked_for(kernel: FakeKernel) -> None:
    async def main() -> None:
        async with await aio.connect(address=kernel.address, timeout=0.05) as task:
            kernel.replace["list_models"] = lambda request: None
            with pytest.raises(ETIMEDOUT):
                await task.models()
            assert await task.devices()

    asyncio.run(main())


def test_errors_of_a_stream(kernel: FakeKernel, play: Play) -> None:
    kernel.outputs.append([11, EIO("the device failed")])

    async def body(task: aio.Task) -> None:
        ctx = await task.alloc_ctx()
        stream = await ctx.infer()
        assert (await anext(stream)).id == 11
        with pytest.raises(EIO):
            await anext(stream)
        assert ctx.length == 1

    play(body)


@pytest.mark.parametrize("count", [1, 500])
def test_the_kernel_goes(kernel: FakeKernel, play: Play, count: int) -> None:
    kernel.gate = 2
    kernel.outputs.extend([[*range(count), HOLD], [*range(count), DIE]])

    async def body(task: aio.Task) -> None:
        one, two = await task.alloc_ctx(), await task.alloc_ctx()
        streams = await one.infer(), await two.infer()
        waiting = [*(stream.read() for stream in streams), task.wait()]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [ECONNRESET] * 3
        assert [stream.ids for stream in streams] == [list(range(count))] * 2
        with pytest.raises(ECONNRESET):
            await task.ps()

    play(body)


def test_a_kernel_that_breaks_the_protocol(kernel: FakeKernel, play: Play) -> None:
    kernel.replace["list_models"] = lambda request: kernel.send([Event.FIN, 999, [], 0])

    async def body(task: aio.Task) -> None:
        with pytest.raises(EPROTO):
            await task.models()

    play(body)


def test_a_session_error_wakes_everybody(kernel: FakeKernel, play: Play) -> None:
    kernel.replace["list_models"] = lambda request: kernel.send([Event.ERR, 0, 1, "out", "", {}])

    async def body(task: aio.Task) -> None:
        ends = await asyncio.gather(task.wait(), task.models(), return_exceptions=True)
        assert [type(end) for end in ends] == [EPERM, EPERM]

    play(body)


def test_events(kernel: FakeKernel, play: Play) -> None:
    def happen(_: wire.Request) -> Reply:
        kernel.send([Event.SIGNAL, 0, 15], [Event.EXIT, 0, 52, 3, "exit"])
        return Reply(abi.Rows([]))

    kernel.replace["list_models"] = happen

    async def body(task: aio.Task) -> None:
        await task.models()
        assert task.events() == [Signalled(15), Exited(52, 3, "exit")]
        assert task.events() == []

    play(body)


CHILD = """
import asyncio, sys
sys.path.insert(0, {root!r})
from syscalls import aio
async def main():
    task = await aio.connect()
    print(task.pid, flush=True)
    await task.exit(5)
asyncio.run(main())
"""


def test_spawn(kernel: FakeKernel, play: Play) -> None:
    async def body(task: aio.Task) -> None:
        argv = [sys.executable, "-c", CHILD.format(root=str(ROOT))]
        child = await task.spawn(argv, stdout=subprocess.PIPE)
        assert child.process is not None and child.process.stdout is not None
        with child.process.stdout as out:
            assert await asyncio.to_thread(out.read) == b"41\n"
        kernel.host_pid = child.process.pid
        kernel.ended[child.pid] = (5, "exit")
        assert await child.wait() == (52, 5, "exit")
        assert kernel.tickets == [None, bytes(range(32))]

    play(body)


def test_spawn_without_process(kernel: FakeKernel, play: Play) -> None:
    async def body(task: aio.Task) -> None:
        child = await task.spawn("worker")
        async with await aio.connect(address=kernel.address, ticket=child.ticket):
            pass
        await child.kill()
        assert await child.wait() == (52, 137, "killed")

    play(body)


def test_programs_that_never_say_hello(kernel: FakeKernel, play: Play) -> None:
    async def body(task: aio.Task) -> None:
        child = await task.spawn([sys.executable, "-c", "raise SystemExit(4)"])
        assert await child.wait() == (52, 4, "its program ended")
        with pytest.raises(ENOENT):
            await task.spawn(["/nonexistent/program"])
        with pytest.raises(KernelError):
            await task.spawn([])

    play(body)


def test_the_end_of_a_task(kernel: FakeKernel) -> None:
    async def main() -> None:
        task = await aio.connect(address=kernel.address)
        await task.exit(3)
        await task.close()
        with pytest.raises(ECONNRESET, match="closed"):
            await task.ps()
        with pytest.raises(ValueError):
            async with await aio.connect(address=kernel.address):
                raise ValueError

    asyncio.run(main())
    assert [r.args.status for r in kernel.requests if r.row.name == "exit"] == [3, 1]
