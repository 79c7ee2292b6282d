"""Infers that follow a grammar: one stream whatever happens, and what a bad one does to others.

The oracle knows nothing of grammars: it has all texts of a small language, and may draw what begins
one of them.
"""

from math import inf
from typing import Any

import pytest

from drivers import base
from drivers.null_model import PAIRED
from kernel.loopback import LoopbackLink
from kernel.sys_task import task_row
from syscalls.abi import Finish, GrammarKind
from syscalls.errors import Errno
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import Knobs, adjusted, logits, next_row_id
from tests.helpers.sim import Reply, Sim, SimClient, at_once

PROMPT = [3, 7, 3, 9, 200, 7]
WORDS = [b"yes, ", b"no, ", b"none, ", b"yesterday, "]
TEXTS = [a + b + c + d for a in WORDS for b in WORDS for c in WORDS for d in WORDS]
REGEX = b"(yes, |no, |none, |yesterday, ){4}"
KNOBS = Knobs(2.0, seed=11, repetition=1.25, presence=0.5, bias=((110, 6.0), (101, -4.5)))
GREEDY = KNOBS._replace(temperature=0.0)


def expected(
    prompt: list[int], texts: list[bytes] = TEXTS, knobs: Knobs = KNOBS, eos: int | None = None
) -> list[int]:
    """Return the ids of a text that may be followed by nothing, or by `eos`."""
    knobs, ids, text = knobs._replace(output_from=len(prompt)), list(prompt), b""
    while True:
        rest = {whole[len(text) :] for whole in texts if whole.startswith(text)}
        begins = {part[0] for part in rest if part}
        if not begins:
            break
        allowed = begins | ({eos} if b"" in rest and eos is not None else set())
        row = adjusted(ids, knobs, logits(ids))
        token = next_row_id(ids, [v if n in allowed else -inf for n, v in enumerate(row)], knobs)
        if token == eos:
            break
        ids.append(token)
        text += bytes([token])
    return ids[len(prompt) :]


def infer(
    client: SimClient,
    handle: int,
    text: bytes = REGEX,
    kind: int = GrammarKind.REGEX,
    knobs: Knobs = KNOBS,
    begin: int | None = None,
    count: int = 100,
    **how: Any,
) -> Reply:
    return client.send(
        "infer", handle, count, knobs.temperature, knobs.top_k, knobs.top_p, knobs.min_p,
        knobs.seed, [], False, None, knobs.repetition, knobs.presence, knobs.frequency,
        [list(pair) for pair in knobs.bias], begin, kind, text, begin, **how,
    )  # fmt: skip


@pytest.fixture
def sim() -> Any:
    sim = Sim()
    yield sim
    sim.leave()
    assert not any(grammar.users for grammar in sim.system.device.grammars._grammars.values())


def compiles(sim: Sim) -> list[Any]:
    """Note every Compile and Forget from now on."""
    seen: list[Any] = []
    send = sim.link.send

    def noting(message: Any) -> None:
        if isinstance(message, base.Compile | base.Forget):
            seen.append(message)
        send(message)

    sim.link.send = noting  # type: ignore[method-assign]
    return seen


# --- one and the same -------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [KNOBS, GREEDY], ids=["drawn", "greedy"])
def test_alone(sim: Sim, knobs: Knobs) -> None:
    client = sim.client()
    reply = infer(client, client.context(PROMPT), knobs=knobs)
    sim.until(lambda: reply.done)
    assert bytes(reply.tokens) in TEXTS
    assert reply.tokens == expected(PROMPT, knobs=knobs)
    assert reply.result.finish == Finish.STOP, "it is complete, and the model has no id for an end"
    assert reply.result.overrun == 0 and reply.result.length == len(PROMPT) + len(reply.tokens)


def test_in_a_batch_of_eight(sim: Sim) -> None:
    """The others have other grammars, adjustments, or none."""
    client = sim.client()
    plain = Knobs(1.5, seed=4)
    mine = [infer(client, client.context([n, *PROMPT])) for n in range(3)]
    other = [
        infer(
            client, client.context([n, *PROMPT]), b"(no, |none, |yes, |yesterday, ){4}", knobs=plain
        )
        for n in range(3)
    ]
    free = client.send("infer", client.context(PROMPT), 30)
    alone = infer(client, client.context(PROMPT), b'{"const": "xyz"}', GrammarKind.JSON_SCHEMA)
    sim.until(lambda: free.done and all(r.done for r in (*mine, *other, alone)))
    for n in range(3):
        assert mine[n].tokens == expected([n, *PROMPT])
        assert other[n].tokens == expected([n, *PROMPT], knobs=plain)
    assert bytes(alone.tokens) == b'"xyz"'
    assert len(free.tokens) == 30


