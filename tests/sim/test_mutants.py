"""The suite is worth something only if it fails when it should: bugs, planted one at a time."""

from collections.abc import Callable
from typing import Any

import pytest

from drivers import null, null_model, slots
from kernel import slots as kernel_slots
from kernel.block import Block
from kernel.context import Context
from kernel.panic import KernelPanic
from kernel.places import Places
from kernel.pool import BlockPool
from kernel.sched import Scheduler
from kernel.session import Session
from tests.helpers.crowd import Crowd
from tests.helpers.sim import Sim

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_block(patch: pytest.MonkeyPatch) -> None:
    table = Context.table

    def mixed_up(self: Context, length: int) -> Any:
        right = table(self, length)
        if len(right) > 2:
            right[0], right[1] = right[1], right[0]
        return right

    patch.setattr(Context, "table", mixed_up)


def early_reuse(patch: pytest.MonkeyPatch) -> None:
    vacate = BlockPool._leave_device

    def at_once(self: BlockPool, block: Block) -> None:
        self._free.append(block.id)
        vacate(self, block)

    patch.setattr(BlockPool, "_leave_device", at_once)


def free_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    take_scrubs = BlockPool.take_scrubs

    def and_pass(self: BlockPool, value: int) -> tuple[list[int], list[int]]:
        taken = take_scrubs(self, value)
        self.fence_passed(value)
        return taken

    patch.setattr(BlockPool, "take_scrubs", and_pass)
    patch.setattr("kernel.device.step_ops", _scrub_last)


def _scrub_last(
    model: int, number: int, entries: Any, copies: Any, dirty: list[int], recycled: list[int]
) -> Any:
    from kernel.step import step_ops

    ops = step_ops(model, number, entries, copies, dirty, recycled)
    return (*(op for op in ops if type(op).__name__ != "Scrub"),
            *(op for op in ops if type(op).__name__ == "Scrub"))  # fmt: skip


def skipped_copy(patch: pytest.MonkeyPatch) -> None:
    copies = Places.copies

    def none(self: Places) -> list[tuple[int, int]]:
        copies(self)
        return []

    patch.setattr(Places, "copies", none)


def skipped_scrub(patch: pytest.MonkeyPatch) -> None:
    take_scrubs = BlockPool.take_scrubs

    def all_but_one(self: BlockPool, value: int) -> tuple[list[int], list[int]]:
        recycled, dirty = take_scrubs(self, value)
        return recycled, dirty[1:]

    patch.setattr(BlockPool, "take_scrubs", all_but_one)


def cached_block_taken_as_it_is(patch: pytest.MonkeyPatch) -> None:
    take_scrubs = BlockPool.take_scrubs
    patch.setattr(BlockPool, "take_scrubs", lambda self, value: ([], take_scrubs(self, value)[1]))


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    def in_place(self: Context, offset: int) -> Block:
        tail = self.blocks[-1]
        del tail.ids[offset:]
        return tail

    patch.setattr(Context, "_own_tail", in_place)


def kv_survives_the_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "lose_device", lambda self: None)


def leaked_block(patch: pytest.MonkeyPatch) -> None:
    def never(self: BlockPool, block: Block) -> None:
        block.refs -= 1

    patch.setattr(BlockPool, "unref", never)


def stale_cursor(patch: pytest.MonkeyPatch) -> None:
    evict = BlockPool.evict

    def quietly(self: BlockPool, block: Block) -> None:
        evict(self, block)
        self.generation -= 1

    patch.setattr(BlockPool, "evict", quietly)


def sealed_block_written_again(patch: pytest.MonkeyPatch) -> None:
    span = Scheduler._span

    def past(self: Scheduler, request: Any, budget: int) -> tuple[int, int]:
        start, end = span(self, request, budget)
        return max(0, start - 1), end

    patch.setattr(Scheduler, "_span", past)


def answered_twice(patch: pytest.MonkeyPatch) -> None:
    finish = Session.finish

    def twice(self: Session, call: int, *rest: Any) -> None:
        row = self.open[call]
        finish(self, call, *rest)
        self.open[call] = row
        finish(self, call, *rest)

    patch.setattr(Session, "finish", twice)


def lost_answer(patch: pytest.MonkeyPatch) -> None:
    fail = Session.fail

    def sometimes(self: Session, call: int, error: Any) -> None:
        fail(self, call, error)
        self._events.pop()

    patch.setattr(Session, "fail", sometimes)


def claim_outlives_a_trim(patch: pytest.MonkeyPatch) -> None:
    own_tail = Context._own_tail

    def keeps_it(self: Context, offset: int) -> Block:
        before, claimed = self.blocks[-1], self.blocks[-1].origin_len
        tail = own_tail(self, offset)
        if tail is before:
            tail.origin_len = claimed
        return tail

    patch.setattr(Context, "_own_tail", keeps_it)


