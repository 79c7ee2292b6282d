"""The cost of the kernel: a decode step through system calls, against the same step without kernel.

Two driver hosts with the same model, threads, batch and sampling: one behind the kernel, with a
client that reads every stream, one in a bare loop (`bench.driver`). They work in turns. The value
is what a step takes longer, the ratio how much longer it takes; both are the median of the pairs.
The processor time that kernel and client spend on a step is exact even on a loaded machine.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from bench.driver import Bare
from bench.engine import LATE, Served, served
from bench.pairs import BATCHES, in_turns, steps_of
from bench.record import Result
from bench.usage import usage

ROUNDS = 10


def run() -> Iterator[Result]:
    """Measure batches of several sizes."""
    with served() as engine, closing(Bare()) as host:
        for batch in BATCHES:
            yield cost(engine, host, batch)


def cost(engine: Served, host: Bare, batch: int) -> Result:
    """Compare the decode steps of a batch."""
    steps = steps_of(batch)
    engine.decode(batch, steps)
    pids = {"kernel_cpu_us": engine.kernel.pid, "client_cpu_us": os.getpid()}
    spent = dict.fromkeys(pids, 0.0)

    def ours() -> float:
        before = {name: usage(pid) for name, pid in pids.items()}
        seconds = engine.decode(batch, steps)
        for name, pid in pids.items():
            spent[name] += usage(pid).since(before[name]).cpu_s
        return seconds

    pairs = in_turns(ours, lambda: host.decode(batch, steps), ROUNDS)
    all_steps = (1 + ROUNDS) * (1 + steps + LATE)
    ratios = [through / alone for through, alone in pairs]
    return Result(
        "kernel cost", f"B={batch}",
        1e6 * median(through - alone for through, alone in pairs), "us/step",
        median(ratios), "the driver host in a bare loop",
        {
            "step_us": round(1e6 * median(through for through, _ in pairs)),
            "bare_step_us": round(1e6 * median(alone for _, alone in pairs)),
            **{name: round(1e6 * seconds / all_steps) for name, seconds in spent.items()},
            "ratios": [round(ratio, 3) for ratio in ratios],
        },
    )  # fmt: skip