def test_in_mid_grammar_after_a_fork(sim: Sim) -> None:
    """The fork has no request; one that takes the text up says where it has begun."""
    client = sim.client()
    handle, child = client.context(PROMPT), client.new_handle()
    parent = infer(client, handle)
    sim.until(lambda: len(parent.tokens) >= 9)
    went = client.ask("fork_ctx", handle, child).result.length - len(PROMPT)
    forked = infer(client, child, begin=len(PROMPT))
    sim.until(lambda: parent.done and forked.done)
    assert parent.tokens == expected(PROMPT)
    assert forked.tokens == expected(PROMPT)[went:]


@pytest.mark.parametrize("keep", [None, 7, 0])
def test_after_cancel_and_resume(sim: Sim, keep: int | None) -> None:
    client = sim.client()
    handle = client.context(PROMPT)
    first = infer(client, handle)
    sim.until(lambda: len(first.tokens) >= 10)
    client.ask("cancel", first.call, keep)
    kept = first.tokens if keep is None else first.tokens[:keep]
    rest = infer(client, handle, begin=len(PROMPT))
    sim.until(lambda: rest.done)
    assert kept + rest.tokens == expected(PROMPT)


@pytest.mark.parametrize("after", [0, 1, 6, 15])
def test_after_the_driver_died_in_mid_grammar(sim: Sim, after: int) -> None:
    client = sim.client()
    reply, other = (infer(client, client.context(PROMPT), knobs=k) for k in (KNOBS, GREEDY))
    sim.until(lambda: len(reply.tokens) >= after)
    seen = compiles(sim)
    sim.link.die()
    sim.until(lambda: reply.done and other.done)
    assert sim.system.device.epoch == 2 and len(seen) == 1, "once for both, in the new epoch"
    assert reply.tokens == expected(PROMPT) and other.tokens == expected(PROMPT, knobs=GREEDY)


def test_after_preemption() -> None:
    """Three that fit the pool one at a time: their KV goes and comes again."""
    sim = Sim(num_blocks=24, prefill_chunk=64)
    client = sim.client()
    prompts = [[n, *PROMPT] * 28 for n in range(3)]
    replies = [infer(client, client.context(prompt)) for prompt in prompts]
    sim.until(lambda: all(reply.done for reply in replies))
    assert sim.pool.evicted > 0
    assert [reply.tokens for reply in replies] == [expected(prompt) for prompt in prompts]
    sim.leave()


def test_after_its_slot_was_taken() -> None:
    """Fewer slots than requests: stopped ones lose theirs, and are told anew."""
    link = LyingLink(base.Loaded, lambda loaded: [loaded._replace(max_seqs=2)], times=1 << 30)
    sim = Sim(link=link)
    one, two = sim.client(), sim.client()
    mine = [infer(one, one.context([n, *PROMPT])) for n in range(2)]
    sim.until(lambda: all(len(reply.tokens) >= 5 for reply in mine))
    pid = sim.system.sessions[one.route].task.pid  # type: ignore[union-attr]
    assert two.ask("kill", pid, 19).errno == 0
    theirs = [infer(two, two.context([n, 5, *PROMPT])) for n in range(2)]
    sim.until(lambda: all(reply.done for reply in theirs))
    assert two.ask("kill", pid, 18).errno == 0
    sim.until(lambda: all(reply.done for reply in mine))
    for n in range(2):
        assert mine[n].tokens == expected([n, *PROMPT])
        assert theirs[n].tokens == expected([n, 5, *PROMPT])
    sim.leave()


# --- how it ends ------------------------------------------------------------------------------


def test_an_end_is_drawn_where_the_grammar_may_end() -> None:
    """`ab|abc` may end twice: the model decides, with the id that ends its texts."""
    sim = Sim(path="null:vocab=251,eos=250")
    client = sim.client()
    texts, found = [b"ab", b"abcccc"], set()
    for seed in range(12):
        knobs = Knobs(60.0, seed=seed)
        reply = infer(client, client.context(PROMPT), b"ab(cccc)?", knobs=knobs)
        sim.until(lambda r=reply: r.done)  # type: ignore[misc]
        assert reply.tokens == expected(PROMPT, texts, knobs, eos=250)
        assert reply.result.finish == Finish.STOP
        assert reply.result.overrun == (bytes(reply.tokens) == b"ab")
        found.add(bytes(reply.tokens))
    assert found == set(texts)
    sim.leave()