def counts_of_the_request_before(patch: pytest.MonkeyPatch) -> None:
    reset = slots.reset

    def added(known: dict[int, Any], op: Any, ids: Any, grammars: Any) -> None:
        before = known.get(op.slot)
        reset(known, op, ids, grammars)
        counts = known[op.slot].adjust and known[op.slot].adjust.counts
        if op.start == 0 and counts and before and before.adjust and before.adjust.counts:
            length, old = counts.length, before.adjust.counts
            counts.add([token for token in old.ids for _ in range(2)])
            counts.length = length

    patch.setattr(slots, "reset", added)


def prompt_counted_as_output(patch: pytest.MonkeyPatch) -> None:
    begin = slots.Counts.__init__
    patch.setattr(slots.Counts, "__init__", lambda self, num_prompt: begin(self, 0))


def drawn_ids_not_counted(patch: pytest.MonkeyPatch) -> None:
    def only_the_length(self: Any, token: int) -> None:
        self.length += 1

    patch.setattr(slots.Counts, "_add_one", only_the_length)


def output_begins_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """penalize_from is not heeded."""
    part = kernel_slots._part

    def later(request: Any, room: int) -> Any:
        op, size = part(request, room)
        return (op._replace(num_prompt=request.prompt) if op.num_prompt >= 0 else op), size

    patch.setattr(kernel_slots, "_part", later)


def slots_outlive_the_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "lose_slots", lambda self: None)


def bias_after_top_k(patch: pytest.MonkeyPatch) -> None:
    """Which ids are left is decided before the bias."""
    logits, draw = null_model.adjusted_logits, null_model.adjusted_draw
    top_k = 0

    def among_the_best(best: int, adjust: Any, vocab: int) -> Any:
        row = logits(best, adjust, vocab)
        plain = logits(best, adjust._replace(bias_ids=(), bias=()), vocab)
        floor = sorted(plain)[-top_k] if top_k else -1e9
        return [a if b >= floor else -1e3 for a, b in zip(row, plain, strict=True)]

    def noting(history: bytes, how: Any, adjust: Any, vocab: int, mask: bytes | None) -> int:
        nonlocal top_k
        top_k = how.top_k
        return draw(history, how, adjust, vocab, mask)

    patch.setattr(null_model, "adjusted_logits", among_the_best)
    patch.setattr(null, "adjusted_draw", noting)


def penalties_before_bias(patch: pytest.MonkeyPatch) -> None:
    logits = null_model.adjusted_logits

    def other_way_round(best: int, adjust: Any, vocab: int) -> Any:
        row = list(logits(best, adjust._replace(bias_ids=(), bias=()), vocab))
        for token, bias in zip(adjust.bias_ids, adjust.bias, strict=True):
            row[token] += bias
        return row

    patch.setattr(null_model, "adjusted_logits", other_way_round)


def score_of_the_row_before(patch: pytest.MonkeyPatch) -> None:
    score = null.NullModel._score

    def stale(self: Any, given: Any, rows: Any) -> Any:
        return score(self, given, [rows[0], *rows[:-1]])

    patch.setattr(null.NullModel, "_score", stale)


def score_skips_what_is_computed(patch: pytest.MonkeyPatch) -> None:
    span = Scheduler._span

    def onwards(self: Scheduler, request: Any, budget: int) -> tuple[int, int]:
        start, end = span(self, request, budget)
        if request.score and end < request.target:
            return start, min(end, start + max(1, (end - start) // 2))
        return (start, end) if not request.score else (max(start, end - 8), end)

    patch.setattr(Scheduler, "_span", onwards)


def score_writes_what_is_shared(patch: pytest.MonkeyPatch) -> None:
    def always(entry: Any, table: Any, ctx: Context) -> list[int]:
        size = ctx.pool.block_size
        return [table[p // size] * size + p % size for p in range(entry.start, entry.end)]

    patch.setattr("kernel.step._write_slots", always)


PLANTS: list[Plant] = [
    wrong_block, early_reuse, free_before_the_fence, skipped_copy, skipped_scrub,
    no_copy_on_write, kv_survives_the_driver, leaked_block, stale_cursor,
    sealed_block_written_again, answered_twice, lost_answer,
    claim_outlives_a_trim,
    counts_of_the_request_before, prompt_counted_as_output, drawn_ids_not_counted,
    output_begins_at_the_end, slots_outlive_the_driver, bias_after_top_k, penalties_before_bias,
    score_of_the_row_before, score_skips_what_is_computed, score_writes_what_is_shared,
]  # fmt: skip


def live(seed: int) -> None:
    sim = Sim(seed)
    crowd = Crowd(sim, 24)
    crowd.run(4_000, deaths=0.004, checks=0.05)
    crowd.leave()
    crowd.check_ended()
    sim.check_empty()


SEEDS = 2, 5
"""Most bugs end the first life; some need the second."""


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KernelPanic, KeyError, IndexError)):
        for seed in SEEDS:
            live(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_bug_the_same_lives_pass(seed: int) -> None:
    live(seed)
