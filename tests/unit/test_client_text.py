"""The client with a real tokenizer and template, read from a scripted kernel in chunks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syscalls import abi, aio, connect
from syscalls.abi import Event
from syscalls.client import Task
from syscalls.errors import ECORRUPT, EINVAL, ENODEV, EPROTO
from syscalls.sampling import GOLDEN
from syscalls.text import TextModel
from syscalls.wire import Request
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


def test_sixteen_stop_strings_with_and_without_eos(kernel: FakeKernel, task: Task) -> None:
    """The last of them lies across three ids; ignoring end ids has nothing to do with it."""
    stops = [f"never {n}" for n in range(15)] + ["XYZ"]
    for ignore in (False, True):
        ctx = task.alloc_ctx()
        ctx.append("a")
        ids = model(task).encode("abXYZc")
        kernel.outputs.append([*ids, HOLD])
        stream = ctx.infer(stop=stops, ignore_eos=ignore, stop_ids=[9])
        assert (stream.read(), stream.finish) == ("ab", "stop")
        said = kernel.requests[[r.row.name for r in kernel.requests].index("infer")].args
        assert said.stop_ids == [9]
        assert [r for r in kernel.requests if r.row.name == "infer"][-1].args.ignore_eos is ignore
        assert ctx.length == 3
    with pytest.raises(EINVAL, match="the limit is 16"):
        task.alloc_ctx().infer(stop=[*stops, "one more"])


def test_texts_are_scored_after_the_context(kernel: FakeKernel, task: Task) -> None:
    """Each on a fork, all sent before the first answer is read; events of several kinds of size."""

    def scored(request: Request) -> Reply:
        ids = list(request.ids or ())
        values = [-float(token) for token in ids]
        for part in (slice(0, 2), slice(2, None)):
            if ids[part]:
                kernel.send([Event.TOKEN, request.call, ids[part], values[part], None])
        return Reply(abi.ScoreResult(2, request.args.start + len(ids), request.args.start, 2, 0))

    kernel.replace["score"] = scored
    ctx = task.alloc_ctx()
    ctx.append("Once")
    texts = ["upon", "a", "time"]
    results = ctx.score(texts, top=0)
    for text, result in zip(texts, results, strict=True):
        ids = model(task).encode(text)
        assert list(result.ids) == ids
        assert result.total == -sum(ids) and result.mean == -sum(ids) / len(ids)
    assert ctx.read() == [*b"Once"], "it is as it was; and the frees have arrived"
    names = kernel.names()
    first = names.index("score")
    assert names[first - 3 : first + 3] == ["fork_ctx"] * 3 + ["score"] * 3
    assert names[first + 3 :].count("free_ctx") == 3 and len(kernel.contexts) == 1
    (own,) = [r for r in kernel.requests if r.row.name == "score"][:1]
    assert (own.args.start, own.args.top) == (4, 0)


def test_every_argument_reaches_the_kernel(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append("a")
    kernel.outputs += [[1]]
    ctx.infer(
        max_tokens=1, temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, seed=9, stop_ids=(4, 5),
        ignore_eos=True, logprobs=2, repetition_penalty=1.5, presence_penalty=0.5,
        frequency_penalty=-0.5, logit_bias={7: -100, 8: 2.5}, penalize_from=1,
    ).read()  # fmt: skip
    handle = ctx.handle
    said = kernel.requests[-1].args
    assert said == abi.Infer(
        handle, 1, 0.5, 3, 0.25, 0.125, 9, [4, 5], True, 2, 1.5, 0.5, -0.5,  # type: ignore[arg-type]
        [[7, -100], [8, 2.5]], 1,  # type: ignore[arg-type]
    )  # fmt: skip
    for given, follows in (
        ({"schema": {"type": "string"}}, (1, b'{"type":"string"}')),
        ({"schema": '{"type": "string"}'}, (1, b'{"type": "string"}')),
        ({"schema": True}, (1, b"true")),
        ({"regex": "ä+"}, (2, "ä+".encode())), ({"lark": 'start: "a"'}, (3, b'start: "a"')),
    ):  # fmt: skip
        kernel.outputs += [[1]]
        ctx.infer(max_tokens=1, grammar_from=1, **given).read()  # type: ignore[arg-type]
        said = kernel.requests[-1].args
        assert (said.grammar_kind, said.grammar, said.grammar_from) == (*follows, 1)
    count = sum(request.row.name == "infer" for request in kernel.requests)
    kernel.outputs += [[1], [1]]
    ctx.infer_n(2, max_tokens=1, seed=9, presence_penalty=0.5).read()
    sent = [request.args for request in kernel.requests if request.row.name == "infer"][count:]
    assert [args.seed for args in sent] == [9, (9 + GOLDEN) % 2**64]
    assert [args.presence_penalty for args in sent] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schema": {}, "regex": "a"}, "one grammar"), ({"regex": "a", "lark": "b"}, "one grammar"),
        ({"schema": {"const": object()}}, "no JSON"),
        ({"schema": {"const": float("nan")}}, "no JSON"),
        ({"regex": "a" * (abi.MAX_GRAMMAR + 1)}, "49,153 bytes"),
        ({"regex": "\ud800"}, "half a letter"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_sent(
    kernel: FakeKernel, task: Task, given: dict[str, Any], said: str
) -> None:
    ctx = task.alloc_ctx()
    ctx.append("a")
    with pytest.raises(EINVAL) as refused:
        ctx.infer(**given)
    assert said in f"{refused.value} {refused.value.hint}"
    assert not any(request.row.name == "infer" for request in kernel.requests)
