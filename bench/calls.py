"""The null system call: the round trip of a call that does nothing, against raw ZeroMQ.

The call is `kill(own pid, CONT)`: its effect is none and its answer an empty row. The program is an
ordinary one, so client library, message, checks, dispatch and answer are all in it. The raw side is
a DEALER and a ROUTER in another process, with messages of the same size. Both are measured in
turns, a batch each.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median

from bench.booted import NULL, booted
from bench.echo import echo
from bench.record import Result
from bench.usage import usage
from syscalls import abi, wire
from syscalls.session import Session

BATCH = 100
PAIRS = 40
WARM_UP = 200


def batch(call: Callable[[], object]) -> float:
    """Return the median round trip of a batch of calls, in microseconds."""
    times = []
    for _ in range(BATCH):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def sizes(pid: int) -> tuple[bytes, int]:
    """Return the request as it is sent, and the size of its answer."""
    _, frames = Session().request("kill", pid, int(abi.Sig.CONT))
    return frames[0], len(wire.pack_events([[abi.Event.FIN, 1, list(abi.Nothing()), 0]]))


def run() -> Iterator[Result]:
    """Measure the null call."""
    with booted(*NULL) as kernel, kernel.connect() as task:
        request, answer = sizes(task.pid)
        with echo(answer) as dealer:

            def call() -> None:
                task.kill(task.pid, abi.Sig.CONT)

            def raw() -> None:
                dealer.send(request)
                dealer.recv()

            for _ in range(WARM_UP):
                call()
                raw()
            before = usage(kernel.pid)
            pairs = [(batch(call), batch(raw)) for _ in range(PAIRS)]
            spent = usage(kernel.pid).since(before)
    yield Result(
        "null call", "", median(ours for ours, _ in pairs), "us",
        median(ours / bare for ours, bare in pairs), "raw ZeroMQ ping-pong",
        {
            "raw_us": round(median(bare for _, bare in pairs), 1),
            "kernel_cpu_us": round(1e6 * spent.cpu_s / (BATCH * PAIRS), 1),
            "bytes": [len(request), answer],
        },
    )  # fmt: skip