def test_max_tokens_cuts_it(sim: Sim) -> None:
    client = sim.client()
    reply = infer(client, client.context(PROMPT), count=5)
    sim.until(lambda: reply.done)
    assert reply.tokens == expected(PROMPT)[:5] and reply.result.finish == Finish.LENGTH
    whole = expected(PROMPT)
    exact = infer(client, client.context(PROMPT), count=len(whole))
    sim.until(lambda: exact.done)
    assert exact.tokens == whole and exact.result.finish == Finish.STOP


def test_ids_of_several_letters_cross_the_borders_of_a_grammar() -> None:
    """With 512 ids, some stand for two letters; all that fit are drawn sooner or later."""
    sim = Sim(path="null:vocab=512")
    client = sim.client()
    tokens = [bytes([n]) for n in range(256)] + [bytes([a, b]) for a in PAIRED for b in PAIRED]
    drawn = set()
    for seed in range(40):
        how = Knobs(100.0, seed=seed)
        reply = infer(client, client.context(PROMPT), b"(1,){3}", knobs=how)
        sim.until(lambda r=reply: r.done)  # type: ignore[misc]
        assert b"".join(tokens[token] for token in reply.tokens) == b"1,1,1,"
        drawn |= set(reply.tokens)
    assert {tokens.index(text) for text in (b"1", b",", b"1,", b",1")} <= drawn
    sim.leave()


# --- bad ones ---------------------------------------------------------------------------------

