"""Kernels that save everything and stop, and programs that stay: with real processes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import syscalls
from syscalls import aio
from tests.helpers.daemon import NULL, Daemon, daemon, keeping
from tests.helpers.oracle import Knobs, next_id

IDS = [(7 * n) % 250 + 1 for n in range(100)]


@contextmanager
def kernel(home: Path, *options: str) -> Iterator[Daemon]:
    with daemon(home, *NULL, "null:vocab=251", *keeping(home), *options) as running:
        yield running


def check_next(context: syscalls.Context, ids: list[int], count: int = 5) -> syscalls.Stream:
    stream = context.infer(max_tokens=count, temperature=0.0)
    stream.read()
    for token in stream.ids:
        assert token == next_id(ids, Knobs())
        ids.append(token)
    return stream


def test_a_program_goes_on_with_the_next_kernel(tmp_path: Path) -> None:
    with kernel(tmp_path) as first:
        task = first.connect("agent")
        context = task.alloc_ctx(name="notes")
        context.append(IDS)
        ids = list(IDS)
        check_next(context, ids)
        fork = context.fork()
        with first.connect("operator") as operator:
            seen: list[syscalls.Progress] = []
            saved = operator.shutdown(0.0, save=True, progress=seen.append)
        assert (saved.tasks, saved.contexts) == (1, 2)
        assert any(news.phase == "contexts" and news.done == 2 for news in seen)
        assert first.process.wait(30) == 0
    with pytest.raises(syscalls.ECONNRESET, match="saved"):
        context.stat()
    assert task.saved
    with pytest.raises(syscalls.ECONNRESET):
        task.reattach()  # no kernel is there yet
    assert task.saved

    with kernel(tmp_path) as second:
        pid = task.pid
        task.reattach(timeout=30.0)
        assert not task.saved and task.pid == pid
        assert context.read() == ids
        stream = check_next(context, list(ids))
        assert stream.usage is not None and stream.usage.cached >= len(ids) // 16 * 16
        check_next(fork, list(ids))
        new = task.alloc_ctx()
        assert new.handle >> 24 == 1
        with pytest.raises(syscalls.EINVAL):
            task.reattach()
        with second.connect("other") as other:
            assert [row.pid for row in other.ps() if row.name == "agent"] == [pid]
        task.close()


def test_the_asyncio_twin_and_a_stream_that_is_cut(tmp_path: Path) -> None:
    async def live() -> None:
        with kernel(tmp_path) as first:
            task = await aio.connect("agent", address=first.address)
            context = await task.alloc_ctx()
            await context.append(IDS)
            stream = await context.infer(max_tokens=100_000 // 16, temperature=0.0)
            async for _ in stream:
                break
            with first.connect("operator") as operator:
                await asyncio.to_thread(operator.abandon)
            operator = await aio.connect("operator", address=first.address)
            saved = await operator.shutdown(0.0, save=True)
            assert saved.contexts == 1
            await operator.close()
            async for _ in stream:
                pass
            assert stream.finish == "cancelled"
            length = context.length
            assert length == len(IDS) + len(stream.ids)
            assert first.process.wait(30) == 0
        with kernel(tmp_path):
            with pytest.raises(syscalls.ECONNRESET):
                await context.stat()
            await task.reattach(timeout=30.0)
            assert (await context.stat()).length == length == context.length
            again = await context.infer(max_tokens=3, temperature=0.0)
            await again.read()
            assert len(again.ids) == 3
            await task.close()

    asyncio.run(live())


def test_a_token_is_for_its_task_only(tmp_path: Path) -> None:
    with kernel(tmp_path) as first:
        task, other = first.connect("agent"), first.connect("other")
        assert task.hello is not None and other.hello is not None
        assert len(task.hello.token) == 32 and task.hello.token != other.hello.token
        with first.connect("operator") as operator:
            operator.shutdown(0.0, save=True)
        assert first.process.wait(30) == 0
    with kernel(tmp_path):
        task.hello = task.hello._replace(token=other.hello.token)
        with pytest.raises(syscalls.ESRCH) as wrong:
            task.reattach(timeout=30.0)
        assert not task.saved
        task.pid = 999_999
        with pytest.raises(syscalls.ESRCH) as absent:
            task.reattach(timeout=30.0)
        assert str(wrong.value) == str(absent.value), "not there and not yours are the same"
        other.reattach(timeout=30.0)
        with pytest.raises(syscalls.ESRCH):  # it has a program now
            task.pid = other.pid
            task.reattach(timeout=30.0)
        other.close()
        task.close()
