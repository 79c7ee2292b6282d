"""Grammars: what is compiled and what is refused, what is drawn of them, and when it is lost."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from drivers import base
from drivers.base import FaultKind, GrammarKind, RowFlag
from tests.helpers.device import MAX_CTX, Device
from tests.helpers.plans import Drawn, Part, drawn, reset, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH, SLOT, NUMBER = 20, 7, 5
WORDS = rb"([a-d]{2,4}|[0-9]{1,6};| no){6}!"


def compiled(device: Device, number: int, text: bytes, kind: int = GrammarKind.REGEX) -> Any:
    """Send a Compile; return its answer."""
    device.rig.send(base.Compile(0, number, kind, text))
    return device.rig.receive()


def have(device: Device, text: bytes, kind: int = GrammarKind.REGEX, number: int = NUMBER) -> None:
    """Compile a grammar that must be one."""
    assert compiled(device, number, text, kind) == base.Compiled(0, number)


@pytest.fixture
def device(device: Device) -> Any:
    yield device
    for number in range(1, 20):  # whatever a test has left
        device.rig.send(base.Forget(0, number))
    device.rig.send(base.Stats())
    while not isinstance(device.rig.receive(), base.StatsReply):
        pass


class Row:
    """A filled sequence that is continued by a grammar."""

    def __init__(self, device: Device, seed: int = 1, slot: int = SLOT) -> None:
        self.device, self.slot = device, slot
        self.prompt = device.prompt(LENGTH, seed)
        self.blocks = device.blocks_for(LENGTH + 80)
        device.prefill(self.prompt, self.blocks)
        self.ids = list(self.prompt)

    def reset(self, number: int = NUMBER, begin: int = LENGTH, **how: Any) -> base.Reset:
        how = {"num_prompt": LENGTH, **how}
        return reset(self.slot, self.ids, grammar=number, grammar_from=begin, **how)

    def part(self, **how: Any) -> Part:
        """Return the last position once more: its logits draw the next id."""
        last = len(self.ids) - 1
        filled = last < LENGTH
        part = Part(
            self.ids[-1:], last, self.blocks, slot=self.slot, null_write=filled, adjust=True
        )
        return part._replace(**how)

    def draw(self, *resets: base.Reset, **how: Any) -> Drawn:
        parts = [self.part(**how)]
        results = self.device.submit(*resets, *step_ops(parts, self.device.block_size)).results
        return drawn(results[0], parts)[0]

    def text(self, again: bool = False, **how: Any) -> bytes:
        """Draw until it is complete; tell the driver all of it `again` before each id, or once."""
        while True:
            first = len(self.ids) == LENGTH
            got = self.draw(*([self.reset()] if first or again else []), **how)
            assert got.flags in (0, RowFlag.COMPLETE), got
            if got.id in self.device.loaded.eos_ids:
                return bytes(self.ids[LENGTH:])
            self.ids.append(got.id)
            if got.flags:
                return bytes(self.ids[LENGTH:])


def test_feature_is_named(device: Device) -> None:
    assert "grammar" in device.ready.features
    assert (device.ready.major, device.ready.minor) >= (1, 3)


# --- what is drawn ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_what_is_drawn_fits(device: Device, temperature: float) -> None:
    have(device, WORDS)
    texts = {Row(device, seed).text(temperature=temperature, seed=seed) for seed in (1, 2)}
    assert all(re.fullmatch(WORDS, text) for text in texts), texts
    assert len(texts) == 2


@BOTH
def test_going_on_equals_being_told_again(device: Device) -> None:
    """What a death of the driver, or a lost slot, makes of a stream: nothing."""
    have(device, WORDS)
    how: dict[str, Any] = {"temperature": 20.0, "seed": 9}
    assert Row(device).text(**how) == Row(device).text(again=True, **how)


def test_the_best_of_what_is_allowed_is_drawn(device: Device) -> None:
    letters: list[tuple[int, float]] = []
    for seed in range(8):
        row = Row(device, seed)
        top = row.draw(adjust=False, num_logprobs=64).top
        letters = [best for best in top[1:] if chr(best[0]).isalnum() and best[0] < 128]
        if len(letters) > 1:
            break
    best, second, *_ = letters
    have(device, b"[%c%c]" % (second[0], best[0]))
    got = row.draw(row.reset(), num_logprobs=64)
    assert (got.id, got.logprob) == best, "its log-probability is that of the model"
    assert got.top == top and got.flags == RowFlag.COMPLETE


def test_rows_of_a_batch_do_not_see_each_other(device: Device) -> None:
    have(device, WORDS)
    have(device, b'{"enum": ["ab", "cd", 17]}', GrammarKind.JSON_SCHEMA, NUMBER + 1)
    hows: list[dict[str, Any]] = [
        {"temperature": 3.0, "seed": 4}, {"adjust": False}, {"temperature": 30.0, "seed": 5},
        {}, {"adjust": False, "temperature": 2.0}, {"temperature": 9.0, "top_k": 3},
        {"temperature": 9.0, "top_p": 0.5}, {"temperature": 9.0, "min_p": 0.1},
    ]  # fmt: skip
    rows = [Row(device, seed, slot) for slot, seed in enumerate(range(8))]
    ops = [
        row.reset(NUMBER + (n == 3), presence=n / 4) if how.get("adjust", True) else None
        for n, (row, how) in enumerate(zip(rows, hows, strict=True))
    ]
    alone = [r.draw(*([o] if o else []), **h) for r, o, h in zip(rows, ops, hows, strict=True)]
    parts = [row.part(**how) for row, how in zip(rows, hows, strict=True)]
    sampled = device.submit(*filter(None, ops), *step_ops(parts, device.block_size)).results[0]
    assert device.same(drawn(sampled, parts), alone)


def test_bias_and_penalties_are_of_what_is_allowed(device: Device) -> None:
    have(device, b"[ab]{30}")
    row = Row(device)
    assert row.draw(row.reset(bias={ord("a"): 60.0, ord("z"): 90.0})).id == ord("a")
    assert row.draw(row.reset(bias={ord("b"): 60.0})).id == ord("b")
    row.ids += b"ababababa"
    device.prefill(row.ids, row.blocks)
    how: dict[str, Any] = {"bias": {ord("a"): 60.0}, "frequency": 90.0}
    assert row.draw(row.reset(**how)).id == ord("b"), "a is there five times, b four"


def test_an_end_comes_only_where_it_may(device: Device) -> None:
    """And an id that is special never does."""
    have(device, b"x{3}y*")
    ends = set(device.loaded.eos_ids)
    row = Row(device)
    for place in range(6):
        how = {"bias": dict.fromkeys(ends, 90.0) | {1: 80.0}}
        got = row.draw(row.reset(**how))
        allowed = {ord("x")} if place < 3 else ends or {ord("y")}
        assert got.id in allowed and not got.flags
        row.ids.append(ord("x") if place < 3 else ord("y"))
        device.prefill(row.ids, row.blocks)


def test_a_text_of_ids_that_came_in_parts(device: Device) -> None:
    have(device, b"abcdef(gh|xy)")
    row = Row(device)
    row.ids += b"abcdef"
    device.prefill(row.ids, row.blocks)
    whole = row.reset()
    for cut in (1, LENGTH - 1, LENGTH, LENGTH + 1, LENGTH + 5):
        first = whole._replace(ids=base.ints(row.ids[:cut]))
        device.submit(first, base.Reset(SLOT, 1, base.ints(row.ids[cut:]), cut))
        assert row.draw().id in b"gx"


# --- what is not ------------------------------------------------------------------------------


@BOTH
def test_ids_that_do_not_fit_are_a_flag_of_their_row(device: Device) -> None:
    have(device, WORDS)
    good, bad = Row(device, 1, 1), Row(device, 2, 2)
    op = bad.reset(begin=LENGTH - 2)
    parts = [bad.part(), good.part()]
    ops = step_ops(parts, device.block_size)
    got = drawn(device.submit(op, good.reset(), *ops).results[0], parts)
    assert [row.flags for row in got] == [RowFlag.NO_MATCH, 0]
    assert got[1].id in b"abcd0123456789 "
    for _ in range(2):  # a step that was submitted before anybody knew feeds what was not drawn
        bad.ids.append(0)
        good.ids.append(got[1].id)
        parts = [row.part(tokens=[base.LAST_SAMPLE]) for row in (bad, good)]
        ops = step_ops(parts, device.block_size)
        got = drawn(device.submit(*ops).results[0], parts)
        assert [row.flags for row in got] == [RowFlag.NO_MATCH, 0] and got[0].id == 0
    bad.ids[LENGTH:] = []
    assert bad.draw(bad.reset()).flags == 0


def test_what_takes_too_much_is_a_flag_of_its_row(device: Device) -> None:
    """An ambiguous grammar: each id makes more to look at, until there is too much."""
    text = b'start: s "!"\ns: "a" | "b" | s s' + b"".join(b' | s s "%d"' % n for n in range(24))
    have(device, text, GrammarKind.LARK)
    row = Row(device)
    first = row.reset(bias={ord("!"): -1000.0, ord("a"): 1000.0})
    for _ in range(80):
        got = row.draw(*([first] if len(row.ids) == LENGTH else []))
        if got.flags:
            break
        row.ids.append(got.id)
    assert got.flags == RowFlag.GRAMMAR_LIMIT
    assert len(row.ids) > LENGTH + 3


def test_a_row_beyond_the_end_has_no_id(device: Device) -> None:
    have(device, b"ab")
    row = Row(device)
    row.ids += b"ab"
    device.prefill(row.ids, row.blocks)
    got = row.draw(row.reset())
    ends = device.loaded.eos_ids
    assert got.id in ends and not got.flags if ends else got.flags == RowFlag.NO_MATCH


# --- compiling --------------------------------------------------------------------------------

BAD: dict[str, tuple[int, bytes]] = {
    "regex": (GrammarKind.REGEX, b"(ab"), "look ahead": (GrammarKind.REGEX, b"a(?=b)"),
    "counts": (GrammarKind.REGEX, b"a{5,2}"), "no UTF-8": (GrammarKind.REGEX, b"a\xff\xfe"),
    "half a letter": (GrammarKind.JSON_SCHEMA, b'{"const": "\\ud800"}'),
    "no JSON": (GrammarKind.JSON_SCHEMA, b'{"type": '), "NaN": (GrammarKind.JSON_SCHEMA, b"NaN"),
    "digits": (GrammarKind.JSON_SCHEMA, b'{"maxLength": %s}' % (b"9" * 9000)),
    "a list": (GrammarKind.JSON_SCHEMA, b"[1, 2]"), "1": (GrammarKind.JSON_SCHEMA, b"1"),
    "type": (GrammarKind.JSON_SCHEMA, b'{"type": "colour"}'),
    "impossible": (GrammarKind.JSON_SCHEMA, b"false"),
    "remote": (GrammarKind.JSON_SCHEMA, b'{"$ref": "http://example.com/"}'),
    "a file": (GrammarKind.JSON_SCHEMA, b'{"$ref": "file:///etc/passwd"}'),
    "deep": (GrammarKind.JSON_SCHEMA, b'{"items":' * 1000 + b"{}" + b"}" * 1000),
    "deeper": (GrammarKind.JSON_SCHEMA, b"[" * base.MAX_GRAMMAR),
    "lark": (GrammarKind.LARK, b"start: missing"), "no start": (GrammarKind.LARK, b'a: "x"'),
    "lark, deep": (GrammarKind.LARK, b"start: " + b"(" * 40_000),
    "loop": (GrammarKind.LARK, b"start: start"), "empty": (GrammarKind.LARK, b""),
    "another": (GrammarKind.LARK, b"start: @other"), "zeros": (GrammarKind.LARK, bytes(900)),
    "kind": (99, b"a"),
}  # fmt: skip
COSTLY: dict[str, tuple[int, bytes]] = {
    "nested counts": (GrammarKind.REGEX, b"(a{1,1000}){1,1000}"),
    "more nested": (GrammarKind.REGEX, b"(((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99}b"),
    "ReDoS": (GrammarKind.REGEX, b"(a+)+(b|a)*(([a-z])+.)+[A-Z]([a-z])+!"),
    "subsets": (GrammarKind.REGEX, b"(.*[a-m].{400}[n-z]){4}.*x.{300}y"),
    "many": (GrammarKind.REGEX, b"|".join(b"(.*%d.{%d})" % (n, n) for n in range(2500))),
    "all of Unicode": (GrammarKind.REGEX, b"(\\p{L}\\p{M}*\\p{N}?){1,400}\\p{Greek}{1,400}"),
    "wide": (
        GrammarKind.JSON_SCHEMA,
        b'{"enum": [%s]}' % b",".join(b"%d" % n for n in range(8000)),
    ),
    "patterns": (
        GrammarKind.JSON_SCHEMA,
        b'{"anyOf": [%s]}'
        % b",".join(b'{"type": "string", "pattern": ".*%d.{50}x.*y"}' % n for n in range(700)),
    ),
    "properties": (
        GrammarKind.JSON_SCHEMA,
        b'{"type": "object", "properties": {%s}}'
        % b",".join(b'"p%d": {"type": "string"}' % n for n in range(1200)),
    ),
    "recursion": (
        GrammarKind.JSON_SCHEMA,
        b'{"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"},'
        b'{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"},'
        b'{"$ref": "#/$defs/b"}]}}}',
    ),
    "ambiguous": (GrammarKind.LARK, b"start: " + b"start? " * 300 + b'"a"'),
    "repeated": (GrammarKind.LARK, b'start: a{1,90000}\na: b{1,90000}\nb: "x"{1,90000}'),
    "alternatives": (
        GrammarKind.LARK,
        b"start: " + b" | ".join(b'"%d" start' % n for n in range(2500)) + b' | ""',
    ),
}  # fmt: skip
"""These may be refused, or compile: what they may not is hold up or end anything else."""


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_grammar_is_refused(device: Device, name: str) -> None:
    answer = compiled(device, NUMBER, BAD[name][1], BAD[name][0])
    assert answer[:3] == (0, NUMBER, FaultKind.PLAN_INVALID)
    assert 0 < len(answer.message) <= 600
    have(device, b"good")


@BOTH
def test_what_is_costly_harms_nobody(device: Device) -> None:
    have(device, WORDS, number=19)
    before = device.stats().mem_bytes
    for number, (kind, text) in enumerate(COSTLY.values(), 1):
        assert len(text) <= base.MAX_GRAMMAR
        answer = compiled(device, number, text, kind)
        assert answer.kind in (0, FaultKind.PLAN_INVALID), answer
        if not answer.kind:
            row = Row(device, number)
            got = row.draw(row.reset(number), temperature=30.0, seed=number)
            assert got.flags in (0, RowFlag.COMPLETE, RowFlag.GRAMMAR_LIMIT)
        device.renew()
    assert device.stats().mem_bytes - before < 256 << 20
    row = Row(device)
    assert row.draw(row.reset(19)).id in b"abcd0123456789 "


def test_steps_go_on_while_one_is_compiled(device: Device) -> None:
    """Both are answered, whichever comes first."""
    device.rig.send(base.Compile(0, NUMBER, GrammarKind.REGEX, WORDS))
    submit = device.next_submit(base.Scrub(base.ints([1])))
    device.rig.send(submit)
    kinds = {type(device.rig.receive()) for _ in range(2)}
    assert kinds == {base.Compiled, base.Complete}


def test_numbers_are_of_one_grammar_at_a_time(device: Device) -> None:
    have(device, b"one")

    def refused(message: Any) -> None:
        device.rig.send(message)
        fault = device.rig.receive()
        assert isinstance(fault, base.Fault)
        assert (fault.value, fault.kind) == (0, FaultKind.PLAN_INVALID)

    refused(base.Compile(0, NUMBER, GrammarKind.REGEX, b"two"))
    refused(base.Compile(0, 0, GrammarKind.REGEX, b"two"))
    refused(base.Compile(9, 1, GrammarKind.REGEX, b"two"))
    refused(base.Compile(0, 1, GrammarKind.REGEX, b"a" * (base.MAX_GRAMMAR + 1)))
    refused(base.Forget(0, NUMBER + 1))
    device.rig.send(base.Forget(0, NUMBER))
    refused(base.Forget(0, NUMBER))
    have(device, b"[z]")
    row = Row(device)
    assert row.draw(row.reset()).id == ord("z")


def test_a_reset_that_cannot_be(device: Device) -> None:
    have(device, WORDS)
    row = Row(device)
    before = device.checksums()
    wrong: Sequence[base.Reset] = (
        row.reset(NUMBER + 1), row.reset(-1), row.reset(num_prompt=-1),
        row.reset(begin=-1), row.reset(begin=MAX_CTX + 1),
    )  # fmt: skip
    for op in wrong:
        fault = device.refuse(op, *step_ops([row.part()], device.block_size))
        assert fault.kind == FaultKind.PLAN_INVALID
    assert device.checksums() == before
    device.rig.send(base.Forget(0, NUMBER))
    assert device.refuse(row.reset()).kind == FaultKind.PLAN_INVALID
