"""Idleness: what a kernel and its driver host use while nobody wants anything.

There is a client with a context that has been used, the model is loaded, and nothing runs.
"""

import time
from collections.abc import Iterator

from bench.booted import booted, smollm2
from bench.fork import context
from bench.record import Result
from bench.usage import usage

SECONDS = 10.0
SETTLE_S = 1.0
"""Threads of torch spin for a moment before they sleep."""


def run() -> Iterator[Result]:
    """Measure the processor time and the wake-ups of both processes."""
    with booted(*smollm2(), "--num-blocks", "600") as kernel, kernel.connect() as task:
        context(task, 80)
        time.sleep(SETTLE_S)
        processes = {"kernel": kernel.pid, "host": kernel.host_pid}
        start = time.monotonic()
        before = {name: usage(pid) for name, pid in processes.items()}
        time.sleep(SECONDS)
        took = time.monotonic() - start
        for name, pid in processes.items():
            used = usage(pid).since(before[name])
            yield Result("idle", f"{name} cpu", 100 * used.cpu_s / took, "% of a core")
            yield Result("idle", f"{name} wakeups", used.wakeups / took, "1/s")
