"""Loopback with copy queues: any order that the contract allows, and no other."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from drivers import base, wire
from drivers.base import Direction, Fence, Queue, ints
from kernel.link import LinkDown
from kernel.loopback import LoopbackLink

EPOCH, SIZE, BLOCKS = 1, 16, 8
HOST_BYTES = 1 << 16
LOAD = base.Load(0, "null", "float32", SIZE, BLOCKS, 0, 0, True, 0, host_bytes=HOST_BYTES)


class Bench:
    """A loopback with a model, and the values of its queues."""

    def __init__(self, seed: int | None) -> None:
        beside = None if seed is None else Random(seed)
        self.link = LoopbackLink("null0", host_bytes=HOST_BYTES, beside=beside)
        self.start()

    def start(self) -> None:
        """Begin an epoch; the driver is a new one."""
        self.values = dict.fromkeys(Queue, 0)
        self.link.start()
        self.link.send(base.Hello(*base.ABI, wire.schema(), EPOCH, "null0"))
        self.link.send(LOAD)
        self.link.pump()
        self.ready, _, self.loaded = self.answers()

    def submit(self, queue: Queue, *ops: Any, waits: Sequence[Fence] = ()) -> Fence:
        """Send the next Submit of a queue."""
        self.values[queue] += 1
        fence = Fence(EPOCH, queue, self.values[queue])
        self.link.send(base.Submit(*fence, tuple(waits), 0, ops))
        return fence

    def answers(self) -> list[Any]:
        found = []
        while (message := self.link.receive()) is not None:
            found.append(message)
        return found

    def order(self) -> list[Fence]:
        """Run what was sent; return in which order it ran."""
        self.link.pump()
        answers = self.answers()
        assert all(isinstance(answer, base.Complete) for answer in answers), answers
        return [Fence(*answer[:3]) for answer in answers]


def test_without_beside_it_is_the_order_of_arrival() -> None:
    bench = Bench(None)
    assert "copy_queues" not in bench.ready.features and "host_tier" in bench.ready.features
    sent = [bench.submit(Queue(n % 3)) for n in range(30)]
    assert bench.order() == sent


def test_beside_runs_queues_in_any_order_and_each_in_its_own() -> None:
    orders = set()
    for seed in range(20):
        bench = Bench(seed)
        assert "copy_queues" in bench.ready.features
        sent = [bench.submit(Queue(n % 3)) for n in range(12)]
        order = bench.order()
        for queue in Queue:
            assert [f for f in order if f.queue == queue] == [f for f in sent if f.queue == queue]
        orders.add(tuple(order))
    assert len(orders) > 10


def test_one_seed_gives_one_order() -> None:
    def order() -> list[Fence]:
        bench = Bench(4)
        for n in range(30):
            bench.submit(Queue(n % 3))
        return bench.order()

    assert order() == order()


def test_a_submit_runs_after_what_it_waits_for() -> None:
    """And only its own queue is held up by it."""
    overtaken = 0
    for seed in range(40):
        bench = Bench(seed)
        first = bench.submit(Queue.COMPUTE)
        awaited = bench.submit(Queue.COMPUTE)
        waiting = bench.submit(Queue.COPY_OUT, waits=[awaited])
        behind = bench.submit(Queue.COPY_OUT)
        free = bench.submit(Queue.COPY_IN)
        after = bench.submit(Queue.COMPUTE, waits=[waiting, free])
        order = bench.order()
        assert order.index(first) < order.index(awaited) < order.index(waiting)
        assert order.index(waiting) < order.index(behind) and order[-1] in (after, behind)
        assert order.index(free) < order.index(after)
        overtaken += order.index(free) < order.index(first)
    assert overtaken > 5


def test_a_wait_that_is_never_met_is_refused_not_waited_for() -> None:
    for seed in range(10):
        bench = Bench(seed)
        bench.submit(Queue.COPY_IN, waits=[Fence(EPOCH, Queue.COMPUTE, 9)])
        bench.link.pump()
        (fault,) = bench.answers()
        assert fault.kind == base.FaultKind.PLAN_INVALID


def test_other_messages_go_with_compute_and_an_unload_after_its_copies() -> None:
    for seed in range(30):
        bench = Bench(seed)
        before = bench.submit(Queue.COMPUTE)
        bench.link.send(base.Stats())
        after = bench.submit(Queue.COMPUTE)
        copies = [bench.submit(queue) for queue in (Queue.COPY_IN, Queue.COPY_OUT) * 2]
        bench.link.send(base.Unload(0))
        bench.link.send(base.Stats())
        bench.link.pump()
        names = [
            "stats" if isinstance(answer, base.StatsReply) else Fence(*answer[:3])
            for answer in bench.answers()
        ]
        assert names.index(before) < names.index("stats") < names.index(after)
        assert names[-1] == "stats" and set(copies) < set(names), "a Fault would be of no copy"
        bench.submit(Queue.COMPUTE)
        bench.link.pump()
        (fault,) = bench.answers()
        assert fault.kind == base.FaultKind.PLAN_INVALID, "it is unloaded"


def test_a_race_shows_in_what_is_computed() -> None:
    """A copy out and a scrub that nothing orders: what is kept depends on the seed."""
    kept = set()
    for seed in range(20):
        bench = Bench(seed)
        host = base.Copy(Direction.D2H, ints([1]), ints([0]))
        bench.submit(Queue.COMPUTE, *_step())
        bench.order()
        bench.submit(Queue.COPY_OUT, host)
        bench.submit(Queue.COMPUTE, base.Scrub(ints([1])))
        bench.order()
        bench.submit(Queue.COPY_IN, base.Copy(Direction.H2D, ints([0]), ints([2])))
        bench.order()
        bench.submit(Queue.COMPUTE, base.Checksum(ints([2])))
        bench.link.pump()
        (complete,) = bench.answers()
        kept.add(complete.results[0])
    assert len(kept) == 2


def _step() -> tuple[Any, ...]:
    """Fill the first slot of block 1."""
    table = base.BlockTable(ints([0, 1]), ints([1]), ints([SIZE]))
    zero, one = ints([0]), ints([1])
    return (base.Execute(0, 0, one, zero, ints([0, 1]), one, zero, one, b"", (table,)),)


@pytest.mark.parametrize("seed", [None, 3])
def test_host_memory_outlives_the_driver_and_is_zeroed_from_outside(seed: int | None) -> None:
    bench = Bench(seed)
    block = bench.loaded.block_bytes
    assert bench.loaded.num_host_blocks == HOST_BYTES // block
    bench.submit(Queue.COMPUTE, *_step())
    bench.order()
    out = base.Copy(Direction.D2H, ints([1, 1]), ints([5, 6]))
    bench.submit(Queue.COPY_OUT, out)
    bench.order()
    (want,) = _sums(bench, [1])
    bench.link.die()
    with pytest.raises(LinkDown):
        bench.link.receive()
    bench.start()
    bench.link.zero_host([(6 * block, block)])
    bench.submit(Queue.COPY_IN, base.Copy(Direction.H2D, ints([5, 6, 7]), ints([3, 4, 5])))
    bench.order()
    kept, zeroed, never = _sums(bench, [3, 4, 5])
    assert kept == want != zeroed == never


def _sums(bench: Bench, blocks: list[int]) -> list[str]:
    bench.submit(Queue.COMPUTE, base.Checksum(ints(blocks)))
    bench.link.pump()
    (complete,) = bench.answers()
    return list(complete.results[0])
