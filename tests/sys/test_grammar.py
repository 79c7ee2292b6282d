"""Grammars through real processes: client, kernel, driver host, the process that tries them.

What comes is checked by what knows nothing of the matcher: `re`, `json`, and a plain reading of the
few words of a schema that are used here.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from syscalls import aio
from syscalls.client import Task
from syscalls.context import Context
from syscalls.errors import EINVAL
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.person import PERSON, valid
from tests.helpers.smollm2 import kernel_options

REGEX = "([a-d]{2,4}|[0-9]{1,6};| no){12}!"


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("null"), builtin="null:vocab=251,step_us=2000") as running:
        yield running


@pytest.fixture
def task(null: Daemon) -> Iterator[Task]:
    with null.connect("grammar") as task:
        yield task


def context(task: Task, ids: list[int]) -> Context:
    ctx = task.alloc_ctx()
    ctx.append(ids)
    return ctx


def how(**more: Any) -> dict[str, Any]:
    return {"temperature": 40.0, "seed": 5, "text": False, "regex": REGEX} | more


def trial_of(host: int) -> psutil.Process | None:
    """Return the process in which a driver host tries grammars."""
    return next(iter(psutil.Process(host).children()), None)


# --- the null driver --------------------------------------------------------------------------


def test_whatever_happens_to_the_driver(null: Daemon, task: Task) -> None:
    """Killed in mid-grammar, and once more: it is compiled again, and goes on where it was."""
    ctx = context(task, [3, 1, 4])
    alone = ctx.fork()
    whole = list(alone.infer(**how()))
    ids = [piece.id for piece in whole]
    assert re.fullmatch(REGEX, bytes(ids).decode())
    stream, got = ctx.infer(**how()), []
    for kill_at in (3, 11):
        while len(got) < kill_at:
            got.append(next(stream).id)
        os.kill(null.host_pid(), signal.SIGKILL)
    got += [piece.id for piece in stream]
    assert got == ids and stream.finish == "stop"


def test_the_asyncio_twin(null: Daemon, task: Task) -> None:
    ids = [piece.id for piece in context(task, [7, 7]).infer(**how())]

    async def main() -> list[int]:
        async with await aio.connect(name="twin", address=null.address) as twin:
            ctx = await twin.alloc_ctx()
            await ctx.append([7, 7])
            return [piece.id async for piece in await ctx.infer(**how())]

    assert asyncio.run(main()) == ids


def test_the_process_of_trials_lives_no_longer_than_its_driver(null: Daemon, task: Task) -> None:
    def start() -> psutil.Process:
        list(context(task, [1]).infer(**how(regex="ab")))
        trial = trial_of(null.host_pid())
        assert trial is not None
        return trial

    first = start()
    first.kill()
    list(context(task, [1]).infer(**how(regex="abc")))
    second = start()
    assert second.pid != first.pid, "it was started again"
    host = null.host_pid()
    os.kill(host, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(second.pid), "it goes with its driver")
    list(context(task, [1]).infer(**how(regex="abcd")))


def test_a_bad_one_harms_nobody(null: Daemon, task: Task) -> None:
    host = null.host_pid()
    good = context(task, [2]).infer(**how())
    bad = [
        context(task, [2]).infer(**how(regex=regex))
        for regex in (
            "(a",
            "a(?=b)",
            "a{9,3}",
            "(((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99})",
        )
    ]
    for stream in bad[:3]:
        with pytest.raises(EINVAL, match="grammar"):
            list(stream)
    bad[3].cancel()
    assert re.fullmatch(REGEX, bytes(piece.id for piece in good).decode())
    assert null.host_pid() == host


# --- the CPU driver ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = kernel_options("--dtype", "bfloat16")
    with daemon(tmp_path_factory.mktemp("smollm2"), *options) as running:
        yield running


@pytest.mark.full
@pytest.mark.timeout(600)
def test_smollm2_many_schemas_together(smollm2: Daemon) -> None:
    """Forty answers at once, of several forms; each is right, or was cut."""
    kinds: list[dict[str, Any]] = [
        {"schema": PERSON}, {"regex": "[A-Z][a-z]{2,9}( [a-z]{1,9}){1,9}[.]"},
        {"schema": {"enum": ["red", "green", 3, None]}},
        {"lark": 'start: e\ne: NUM | e "+" e | "(" e ")"\nNUM: /[0-9]{1,3}/'},
    ]  # fmt: skip
    with smollm2.connect("json") as task:
        ctx = task.alloc_ctx()
        ctx.user("Write something short.")
        streams = [
            (n, ctx.fork().infer(80, seed=n, temperature=1.0, **kinds[n % 4])) for n in range(40)
        ]
        ended = 0
        for n, stream in streams:
            text = stream.read()
            if stream.finish == "length":
                continue
            ended += 1
            match n % 4:
                case 0:
                    assert valid(PERSON, json.loads(text))
                case 1:
                    assert re.fullmatch("[A-Z][a-z]{2,9}( [a-z]{1,9}){1,9}[.]", text)
                case 2:
                    assert json.loads(text) in ("red", "green", 3, None)
                case 3:
                    assert re.fullmatch("[0-9+()]+", text)
                    assert text.count("(") == text.count(")")
        assert ended > 20


@pytest.mark.full
@pytest.mark.timeout(600)
def test_smollm2_says_the_same_alone_in_company_and_after_a_death(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options = kernel_options("--dtype", "float32", "--deterministic")
    home = tmp_path_factory.mktemp("exact")
    with daemon(home, *options) as kernel, kernel.connect("exact") as task:
        ctx = task.alloc_ctx()
        ctx.user("A person as JSON.")
        asked = [{"temperature": 0.8, "seed": n, "schema": PERSON} for n in range(8)]
        alone = [ctx.fork().infer(60, **one).read() for one in asked]
        streams = [ctx.fork().infer(60, **one) for one in asked]
        assert [stream.read() for stream in streams] == alone
        again = [ctx.fork().infer(60, **one) for one in asked]
        for stream in again:
            next(stream)
        os.kill(kernel.host_pid(), signal.SIGKILL)
        assert [stream.read() for stream in again] == alone
        assert len(set(alone)) > 1
