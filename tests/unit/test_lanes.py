"""Lanes: each queue in order, beside the others but for fences, one answer for every Submit."""

import gc
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from drivers import base
from drivers.base import DriverFault, FaultKind, Fence, Queue
from drivers.lanes import Lanes

EPOCH, PATIENCE_S = 4, 30.0
OUT, IN, COMPUTE = Queue.COPY_OUT, Queue.COPY_IN, Queue.COMPUTE


class Bench:
    """Lanes whose Submits run until they are let go on; `ops` are what they do."""

    def __init__(self, beside: bool = True) -> None:
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.begun: SimpleQueue[Fence] = SimpleQueue()
        self.lanes = Lanes(EPOCH, self.run, self.answers.put)
        self.lanes.beside = beside
        self.values = dict.fromkeys(Queue, 0)

    def run(self, submit: base.Submit) -> tuple[Any, ...]:
        self.begun.put(Fence(*submit[:3]))
        for op in submit.ops:
            if isinstance(op, threading.Event):
                assert op.wait(PATIENCE_S)
            else:
                raise op
        return (threading.current_thread().name,)

    def submit(
        self, queue: Queue, *ops: Any, waits: Sequence[Fence] = (), model: int = 0, skip: int = 0
    ) -> Fence:
        self.values[queue] += 1
        fence = Fence(EPOCH, queue, self.values[queue] + skip)
        self.lanes.submit(base.Submit(*fence, tuple(waits), model, ops))
        return fence

    def next_begun(self) -> Fence:
        return self.begun.get(timeout=PATIENCE_S)

    def answer(self) -> Any:
        return self.answers.get(timeout=PATIENCE_S)

    def fences(self, count: int) -> list[Fence]:
        """Return the fences of the next answers, which must be Completes."""
        answers = [self.answer() for _ in range(count)]
        assert all(isinstance(answer, base.Complete) for answer in answers), answers
        return [Fence(*answer[:3]) for answer in answers]

    def quiet(self) -> bool:
        return self.answers.empty() and self.begun.empty()


def test_queues_run_beside_each_other_and_each_in_order() -> None:
    bench = Bench()
    hold = {queue: threading.Event() for queue in Queue}
    first = [bench.submit(queue, hold[queue]) for queue in Queue]
    second = [bench.submit(queue) for queue in Queue]
    assert {bench.next_begun() for _ in Queue} == set(first), "all at once"
    assert bench.quiet(), "and nothing behind them"
    for queue in (OUT, COMPUTE, IN):
        hold[queue].set()
        assert bench.fences(2) == [first[queue], second[queue]]
    names = set()
    for queue in Queue:
        bench.submit(queue)
        names.add(bench.answer().results[0])
    assert names == {"compute", "copy_out", "copy_in"}


def test_a_wait_holds_up_its_own_queue_only() -> None:
    bench = Bench()
    hold = threading.Event()
    computed = bench.submit(COMPUTE, hold)
    assert bench.next_begun() == computed
    waiting = bench.submit(OUT, waits=[computed])
    behind = bench.submit(OUT)
    chained = bench.submit(IN, waits=[waiting])
    other = bench.submit(COMPUTE)
    assert bench.quiet()
    hold.set()
    order = bench.fences(5)
    assert order.index(computed) < order.index(waiting) < order.index(behind)
    assert order.index(waiting) < order.index(chained) and other in order
    free = bench.submit(IN, waits=[computed, waiting])
    assert bench.fences(1) == [free], "what has passed is not waited for"


def test_a_queue_that_waits_lets_others_pass() -> None:
    bench = Bench()
    hold = threading.Event()
    bench.submit(COMPUTE, hold)
    bench.submit(OUT, waits=[Fence(EPOCH, COMPUTE, 1)])
    passing = [bench.submit(IN) for _ in range(3)]
    assert bench.fences(3) == passing
    hold.set()
    bench.fences(2)


def test_faults_come_in_their_turn_and_pass_their_fence() -> None:
    bench = Bench()
    hold = threading.Event()
    held = bench.submit(OUT, hold)
    bench.next_begun()
    failed = bench.submit(OUT, DriverFault(FaultKind.COPY_FAILED, "no", (7,)))
    refused = bench.submit(OUT, waits=[Fence(EPOCH, IN, 9)])
    waiting = bench.submit(IN, waits=[failed, refused])
    assert bench.quiet()
    hold.set()
    answers = [bench.answer() for _ in range(4)]
    assert [Fence(*answer[:3]) for answer in answers[:3]] == [held, failed, refused]
    assert answers[1][3:6] == (FaultKind.COPY_FAILED, "no", (7,))
    assert answers[2].kind == FaultKind.PLAN_INVALID and "never submitted" in answers[2].message
    assert Fence(*answers[3][:3]) == waiting and isinstance(answers[3], base.Complete)