BAD = {
    "regex": (GrammarKind.REGEX, b"(ab"),
    "schema": (GrammarKind.JSON_SCHEMA, b'{"type": "colour"}'),
    "no JSON": (GrammarKind.JSON_SCHEMA, b'{"type":'),
    "two JSONs": (GrammarKind.JSON_SCHEMA, b'{} {}'),
    "remote": (GrammarKind.JSON_SCHEMA, b'{"$ref": "http://example.com/schema"}'),
    "deep": (GrammarKind.JSON_SCHEMA, b'{"items":' * 1000 + b"{}" + b"}" * 1000),
    "deeper": (GrammarKind.JSON_SCHEMA, b"[" * 40_000),
    "lark": (GrammarKind.LARK, b"start: missing"),
    "lark, deep": (GrammarKind.LARK, b"start: " + b"(" * 20_000),
    "no UTF-8": (GrammarKind.REGEX, b"a\xff"),
    "nothing": (GrammarKind.LARK, b'start: "a" & "b"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_refused_and_harms_nobody(sim: Sim, name: str) -> None:
    client = sim.client()
    good = infer(client, client.context(PROMPT))
    handle = client.context(PROMPT)
    kind, text = BAD[name]
    bad = infer(client, handle, text, kind)
    free = client.send("infer", client.context(PROMPT), 20)
    sim.until(lambda: good.done and bad.done and free.done)
    assert bad.errno == Errno.EINVAL and "grammar" in bad.message, bad.message
    assert good.tokens == expected(PROMPT) and len(free.tokens) == 20
    assert sim.system.device.epoch == 1
    again = infer(client, handle)
    sim.until(lambda: again.done)
    assert again.tokens == expected(PROMPT), "its context is as it was"


def test_an_id_that_is_no_text_follows_no_grammar() -> None:
    sim = Sim(path="null:vocab=600,eos=120")
    client = sim.client()
    for text in (b"start: <[555]>", b"start: <[120]>", b"start: /x/"):
        bad = infer(client, client.context(PROMPT), text, GrammarKind.LARK)
        sim.until(lambda r=bad: r.done)  # type: ignore[misc]
        assert bad.errno == Errno.EINVAL and "write" in bad.message
    either = infer(client, client.context(PROMPT), b"start: <[555]> | /y/", GrammarKind.LARK)
    sim.until(lambda: either.done)
    assert bytes(either.tokens) == b"y"
    sim.leave()


def test_what_is_there_must_fit(sim: Sim) -> None:
    client = sim.client()
    for ids, begin in ((b"yes, maybe", 0), (b"yes, yes, yes, yes, ", 0), (b"yes, ", 1)):
        bad = infer(client, client.context(list(ids)), begin=begin)
        good = infer(client, client.context([1, *b"no, "]), begin=1)
        sim.until(lambda b=bad, g=good: b.done and g.done)  # type: ignore[misc]
        assert bad.errno == Errno.EINVAL and "fit" in bad.message
        assert bytes([*b"no, ", *good.tokens]) in TEXTS
    assert sim.system.device.epoch == 1


ARGUMENTS: dict[str, tuple[dict[str, Any], Errno]] = {
    "kind": ({"kind": 9}, Errno.EINVAL),
    "no kind": ({"kind": 0}, Errno.EINVAL),
    "empty": ({"text": b""}, Errno.EINVAL),
    "beyond": ({"begin": 7}, Errno.EINVAL),
    "long": ({"text": b"a" * (base.MAX_GRAMMAR + 1)}, Errno.EINVAL),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_cannot_be(sim: Sim, name: str) -> None:
    client = sim.client()
    how, errno = ARGUMENTS[name]
    seen = compiles(sim)
    reply = infer(client, client.context(PROMPT), **how)
    sim.turn()
    assert reply.errno == errno and not seen


def test_the_longest_grammar_has_room_beside_all_else(sim: Sim) -> None:
    client = sim.client()
    text = b'"' + b"a" * (base.MAX_GRAMMAR - 20) + b'"'
    knobs = KNOBS._replace(bias=tuple((n % 251, -99.5) for n in range(250)))
    reply = infer(client, client.context(PROMPT), b'{"const":%s}' % text, 1, knobs, count=3)
    sim.until(lambda: reply.done)
    assert bytes(reply.tokens) == b'"aa'


# --- the kernel and its driver ----------------------------------------------------------------


def test_one_text_is_compiled_once_for_a_user(sim: Sim) -> None:
    seen = compiles(sim)
    one, two, other = sim.client(), sim.client(), sim.client(uid=0)
    replies = [infer(c, c.context(PROMPT)) for c in (one, one, two, other)]
    sim.until(lambda: all(reply.done for reply in replies))
    again = infer(one, one.context(PROMPT))
    sim.until(lambda: again.done)
    assert len(seen) == 2, "another user's is another one: time would tell who has used it"
    assert all(reply.tokens == expected(PROMPT) for reply in (*replies, again))


def test_what_nobody_uses_makes_room(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the driver holds, one after the other; the limit is of those in use."""
    monkeypatch.setattr(base, "MAX_GRAMMARS", 8)
    seen, client = compiles(sim), sim.client()
    handle = client.context(PROMPT)
    for n in range(base.MAX_GRAMMARS + 3):
        reply = infer(client, handle, b"%03d" % n)
        sim.until(lambda r=reply: r.done)  # type: ignore[misc]
        assert reply.errno == 0 and bytes(reply.tokens) == b"%03d" % n
        client.ask("trim_ctx", handle, len(PROMPT))
    forgotten = [message.number for message in seen if isinstance(message, base.Forget)]
    assert forgotten == [1, 2, 3]


def test_more_in_use_than_the_driver_holds_is_eagain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_GRAMMARS", 8)
    sim = Sim()
    client = sim.client()
    handles = [client.context([n, 1]) for n in range(base.MAX_GRAMMARS + 20)]
    replies = [infer(client, handle, b"%03d" % n) for n, handle in enumerate(handles)]
    sim.until(lambda: all(reply.done for reply in replies))
    refused = [reply for reply in replies if reply.errno]
    assert {reply.errno for reply in refused} == {Errno.EAGAIN}
    assert len(refused) == 21, "one place is for what ends while it is being compiled"
    assert sim.system.device.epoch == 1
    sim.leave()


def test_ps_says_that_it_waits_for_its_grammar(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(PROMPT)
    sim.settle()
    reply = infer(client, handle)
    sim.kernel.turn()
    task = sim.system.sessions[client.route].task
    assert task is not None
    row = at_once(task_row(sim.system, task))
    assert (row.state, row.wait) == ("S", "grammar")
    sim.until(lambda: reply.done)
    assert reply.tokens == expected(PROMPT)


def test_tasks_take_turns_at_the_compiler(sim: Sim) -> None:
    """One that has many grammars holds up no other."""
    one, two = sim.client(), sim.client()
    mine, theirs = [one.context([1, n]) for n in range(6)], two.context([2])
    sim.settle()
    seen = compiles(sim)
    replies = [infer(one, handle, b"%03d" % n) for n, handle in enumerate(mine)]
    replies.append(infer(two, theirs, b"two"))
    sim.until(lambda: all(reply.done for reply in replies))
    assert [message.text for message in seen][:3] == [b"000", b"two", b"001"]


def test_cancelled_before_it_was_compiled(sim: Sim) -> None:
    client, seen = sim.client(), compiles(sim)
    handle, other = client.context(PROMPT), client.context(PROMPT)
    sim.settle()
    first, second = infer(client, handle), infer(client, other, b"other")
    sim.kernel.turn()
    for reply in (first, second):
        client.send("cancel", reply.call)
    sim.until(lambda: first.done and second.done)
    assert first.result.finish == second.result.finish == Finish.CANCELLED
    sim.settle()
    assert len(seen) == 1, "the second one was never asked for"
    third = infer(client, handle)
    sim.until(lambda: third.done)
    assert third.tokens == expected(PROMPT) and len(seen) == 1


class DiesOfCompiles(LoopbackLink):
    """A driver that does not survive one grammar."""

    def _handle(self, message: Any) -> None:
        if isinstance(message, base.Compile) and message.text == b"bad":
            self.die()
        else:
            super()._handle(message)


def test_a_grammar_that_ends_the_driver_fails_alone() -> None:
    sim = Sim(link=DiesOfCompiles("null0"), max_restarts=5)
    client = sim.client()
    good = infer(client, client.context(PROMPT))
    bad = infer(client, client.context(PROMPT), b"bad")
    sim.until(lambda: bad.done and good.done)
    assert bad.errno == Errno.EIO and "2 times" in bad.message
    assert good.tokens == expected(PROMPT) and sim.system.device.epoch == 3
    sim.leave()


LIES: dict[str, Any] = {
    "another number": lambda said: [said._replace(number=said.number + 1)],
    "another model": lambda said: [said._replace(model=7)],
    "twice": lambda said: [said, said],
    "of no kind": lambda said: [said._replace(kind=77)],
}


@pytest.mark.parametrize("name", LIES)
def test_a_driver_that_lies_about_a_grammar_is_replaced(name: str) -> None:
    sim = Sim(link=LyingLink(base.Compiled, LIES[name]))
    client = sim.client()
    reply = infer(client, client.context(PROMPT))
    sim.until(lambda: reply.done and sim.system.device.epoch == 2)
    assert reply.tokens == expected(PROMPT)
    sim.leave()


@pytest.mark.parametrize("flag", [2, 4, 8, 16])
def test_a_flag_that_nothing_has_asked_for_is_a_lie(flag: int) -> None:
    def flagged(complete: base.Complete) -> list[Any]:
        (sampled,) = complete.results
        return [complete._replace(results=(sampled._replace(flags=bytes([flag])),))]

    sim = Sim(link=LyingLink(base.Complete, flagged))
    client = sim.client()
    reply = client.send("infer", client.context(PROMPT), 5)
    sim.until(lambda: reply.done)
    assert sim.system.device.epoch == 2 and len(reply.tokens) == 5
    sim.leave()


def test_without_the_feature_it_is_enotsup() -> None:
    def without(ready: base.Ready) -> list[Any]:
        return [ready._replace(features=tuple(f for f in ready.features if f != "grammar"))]

    sim = Sim(link=LyingLink(base.Ready, without))
    client = sim.client()
    reply = infer(client, client.context(PROMPT))
    sim.until(lambda: reply.done)
    assert reply.errno == Errno.ENOTSUP and "grammar" in reply.message
    sim.leave()


def test_a_model_without_text_is_enotsup() -> None:
    def refused(said: base.Compiled) -> list[Any]:
        return [said._replace(kind=base.FaultKind.UNSUPPORTED, message="no tokenizer.json")]

    sim = Sim(link=LyingLink(base.Compiled, refused))
    client = sim.client()
    reply = infer(client, client.context(PROMPT))
    sim.until(lambda: reply.done)
    assert reply.errno == Errno.ENOTSUP and "no tokenizer.json" in reply.message
    sim.leave()


def test_of_a_model_that_is_unloaded(sim: Sim) -> None:
    client = sim.client()
    load = client.send("load_model", "second", "null:vocab=251")
    sim.until(lambda: load.done)
    reply, other = (
        infer(client, client.context(PROMPT)),
        infer(client, client.context(PROMPT), b"x+"),
    )
    sim.until(lambda: len(reply.tokens) >= 3)
    assert client.ask("unload_model", "null", True).errno == 0
    sim.until(lambda: reply.done and other.done)
    assert reply.errno == Errno.ENODEV
    assert not sim.system.device.grammars._grammars
