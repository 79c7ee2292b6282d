"""Every knob of inference through real processes: client, kernel, driver host, and back.

On the null driver, where exact ids follow from ids alone; on the CPU driver in deterministic mode
with a tiny model, compared with the same model written down in numpy.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from syscalls import aio
from syscalls.client import Task
from syscalls.context import Answers, Context
from syscalls.errors import E2BIG, EINVAL
from syscalls.sampling import GOLDEN
from tests.helpers import tiny_model
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.oracle import VOCAB, Knobs, adjusted, expected, scores
from tests.helpers.plain_decoder import Plain

PROMPT = [3, 7, 3, 9, 200, 7]
COUNT = 24
KNOBS = Knobs(
    2.0, top_k=60, top_p=0.95, seed=11, repetition=1.25, presence=0.5, frequency=0.25,
    bias=((4, 6.0), (90, 40.5)),
)  # fmt: skip


def how(knobs: Knobs, **more: Any) -> dict[str, Any]:
    """Return the arguments of an infer."""
    return {
        "max_tokens": COUNT, "temperature": knobs.temperature, "top_k": knobs.top_k,
        "top_p": knobs.top_p, "min_p": knobs.min_p, "seed": knobs.seed, "ignore_eos": True,
        "repetition_penalty": knobs.repetition, "presence_penalty": knobs.presence,
        "frequency_penalty": knobs.frequency, "logit_bias": dict(knobs.bias), "text": False,
    } | more  # fmt: skip


def context(task: Task, ids: list[int]) -> Context:
    ctx = task.alloc_ctx()
    ctx.append(ids)
    return ctx


def contexts(task: Task) -> int:
    return sum(row.pid == task.pid for row in task.contexts())


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("null"), builtin="null:vocab=251,step_us=2000") as running:
        yield running


@pytest.fixture
def task(null: Daemon) -> Iterator[Task]:
    with null.connect() as task:
        yield task


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tiny_model.install(tmp_path_factory.mktemp("tiny"))
    options = ("--device", "cpu0", "--model", "tiny", "--model-dir", folder, "--threads", "1")
    exact = ("--dtype", "float32", "--deterministic", "--num-blocks", "200")
    with daemon(tmp_path_factory.mktemp("cpu"), *options, *exact) as running:
        yield running


@pytest.fixture
def real(cpu: Daemon) -> Iterator[Task]:
    with cpu.connect() as task:
        yield task


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(tiny_model.values(tiny_model.shapes()))


# --- null: streams ----------------------------------------------------------------------------


def test_an_adjusted_stream_survives_its_driver_host(task: Task) -> None:
    ids = []
    for number, piece in enumerate(context(task, PROMPT).infer(**how(KNOBS))):
        ids.append(piece.id)
        if number in (4, 12):
            before = task.devices()[0]
            os.kill(before.host_pid, signal.SIGKILL)
            eventually(lambda: task.devices()[0].epoch > before.epoch, "the next epoch")  # noqa: B023
    assert ids == expected(PROMPT, COUNT, KNOBS)
    assert task.devices()[0].epoch >= 3


def test_it_goes_on_after_a_cancel(task: Task) -> None:
    ctx = context(task, PROMPT)
    stream = ctx.infer(**how(KNOBS))
    for _ in range(7):
        next(stream)
    stream.cancel(keep=7)
    rest = ctx.infer(**how(KNOBS, max_tokens=COUNT - 7, penalize_from=len(PROMPT)))
    assert stream.ids + [piece.id for piece in rest] == expected(PROMPT, COUNT, KNOBS)


def seed_of(index: int) -> int:
    return (KNOBS.seed + index * GOLDEN) % 2**64


def test_n_answers_differ_by_their_index_and_leave_nothing(task: Task) -> None:
    ctx = context(task, PROMPT)
    with ctx.infer_n(4, **how(KNOBS)) as answers:
        assert len(answers) == 4 and contexts(task) == 5
        for index in (2, 0, 3, 1):
            own = expected(PROMPT, COUNT, KNOBS._replace(seed=seed_of(index)))
            assert [piece.id for piece in answers[index]] == own
            assert answers[index].seed == seed_of(index)
            assert answers[index].ids == answers.contexts[index].read()[len(PROMPT) :]
    assert contexts(task) == 1 and ctx.read() == PROMPT
    alone = ctx.fork().infer(**how(KNOBS))
    assert [piece.id for piece in alone] == answers[0].ids, "the first is what infer gives"


def test_n_answers_with_one_seed_are_one_answer(task: Task) -> None:
    answers = context(task, PROMPT).infer_n(3, same_seed=True, **how(KNOBS))
    answers.read()
    assert [stream.ids for stream in answers] == [expected(PROMPT, COUNT, KNOBS)] * 3
    without = context(task, PROMPT).infer_n(3, **how(KNOBS, seed=None))
    without.read()
    assert len({tuple(stream.ids) for stream in without}) == 3
    base = without[0].seed
    assert base is not None
    assert [stream.seed for stream in without] == [(base + n * GOLDEN) % 2**64 for n in range(3)]


def test_a_kept_fork_stays(task: Task) -> None:
    with context(task, PROMPT).infer_n(3, **how(KNOBS)) as answers:
        kept = answers.keep(1)
    assert contexts(task) == 2
    assert kept.read()[: len(PROMPT)] == PROMPT
    kept.free()
    answers.free()
    assert contexts(task) == 1


def test_forks_go_whatever_happens(task: Task) -> None:
    ctx = context(task, PROMPT)

    def broken(answers: Answers) -> None:
        with answers:
            next(answers[1])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken(ctx.infer_n(3, **how(KNOBS, max_tokens=4000)))
    assert contexts(task) == 1
    with pytest.raises(EINVAL, match="vocabulary"):
        ctx.infer_n(3, **how(KNOBS, logit_bias={VOCAB: 1.0})).read()
    assert contexts(task) == 1
    for n in (0, -1):
        with pytest.raises(EINVAL):
            ctx.infer_n(n)
    with pytest.raises(EINVAL, match="stop"):
        ctx.infer_n(2, stop="x", text=False)
    eventually(lambda: contexts(task) == 1)


def test_the_asyncio_twin(null: Daemon) -> None:
    async def body() -> None:
        async with await aio.connect("twin", address=null.address) as task:
            ctx = await task.alloc_ctx()
            await ctx.append(PROMPT)
            async with await ctx.infer_n(3, **how(KNOBS)) as answers:

                async def ids(index: int) -> list[int | None]:
                    return [piece.id async for piece in answers[index]]

                got = await asyncio.gather(*map(ids, range(3)))
                kept = answers.keep(2)
            for index, own in enumerate(got):
                assert own == expected(PROMPT, COUNT, KNOBS._replace(seed=seed_of(index)))
            assert sum(row.pid == task.pid for row in await task.contexts()) == 2
            await kept.free()
            scored = await ctx.score([[5, 6], [7]], top=2)
            assert [s.ids for s in scored] == [(5, 6), (7,)]
            assert scored[0].logprobs == pytest.approx(scores([*PROMPT, 5, 6], 6), abs=1e-3)
            assert (await ctx.prompt_logprobs()).ids == tuple(PROMPT[1:])
            assert await (await ctx.infer_n(2, max_tokens=2, text=False)).read() == ["", ""]
            assert sum(row.pid == task.pid for row in await task.contexts()) == 1

    asyncio.run(body())


# --- null: scores -----------------------------------------------------------------------------


def test_scores_of_continuations(task: Task) -> None:
    ctx = context(task, PROMPT)
    tails = [[n, 250 - n, *range(n)] for n in range(1, 12)]
    scored = ctx.score(tails)
    for tail, one in zip(tails, scored, strict=True):
        right = scores(PROMPT + tail, len(PROMPT))
        assert list(one.ids) == tail and one.top == ()
        assert list(one.logprobs) == pytest.approx(right, abs=1e-3)
        assert one.total == pytest.approx(sum(right), abs=1e-2)
        assert one.mean == pytest.approx(sum(right) / len(tail), abs=1e-3)
    assert ctx.read() == PROMPT and contexts(task) == 1
    (best,) = ctx.score([[5]], top=3)
    assert len(best.top) == 1 and len(best.top[0]) == 3
    assert ctx.score([]) == []


def test_prompt_logprobs_also_while_it_generates(task: Task) -> None:
    ctx = context(task, PROMPT)
    stream = ctx.infer(**how(KNOBS))
    next(stream)
    scored = ctx.prompt_logprobs(top=1)
    assert list(scored.ids[:5]) == PROMPT[1:] and len(scored.top) == len(scored.ids)
    right = scores([PROMPT[0], *scored.ids], 1)
    assert list(scored.logprobs) == pytest.approx(right, abs=1e-3)
    assert [piece.id for piece in stream] == expected(PROMPT, COUNT, KNOBS)[1:]


def test_scores_leave_nothing_when_one_is_refused(task: Task) -> None:
    ctx = context(task, PROMPT)
    with pytest.raises(EINVAL, match=str(VOCAB)):
        ctx.score([[1], [VOCAB], [2]])
    with pytest.raises(E2BIG):
        ctx.score([[1], [1] * 9000])
    eventually(lambda: contexts(task) == 1)
    with pytest.raises(EINVAL, match="continuation 1"):
        ctx.score([[1], []])
    with pytest.raises(EINVAL, match="no tokenizer"):
        ctx.score(["text"])
    with pytest.raises(EINVAL, match="list"):
        ctx.score("text")
    with pytest.raises(EINVAL, match="empty"):
        task.alloc_ctx().score([[1]])
    with pytest.raises(EINVAL, match="position 1"):
        context(task, [1]).prompt_logprobs()
    with pytest.raises(EINVAL, match="score"):
        ctx.infer(max_tokens=0)
    assert ctx.read() == PROMPT


# --- cpu --------------------------------------------------------------------------------------


def bits(stream: Any) -> list[tuple[int, float]]:
    return [(piece.id, piece.logprob) for piece in stream]


def test_greedy_with_everything_on_is_what_numpy_says(real: Task, plain: Plain) -> None:
    prompt = [5, 9, 200, 9, 31]
    spread = float(np.ptp(plain.logits(prompt)[-1]))
    for knobs in (
        Knobs(repetition=1.75), Knobs(presence=1.5, frequency=0.75),
        Knobs(bias=((7, spread / 2), (19, spread / 3))), Knobs(repetition=0.75),
        Knobs(repetition=1.25, presence=1.0, frequency=0.5, bias=((40, spread / 2),)),
    ):  # fmt: skip
        ids, gaps = list(prompt), []
        for _ in range(COUNT):
            row = adjusted(ids, knobs._replace(output_from=5), list(plain.logits(ids)[-1]))
            order = sorted(range(len(row)), key=lambda token: -row[token])
            ids.append(order[0])
            gaps.append(row[order[0]] - row[order[1]])
        sure = next((n for n, gap in enumerate(gaps) if gap < 1e-3), COUNT)
        assert sure >= COUNT // 2
        stream = context(real, prompt).infer(**how(knobs, logprobs=0))
        got = bits(stream)
        assert [token for token, _ in got[:sure]] == ids[5 : 5 + sure]
        model = plain.logprobs(ids)
        for place, (token, logprob) in enumerate(got[:sure], 5):
            assert logprob == pytest.approx(model[place - 1][token], abs=1e-3)


def test_the_same_bits_whatever_happens(real: Task) -> None:
    """Alone, in a batch of eight, cut and taken up, forked, and after the host was killed."""
    knobs = KNOBS._replace(bias=((4, 3.0), (90, 1.5)), frequency=1.0)
    sampling = how(knobs, logprobs=0)
    alone = bits(context(real, PROMPT).infer(**sampling))
    assert len({token for token, _ in alone}) > 5
    others = [context(real, [n, *PROMPT]).infer(**how(knobs, seed=n)) for n in range(4)]
    mine = context(real, PROMPT).infer(**sampling)
    others += [context(real, [n, 8]).infer(**how(Knobs(n / 2, seed=n))) for n in range(3)]
    assert bits(mine) == alone
    for other in others:
        other.read()

    ctx = context(real, PROMPT)
    stream = ctx.infer(**sampling)
    first = [next(stream) for _ in range(9)]
    stream.cancel(keep=9)
    child = ctx.fork()
    rest = how(knobs, logprobs=0, max_tokens=COUNT - 9, penalize_from=len(PROMPT))
    assert bits(first) + bits(ctx.infer(**rest)) == alone
    assert bits(first) + bits(child.infer(**rest)) == alone

    epoch = real.devices()[0].epoch
    got: list[tuple[int, float]] = []
    for number, piece in enumerate(context(real, PROMPT).infer(**sampling)):
        got += bits([piece])
        if number == COUNT // 2:
            os.kill(real.devices()[0].host_pid, signal.SIGKILL)
    assert got == alone
    eventually(lambda: real.devices()[0].epoch == epoch + 1, "the next epoch")


def test_scores_are_what_numpy_says(real: Task, plain: Plain) -> None:
    prompt = [(11 * n) % 251 for n in range(60)]
    ctx = context(real, prompt)
    tails = [[3, 4, 5], [9], [(5 * n) % 251 for n in range(40)]]
    running = context(real, [7]).infer(**how(Knobs(), max_tokens=100))
    for tail, scored in zip(tails, ctx.score(tails, top=2), strict=True):
        model = plain.logprobs(prompt + tail)
        for place, (token, logprob) in enumerate(zip(tail, scored.logprobs, strict=True), 60):
            assert logprob == pytest.approx(model[place - 1][token], abs=2e-3)
            best = [token for token, _ in scored.top[place - 60]]
            assert best[0] == int(model[place - 1].argmax())
    own = ctx.prompt_logprobs()
    model = plain.logprobs(prompt)
    right = [model[place - 1][prompt[place]] for place in range(1, 60)]
    assert list(own.logprobs) == pytest.approx(right, abs=2e-3)
    again = ctx.prompt_logprobs()
    assert again == own, "computed or not, the same bits"
    running.cancel()
    assert ctx.read() == prompt
