"""Deterministic mode on the real model: the same bits alone, in company, and computed again.

In bfloat16, where two logits are often equal but for the last bit, and compared with the
log-probabilities, which are of every bit of the logits.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from syscalls.client import Task
from syscalls.context import Stream
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.smollm2 import context, greedy, kernel_options, references

COUNT = 16
PROMPTS = [reference.prompt for reference in references()]
ONE = 0
Bits = list[tuple[int, float | None]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = kernel_options("--dtype", "bfloat16", "--deterministic", "--threads", "2")
    with daemon(tmp_path_factory.mktemp("deterministic"), *options) as running:
        yield running


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect() as task:
        yield task


@pytest.fixture(scope="module")
def alone(kernel: Daemon) -> Bits:
    """What one prompt gives with nobody else there."""
    with kernel.connect() as task:
        return bits(greedy(context(task, PROMPTS[ONE]), COUNT))


def bits(stream: Stream) -> Bits:
    return [(piece.id, piece.logprob) for piece in stream]


def test_alone_twice(task: Task, alone: Bits) -> None:
    assert all(logprob is not None and logprob < 0 for _, logprob in alone)
    assert bits(greedy(context(task, PROMPTS[ONE]), COUNT)) == alone


def test_in_company(task: Task, alone: Bits) -> None:
    """Others prefill and decode in the same steps, in front of it and behind."""
    others = [greedy(context(task, ids), COUNT) for ids in PROMPTS[1:4]]
    stream = greedy(context(task, PROMPTS[ONE]), COUNT)
    others += [greedy(context(task, ids), COUNT) for ids in PROMPTS[4:8]]
    assert bits(stream) == alone
    assert all(len(bits(other)) == COUNT for other in others)


def test_computed_again_after_the_host_was_killed(task: Task, alone: Bits) -> None:
    """What was decoded one by one is prefilled at once the second time."""
    got: Bits = []
    ctx = context(task, PROMPTS[ONE])
    for number, piece in enumerate(greedy(ctx, COUNT)):
        got.append((piece.id, piece.logprob))
        if number == COUNT // 2:
            os.kill(task.devices()[0].host_pid, signal.SIGKILL)
            eventually(lambda: task.devices()[0].epoch == 2, "the next epoch")
            assert ctx.stat().busy, "the stream is not at its end"
    assert got == alone
    assert task.devices()[0].epoch == 2
