"""Scale: what a step costs the kernel with 10,000 tasks that have contexts, against 64.

In both 64 of them decode; the others are idle, each with a session, a context and KV. Two kernels
without processes, sockets or a model (the null driver is not counted) take turns in turns: so the
ratio is of what the kernel does for one step, from its results to the next Submit and the events.
"""

import time
from collections.abc import Iterator
from statistics import median

from bench.record import Result
from tests.helpers.sim import Sim, SimClient

TASKS = (64, 10_000)
RUNNING = 64
IDS = 20
STEPS = 150
WARM_UP = 20


class Crowd:
    """A kernel with so many tasks, some of which decode."""

    def __init__(self, tasks: int) -> None:
        self.sim = Sim(
            path="null:vocab=32000", num_blocks=3 * tasks + 4096, max_tasks=tasks + 2,
            max_sessions=tasks + 1, prefill_chunk=512,
        )  # fmt: skip
        clients = [SimClient(self.sim, number) for number in range(tasks)]
        for client in clients:
            client.send("hello", "idle")
            client.send("alloc_ctx", 1)
            client.send("append", 1, ids=range(IDS))
        while self.sim.system.device.requests or self.sim.front.arrivals:
            self._turn()
        self._read(clients)
        self._running = clients[:: tasks // RUNNING][:RUNNING]
        for client in self._running:
            client.send("infer", 1, STEPS + 2 * WARM_UP, 0.0, 0, 1.0, 0.0, None, (), True)
        for _ in range(WARM_UP):
            self.step_us()

    def step_us(self) -> float:
        """Return the microseconds of the kernel's turn in which a step ends and the next begins."""
        took = self._turn()
        self._read(self._running)
        return 1e6 * took

    def _turn(self) -> float:
        self.sim.clock.now += 0.03
        start = time.perf_counter()
        self.sim.kernel.turn()
        self.sim.kernel.timeout()
        took = time.perf_counter() - start
        self.sim.link.pump()
        return took

    def _read(self, clients: list[SimClient]) -> None:
        for client in clients:
            client.read()


def run() -> Iterator[Result]:
    """Measure both crowds, a step of each in turns."""
    few, many = map(Crowd, TASKS)
    pairs = [(few.step_us(), many.step_us()) for _ in range(STEPS)]
    yield Result(
        "scale", f"{TASKS[1]} tasks", median(many for _, many in pairs), "us/step",
        median(many for _, many in pairs) / median(few for few, _ in pairs), f"{TASKS[0]} tasks",
        {"few_us": round(median(few for few, _ in pairs)), "running": RUNNING},
    )  # fmt: skip
