"""Plans that must be refused: whole, as PLAN_INVALID, and nothing has changed afterwards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from drivers import base, wire
from drivers.base import Direction, FaultKind, Fence, Queue, ints, reals
from tests.helpers.device import BLOCK_SIZE, EPOCH, MAX_CTX, NUM_BLOCKS, Device
from tests.helpers.plans import Part, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)


class Good(NamedTuple):
    """A step that works: A prefills 20 ids at 0, B decodes one at 40. Blocks of A, then B.

    `before` is an op that may stand in front of it: it would fill a spare block.
    """

    execute: base.Execute
    sample: base.Sample
    a: list[int]
    b: list[int]
    before: base.Copy
    device: Device

    def with_table(self, **fields: Any) -> base.Execute:
        (table,) = self.execute.tables
        return self.execute._replace(tables=(table._replace(**fields),))

    @property
    def slots(self) -> list[int]:
        return list(base.read_ints(self.execute.tables[0].write_slot))

    def written(self, index: int, slot: int) -> base.Execute:
        slots = self.slots
        slots[index] = slot
        return self.with_table(write_slot=ints(slots))


@pytest.fixture
def good(device: Device) -> Good:
    a, b = device.take(2), device.take(3)
    device.prefill(device.prompt(40, seed=4), b)
    parts = [Part(device.prompt(20), 0, a), Part([5], 40, b)]
    execute, sample = step_ops(parts, device.block_size)
    before = base.Copy(Direction.D2D, ints(b[:1]), ints(device.take(1)))
    return Good(execute, sample, a, b, before, device)


def run(good: Good) -> list[int]:
    sampled = good.device.submit(good.execute, good.sample).results[0]
    return list(base.read_ints(sampled.ids))


T = 21
Break = Callable[[Good], Any]
EXECUTES: dict[str, Break] = {
    "another model": lambda g: g.execute._replace(model=9),
    "no sequence": lambda g: base.Execute(
        0, 0, b"", b"", ints([0]), b"", b"", b"", b"", (base.BlockTable(ints([0]), b"", b""),)
    ),
    "tokens short": lambda g: g.execute._replace(tokens=ints(range(T - 1))),
    "tokens torn": lambda g: g.execute._replace(tokens=g.execute.tokens[:-1]),
    "token beyond vocab": lambda g: g.execute._replace(
        tokens=ints([g.device.loaded.vocab] + [1] * (T - 1))
    ),
    "token negative": lambda g: g.execute._replace(tokens=ints([-2] + [1] * (T - 1))),
    "positions short": lambda g: g.execute._replace(positions=ints(range(T - 1))),
    "positions with a gap": lambda g: g.execute._replace(positions=ints([*range(19), 20, 40])),
    "positions not to kv_len": lambda g: g.execute._replace(kv_len=ints([21, 41])),
    "position negative": lambda g: g.execute._replace(positions=ints([*range(-1, 19), 40])),
    "kv_len less than tokens": lambda g: g.execute._replace(kv_len=ints([10, 41])),
    "kv_len zero": lambda g: g.execute._replace(kv_len=ints([0, 41])),
    "kv_len beyond max_ctx": lambda g: g.execute._replace(
        kv_len=ints([20, MAX_CTX + 1]), positions=ints([*range(20), MAX_CTX])
    ),
    "kv_len short": lambda g: g.execute._replace(kv_len=ints([20])),
    "qo_indptr falls": lambda g: g.execute._replace(qo_indptr=ints([0, 22, T])),
    "qo_indptr does not begin at 0": lambda g: g.execute._replace(qo_indptr=ints([1, 20, T])),
    "qo_indptr does not end at T": lambda g: g.execute._replace(qo_indptr=ints([0, 20, T + 1])),
    "qo_indptr short": lambda g: g.execute._replace(qo_indptr=ints([0, T])),
    "a sequence without tokens": lambda g: g.execute._replace(qo_indptr=ints([0, T, T])),
    "slot twice": lambda g: g.execute._replace(slots=ints([3, 3])),
    "slot negative": lambda g: g.execute._replace(slots=ints([-1, 3])),
    "slot beyond max_seqs": lambda g: g.execute._replace(slots=ints([0, g.device.loaded.max_seqs])),
    "slots short": lambda g: g.execute._replace(slots=ints([0])),
    "generations short": lambda g: g.execute._replace(generations=ints([0])),
    "logit row beyond T": lambda g: g.execute._replace(logit_rows=ints([19, T])),
    "logit row negative": lambda g: g.execute._replace(logit_rows=ints([-1, 20])),
    "no table": lambda g: g.execute._replace(tables=()),
    "two tables": lambda g: g.execute._replace(tables=g.execute.tables * 2),
    "block beyond the pool": lambda g: g.with_table(blocks=ints([*g.a, *g.b[:2], NUM_BLOCKS])),
    "block negative": lambda g: g.with_table(blocks=ints([*g.a, -1, *g.b[1:]])),
    "null block read": lambda g: g.with_table(blocks=ints([*g.a, 0, *g.b[1:]])),
    "table too short": lambda g: g.with_table(
        blocks=ints([*g.a, *g.b[:2]]), indptr=ints([0, 2, 4])
    ),
    "table of the wrong length": lambda g: g.with_table(blocks=ints([*g.a, *g.b, 1])),
    "indptr falls": lambda g: g.with_table(indptr=ints([0, 6, 5])),
    "indptr short": lambda g: g.with_table(indptr=ints([0, 5])),
    "write_slot short": lambda g: g.with_table(write_slot=ints(g.slots[:-1])),
    "write to another sequence's block": lambda g: g.written(20, g.b[0] * BLOCK_SIZE + 8),
    "write off by one": lambda g: g.written(20, g.slots[20] + 1),
    "write beyond the pool": lambda g: g.written(20, NUM_BLOCKS * BLOCK_SIZE),
    "write negative": lambda g: g.written(20, -1),
}


def _too_many_tokens(g: Good) -> Any:
    """One sequence of as many tokens as max_tokens allows, and one more."""
    most = g.device.loaded.max_tokens + 1
    return g.execute._replace(
        tokens=ints([1] * most), positions=ints(range(most)), qo_indptr=ints([0, 1, most])
    )


def _too_many_sequences(g: Good) -> Any:
    most = g.device.loaded.max_seqs + 1
    return base.Execute(
        0, 0, ints([1] * most), ints([0] * most), ints(range(most + 1)), ints([1] * most),
        ints(range(most)), ints([1] * most), b"",
        (base.BlockTable(ints(range(most + 1)), ints([1] * most), ints([0] * most)),),
    )  # fmt: skip


def _too_many_refs(g: Good) -> Any:
    most = g.device.loaded.max_block_refs
    return g.with_table(blocks=ints([*g.a, *g.b] + [1] * most), indptr=ints([0, 2, 5 + most]))


def _written_twice(g: Good) -> Any:
    """Two sequences that share a block write the same slot of it."""
    parts = [Part([5], 40, g.b), Part([6], 40, g.b)]
    return step_ops(parts, BLOCK_SIZE)[0]


EXECUTES |= {
    "too many tokens": _too_many_tokens,
    "too many sequences": _too_many_sequences,
    "too many block references": _too_many_refs,
    "slot written twice": _written_twice,
}


@pytest.mark.parametrize("name", EXECUTES)
def test_invalid_execute(good: Good, name: str) -> None:
    device = good.device
    before = device.checksums()
    broken = EXECUTES[name](good)
    # What stands before it in the Submit is refused with it.
    fault = device.refuse(good.before, broken, good.sample)
    assert fault.kind == FaultKind.PLAN_INVALID, fault.message
    assert device.checksums() == before
    assert run(good), "the device is as good as before"


SAMPLES: dict[str, dict[str, bytes]] = {
    "rows short": {"rows": ints([0])},
    "row beyond the sequences": {"rows": ints([0, 2])},
    "row of another token": {"rows": ints([1, 0])},
    "temperatures short": {"temperature": reals([0])},
    "temperature negative": {"temperature": reals([0, -1])},
    "temperature NaN": {"temperature": reals([0, float("nan")])},
    "temperature infinite": {"temperature": reals([0, float("inf")])},
    "top_k negative": {"top_k": ints([0, -1])},
    "top_p above 1": {"top_p": reals([1, 1.5])},
    "top_p negative": {"top_p": reals([1, -0.5])},
    "min_p above 1": {"min_p": reals([0, 1.5])},
    "seeds short": {"seed": base.seeds([1])},
    "seeds torn": {"seed": bytes(15)},
    "position negative": {"position": ints([20, -1])},
    "num_logprobs below -1": {"num_logprobs": ints([0, -2])},
    "num_logprobs beyond all": {"num_logprobs": ints([0, 1 << 20])},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_invalid_sample(good: Good, name: str) -> None:
    before = good.device.checksums()
    fault = good.device.refuse(good.before, good.execute, good.sample._replace(**SAMPLES[name]))
    assert fault.kind == FaultKind.PLAN_INVALID, fault.message
    assert good.device.checksums() == before
    assert run(good)


OTHERS: dict[str, Break] = {
    "sample without execute": lambda g: g.sample,
    "scrub beyond the pool": lambda g: base.Scrub(ints([g.a[0], NUM_BLOCKS])),
    "scrub negative": lambda g: base.Scrub(ints([-1])),
    "scrub torn": lambda g: base.Scrub(b"123"),
    "checksum beyond the pool": lambda g: base.Checksum(ints([NUM_BLOCKS])),
    "copy of the null block": lambda g: base.Copy(Direction.D2D, ints([0]), ints([g.a[0]])),
    "copy to the null block": lambda g: base.Copy(Direction.D2D, ints([g.b[0]]), ints([0])),
    "copy beyond the pool": lambda g: base.Copy(Direction.D2D, ints([g.b[0]]), ints([NUM_BLOCKS])),
    "copy of unequal lengths": lambda g: base.Copy(Direction.D2D, ints(g.b), ints(g.a)),
    "copy twice to one block": lambda g: base.Copy(Direction.D2D, ints(g.b[:2]), ints(g.a[:1] * 2)),
    "copy in a group that there is not": lambda g: g.before._replace(group=1),
    "scrub in a group that there is not": lambda g: base.Scrub(ints(g.b), 1),
    "export of a group that there is not": lambda g: base.Export(ints(g.b), 0, -1),
    "copy in no direction": lambda g: base.Copy(7, ints(g.b[:1]), ints(g.a[:1])),
    "export beyond the window": lambda g: base.Export(ints(g.b), len(g.device.rig.bulk) - 1),
    "export before the window": lambda g: base.Export(ints(g.b), -1),
    "import beyond the window": lambda g: base.Import(ints(g.a), len(g.device.rig.bulk)),
    "import twice to one block": lambda g: base.Import(ints(g.a[:1] * 2), 0),
    "reset without ids": lambda g: base.Reset(0, 1, b""),
    "reset of no slot": lambda g: base.Reset(-1, 1, ints([1])),
    "reset with strange ids": lambda g: base.Reset(0, 1, ints([-5])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_invalid_op(good: Good, name: str) -> None:
    device = good.device
    before = device.checksums()
    fault = device.refuse(good.before, OTHERS[name](good))
    assert fault.kind == FaultKind.PLAN_INVALID, fault.message
    assert device.checksums() == before
    assert run(good)


@BOTH
def test_results_that_one_message_cannot_hold(good: Good) -> None:
    """Each op is within its own limit, together they are not: nothing runs."""
    device = good.device
    before = device.checksums()
    sums = base.Checksum(ints([1] * base.MAX_CHECKSUMS))
    fault = device.refuse(good.before, sums, sums)
    assert fault.kind == FaultKind.PLAN_INVALID and str(wire.MAX_MESSAGE - 1024) in fault.message
    assert len(device.submit(sums).results[0]) == base.MAX_CHECKSUMS
    best = good.sample._replace(num_logprobs=ints([base.MAX_LOGPROBS] * 2))
    fault = device.refuse(good.before, *[good.execute, *[best] * 190])
    assert fault.kind == FaultKind.PLAN_INVALID
    assert device.checksums() == before
    assert run(good)


# --- fences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gap", "repeated", "epoch", "queue", "model"])
def test_submits_out_of_line(good: Good, name: str) -> None:
    device = good.device
    before = device.checksums()
    passed = device.submit().value
    broken: dict[str, Any] = {
        "gap": {"value": passed + 2},
        "repeated": {"value": passed},
        "epoch": {"value": passed + 1, "epoch": EPOCH - 1},
        "queue": {"value": 1, "queue": 3},
        "model": {"model": 4},
    }[name]
    submit = base.Submit(EPOCH, 0, passed + 1, (), 0, (base.Scrub(ints(good.b)),))
    fault = device.answer(submit._replace(**broken))
    assert fault.kind == FaultKind.PLAN_INVALID
    if name == "model":
        device.next_submit()  # its fence has passed
    assert device.checksums() == before


def test_compute_runs_on_its_own_queue_only(good: Good) -> None:
    fault = good.device.refuse(good.execute, good.sample, queue=Queue.COPY_IN)
    assert fault.kind == FaultKind.PLAN_INVALID


def test_waits_name_what_was_submitted(device: Device) -> None:
    value = device.submit().value
    good = Fence(EPOCH, Queue.COMPUTE, value)
    submit = device.next_submit(queue=Queue.COPY_OUT, waits=[good])
    assert isinstance(device.answer(submit), base.Complete)
    for wrong in (
        good._replace(value=value + 1),
        good._replace(epoch=EPOCH + 1),
        good._replace(value=0),
        good._replace(queue=9),
        Fence(EPOCH, Queue.COPY_OUT, 1),
    ):
        submit = device.next_submit(queue=Queue.COPY_OUT, waits=[wrong])
        fault = device.answer(submit)
        assert fault.kind == FaultKind.PLAN_INVALID, wrong


@BOTH
def test_every_submit_has_one_answer_and_each_queue_its_order(device: Device) -> None:
    submits = []
    for number in range(30):
        ops = [base.Checksum(ints([1]))] if number % 3 else [base.Scrub(ints([1 << 20]))]
        submits.append(device.next_submit(*ops, queue=Queue(number % 3)))
    for submit in submits:
        device.rig.send(submit)
    answers = [device.rig.receive() for _ in submits]
    for queue in Queue:
        fences = [answer[:3] for answer in answers if answer.queue == queue]
        assert fences == [(EPOCH, queue, s.value) for s in submits if s.queue == queue]
    kinds = {answer.queue: type(answer) for answer in answers}
    assert kinds == {0: base.Fault, 1: base.Complete, 2: base.Complete}
    assert isinstance(device.stats(), base.StatsReply), "and nothing after them"
