"""The client and saves: messages come back with a context, whatever else comes is survived."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgpack
import pytest

from syscalls import abi, aio, connect
from syscalls.client import Task
from syscalls.conversation import Turn
from syscalls.errors import EBADCTX, ENOENT, ENOTSUP, EPROTO
from syscalls.text import TextModel
from syscalls.turnmarks import VERSION, marks_of, packed, recalled
from syscalls.wire import Request
from tests.helpers.byte_tokenizer import byte_tokenizer
from tests.helpers.fake_kernel import HOLD, FakeKernel, Reply
from tests.helpers.shell import TEMPLATE

TURNS = (Turn("system", "Be brief.", 30), Turn("user", "Hé", 60), Turn("assistant", "yes", 85))


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as kernel:
        kernel.parts = {
            "tokenizer.json": byte_tokenizer().encode(),
            "chat_template.jinja": TEMPLATE.encode(),
            "config.json": b'{"eos_token_id": 257}',
        }
        yield kernel


@pytest.fixture
def task(kernel: FakeKernel) -> Iterator[Task]:
    with connect("tester", address=kernel.address) as task:
        yield task


# --- marks ----------------------------------------------------------------------------------------


def test_marks_are_what_was_packed() -> None:
    assert [(m.role, m.start, m.end) for m in marks_of(packed(TURNS), 90)] == [
        ("system", 0, 30), ("user", 30, 60), ("assistant", 60, 85),
    ]  # fmt: skip
    assert packed(()) == b"" and marks_of(b"", 90) == []
    odd = (Turn("critic-2", "", 5),)
    assert marks_of(packed(odd), 5)[0].role == "critic-2"


def test_an_answer_that_is_being_written_goes_to_the_end() -> None:
    said = packed(TURNS[:2], answering=75)
    assert [m.end for m in marks_of(said, 99)] == [30, 60, 99]
    continued = packed(TURNS, answering=85)
    assert [m.end for m in marks_of(continued, 99)] == [30, 60, 99]


def test_the_oldest_messages_are_left_out_when_there_are_too_many() -> None:
    turns = [Turn("user", "", 1000 * n) for n in range(1, 3000)]
    raw = packed(turns)
    assert len(raw) <= abi.MAX_EXTRA
    marks = marks_of(raw, 3_000_000)
    assert len(marks) > 400
    assert marks[-1].end == 2_999_000
    assert all(mark.end - mark.start == 1000 for mark in marks)
    words = [Turn("a" * 32, "", n) for n in range(1, 3000)]
    assert len(packed(words)) <= abi.MAX_EXTRA and len(marks_of(packed(words), 3000)) > 50


def test_what_is_no_mark_means_no_messages() -> None:
    good = packed(TURNS)
    assert marks_of(good, 85) and marks_of(good, 84) == []
    rows = [
        [-1, []], [0.0, []], [0, [[1, -1]]], [0, [[1, 2**70 - 1]]], [0, [[9, 1]]], [0, [[-1, 1]]],
        [0, [[True, 1]]], [0, [[1, True]]], [0, [["", 1]]], [0, [["a b", 1]]], [0, [["é", 1]]],
        [0, [[1, None], [1, 2]]], [0, [[1]]], [0, [[1, 2, 3]]], [0, [5]], [0, {}], [0], [], 7,
        {"start": 0}, [0, [["x" * 33, 1]]], [0, [[b"user", 1]]], [0, None],
    ]  # fmt: skip
    for row in rows:
        try:
            raw = msgpack.packb(row)
        except OverflowError:
            raw = msgpack.packb([0, [[1, 2**64 - 1]]])
        assert marks_of(VERSION + raw, 85) == [], row
    for raw in (b"\x02" + good[1:], good + b"\x00", good[:-1], b"\x01", b"hello", bytes(2049)):
        assert marks_of(raw, 85) == []


def test_random_bytes_never_raise() -> None:
    random, good = Random(5), packed(TURNS)
    for _ in range(4000):
        raw = bytearray(good if random.random() < 0.7 else random.randbytes(40))
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(1, len(raw))] = random.randrange(256)
        marks = marks_of(VERSION + bytes(raw[1:]), 85)
        assert all(0 <= mark.start <= mark.end <= 85 for mark in marks)


def test_texts_come_out_of_the_ids() -> None:
    model = TextModel(byte_tokenizer(), TEMPLATE, {})
    said = [("system", "<|im_end|>"), ("user", "\n"), ("assistant", "né\n"), ("user", "")]
    ids: list[int] = []
    history: list[dict[str, str]] = []
    turns: list[Turn] = []
    for role, text in said:
        message = {"role": role, "content": text}
        if role == "assistant":
            ids += model.turn_ids(history, [], True) + model.encode(text)
        else:
            ids += model.turn_ids(history, [message])
        history.append(message)
        turns.append(Turn(role, text, len(ids)))
    chat = recalled(marks_of(packed(turns), len(ids)), ids, model)
    assert chat.turns == tuple(turns)
    strange = recalled(marks_of(packed(turns), len(ids)), ids[::-1], model)
    assert [turn.length for turn in strange.turns] == [turn.length for turn in turns]
    assert [turn.text for turn in recalled(marks_of(packed(turns), len(ids)), ids, None).turns] == [
        "", "", "", ""
    ]  # fmt: skip


# --- contexts -------------------------------------------------------------------------------------


def test_a_chat_is_saved_and_goes_on(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="Be brief.")
    ctx.user("Say hé")
    kernel.outputs.append([*"hé".encode()])
    ctx.infer().read()
    assert ctx.save("n") == abi.SaveCtxResult(ctx.length, 0, 4096, 1)
    other = task.load_ctx("n", title="again")
    assert other.turns == ctx.turns and other.length == ctx.length
    assert (other.model, other.max_ctx, other.handle > ctx.handle) == ("null", 4096, True)
    assert other.loaded is not None and other.loaded.saved_wall_s == 1e9
    assert ctx.loaded is None
    for context in (ctx, other):
        context.user("Bye")
    assert other.read() == ctx.read(), "it goes on as the one that was saved"
    other.trim(other.turns[0].length)
    assert [turn.role for turn in other.turns] == ["system"]


def test_a_save_in_the_middle_of_an_answer(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Say hé")
    kernel.outputs.append([*b"abc", HOLD])
    stream = ctx.infer()
    for _ in range(3):
        next(stream)
    ctx.save("n")
    stream.cancel()
    loaded = task.load_ctx("n")
    assert [(turn.role, turn.text) for turn in loaded.turns] == [
        ("user", "Say hé"), ("assistant", "abc"),
    ]  # fmt: skip
    loaded.user("and?")
    ctx.user("and?")
    assert loaded.read() == ctx.read()


def test_a_context_without_messages_loads_no_text(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1, 2, 3])
    ctx.save("n")
    kernel.requests.clear()
    loaded = task.load_ctx("n")
    assert (loaded.length, loaded.turns) == (3, ())
    assert kernel.names() == ["load_ctx"]


@pytest.mark.parametrize("extra", [b"\x01\x92", b"\xff" * 2048, b"\x01" + msgpack.packb([0, 7])])
def test_an_extra_of_somebody_else_is_no_crash(
    kernel: FakeKernel, task: Task, extra: bytes
) -> None:
    kernel.saves["n"] = [1, 2, 3], extra
    loaded = task.load_ctx("n")
    assert (loaded.read(), loaded.turns) == ([1, 2, 3], ())


def test_saves_are_listed_in_pages_and_dropped(kernel: FakeKernel, task: Task) -> None:
    kernel.page = 2
    kernel.saves = {f"s{n}": ([n], b"") for n in range(5)}
    assert [row.name for row in task.saves()] == ["s0", "s1", "s2", "s3", "s4"]
    task.drop_save("s3")
    assert [row.name for row in task.saves()] == ["s0", "s1", "s2", "s4"]
    with pytest.raises(ENOENT):
        task.drop_save("s3")
    with pytest.raises(ENOENT):
        task.load_ctx("s3")


def test_a_list_that_does_not_move_on(kernel: FakeKernel, task: Task) -> None:
    row = abi.SaveRow("n", 1, "current", "null", 1, 0, 1, 1.0)
    kernel.replace["list_saves"] = lambda _: Reply(abi.ListSavesResult([row], True))
    with pytest.raises(EPROTO, match="does not move on"):
        task.saves()


def test_a_load_that_fails_half_way_leaves_no_context(kernel: FakeKernel, task: Task) -> None:
    kernel.saves["n"] = list(range(90)), packed(TURNS)

    def refuse(_: Request) -> Reply:
        raise ENOTSUP("not today")

    kernel.replace["read_ctx"] = refuse
    with pytest.raises(ENOTSUP):
        task.load_ctx("n")
    del kernel.replace["read_ctx"]
    task.stat()  # the free that nobody waits for is before it
    assert kernel.contexts == {}
    with pytest.raises(EBADCTX):
        task.call_raw("read_ctx", 3 << 24 | 1)


async def _twin(address: str) -> list[str]:
    async with await aio.connect("tester", address=address) as task:
        ctx = await task.alloc_ctx()
        await ctx.user("Hi")
        assert (await ctx.save("n")).length == ctx.length
        loaded = await task.load_ctx("n", model="null")
        assert loaded.turns == ctx.turns
        names = [row.name for row in await task.saves()]
        await task.drop_save("n")
        assert await task.saves() == []
        return names


def test_the_asyncio_twin(kernel: FakeKernel) -> None:
    import asyncio

    assert asyncio.run(_twin(kernel.address)) == ["n"]
