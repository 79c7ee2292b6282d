"""Grants through the client library and a real kernel: both twins, and a grantor that is killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls import Access, aio
from syscalls.errors import EBADCTX, EPERM, EREVOKED
from tests.helpers.daemon import ROOT, Daemon, daemon, eventually
from tests.helpers.oracle import expected

PROMPT = [7 * n % 251 for n in range(40)]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running
        with running.connect("checker") as task:
            eventually(lambda: [row.name for row in task.ps()] == ["init", "checker"], "tasks gone")
            task.call_raw("drop_cache")
            eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")


def test_grant_open_and_revoke(kernel: Daemon) -> None:
    with kernel.connect("alice") as alice, kernel.connect("bob") as bob:
        prompt = alice.alloc_ctx()
        prompt.append(PROMPT)
        grant = prompt.grant(Access.INFER | Access.FORK, length=32, ttl_s=60.0, opens=2)
        assert len(grant.id) == 16 and grant.id.hex() not in repr(grant)
        ctx = bob.open_ctx(grant.id, name="from alice")
        assert (ctx.length, ctx.access) == (32, Access.INFER | Access.FORK)
        assert (ctx.model, ctx.max_ctx) == (prompt.model, prompt.max_ctx)
        assert (row := ctx.stat()).opened_from == alice.pid and row.name == "from alice"
        assert [p.id for p in ctx.infer(4, 0.0, text=False)] == expected(PROMPT[:32], 4)
        with pytest.raises(EPERM, match="without it"):
            ctx.read()
        assert ctx.read(32) == expected(PROMPT[:32], 4)
        fork = ctx.fork()
        assert fork.access == ctx.access
        assert ctx.score([[1, 2]])[0].ids == (1, 2), "it forks, as it may"
        with pytest.raises(EPERM, match="read"):
            ctx.prompt_logprobs()
        passed = fork.grant(Access.INFER)
        assert alice.open_ctx(passed.id).length == 36
        bob.open_ctx(grant.id)
        with pytest.raises(EBADCTX):
            bob.open_ctx(grant.id)
        assert grant.revoke() == 4 and grant.revoke() == 0, "the third was free at once"
        for lost in (ctx, fork):
            with pytest.raises(EREVOKED, match="revoked"):
                lost.append([1])
        assert ctx.stat().revoked
        ctx.free()
        assert prompt.read() == PROMPT
        with pytest.raises(EBADCTX):
            bob.revoke(grant.id)
        assert passed.revoke() == 0, "it went with the one that it came from"
        once = prompt.grant(Access.READ, opens=1)
        bob.open_ctx(once.id).free()
        assert once.revoke() == 0, "nothing is left of it"
        again = prompt.grant(Access.READ)
        bob.open_ctx(again.id)
        assert alice.revoke(again.id) == 1


def test_a_stream_whose_grant_is_revoked_raises(kernel: Daemon) -> None:
    with kernel.connect("alice") as alice, kernel.connect("bob") as bob:
        prompt = alice.alloc_ctx()
        prompt.append(PROMPT)
        grant = prompt.grant(Access.READ | Access.INFER)
        stream = bob.open_ctx(grant.id).infer(100_000, 0.0, text=False)
        next(stream)
        grant.revoke()
        with pytest.raises(EREVOKED):
            for _ in stream:
                pass


def test_the_asyncio_twin(kernel: Daemon) -> None:
    async def play() -> None:
        async with (
            await aio.connect("alice", address=kernel.address) as alice,
            await aio.connect("bob", address=kernel.address) as bob,
        ):
            prompt = await alice.alloc_ctx()
            await prompt.append(PROMPT)
            grant = await prompt.grant(Access.READ | Access.INFER)
            ctx = await bob.open_ctx(grant.id)
            assert await ctx.read() == PROMPT
            assert [p.id async for p in await ctx.infer(3, 0.0, text=False)] == expected(PROMPT, 3)
            assert await grant.revoke() == 1
            with pytest.raises(EREVOKED):
                await ctx.read()
            again = await prompt.grant(Access.READ)
            await bob.open_ctx(again.id)
            assert await alice.revoke(again.id) == 1

    asyncio.run(play())


GRANTOR = """
import sys
from syscalls import Access, connect
task = connect("alice")
prompt = task.alloc_ctx()
prompt.append([7 * n % 251 for n in range(40)])
print(prompt.grant(Access(15)).id.hex(), flush=True)
sys.stdin.read()
"""


def test_a_grantor_that_is_killed(kernel: Daemon) -> None:
    with kernel.connect("bob") as bob:
        grantor = subprocess.Popen(
            [sys.executable, "-c", GRANTOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "LLMOS_HOST": kernel.address},
        )
        assert grantor.stdout is not None
        grant = bytes.fromhex(grantor.stdout.readline().decode())
        ctx = bob.open_ctx(grant)
        stream = ctx.infer(100_000, 0.0, text=False)
        next(stream)
        grantor.send_signal(signal.SIGKILL)
        with pytest.raises(EREVOKED):
            for _ in stream:
                pass
        with pytest.raises(EBADCTX):
            bob.open_ctx(grant)
        grantor.communicate()