@pytest.mark.parametrize("beside", [True, False])
def test_a_fence_out_of_line_is_refused_and_is_nobodys(beside: bool) -> None:
    bench = Bench(beside)
    bench.submit(COMPUTE, skip=3)
    bench.lanes.submit(base.Submit(EPOCH, 7, 1, (), 0, ()))
    bench.lanes.submit(base.Submit(EPOCH + 1, COMPUTE, 1, (), 0, ()))
    assert {bench.answer().kind for _ in range(3)} == {FaultKind.PLAN_INVALID}
    bench.values[COMPUTE] = 0
    right = bench.submit(COMPUTE)
    assert bench.fences(1) == [right]
    waiting = bench.submit(OUT, waits=[right])
    assert bench.fences(1) == [waiting]


def test_a_fence_that_is_nobodys_lets_nobody_pass() -> None:
    bench = Bench()
    bench.submit(COMPUTE, skip=3)
    assert bench.answer().kind == FaultKind.PLAN_INVALID
    bench.values[COMPUTE] = 0
    hold = threading.Event()
    right = bench.submit(COMPUTE, hold)
    assert bench.next_begun() == right
    waiting, free = bench.submit(OUT, waits=[right]), bench.submit(IN)
    assert bench.fences(1) == [free] and bench.next_begun() == free
    assert bench.quiet()
    hold.set()
    assert bench.fences(2) == [right, waiting]


@pytest.mark.parametrize("queue", [COMPUTE, OUT])
def test_what_the_driver_does_not_know_is_a_device_lost_without_its_text(queue: Queue) -> None:
    bench = Bench()
    fence = bench.submit(queue, RuntimeError("the user wrote: my secret"))
    fault = bench.answer()
    assert fault[:4] == (*fence, FaultKind.DEVICE_LOST)
    assert "RuntimeError" in fault.message and "secret" not in fault.message
    after = bench.submit(queue)
    assert bench.fences(1) == [after]


def test_an_answer_that_cannot_be_sent_is_told_as_a_fault() -> None:
    said: SimpleQueue[Any] = SimpleQueue()

    def emit(message: Any) -> None:
        if isinstance(message, base.Complete):
            raise ValueError("larger than a message")
        said.put(message)

    lanes = Lanes(EPOCH, lambda submit: (), emit)
    lanes.submit(base.Submit(EPOCH, OUT, 1, (), 0, ()))
    assert said.get(timeout=PATIENCE_S).kind == FaultKind.DEVICE_LOST
    lanes.drain()


def test_drain_waits_for_one_model_or_for_all() -> None:
    bench = Bench()
    hold = threading.Event()
    bench.submit(OUT, hold, model=1)
    bench.submit(IN, model=2)
    bench.next_begun()
    bench.lanes.drain(2)
    assert bench.answers.qsize() == 1
    bench.lanes.drain(3)
    done = threading.Event()

    def drain() -> None:
        bench.lanes.drain(1)
        bench.lanes.drain()
        done.set()

    waiting = threading.Thread(target=drain)
    waiting.start()
    assert not done.is_set()
    hold.set()
    waiting.join(PATIENCE_S)
    assert done.is_set() and bench.answers.qsize() == 2


def test_compute_is_run_by_whoever_submits_until_it_has_a_thread() -> None:
    bench = Bench(beside=False)
    bench.submit(COMPUTE)
    assert bench.answers.get_nowait().results == (threading.current_thread().name,)
    hold = threading.Event()
    copied = bench.submit(OUT, hold)
    bench.begun.get(timeout=PATIENCE_S), bench.begun.get(timeout=PATIENCE_S)
    hold.set()
    computed = bench.submit(COMPUTE, waits=[copied])
    assert bench.fences(2) == [copied, computed]
    bench.lanes.beside = True
    bench.submit(COMPUTE)
    assert bench.answer().results == ("compute",)


def test_busy_is_what_compute_takes() -> None:
    bench = Bench()
    for queue in Queue:
        bench.submit(queue)
    took = {
        answer.queue: answer.end_us - answer.start_us for answer in (bench.answer() for _ in Queue)
    }
    bench.lanes.drain()
    assert bench.lanes.busy_us == took[COMPUTE]


def test_threads_end_with_what_they_work_for() -> None:
    """Also if nobody closes it: a driver that is dropped leaves neither threads nor its memory."""
    before = set(threading.enumerate())
    bench = Bench()
    for queue in Queue:
        bench.submit(queue)
    bench.fences(3)
    bench.lanes.drain()
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del bench
    gc.collect()
    for thread in started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_one_answer_each_under_load() -> None:
    bench = Bench()
    count = 300
    sent = []
    for number in range(count):
        queue = Queue(number % 3)
        waits = [fence for fence in sent[-5:] if fence.queue != queue]
        sent.append(bench.submit(queue, waits=waits))
    order = bench.fences(count)
    place = {fence: at for at, fence in enumerate(order)}
    assert len(place) == count
    for number, fence in enumerate(sent):
        waited = [
            other for other in sent[max(0, number - 5) : number] if other.queue != fence.queue
        ]
        assert all(place[other] < place[fence] for other in waited)
    with pytest.raises(Empty):
        bench.answers.get_nowait()
