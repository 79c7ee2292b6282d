"""The CPU driver under a real kernel says what transformers says, however the work is cut.

Float32, greedy, through system calls, against the stored reference (tests/helpers/smollm2.py).
The quick form takes some prompts and 32 ids of each, the full one all sixteen and 64.
"""

import json
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from syscalls.client import Task
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.person import PERSON, valid
from tests.helpers.smollm2 import (
    QUICK,
    Reference,
    alone,
    check,
    context,
    forked,
    greedy,
    kernel_options,
    references,
    together,
    trimmed,
)

MANY = 16
FLOAT32 = ("--dtype", "float32")
CHUNK = 7


class Form(NamedTuple):
    """How much is compared."""

    wanted: list[Reference]
    count: int


ALL = references()
FORMS = [
    pytest.param(Form([ALL[n] for n in QUICK], 32), id="quick"),
    pytest.param(Form(ALL, 64), id="all", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
]
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("cpu"), *kernel_options(*FLOAT32)) as running:
        yield running


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect("reference") as task:
        yield task
    with kernel.connect("checker") as task:
        eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")


@every_form
def test_alone(task: Task, form: Form) -> None:
    alone(task, form.wanted, form.count)


@pytest.mark.parametrize(
    "count", [12, pytest.param(64, marks=[pytest.mark.full, pytest.mark.timeout(900)])]
)
def test_in_a_batch_of_sixteen_unequal_ones(task: Task, count: int) -> None:
    before = task.kernel().steps
    together(task, ALL, count)
    alone = MANY * count  # and more, for the prompts
    assert task.kernel().steps - before <= alone / 2, "they shared their steps"


@every_form
def test_with_prefill_chunked_in_sevens(
    tmp_path_factory: pytest.TempPathFactory, form: Form
) -> None:
    options = kernel_options(*FLOAT32, "--prefill-chunk", str(CHUNK), "--threads", "2")
    with daemon(tmp_path_factory.mktemp("chunked"), *options) as chunked, chunked.connect() as task:
        longest = max(len(r.prompt) for r in form.wanted)
        before = task.kernel().steps
        together(task, form.wanted, form.count)
        assert task.kernel().steps - before >= longest // CHUNK + form.count


@every_form
def test_after_a_fork(task: Task, form: Form) -> None:
    forked(task, form.wanted, form.count)


@every_form
def test_after_trim_and_reappend(task: Task, form: Form) -> None:
    trimmed(task, form.wanted, form.count)


def test_kill_9_of_the_driver_host_in_a_stream(kernel: Daemon, task: Task) -> None:
    """The kernel answers while the host is loaded again; the stream goes on where it was."""
    reference, count = ALL[QUICK[0]], 32
    epoch = task.devices()[0].epoch
    ids = []
    for number, piece in enumerate(greedy(context(task, reference.prompt), count)):
        ids.append(piece.id)
        if number == count // 2:
            os.kill(task.devices()[0].host_pid, signal.SIGKILL)
            eventually(lambda: task.devices()[0].epoch == epoch + 1, "the next epoch")
            assert task.devices()[0].state != "up", "it takes seconds to load the model"
            assert [row.name for row in task.ps()] == ["init", "reference"]
    check([reference], [ids])
    row = task.devices()[0]
    assert (row.state, row.epoch) == ("up", epoch + 1)


def test_what_a_schema_allows_is_written(kernel: Daemon) -> None:
    with kernel.connect("json") as task:
        ctx = task.alloc_ctx()
        ctx.user("A person as JSON.")
        streams = [ctx.fork().infer(60, seed=n, temperature=n / 2, schema=PERSON) for n in range(2)]
        for stream in streams:
            assert valid(PERSON, json.loads(stream.read())) and stream.finish == "stop"
        said = ctx.fork().infer(20, 0, regex="(Paris|Rome) is a city[.]").read()
        assert said in ("Paris is a city.", "Rome is a city.")
