"""Contexts that need four times the device's pool, on the real model: all of them finish, exactly.

The kernel is deterministic, so a context says the same whether it was moved away, computed anew or
left alone; the reference is a pool that holds everything. What left the device came back as a copy:
nothing is computed twice. After the driver was killed only what was on the device is computed
again, and what lay in the host tier is not; both are counted.
"""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from syscalls import Context, Task
from syscalls.abi import PoolRow
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.smollm2 import kernel_options

BLOCK = 16
BLOCK_BYTES = 720 << 10
"""Of smollm2 in float32."""
ROUNDS, EACH = 2, 6


class Form(NamedTuple):
    """How many contexts, of how many ids each."""

    contexts: int
    length: int

    @property
    def blocks(self) -> int:
        """Blocks that all of them have in the end."""
        return self.contexts * -(-(self.length + ROUNDS * EACH) // BLOCK)

    def prompts(self) -> list[list[int]]:
        """Return prompts that share nothing."""
        random = Random(64)
        ids = range(1000, 40_000)
        return [random.choices(ids, k=self.length) for _ in range(self.contexts)]


FORMS = [
    pytest.param(Form(8, 256), id="8x256"),
    pytest.param(Form(64, 2048), id="64x2k", marks=[pytest.mark.full, pytest.mark.timeout(3600)]),
]


def kernel(home: Path, form: Form, share: float) -> AbstractContextManager[Daemon]:
    """Return a kernel whose device holds that share of what is needed, and whose host tier rest."""
    home.mkdir()
    blocks = str(round(form.blocks * share) + 1)
    host = str((form.blocks + 8) * BLOCK_BYTES)
    return daemon(
        home, *kernel_options("--dtype", "float32", "--deterministic", "--num-blocks", blocks),
        "--host-bytes", host, patience=120,
    )  # fmt: skip


def speak(contexts: list[Context]) -> list[list[int]]:
    """Let all of them generate at once; return what each said."""
    streams = [
        ctx.infer(max_tokens=EACH, temperature=0, ignore_eos=True, text=False) for ctx in contexts
    ]
    return [[piece.id for piece in stream] for stream in streams]


def begin(task: Task, form: Form) -> list[Context]:
    contexts = [task.alloc_ctx() for _ in range(form.contexts)]
    for ctx, ids in zip(contexts, form.prompts(), strict=True):
        ctx.append(ids)
    return contexts


def kill_driver(running: Daemon, task: Task) -> None:
    epoch = task.devices()[0].epoch
    os.kill(task.devices()[0].host_pid, signal.SIGKILL)
    eventually(lambda: task.devices()[0].epoch > epoch, "the next epoch")


@pytest.mark.parametrize("form", FORMS)
def test_all_finish_and_say_the_same(form: Form, tmp_path: Path) -> None:
    with kernel(tmp_path / "all", form, 1) as large, large.connect() as task:
        contexts = begin(task, form)
        right = [speak(contexts) for _ in range(ROUNDS)]
    with kernel(tmp_path / "quarter", form, 0.25) as small, small.connect() as task:
        contexts = begin(task, form)
        assert speak(contexts) == right[0]
        before = task.kernel()
        assert before.out_blocks > form.blocks / 2, "most of it had to leave the device"
        total = form.contexts * form.length
        assert before.prefill_tokens <= total and before.lost_tokens == 0, "nothing twice"
        kill_driver(small, task)
        assert speak(contexts) == right[1]
        after = task.kernel()
        again = after.prefill_tokens - before.prefill_tokens
        on_device = (round(form.blocks * 0.25)) * BLOCK
        assert again <= on_device + form.contexts * EACH, "only what was on the device"
        assert after.in_blocks - before.in_blocks > form.blocks / 2, "the copies are used again"
        for ctx in contexts:
            ctx.free()
        task.drop_cache()
        eventually(lambda: nothing_left(task), "all blocks given back")


def nothing_left(task: Task) -> bool:
    """Whether every place of both tiers is free."""
    rows = [PoolRow(*row) for row in task.call_raw("snapshot", "pools").result.rows]
    return [row.tier for row in rows] == ["device", "host"] and all(
        row.free == row.total - row.reserved for row in rows
    )
