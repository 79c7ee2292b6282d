"""A Match on its own: what it gives up on, and that a copy is its own."""

import pytest

from drivers import grammar
from drivers.base import GrammarKind, RowFlag
from drivers.grammar import (
    Grammar,
    GrammarError,
    Match,
    NoMatch,
    Vocabulary,
    compile_source,
    source_of,
)
from drivers.null_model import Options, vocabulary
from syscalls import abi


def compiled(text: bytes, kind: int = GrammarKind.REGEX, eos: int = 250) -> Grammar:
    return compile_source(source_of(kind, text), vocabulary(Options(vocab=251, eos=eos)))


def allowed(match: Match) -> set[int]:
    mask = int.from_bytes(match.mask(), "little")
    return {token for token in range(mask.bit_length()) if mask >> token & 1}


def flag(match: Match) -> RowFlag:
    with pytest.raises(NoMatch) as none:
        match.mask()
    return none.value.flag


def test_kinds_have_the_numbers_of_the_system_calls() -> None:
    kinds = {kind.name: int(kind) for kind in GrammarKind}
    assert kinds == {kind.name: int(kind) for kind in abi.GrammarKind}


def test_a_copy_goes_its_own_way() -> None:
    match = Match(compiled(b"ab(cd|ef)"), 0)
    match.add(b"ab", 0)
    other = match.copy()
    match.add(b"c", 2)
    assert (allowed(match), allowed(other)) == (set(b"d"), set(b"ce"))
    other.add(b"ef", 2)
    assert other.complete and not match.complete


def test_only_ids_from_where_it_begins_are_followed() -> None:
    grammar = compiled(b"abc")
    for cuts in ([5], [1, 4], [3, 2], [2, 1, 1, 1]):
        match, ids, position = Match(grammar, 3), list(b"xyzab"), 0
        for count in cuts:
            match.add(ids[position : position + count], position)
            position += count
        assert allowed(match) == set(b"c")


def test_an_end_may_come_where_the_text_is_whole() -> None:
    match = Match(compiled(b"a{2,3}"), 0)
    for text, ids in ((b"", set(b"a")), (b"a", set(b"a")), (b"a", {*b"a", 250})):
        match.add(text, 0)
        assert allowed(match) == ids
    match.add([250], 2)
    assert not match.complete and flag(match) == RowFlag.NO_MATCH


def test_whoever_is_slow_gets_no_second_id(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = compiled(b"a{9}")
    quick, slow, told = (Match(grammars, 0) for _ in range(3))
    quick.add(b"a", 0)
    assert allowed(quick) == set(b"a")
    monkeypatch.setattr(grammar, "SLOW_S", -1.0)
    assert flag(slow) == RowFlag.GRAMMAR_LIMIT
    told.add(b"aa", 0)
    monkeypatch.undo()
    assert flag(slow) == flag(told) == RowFlag.GRAMMAR_LIMIT
    assert allowed(quick) == set(b"a"), "the others go on"


def test_whitespace_of_json_ends() -> None:
    """A small model would write it until it is stopped; a schema can say otherwise."""
    schema = b'{"type": "object", "properties": {"a": {"type": "null"}}%s}'
    for more, most in ((b"", 16), (b', "x-guidance": {"whitespace_pattern": "[ ]?"}', 1)):
        match = Match(compiled(schema % more, GrammarKind.JSON_SCHEMA), 0)
        match.add(b"{" + b" " * most, 0)
        assert ord(" ") not in allowed(match) and ord('"') in allowed(match)


def test_what_lark_says_of_cutting_is_not_heard() -> None:
    """Any way to cut the text into ids is right, whatever its grammar would like."""
    text = b'%llguidance {"no_forcing": false}\nstart: "abab"'
    source = source_of(GrammarKind.LARK, text)
    match = Match(compile_source(source, Vocabulary([b"a", b"ab", b"b", b"aba"], ())), 0)
    assert allowed(match) == {0, 1, 3}


def test_a_message_is_one_line_without_the_source() -> None:
    for kind, text in ((GrammarKind.REGEX, b"(secret"), (GrammarKind.LARK, b"start: a\n# secret")):
        with pytest.raises(GrammarError) as error:
            compiled(text, kind)
        said = str(error.value)
        assert said and "\n" not in said and "%llguidance" not in said and "start:" not in said
