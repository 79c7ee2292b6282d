"""Chat on a context: turns, answers, stop strings, trims and forks, against a scripted kernel.

The text layer is `Spelling`: an id is a byte, so the context can be read as text.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls import Context, Turn, connect
from syscalls.abi import Finish
from syscalls.client import Task
from syscalls.conversation import Conversation
from syscalls.errors import EIO, ENOMEM
from tests.helpers.fake_kernel import HOLD, FakeKernel
from tests.helpers.spelling import Spelling


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as kernel:
        yield kernel


@pytest.fixture
def task(kernel: FakeKernel) -> Iterator[Task]:
    with connect("tester", address=kernel.address) as task:
        task.caller._texts["null", 0] = Spelling()  # type: ignore[assignment]
        yield task


def says(kernel: FakeKernel, text: str, *after: object) -> None:
    """Let the next infer say this."""
    kernel.outputs.append([*text.encode(), *after])


def shown(ctx: Context) -> str:
    return bytes(ctx.read()).decode()


def test_text_in_and_out(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    assert ctx.append("Once ") == 5
    says(kernel, "upon")
    stream = ctx.infer()
    assert [piece.text for piece in stream] == ["u", "p", "o", "n"]
    assert stream.text == "upon"
    assert shown(ctx) == "Once upon"
    assert ctx.turns == ()  # no chat has begun


def test_a_chat(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="Be brief.")
    ctx.user("Hi")
    says(kernel, "Hello.")
    assert ctx.infer().read() == "Hello."
    assert shown(ctx) == "<system>Be brief.</><user>Hi</><assistant>Hello."
    ctx.user("Bye")
    says(kernel, "Ciao.")
    ctx.infer().read()
    assert shown(ctx).endswith("Hello.</><user>Bye</><assistant>Ciao.")
    assert [(turn.role, turn.text) for turn in ctx.turns] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Bye"),
        ("assistant", "Ciao."),
    ]
    assert [turn.length for turn in ctx.turns] == sorted({turn.length for turn in ctx.turns})
    assert ctx.turns[-1].length == ctx.length


def test_turns_can_be_added_one_by_one(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.system("A")
    ctx.user("B")
    ctx.user("C")
    says(kernel, "D")
    ctx.infer().read()
    assert shown(ctx) == "<system>A</><user>B</><user>C</><assistant>D"


def test_the_prompt_travels_with_the_infer(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    length = ctx.user("B")
    assert shown(ctx) == "<user>B</>"
    says(kernel, "D")
    stream = ctx.infer()
    stream.read()
    infer = next(r for r in kernel.requests if r.row.name == "infer")
    assert bytes(list(infer.ids or [])) == b"<assistant>"
    assert stream.usage is not None
    assert stream.usage.prompt == length + len("<assistant>")


def test_an_answer_that_was_cut_goes_on(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Count")
    kernel.outputs.append([*b"one ", Finish.LENGTH])
    ctx.infer().read()
    says(kernel, "two")
    ctx.infer().read()
    assert shown(ctx) == "<user>Count</><assistant>one two"
    assert [turn.text for turn in ctx.turns] == ["Count", "one two"]


def test_ids_after_a_turn_are_left_alone(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    ctx.append("<assistant>Sure, ")
    says(kernel, "yes")
    ctx.infer().read()
    assert shown(ctx) == "<user>Q</><assistant>Sure, yes"


def test_without_text(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append("x")
    says(kernel, "yz")
    stream = ctx.infer(text=False)
    assert [(p.id, p.text) for p in stream] == [(ord("y"), ""), (ord("z"), "")]


def test_a_chat_without_text_still_has_its_prompt(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    says(kernel, "A")
    assert ctx.infer(text=False).read() == ""
    ctx.user("R")
    assert shown(ctx) == "<user>Q</><assistant>A</><user>R</>"


# --- stop strings ---------------------------------------------------------------------------------


def test_a_stop_string_cancels(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    says(kernel, "yes\n\nQ: more", HOLD)
    stream = ctx.infer(stop="\n\n")
    assert stream.read() == stream.text == "yes"
    assert stream.finish == "stop"
    assert shown(ctx) == "<user>Q</><assistant>yes"
    assert ctx.turns[-1] == Turn("assistant", "yes", ctx.length)
    ctx.user("R")
    assert shown(ctx).endswith("yes</><user>R</>")


def test_a_stop_string_in_an_infer_that_has_ended(kernel: FakeKernel, task: Task) -> None:
    """The cancel comes too late, so the context is trimmed."""
    ctx = task.alloc_ctx()
    says(kernel, "yes\n\nQ")
    stream = ctx.infer(stop=["zzz", "\n\n"])
    assert stream.read() == "yes"
    assert stream.finish == "stop"
    assert shown(ctx) == "yes"
    assert ctx.length == 3


def test_a_part_of_a_stop_string_at_the_end(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    says(kernel, "yes\n")
    stream = ctx.infer(stop="\n\n")
    pieces = list(stream)
    assert (pieces[-1].id, pieces[-1].text) == (None, "\n")
    assert stream.text == shown(ctx) == "yes\n"


# --- cancel, errors -------------------------------------------------------------------------------


def test_a_cancelled_answer_is_remembered_as_far_as_it_is_kept(
    kernel: FakeKernel, task: Task
) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    says(kernel, "abcdef", HOLD)
    stream = ctx.infer()
    for _ in range(6):
        next(stream)
    stream.cancel(keep=3)
    assert stream.text == "abc"
    assert ctx.turns[-1].text == "abc"
    assert shown(ctx) == "<user>Q</><assistant>abc"


def test_a_refused_infer_leaves_the_chat_alone(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    turns = ctx.turns

    def refuse(_: object) -> None:
        raise ENOMEM("no room")

    kernel.replace["infer"] = refuse
    with pytest.raises(ENOMEM):
        ctx.infer().read()
    del kernel.replace["infer"]
    assert ctx.turns == turns
    says(kernel, "A")
    ctx.infer().read()
    assert shown(ctx) == "<user>Q</><assistant>A"


@pytest.mark.parametrize("said", ["", "half"])
def test_an_infer_that_failed_goes_on_where_it_was(
    kernel: FakeKernel, task: Task, said: str
) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    says(kernel, said, EIO("the device failed"))
    with pytest.raises(EIO):
        ctx.infer().read()
    assert ctx.turns[-1] == Turn("assistant", said, ctx.length)
    says(kernel, "way")
    ctx.infer().read()
    assert shown(ctx) == f"<user>Q</><assistant>{said}way"
    assert ctx.turns[-1].text == f"{said}way"


# --- trim and fork --------------------------------------------------------------------------------


def test_undo(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="S")
    start = ctx.length
    ctx.user("Q")
    says(kernel, "A")
    ctx.infer().read()
    ctx.trim(start)
    assert [turn.role for turn in ctx.turns] == ["system"]
    ctx.user("R")
    assert shown(ctx) == "<system>S</><user>R</>"


def test_retry(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    asked = ctx.user("Q")
    for answer in ("A", "B"):
        ctx.trim(asked)
        says(kernel, answer)
        ctx.infer().read()
        assert shown(ctx) == f"<user>Q</><assistant>{answer}"
        assert [turn.text for turn in ctx.turns] == ["Q", answer]


def test_a_trim_into_a_message_forgets_it(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="S")
    ctx.user("Question")
    ctx.trim(ctx.length - 1)
    assert [turn.role for turn in ctx.turns] == ["system"]
    says(kernel, "A")
    ctx.infer().read()
    assert shown(ctx) == "<system>S</><user>Question</" + "A"


def test_forks_have_their_own_chat(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx(system="S")
    ctx.user("Q")
    one, two = ctx.fork(2)
    for fork, answer in ((one, "A"), (two, "BB")):
        says(kernel, answer)
        fork.infer().read()
        assert shown(fork) == f"<system>S</><user>Q</><assistant>{answer}"
    assert [len(c.turns) for c in (ctx, one, two)] == [2, 3, 3]
    assert shown(ctx) == "<system>S</><user>Q</>"


def test_a_fork_in_the_middle_of_an_answer(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.user("Q")
    says(kernel, "abc", HOLD)
    stream = ctx.infer()
    next(stream)
    fork = ctx.fork()
    says(kernel, "def")
    fork.infer().read()
    fork.user("R")
    assert shown(fork) == "<user>Q</><assistant>abcdef</><user>R</>"
    stream.cancel()
    assert shown(ctx) == "<user>Q</><assistant>abc"


# --- the conversation alone -----------------------------------------------------------------------


def test_a_chat_that_has_not_begun_remembers_no_answer() -> None:
    chat = Conversation()
    chat.answered("text", 3, 7)
    assert chat.turns == ()
    assert not chat.waits(0)


def test_answers_join_only_where_they_touch() -> None:
    chat = Conversation((Turn("user", "Q", 5), Turn("assistant", "A", 9)))
    other = chat.copy()
    chat.answered("B", 9, 12)
    assert chat.turns[1:] == (Turn("assistant", "AB", 12),)
    other.answered("B", 10, 12)
    assert other.turns[1:] == (Turn("assistant", "A", 9), Turn("assistant", "B", 12))
