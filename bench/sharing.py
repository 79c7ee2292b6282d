"""Sharing: what tasks have of one device, on the real model.

Two tasks that always have 8 and 80 requests, and 8 sequences a step: what each is served, under
fair and under fifo, in the same kernel. A task with one stream beside a flood of another's: its
time per id, against that of one stream of the flood. A prompt beside 32 streams: its time to the
first id beyond what it takes alone, in times of the step. A stopped stream: ids that still come.
And the cost of fairness: ids a second under fair against fifo, in turns.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from statistics import median, quantiles

from bench.booted import Booted, booted, smollm2
from bench.record import Result
from syscalls import aio
from syscalls.abi import Sig

SECONDS = 12.0
SLOTS = 8
SIZES = 8, 80
FLOOD = 31
BATCH = 32
PROMPT = 128
PROBES = 12
TURNS = 4
NUM_BLOCKS = 1200


def run() -> Iterator[Result]:
    """Measure each on a kernel of its own."""
    with booted(*smollm2(), "--num-blocks", str(NUM_BLOCKS), "--max-seqs", str(SLOTS)) as kernel:
        yield asyncio.run(shares(kernel))
    with booted(*smollm2(), "--num-blocks", str(NUM_BLOCKS)) as kernel:
        yield asyncio.run(beside_a_flood(kernel))
        yield asyncio.run(first_ids(kernel))
        yield asyncio.run(stopped(kernel))
        yield asyncio.run(cost(kernel))


class Load:
    """Requests of one task that follow each other without end."""

    def __init__(self, task: aio.Task, streams: int, seed: int) -> None:
        self.ids = 0
        self.times: list[float] = []  # of each id of the first stream
        self._random = Random(seed)
        self._running = [asyncio.create_task(self._ask(task, n == 0)) for n in range(streams)]

    async def _ask(self, task: aio.Task, timed: bool) -> None:
        random = self._random
        while True:
            async with await task.alloc_ctx() as ctx:
                await ctx.append([random.randrange(1000, 40_000) for _ in range(16)])
                count = random.randint(32, 96)
                stream = await ctx.infer(
                    max_tokens=count, temperature=0, ignore_eos=True, text=False
                )
                async for _ in stream:
                    self.ids += 1
                    if timed:
                        self.times.append(time.perf_counter())

    async def end(self) -> None:
        for each in self._running:
            each.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


@asynccontextmanager
async def loads(kernel: Booted, *streams: int) -> AsyncIterator[list[Load]]:
    """Run one task for each number of streams."""
    tasks = [await aio.connect(name=f"load-{n}", address=kernel.address) for n in streams]
    pairs = enumerate(zip(tasks, streams, strict=True))
    running = [Load(task, count, seed) for seed, (task, count) in pairs]
    try:
        yield running
    finally:
        for load in running:
            await load.end()
        for task in tasks:
            await task.close()


async def shares(kernel: Booted) -> Result:
    """Serve two that never lack requests, one of which asks ten times as much."""
    jain, served = {}, {}
    async with await aio.connect(name="bench", address=kernel.address) as bench:
        for policy in ("fifo", "fair"):
            await bench.policy(policy)
            async with loads(kernel, *SIZES) as running:
                await asyncio.sleep(SECONDS / 4)
                before = [load.ids for load in running]
                await asyncio.sleep(SECONDS)
                got = [load.ids - was for load, was in zip(running, before, strict=True)]
            jain[policy] = sum(got) ** 2 / (2 * sum(n * n for n in got))
            served[policy] = got
    return Result(
        "sharing", "8 and 80 requests", round(jain["fair"], 4), "Jain index",
        jain["fair"] / jain["fifo"], "fifo", {"ids": served, "seconds": SECONDS},
    )  # fmt: skip


async def beside_a_flood(kernel: Booted) -> Result:
    """Time the ids of one stream, beside those of a task with many."""
    async with (
        await aio.connect(name="bench", address=kernel.address) as bench,
        loads(kernel, 1, FLOOD) as running,
    ):
        await asyncio.sleep(2.0)
        for load in running:
            load.times.clear()
        before = await bench.kernel()
        await asyncio.sleep(SECONDS)
        after = await bench.kernel()
        own, others = (p95(load.times) for load in running)
        detail = {"ids": len(running[0].times), "steps": after.steps - before.steps}
    what = "a stream of the flood"
    return Result("sharing", "one beside 31, p95", own, "ms an id", own / others, what, detail)


def p95(times: list[float]) -> float:
    """Return the milliseconds between ids, of which 5 % take longer."""
    return 1e3 * quantiles([b - a for a, b in pairwise(times)], n=20)[-1]


async def first_id(task: aio.Task, random: Random) -> float:
    """Return the milliseconds to the first id after a prompt that nobody has."""
    async with await task.alloc_ctx() as ctx:
        start = time.perf_counter()
        await ctx.append([random.randrange(1000, 40_000) for _ in range(PROMPT)])
        stream = await ctx.infer(max_tokens=1, temperature=0, ignore_eos=True, text=False)
        async for _ in stream:
            return 1e3 * (time.perf_counter() - start)
    raise AssertionError("no id came")


async def first_ids(kernel: Booted) -> Result:
    """Ask now and then while others have a full batch."""
    random = Random(7)
    async with await aio.connect(name="asks", address=kernel.address) as task:
        alone = median([await first_id(task, random) for _ in range(PROBES)])
        async with loads(kernel, BATCH) as running:
            await asyncio.sleep(3.0)
            took = []
            for _ in range(PROBES):
                await asyncio.sleep(0.3 + random.random() / 3)
                took.append(await first_id(task, random))
            running[0].times.clear()
            await asyncio.sleep(2.0)
            times = running[0].times
    step = 1e3 * median(b - a for a, b in pairwise(times))
    slow = quantiles(took, n=20)[-1]
    return Result(
        "sharing", "a prompt beside 32, p95", slow, "ms", (slow - alone) / step,
        "a loaded step, beyond its own", {"alone_ms": round(alone, 1), "step_ms": round(step, 1)},
    )  # fmt: skip


async def stopped(kernel: Booted) -> Result:
    """Stop a task in the middle of a stream, and count what still comes; let it go on."""
    late = []
    async with (
        await aio.connect(name="bench", address=kernel.address) as bench,
        loads(kernel, 1) as running,
    ):
        pid = next(row.pid for row in await bench.ps() if row.name == "load-1")
        for _ in range(PROBES):
            await asyncio.sleep(0.5)
            await bench.kill(pid, Sig.STOP)
            await asyncio.sleep(0)
            before = running[0].ids
            await asyncio.sleep(0.5)
            late.append(running[0].ids - before)
            await bench.kill(pid, Sig.CONT)
    return Result("sharing", "ids after STOP", max(late), "ids", detail={"each": late})


async def cost(kernel: Booted) -> Result:
    """Serve two tasks with 16 streams each, under fair and fifo in turns."""
    rates: dict[str, list[float]] = {"fair": [], "fifo": []}
    async with (
        await aio.connect(name="bench", address=kernel.address) as bench,
        loads(kernel, BATCH // 2, BATCH // 2) as running,
    ):
        await asyncio.sleep(3.0)
        for turn in range(2 * TURNS):
            policy = "fair" if turn % 2 else "fifo"
            await bench.policy(policy)
            before, start = sum(load.ids for load in running), time.perf_counter()
            await asyncio.sleep(SECONDS / 3)
            got = sum(load.ids for load in running) - before
            rates[policy].append(got / (time.perf_counter() - start))
        await bench.policy("fair")
    ratio = median(a / b for a, b in zip(rates["fair"], rates["fifo"], strict=True))
    return Result("sharing", "fair", median(rates["fair"]), "ids/s", ratio, "fifo", {"each": rates})
