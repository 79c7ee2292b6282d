"""A call from task to task, there and back, against the null system call.

    python -m bench.messages ADDRESS          the server: answers each message with its own body

Client and server are ordinary programs. A round trip is four messages of the transport (call, recv,
reply, and the answer that ends the call) and two wake-ups of a program, where a null call has two
and one. Both are measured in turns, a batch each, by the same client.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from bench.booted import NULL, ROOT, Booted, booted
from bench.calls import BATCH, PAIRS, WARM_UP, batch
from bench.record import Result
from bench.usage import usage
from syscalls import EPIPE, abi, connect

SIZES = 32, 60_000


def serve(address: str) -> None:
    """Answer until an empty message comes."""
    with connect("server", address=address) as task:
        port = task.bind("echo")
        print("bound", flush=True)
        while True:
            message = port.recv()
            message.reply(message.body)
            if not message.body:
                return


@contextmanager
def server(kernel: Booted) -> Iterator[None]:
    """Run the server."""
    command = [sys.executable, "-m", "bench.messages", kernel.address]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"bound\n":
            raise EPIPE("the server of the bench did not start")
        yield
    finally:
        process.kill()
        process.wait()


def run() -> Iterator[Result]:
    """Measure calls with a short and with the longest body."""
    with booted(*NULL) as kernel, kernel.connect() as task, server(kernel):

        def null() -> None:
            task.kill(task.pid, abi.Sig.CONT)

        for size in SIZES:
            body = bytes(size)
            yield _measure(kernel, size, lambda body=body: task.call("echo", body), null)  # type: ignore[misc]


def _measure(
    kernel: Booted, size: int, call: Callable[[], object], null: Callable[[], object]
) -> Result:
    for _ in range(WARM_UP):
        call()
        null()
    before = usage(kernel.pid)
    pairs = [(batch(call), batch(null)) for _ in range(PAIRS)]
    spent = usage(kernel.pid).since(before)
    return Result(
        "call and reply", f"{size} bytes", median(ours for ours, _ in pairs), "us",
        median(ours / bare for ours, bare in pairs), "null call",
        {
            "null_us": round(median(bare for _, bare in pairs), 1),
            "kernel_cpu_us_of_both": round(1e6 * spent.cpu_s / (BATCH * PAIRS), 1),
        },
    )  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1])
