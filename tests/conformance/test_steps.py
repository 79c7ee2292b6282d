"""Forward steps: the same ids however a sequence is cut, batched, shared, copied or recomputed."""

from random import Random

import pytest

from drivers import base
from drivers.base import FaultKind
from tests.helpers.device import Device
from tests.helpers.plans import Drawn, Part, step_ops

KV_DTYPES = True
BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
PROMPT = 45  # two blocks and a bit
COUNT = 8


@pytest.fixture
def prompt(device: Device) -> list[int]:
    return device.prompt(PROMPT)


@pytest.fixture
def reference(device: Device, prompt: list[int]) -> list[Drawn]:
    """What the prompt gives alone, prefilled whole."""
    return device.generate(prompt, COUNT)


@BOTH
@pytest.mark.parametrize("chunk", [1, 7, 16, 44])
def test_chunked_prefill_equals_whole(
    device: Device, prompt: list[int], reference: list[Drawn], chunk: int
) -> None:
    assert device.same(device.generate(prompt, COUNT, chunk=chunk), reference)


def test_decoding_equals_prefilling_the_same_ids(
    device: Device, prompt: list[int], reference: list[Drawn]
) -> None:
    ids = prompt + [drawn.id for drawn in reference[:-1]]
    again = device.prefill(ids, device.blocks_for(len(ids)))
    assert device.same([again], reference[-1:])


def test_all_ids_matter(device: Device, prompt: list[int], reference: list[Drawn]) -> None:
    for index in (0, 17, PROMPT - 1):
        other = list(prompt)
        other[index] = (other[index] + 1) % device.loaded.vocab
        assert device.generate(other, COUNT) != reference


@BOTH
def test_batch_of_unequal_sequences_equals_each_alone(device: Device) -> None:
    lengths = [1, 2, 15, 16, 17, 33, 50]
    prompts = [device.prompt(length, seed=length) for length in lengths]
    alone = []
    for ids in prompts:
        alone.append(device.generate(ids, 4))
        device.renew()
    tables = [device.blocks_for(len(ids) + 4) for ids in prompts]
    rows = device.step(*(Part(p, 0, t) for p, t in zip(prompts, tables, strict=True)))
    runs = [[row] for row in rows]
    for extra in range(3):
        rows = device.step(
            *(
                Part([run[-1].id], length + extra, table)
                for run, length, table in zip(runs, lengths, tables, strict=True)
            )
        )
        for run, row in zip(runs, rows, strict=True):
            run.append(row)
    for one, other in zip(runs, alone, strict=True):
        assert device.same(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_prefill_and_decode_equals_step_by_step(device: Device, seed: int) -> None:
    """Continuous batching: in each step some sequences prefill a chunk and others decode."""
    random = Random(seed)
    prompts = [device.prompt(random.randrange(1, 60), seed=seed * 100 + n) for n in range(6)]
    expected = []
    for ids in prompts:
        expected.append(device.generate(ids, COUNT))
        device.renew()
    tables = [device.blocks_for(len(ids) + COUNT) for ids in prompts]
    ids_of = [list(ids) for ids in prompts]
    done, runs = [0] * 6, [list[Drawn]() for _ in range(6)]
    while any(len(run) < COUNT for run in runs):
        parts, chosen = [], []
        for n in random.sample(range(6), random.randrange(1, 7)):
            if len(runs[n]) == COUNT:
                continue
            end = min(len(ids_of[n]), done[n] + random.randrange(1, 20))
            draws = end == len(ids_of[n])
            parts.append(Part(ids_of[n][done[n] : end], done[n], tables[n], slot=n, draws=draws))
            done[n] = end
            chosen += [n] * draws
        if parts:
            for n, drawn in zip(chosen, device.step(*parts), strict=True):
                runs[n].append(drawn)
                ids_of[n].append(drawn.id)
    for run, alone in zip(runs, expected, strict=True):
        assert device.same(run, alone)


# --- sharing ----------------------------------------------------------------------------------


@BOTH
def test_fork_by_copy_equals_recompute(
    device: Device, prompt: list[int], reference: list[Drawn]
) -> None:
    blocks = device.blocks_for(PROMPT + COUNT)
    first = device.prefill(prompt, blocks)
    tail = device.take(2)
    device.copy([blocks[2]], [tail[0]])
    child = [*blocks[:2], *tail]
    other = device.prompt(3, seed=9)
    expected = device.generate([*prompt, *other], COUNT)
    got = device.step(Part(other, PROMPT, child))
    got = device.decode(got[0], PROMPT + 3, child, COUNT)
    assert device.same(got, expected)
    assert device.same(device.decode(first, PROMPT, blocks, COUNT), reference), "the parent"


def test_two_sequences_read_shared_blocks_in_one_step(device: Device, prompt: list[int]) -> None:
    shared = device.take(2)
    device.step(Part(prompt[:32], 0, shared, draws=False))
    ends = [device.prompt(5, seed=21), device.prompt(9, seed=22)]
    tables = [[*shared, *device.take(1)] for _ in ends]
    got = device.step(*(Part(e, 32, t) for e, t in zip(ends, tables, strict=True)))
    for end, row in zip(ends, got, strict=True):
        alone = device.prefill(prompt[:32] + end, device.blocks_for(48))
        assert device.same([row], [alone])


def test_what_a_step_stores_all_of_its_sequences_read(
    device: Device, prompt: list[int], reference: list[Drawn]
) -> None:
    """One sequence fills the shared blocks that another one, listed before it, reads."""
    shared, own = device.take(2), device.take(1)
    got = device.step(
        Part(prompt[32:], 32, [*shared, *own]), Part(prompt[:32], 0, shared, draws=False)
    )
    assert device.same(got, reference[:1])


# --- wrong memory -----------------------------------------------------------------------------


def test_a_wrong_block_changes_the_output(device: Device, prompt: list[int]) -> None:
    blocks = device.blocks_for(PROMPT + COUNT)
    first = device.prefill(prompt, blocks)
    right = device.decode(first, PROMPT, blocks, COUNT)
    other = device.blocks_for(PROMPT + COUNT)
    device.prefill(device.prompt(PROMPT, seed=2), other)
    for index in (0, 1):
        table = list(blocks)
        table[index] = other[index]
        assert device.decode(first, PROMPT, table, COUNT) != right
    swapped = [blocks[1], blocks[0], *blocks[2:]]
    assert device.decode(first, PROMPT, swapped, COUNT) != right


def test_an_overwritten_block_changes_the_output_of_its_users_only(device: Device) -> None:
    prompts = [device.prompt(PROMPT, seed=n) for n in range(4)]
    tables = [device.blocks_for(PROMPT + COUNT) for _ in prompts]
    first = [device.prefill(p, t) for p, t in zip(prompts, tables, strict=True)]

    def outputs() -> list[list[Drawn]]:
        return [device.decode(f, PROMPT, t, COUNT) for f, t in zip(first, tables, strict=True)]

    before = outputs()
    device.copy([tables[3][1]], [tables[1][1]])
    after = outputs()
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, True, False, False]


