"""Forks: what one costs, and what it copies.

On the null driver: the round trip of fork_ctx for a short and a long context, and the blocks that
the device copies for it, which are none. Then the first write: parent and child both continue in a
block that is partly filled, and that one block is copied, once.

On the real model: the fork against the prefill that it saves.
"""

import time
from collections.abc import Iterator
from random import Random
from statistics import median

from bench.booted import NULL, booted, smollm2
from bench.record import Result
from syscalls import Context, Task

SIZES = (80, 8_000)
TIMES = 200
PARTIAL = 4
"""Ids in the last block, so that it is not full."""


def context(task: Task, size: int) -> Context:
    """Return a context of random ids that are all computed."""
    random, ctx = Random(size), task.alloc_ctx()
    vocab = task.models()[0].vocab
    ctx.append([random.randrange(vocab) for _ in range(size)])
    generate(ctx, 1)
    ctx.trim(size)
    return ctx


def generate(ctx: Context, count: int) -> None:
    """Generate ids; the first waits for all that are before it, the second has it written."""
    ctx.infer(max_tokens=count, temperature=0, ignore_eos=True, text=False).read()


def fork_us(ctx: Context) -> float:
    """Return the median round trip of a fork."""
    times = []
    for _ in range(TIMES):
        start = time.perf_counter_ns()
        child = ctx.fork()
        times.append(time.perf_counter_ns() - start)
        child.free()
    return median(times) / 1000


def run() -> Iterator[Result]:
    """Measure forks of a short and a long context, then against a prefill."""
    with booted(*NULL, "--num-blocks", "4096") as kernel, kernel.connect() as task:
        for size in SIZES:
            yield measure(task, size)
    with booted(*smollm2(), "--num-blocks", "600") as kernel, kernel.connect() as task:
        yield against_prefill(task, max(SIZES))


def measure(task: Task, size: int) -> Result:
    """Fork a context of `size` ids many times; the value is what that copied."""
    with context(task, size) as ctx:
        before = task.kernel().copied_blocks
        took = fork_us(ctx)
        copied = task.kernel().copied_blocks - before
    return Result(
        "fork", f"{size} ids", copied, "blocks copied",
        detail={"us": round(took, 1), "copied_by_first_write": first_write(task, size)},
    )  # fmt: skip


def first_write(task: Task, size: int) -> int:
    """Return the blocks copied when parent and child go on behind a block that is not full."""
    with context(task, size + PARTIAL) as ctx, ctx.fork() as child:
        before = task.kernel().copied_blocks
        generate(child, 2)
        generate(ctx, 2)
        return task.kernel().copied_blocks - before


def against_prefill(task: Task, size: int) -> Result:
    """Prefill a long context, then fork it."""
    start = time.perf_counter()
    with context(task, size) as ctx:
        prefill = time.perf_counter() - start
        took = fork_us(ctx)
    return Result(
        "fork", "against prefill", took, "us", 1e6 * prefill / took, f"prefill of {size} ids",
        {"prefill_s": round(prefill, 2)},
    )  # fmt: skip
