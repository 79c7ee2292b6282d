"""No toy: the KV is in the driver's blocks and nowhere else, shared ones once, steps are shared.

Whole kernels: one in this process with the CPU driver on a tiny model, where blocks can be reached
into; and one of processes with the real model, whose memory and steps are counted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from drivers import base
from drivers.base import ints
from tests.helpers import tiny_model
from tests.helpers.daemon import Daemon, daemon
from tests.helpers.sim import Sim, SimClient
from tests.helpers.smollm2 import context, greedy, ids_of, kernel_options, references

PROMPT = 45  # two blocks and a bit
COUNT = 12
CLIENTS = 8
CONTEXTS = 64
GROWTH_BYTES = 32 << 20


# --- the bytes ------------------------------------------------------------------------------------


@pytest.fixture
def sim(tmp_path: Path) -> Sim:
    path = tiny_model.install(tmp_path)
    return Sim(path=path, device="cpu0", model="tiny", dtype="float32", threads=1)


def filled(client: SimClient, seed: int) -> int:
    """Return a context with a computed prompt."""
    handle = client.new_handle()
    client.ask("alloc_ctx", handle)
    ids = [(seed * 37 + n * n) % tiny_model.VOCAB for n in range(PROMPT)]
    client.ask("append", handle, ids=ids)
    client.sim.settle()
    return handle


def output(client: SimClient, handle: int) -> list[int]:
    """Return what follows a context, and leave it as it was."""
    child = client.new_handle()
    client.ask("fork_ctx", handle, child)
    reply = client.ask("infer", child, COUNT, 0.0, 0, 1.0, 0.0, None, [], True)
    assert reply.errno == 0, reply.message
    client.ask("free_ctx", child)
    return list(reply.tokens)


def block_of(sim: Sim, handle: int, index: int) -> int:
    """Return where a block of a context lies on the device."""
    (ctx,) = (ctx for ctx in sim.system.contexts() if ctx.handle == handle)
    block: int = ctx.blocks[index].id
    return block


def overwrite(sim: Sim, target: int, source: int) -> None:
    """Put other bytes into a block behind the kernel's back, on a queue that it does not use."""
    sim.settle()
    ops: tuple[Any, ...] = (base.Export(ints([source]), 0), base.Import(ints([target]), 0))
    sim.link.send(base.Submit(sim.system.device.epoch, base.Queue.COPY_IN, 1, (), 0, ops))
    sim.link.pump()
    answer = sim.link.receive()
    assert isinstance(answer, base.Complete) and answer.queue == base.Queue.COPY_IN, answer


def test_an_overwritten_block_changes_the_contexts_that_have_it_and_no_other(sim: Sim) -> None:
    client = sim.client()
    handles = [filled(client, seed) for seed in range(3)]
    fork = client.new_handle()
    client.ask("fork_ctx", handles[1], fork)
    handles.append(fork)
    before = [output(client, handle) for handle in handles]
    assert before[3] == before[1]
    assert [output(client, handle) for handle in handles] == before

    overwrite(sim, block_of(sim, handles[1], 1), block_of(sim, handles[2], 1))

    after = [output(client, handle) for handle in handles]
    changed = [a != b for a, b in zip(after, before, strict=True)]
    assert changed == [False, True, False, True], "the context and its fork, which shares the block"
    assert after[3] == after[1]


# --- memory and steps -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("real"), *kernel_options()) as running:
        yield running


def test_memory_is_the_same_with_one_context_and_with_many(kernel: Daemon) -> None:
    host = psutil.Process(kernel.host_pid())
    prompt = references()[8].prompt[:50]
    with kernel.connect() as task:
        used = []
        for number in (1, CONTEXTS):
            contexts = [context(task, [number + n, *prompt]) for n in range(number)]
            for stream in [greedy(ctx, 4) for ctx in contexts]:
                ids_of(stream)
            used.append(host.memory_info().rss)
            resident = sum(row.blocks for row in task.contexts())
            for ctx in contexts:
                ctx.free()
        pool = task.pools()[0]
        assert resident >= CONTEXTS * len(prompt) // pool.block_size
        assert used[0] > pool.total * pool.block_bytes, "all of the pool is there from the start"
        grown = used[1] - used[0]
        assert grown < GROWTH_BYTES < resident * pool.block_bytes, f"grew by {grown} bytes"


def test_decodes_of_eight_clients_share_their_steps(kernel: Daemon) -> None:
    """Each step is one EXECUTE: 8 x 32 ids in little more than 32 of them."""
    prompts = [reference.prompt for reference in references()[:CLIENTS]]
    tasks = [kernel.connect(f"client{number}") for number in range(CLIENTS)]
    contexts = [context(task, ids) for task, ids in zip(tasks, prompts, strict=True)]
    before = tasks[0].kernel().steps
    streams = [greedy(ctx, 32) for ctx in contexts]
    assert [len(ids_of(stream)) for stream in streams] == [32] * CLIENTS
    steps = tasks[0].kernel().steps - before
    for task in tasks:
        task.close()
    assert 32 <= steps <= 32 + 2 * CLIENTS