def test_a_slot_that_was_never_written_faults(device: Device, prompt: list[int]) -> None:
    if not device.bench.faults_on_unwritten:
        pytest.skip("this driver reads zeros")
    blocks = device.blocks_for(PROMPT)
    device.step(Part(prompt[:20], 0, blocks, draws=False))
    ops = step_ops([Part(prompt[25:], 25, blocks)], device.block_size)
    fault = device.refuse(*ops)
    assert fault.kind == FaultKind.PLAN_INVALID
    assert f"block {blocks[1]} offset 8" in fault.message


def test_what_was_written_before_a_fault_is_put_back(device: Device, prompt: list[int]) -> None:
    if not device.bench.faults_on_unwritten:
        pytest.skip("this driver does not fault in the middle of a step")
    blocks, slot = device.blocks_for(PROMPT + 2), 9
    first = device.step(Part(prompt, 0, blocks, slot=slot))
    hole = Part([7], PROMPT, [*device.take(1), *blocks[1:]])
    before = device.checksums()
    reset = base.Reset(slot, 1, base.ints([3]))
    fault = device.refuse(reset, *step_ops([hole], device.block_size))
    assert f"block {hole.blocks[0]} offset 0" in fault.message
    assert device.checksums() == before
    got = device.step(Part([base.LAST_SAMPLE], PROMPT, blocks, slot=slot))
    assert device.same(first + got, device.generate(prompt, 2))


# --- recomputing ------------------------------------------------------------------------------


@BOTH
def test_logits_of_a_filled_position_again_through_the_null_block(
    device: Device, prompt: list[int], reference: list[Drawn]
) -> None:
    blocks = device.blocks_for(PROMPT)
    device.prefill(prompt, blocks)
    before = device.checksums()
    for count in (1, 5, PROMPT):
        start = PROMPT - count
        part = Part(prompt[start:], start, blocks, null_write=True)
        assert device.same(device.step(part), reference[:1])
    assert device.checksums() == before, "nothing real was written"


def test_recompute_reads_the_slot_and_the_token(
    device: Device, prompt: list[int], reference: list[Drawn]
) -> None:
    blocks = device.blocks_for(PROMPT)
    device.prefill(prompt, blocks)
    other = [(prompt[-1] + 1) % device.loaded.vocab]
    assert device.step(Part(other, PROMPT - 1, blocks, null_write=True)) != reference[:1]
    spare = device.blocks_for(PROMPT)
    device.prefill([*prompt[:-1], *other], spare)
    mixed = [*blocks[:2], spare[2]]
    assert device.step(Part(prompt[-1:], PROMPT - 1, mixed, null_write=True)) != reference[:1]


def test_recomputing_into_other_blocks_gives_the_same_bytes(
    device: Device, prompt: list[int]
) -> None:
    one, other = device.blocks_for(PROMPT), device.blocks_for(PROMPT)
    device.prefill(prompt, one)
    device.prefill(prompt, other, chunk=7)
    assert device.checksums(one) == device.checksums(other)


def test_memory_does_not_grow_with_contexts(device: Device) -> None:
    device.generate(device.prompt(8), 2)
    one = device.stats()
    for n in range(40):
        device.renew()
        device.generate(device.prompt(20, seed=n), 2)
    many = device.stats()
    assert many.pool_bytes == one.pool_bytes
    assert many.pool_bytes >= device.loaded.num_blocks * device.loaded.block_bytes
    assert many.steps > one.steps
    assert many.tokens == one.tokens + 40 * 21
    assert many.busy_us >= one.busy_us
