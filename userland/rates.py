"""Rates: what counters of two moments say about the time between them."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import syscalls
from syscalls.abi import DeviceRow, KernelRow, PoolRow, TaskRow
from userland.proc import Usage, usage


def per_second(now: float, before: float, seconds: float) -> float:
    """Return how fast a counter rose."""
    return (now - before) / seconds if seconds > 0 else 0.0


class TaskRates:
    """Tokens per second of each task, by the kernel's own clock."""

    def __init__(self) -> None:
        self._before: dict[int, TaskRow] = {}
        self._rates: dict[int, float] = {}

    def feed(self, rows: Iterable[TaskRow]) -> None:
        """Take the next table in."""
        now = {row.pid: row for row in rows}
        self._rates = {
            pid: per_second(row.output_tokens, old.output_tokens, row.age_s - old.age_s)
            for pid, row in now.items()
            if (old := self._before.get(pid)) is not None
        }
        self._before = now

    def of(self, pid: int) -> float | None:
        """Return a task's rate; None if it has been seen once only."""
        return self._rates.get(pid)


class Sample(NamedTuple):
    """The kernel at one moment."""

    at: float  # since 1970
    kernel: KernelRow
    tasks: list[TaskRow]
    pools: list[PoolRow]
    devices: list[DeviceRow]
    usage: Usage | None  # of the kernel and its driver hosts together


def sample(task: syscalls.Task) -> Sample:
    """Ask the kernel, and the host about its processes."""
    kernel, devices = task.kernel(), task.devices()
    pids = {kernel.pid, *(row.host_pid for row in devices if row.host_pid)}
    found = [used for pid in pids if (used := usage(pid)) is not None]
    together = None
    if found:
        together = Usage(sum(u.cpu_s for u in found), sum(u.rss_bytes for u in found))
    return Sample(time.time(), kernel, task.ps(), task.pools(), devices, together)


class Rates(NamedTuple):
    """What happened between two samples, by the kernel's clock."""

    seconds: float
    output_tok_s: float
    prefill_tok_s: float
    steps_s: float
    step_ms: float  # mean; 0: there was none
    batch: float  # sequences of a step
    step_prefill_tok: float  # tokens of a step
    step_decode_tok: float
    hit: float | None  # share of prompt tokens that were computed before; None: no prompts
    first_token_s: float | None  # mean wait for it; None: there was none
    evicted_s: float
    copied_s: float
    calls_s: float
    cpu: float | None  # processors at work
    in_s: float  # blocks copied from the host tier to the device
    out_s: float  # and down
    disk_in_s: float  # blocks read from the swap file
    disk_out_s: float  # and written
    lost_tok_s: float  # positions whose KV was dropped: computed again when they are needed


def rates_of(now: Sample, before: Sample) -> Rates:
    """Compare two samples."""
    new, old = now.kernel, before.kernel
    seconds = new.uptime_s - old.uptime_s

    def rose(name: str) -> float:
        risen: float = getattr(new, name) - getattr(old, name)
        return risen

    def each(name: str, of: str) -> float:
        return rose(name) / rose(of) if rose(of) > 0 else 0.0

    cpu = None
    if now.usage is not None and before.usage is not None:
        cpu = max(0.0, per_second(now.usage.cpu_s, before.usage.cpu_s, seconds))
    return Rates(
        seconds,
        per_second(new.output_tokens, old.output_tokens, seconds),
        per_second(new.prefill_tokens, old.prefill_tokens, seconds),
        per_second(new.steps, old.steps, seconds),
        each("step_us", "steps") / 1000,
        each("step_seqs", "steps"),
        each("prefill_tokens", "steps"),
        each("decode_tokens", "steps"),
        each("cached_tokens", "prompt_tokens") if rose("prompt_tokens") else None,
        each("first_token_s", "first_tokens") if rose("first_tokens") else None,
        per_second(new.evicted_blocks, old.evicted_blocks, seconds),
        per_second(new.copied_blocks, old.copied_blocks, seconds),
        per_second(new.calls, old.calls, seconds),
        cpu,
        per_second(new.in_blocks, old.in_blocks, seconds),
        per_second(new.out_blocks, old.out_blocks, seconds),
        per_second(new.disk_in_blocks, old.disk_in_blocks, seconds),
        per_second(new.disk_out_blocks, old.disk_out_blocks, seconds),
        per_second(new.lost_tokens, old.lost_tokens, seconds),
    )


def since_boot(now: Sample) -> Rates:
    """Compare a sample with the moment at which the kernel began."""
    nothing = KernelRow(*(0,) * len(KernelRow._fields))  # type: ignore[arg-type]
    used = None if now.usage is None else Usage(0.0, 0)
    return rates_of(now, now._replace(kernel=nothing, usage=used))
