"""Agents: many tasks over one prompt, in turns with tools between, and a pool that is too small.

64 agents share a prompt of 1,024 ids; in each of 6 turns one reads 64 ids more, writes 32, and
waits for its tool: 86 % of the waits take 0.05 to 1 s, 9 % 1 to 10 s, 5 % 10 to 30 s (as in a trace
of coding agents, vllm#52113). Device and host tier hold a quarter of what all need, each.

    knows     policy fair; each kind of tool is a port, so the kernel sees who waits in a call, and
              has seen how long such calls take
    before    policy fifo; tools are called outside of the kernel, which sees contexts go idle (LRU)

Both do the same with the same seeds, on the same driver, in kernels of their own: the time until
the last agent has finished, and the ids that were computed again because their KV was dropped. What
the agents write is the same, too, up to the numerics of the driver.
"""

import asyncio
import time
from collections.abc import Iterator
from random import Random

from bench.booted import Booted, booted, smollm2
from bench.record import Result
from syscalls import aio

AGENTS = 64
TURNS = 6
SHARED = 1024
READS, WRITES = 64, 32
BLOCK = 16
NEED = SHARED // BLOCK + AGENTS * -(-TURNS * (READS + WRITES) // BLOCK)
"""Blocks."""
BLOCK_BYTES = 368_640
TOOLS = {"look": (0.86, 0.05, 1.0), "build": (0.09, 1.0, 10.0), "crawl": (0.05, 10.0, 30.0)}
"""How often each is used, and the seconds that it takes, at least and at most."""


def use_of(random: Random) -> tuple[str, float]:
    """Draw a tool, and the seconds that it takes."""
    name = random.choices(list(TOOLS), [share for share, *_ in TOOLS.values()])[0]
    return name, random.uniform(*TOOLS[name][1:])


def ids_of(random: Random, count: int) -> list[int]:
    return [random.randrange(1000, 40_000) for _ in range(count)]


async def tool(address: str, name: str) -> None:
    """Serve the port of a tool: each message says how long it takes."""
    async with await aio.connect(name=name, address=address) as task:
        port = await task.bind(name, depth=AGENTS)
        working = set()

        async def work(message: aio.Message) -> None:
            await asyncio.sleep(float(message.body))
            await message.reply()

        while True:
            job = asyncio.create_task(work(await port.recv()))
            working.add(job)
            job.add_done_callback(working.discard)


async def agent(address: str, number: int, shared: list[int], knows: bool) -> float:
    """Live one life; return when it was over."""
    random = Random(number)
    async with (
        await aio.connect(name=f"agent-{number}", address=address) as task,
        await task.alloc_ctx() as ctx,
    ):
        await ctx.append(shared)
        for _ in range(TURNS):
            await ctx.append(ids_of(random, READS))
            stream = await ctx.infer(max_tokens=WRITES, temperature=0, ignore_eos=True, text=False)
            await stream.read()
            name, seconds = use_of(random)
            if knows:
                await task.call(name, str(seconds).encode())
            else:
                await asyncio.sleep(seconds)
    return time.perf_counter()


async def live(kernel: Booted, knows: bool) -> tuple[float, int, int]:
    """Let all agents live; return seconds, ids computed again and blocks brought back."""
    address = kernel.address
    async with await aio.connect(name="bench", address=address) as task:
        await task.policy("fair" if knows else "fifo")
        serving = [asyncio.create_task(tool(address, name)) for name in TOOLS]
        shared = ids_of(Random(1000), SHARED)
        async with await task.alloc_ctx() as root:
            await root.append(shared)
            stream = await root.infer(max_tokens=1, temperature=0, ignore_eos=True, text=False)
            await stream.read()
            before, start = await task.kernel(), time.perf_counter()
            lives = [agent(address, n, shared, knows) for n in range(AGENTS)]
            end = max(await asyncio.gather(*lives))
            after = await task.kernel()
        for each in serving:
            each.cancel()
    again = after.lost_tokens - before.lost_tokens
    return end - start, again, after.in_blocks - before.in_blocks


def run() -> Iterator[Result]:
    """Let them live with a kernel that knows, and with one that does not."""
    quarter = NEED // 4
    size = "--num-blocks", str(quarter + 1), "--host-bytes", str(quarter * BLOCK_BYTES)
    found = {}
    for knows in (False, True):
        with booted(*smollm2(), *size) as kernel:
            found[knows] = asyncio.run(live(kernel, knows))
    (before, lost, back), (after, lost_after, back_after) = found[False], found[True]
    detail = {
        "blocks_needed": NEED, "device_blocks": quarter, "host_blocks": quarter,
        "before_s": round(before, 1), "again_ids": [lost, lost_after],
        "brought_back": [back, back_after],
    }  # fmt: skip
    yield Result("agents", "64 with tools", after, "s", before / after, "fifo and LRU", detail)
