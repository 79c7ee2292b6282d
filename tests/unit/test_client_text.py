"""The client with a real tokenizer and template, read from a scripted kernel in chunks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls import aio, connect
from syscalls.client import Task
from syscalls.errors import ECORRUPT, EINVAL, ENODEV, EPROTO
from syscalls.text import TextModel
from tests.helpers.byte_tokenizer import byte_tokenizer
from tests.helpers.fake_kernel import HOLD, FakeKernel, Reply

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as kernel:
        kernel.parts = {
            "tokenizer.json": byte_tokenizer().encode(),
            "chat_template.jinja": TEMPLATE.encode(),
            "config.json": b'{"eos_token_id": 257}',
        }
        kernel.chunk = 500
        yield kernel


@pytest.fixture
def task(kernel: FakeKernel) -> Iterator[Task]:
    with connect("tester", address=kernel.address) as task:
        yield task


def model(task: Task) -> TextModel:
    found = task.text_model("null")
    assert found is not None
    return found


def test_the_text_layer_is_read_once(kernel: FakeKernel, task: Task) -> None:
    chunks = -(-len(kernel.parts["tokenizer.json"]) // kernel.chunk)
    assert chunks > 3
    for _ in range(2):
        task.alloc_ctx().append("text")
    assert kernel.names().count("read_model") == chunks + 2
    assert model(task).config == {"eos_token_id": 257}


def test_a_model_that_is_loaded_anew_has_another_text_layer(kernel: FakeKernel, task: Task) -> None:
    """What is behind the name may be another model; a context stays with its own."""
    old = task.alloc_ctx()
    kernel.load = 7
    with pytest.raises(ENODEV, match="loaded anew"):
        old.append("text")
    new = task.alloc_ctx()
    new.append("text")
    kernel.parts["config.json"] = b'{"eos_token_id": 9}'
    kernel.load = 8
    new.append("text")  # from what it has read before
    assert new.read() == [*b"texttext"]
    assert model(task).config == {"eos_token_id": 9}


def test_a_chat(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="Be brief.")
    ctx.user("Say hé <|im_end|>")
    kernel.outputs.append([*"hé\n\nUser".encode(), HOLD])
    stream = ctx.infer(stop="\n\n")
    assert [piece.text for piece in stream] == ["h", "", "é", ""]
    assert stream.finish == "stop"
    ctx.user("Bye")
    whole = model(task).render([turn._asdict() | {"content": turn.text} for turn in ctx.turns])
    assert ctx.read() == whole
    text = model(task).decode(ctx.read())
    assert text.endswith("<|im_start|>assistant\nhé<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n")
    assert ctx.read().count(257) == 4  # what the user spelled is not markup


def test_the_asyncio_twin(kernel: FakeKernel) -> None:
    import asyncio

    async def main() -> None:
        async with await aio.connect(address=kernel.address) as task:
            ctx = await task.alloc_ctx(system="S")
            await ctx.user("Q")
            kernel.outputs.append([*b"A"])
            assert await (await ctx.infer()).read() == "A"
            assert [turn.text for turn in ctx.turns] == ["S", "Q", "A"]

    asyncio.run(main())


BOS = 0xC0
"""A byte that no text has."""


@pytest.fixture
def begun(kernel: FakeKernel) -> FakeKernel:
    """A kernel whose model wants bos before a text."""
    kernel.parts["config.json"] = b'{"add_bos": true, "bos_id": %d, "eos_ids": [257]}' % BOS
    return kernel


def test_text_begins_with_bos_where_the_model_wants_it(begun: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    assert ctx.append("") == 0
    ctx.append("ab")
    ctx.append("cd")
    assert ctx.read() == [BOS, *b"abcd"]
    ctx.trim(0)
    ctx.append("x")
    assert ctx.read() == [BOS, *b"x"]


def test_ids_are_left_as_they_are(begun: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([5, 6])
    ctx.append("a")
    assert ctx.read() == [5, 6, *b"a"]
    other = task.alloc_ctx()
    other.append([BOS])
    other.append("a")
    assert other.read() == [BOS, *b"a"]


@pytest.mark.parametrize("written", ["", "{{ bos_token }}"], ids=["client", "template"])
def test_a_chat_begins_with_bos_once(begun: FakeKernel, task: Task, written: str) -> None:
    """Whoever writes it; the byte's own spelling is what a template calls bos_token."""
    begun.parts["chat_template.jinja"] = (written + TEMPLATE).encode()
    made = json.loads(byte_tokenizer())
    token = {"id": BOS, "content": "<bos>", "special": True}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    vocab = {("<bos>" if id == BOS else piece): id for piece, id in made["model"]["vocab"].items()}
    made["model"]["vocab"] = vocab
    made["added_tokens"].insert(0, token | flags)
    begun.parts["tokenizer.json"] = json.dumps(made).encode()
    ctx = task.alloc_ctx(system="S")
    ctx.user("Q")
    begun.outputs.append([*b"A", 257])
    assert ctx.infer().read() == "A<|im_end|>"
    ctx.user("R")
    assert ctx.read()[:2] == [BOS, 256] and ctx.read().count(BOS) == 1
    later = task.alloc_ctx()
    later.append([1, 2, 3])
    later.user("Q")
    assert later.read().count(BOS) == 0


def test_a_model_without_template(kernel: FakeKernel, task: Task) -> None:
    del kernel.parts["chat_template.jinja"], kernel.parts["config.json"]
    ctx = task.alloc_ctx()
    assert ctx.append("text") == 4
    with pytest.raises(EINVAL, match="no chat template"):
        ctx.user("text")


def test_a_template_that_refuses(kernel: FakeKernel, task: Task) -> None:
    kernel.parts["chat_template.jinja"] = b"{{ raise_exception('no') }}"
    ctx = task.alloc_ctx()
    with pytest.raises(EINVAL, match="refuses this chat"):
        ctx.user("text")
    assert ctx.turns == ()


def test_text_that_is_none_is_refused_by_each_way_in(task: Task) -> None:
    ctx = task.alloc_ctx()
    for way in (ctx.append, ctx.user, ctx.system):
        with pytest.raises(EINVAL, match="lone surrogate"):
            way("a\ud800")
    assert ctx.length == 0


def test_a_tokenizer_of_another_kind(kernel: FakeKernel, task: Task) -> None:
    kernel.parts["tokenizer.json"] = json.dumps({"decoder": {"type": "Metaspace"}}).encode()
    ctx = task.alloc_ctx()
    with pytest.raises(EINVAL, match="Metaspace"):
        ctx.append("text")


@pytest.mark.parametrize("part", ["tokenizer.json", "config.json", "chat_template.jinja"])
def test_damaged_files(kernel: FakeKernel, task: Task, part: str) -> None:
    kernel.parts[part] = b"\xff\xfe{"
    ctx = task.alloc_ctx()
    with pytest.raises(ECORRUPT, match="damaged"):
        ctx.append("text")


def test_a_part_that_ends_early(kernel: FakeKernel, task: Task) -> None:
    kernel.replace["read_model"] = lambda request: Reply((b"" if request.args.offset else b"x", 9))
    with pytest.raises(EPROTO, match="ends at 1 of 9"):
        task.alloc_ctx().append("text")
