"""Pager: what it takes to go on with a context that was moved away, or begun by another one.

On the real model, all against computing the same positions in the same run. A context of 2,048 ids
is demoted, so that all of it lies in a lower tier, and then asked for one id: in the host tier, and
in the swap file, encrypted. The bytes that were moved are those of its blocks or more, and the ids
that it goes on with are those of a context that was never moved.

Then the time to the first id of a prompt whose prefix another context of the same owner has
computed, against one that nobody has.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

from bench.booted import booted, smollm2
from bench.record import Result
from syscalls import Context, Task

LENGTH = 2048
ROUNDS = 5
PROMPTS = (1024, 4096, 8000)
NUM_BLOCKS = 1200
TIER_BYTES = 512 << 20
PATIENCE_S = 30.0
POLL_S = 0.005
GO_ON = 8
"""Ids that a context is asked for in the end, moved or not."""


def run() -> Iterator[Result]:
    """Measure going on after a swap to each tier, then hits against misses."""
    size = "--num-blocks", str(NUM_BLOCKS)
    host = "--host-bytes", str(TIER_BYTES)
    with booted(*smollm2(), *size, *host) as kernel, kernel.connect() as task:
        yield after_swap(task, "host")
        for length in PROMPTS:
            yield hit(task, length)
    with TemporaryDirectory(prefix="llmos-bench-") as folder:
        state, keys = Path(folder, "state"), Path(folder, "keys")
        disk = "--swap-bytes", str(TIER_BYTES), "--state-dir", str(state), "--keys-dir", str(keys)
        with booted(*smollm2(), *size, *disk) as kernel, kernel.connect() as task:
            yield after_swap(task, "disk")


def prompt(seed: int, length: int) -> list[int]:
    """Return ids that no other seed begins with."""
    random = Random(seed)
    return [random.randrange(1000, 40_000) for _ in range(length)]


def timed(ctx: Context, count: int = 1) -> tuple[float, list[int]]:
    """Generate, greedily; return the seconds to the first id, and the ids."""
    start = time.perf_counter()
    first, ids = 0.0, []
    for piece in ctx.infer(max_tokens=count, temperature=0, ignore_eos=True, text=False):
        first = first or time.perf_counter() - start
        ids.append(piece.id)
    return first, ids


def demote(task: Task, ctx: Context) -> None:
    """Move all of a context off the device, and wait until it is."""
    task.call_raw("advise_ctx", ctx.handle, "demote")
    deadline = time.monotonic() + PATIENCE_S
    while ctx.stat().blocks:
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {PATIENCE_S:g} s it is not demoted: {ctx.stat()}")
        time.sleep(POLL_S)


def moved(task: Task, tier: str) -> int:
    """Return the bytes that came back from a tier so far."""
    kernel = task.kernel()
    if tier == "host":
        return kernel.in_bytes
    return kernel.disk_in_blocks * task.models()[0].block_bytes


def after_swap(task: Task, tier: str) -> Result:
    """Compute contexts, move them away, go on with them."""
    computed, continued, lost = [], [], task.kernel().lost_tokens
    before = moved(task, tier)
    for seed in range(ROUNDS):
        ids = prompt(seed, LENGTH)
        with task.alloc_ctx() as ctx, task.alloc_ctx() as other:
            ctx.append(ids)
            computed.append(timed(ctx)[0])
            demote(task, ctx)
            continued.append(timed(ctx)[0])
            rest = timed(ctx, GO_ON)[1]
            other.append(ids)
            same = [*ctx.read(LENGTH, 2), *rest] == timed(other, 2 + GO_ON)[1]
        if not same:
            raise AssertionError(f"seed {seed}: it goes on in another way after the {tier} tier")
    blocks = LENGTH // 16
    least = ROUNDS * blocks * task.models()[0].block_bytes
    return Result(
        "pager", f"{tier} swap {LENGTH} ids", 1e3 * median(continued), "ms",
        median(a / b for a, b in zip(computed, continued, strict=True)), "computing it again",
        {
            "prefill_ms": round(1e3 * median(computed), 1),
            "bytes_moved": moved(task, tier) - before, "bytes_least": least,
            "tokens_lost": task.kernel().lost_tokens - lost, "same_ids": True,
        },
    )  # fmt: skip


def hit(task: Task, length: int) -> Result:
    """Ask with a prompt that nobody has, then with the same one from another context."""
    misses, hits, cached = [], [], set()
    for seed in range(ROUNDS if length < max(PROMPTS) else 2):
        ids = prompt(1000 * length + seed, length)
        misses.append(first_id(task, ids)[0])
        took, found = first_id(task, ids)
        hits.append(took)
        cached.add(found)
    return Result(
        "pager", f"prefix hit {length} ids", 1e3 * median(hits), "ms",
        median(a / b for a, b in zip(misses, hits, strict=True)), "a miss",
        {"miss_ms": round(1e3 * median(misses), 1), "cached": sorted(cached)},
    )  # fmt: skip


def first_id(task: Task, ids: Sequence[int]) -> tuple[float, int]:
    """Return the seconds to the first id after a prompt, and how much of it was found."""
    with task.alloc_ctx() as ctx:
        start = time.perf_counter()
        ctx.append(ids)
        stream = ctx.infer(max_tokens=1, temperature=0, ignore_eos=True, text=False)
        stream.read()
        return time.perf_counter() - start, stream.usage.cached
