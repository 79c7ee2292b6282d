"""Grammar: which ids may come next in a sequence, by llguidance.

    Vocabulary  the bytes of a model's ids, and the ids that end a text
    Grammar     one that is compiled for a vocabulary; sequences share it
    Match       where one sequence stands in a Grammar

A Grammar is made of source: what llguidance compiles. `source_of` makes it of what a user has sent,
and is as little to be trusted with that as the compiler: both run first in a process that is made
to die (drivers/trial.py), and only what has passed there is compiled here.

What may follow is decided byte by byte, so any id may come whose bytes fit, however a tokenizer
would have cut the text. An id without bytes (special, or a row that no token has) never fits, even
if a grammar names it; the ids that end a text may come where the grammar may end.

Costs of a Match are limited: it gives up, and with it the sequence, after 100,000 units of the
lexer's work in a step (up to 10 ms, as measured), or when its lexer has 10,000 states (some 20 MB).
LIMITS of the parser do not bound its time for every grammar; so whoever has taken SLOW_S of CPU for
one id gets no second one. Most take less than 0.0001 s.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from time import thread_time
from typing import TYPE_CHECKING, Any, NamedTuple

from drivers.base import GrammarKind, RowFlag

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LIMITS = {
    "max_items_in_row": 1000, "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 100_000,
    "step_max_items": 10_000, "max_lexer_states": 10_000, "max_grammar_size": 100_000,
    "verbose_errors": False,
}  # fmt: skip
SLOW_S = 0.1
_PLAIN = '\n%llguidance {"no_forcing": true}\n'
"""Otherwise only one way to cut a text would be allowed where there is just one text."""
_WHITESPACE = {"whitespace_pattern": "[ \\t\\n\\r]{0,16}"}
"""Between the items of JSON. Without a limit small models write it until they are stopped."""
_NOTHING = "NoExtension"
"""What llguidance says where no id fits; all else that can go wrong with a mask is a limit."""
_QUOTED = re.compile(r"\n +\d+ \| ")


class GrammarError(Exception):
    """A text is no grammar; the message is for whoever wrote it."""


class NoMatch(Exception):
    """Nothing can follow; `flag` of the row says why."""

    def __init__(self, flag: RowFlag) -> None:
        super().__init__(flag.name)
        self.flag = flag


def source_of(kind: int, text: bytes) -> str:
    """Return what is compiled for a grammar; GrammarError if it is not even a text."""
    try:
        given = text.decode()
    except UnicodeDecodeError as error:
        raise GrammarError(f"byte {error.start} of the grammar is no UTF-8") from None
    match kind:
        case GrammarKind.JSON_SCHEMA:
            return f"start: %json {_schema(given)}{_PLAIN}"
        case GrammarKind.REGEX:
            from llguidance import regex_to_lark

            return f"start: /{regex_to_lark(given)}/{_PLAIN}"
        case GrammarKind.LARK:
            return given + _PLAIN
    raise GrammarError(f"there is no kind {kind} of grammars")


def _schema(text: str) -> str:
    try:
        schema = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise GrammarError("the schema is nested too deep") from None
    except ValueError as error:
        raise GrammarError(f"the schema is no JSON: {error}") from None
    if isinstance(schema, dict):
        schema = {"x-guidance": _WHITESPACE, **schema}
    return json.dumps(schema)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


class Vocabulary:
    """The bytes of ids, none for an id that is no text, and the ids that end a text."""

    def __init__(self, tokens: Sequence[bytes], end_ids: Iterable[int]) -> None:
        self.tokens = tokens
        self.end_ids = tuple(end_ids)
        self.end_bits = sum(1 << id for id in self.end_ids)

    @property
    def end(self) -> int:
        """The id that stands for all that end a text; the model has no such id."""
        return len(self.tokens)

    @cached_property
    def text_bits(self) -> int:
        """A bit for each id that is text."""
        bits = "".join("01"[bool(token)] for token in reversed(self.tokens))
        return int(bits, 2) & ~self.end_bits

    @cached_property
    def tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapper = TokenizerWrapper(_Tokens(self.tokens, self.end))
        return LLTokenizer(wrapper, n_vocab=self.end + 1, eos_token=[self.end])


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = end

    def __call__(self, text: bytes) -> list[int]:
        """Cut a text. It is asked once, whether it takes bytes, and never with _PLAIN."""
        return []


class Grammar(NamedTuple):
    """A compiled grammar."""

    vocabulary: Vocabulary
    start: "LLMatcher"  # nothing has been matched yet


def compile_source(source: str, vocabulary: Vocabulary) -> Grammar:
    """Compile; GrammarError with what the compiler says."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
    matcher = LLMatcher(
        vocabulary.tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=limits
    )
    if matcher.is_error():
        raise GrammarError(_spoken(matcher.get_error()))
    return Grammar(vocabulary, matcher)


def _spoken(error: str) -> str:
    """Return what the compiler says in one line, without the lines of source that it quotes."""
    said = _QUOTED.split(error)[0].removeprefix("at 1(8): ")
    return " ".join(said.split())


class Match:
    """Where a sequence stands: its ids from position `begin` on are of the grammar."""

    def __init__(self, grammar: Grammar, begin: int) -> None:
        self.begin = begin
        self._vocabulary = grammar.vocabulary
        self._matcher = grammar.start.deep_copy()
        self._over = False  # an id has come that ends a text, or cannot come
        self._flag = RowFlag.NO_MATCH
        self._allowed = 0  # a bit for each id that may come next, if that has been asked

    def add(self, ids: Sequence[int], position: int) -> None:
        """Follow the ids from `position` on, which come next in the sequence."""
        ids, start = ids[max(0, self.begin - position) :], thread_time()
        for token in ids:
            if self._over or token in self._vocabulary.end_ids:
                self._over = True
            elif not self._matcher.consume_token(token):
                self._over = True
                if self._allowed >> token & 1:  # it did fit, so the matcher has given up
                    self._flag = RowFlag.GRAMMAR_LIMIT
            self._allowed = 0
        self._check_time(start, len(ids))

    def mask(self) -> bytes:
        """Return a bit for each id, the lowest of the first byte for id 0; NoMatch if none is set.

        Bits behind the vocabulary are 0, up to a whole number of bytes.
        """
        if self._over:
            raise NoMatch(self._flag)
        start = thread_time()
        bits = int.from_bytes(self._matcher.compute_bitmask(), "little")
        self._check_time(start)
        if self._matcher.is_error():
            self._over = True
            if _NOTHING not in self._matcher.get_error():
                self._flag = RowFlag.GRAMMAR_LIMIT
        if self._over:
            raise NoMatch(self._flag)
        vocabulary = self._vocabulary
        allowed = bits & vocabulary.text_bits
        if bits >> vocabulary.end & 1:
            allowed |= vocabulary.end_bits
        if not allowed:
            self._over = True
            raise NoMatch(self._flag)
        self._allowed = allowed
        return allowed.to_bytes(-(-vocabulary.end // 8), "little")

    def _check_time(self, start: float, count: int = 1) -> None:
        """Give up if some ids have taken too long."""
        if thread_time() - start > SLOW_S * max(1, count):
            self._over, self._flag = True, RowFlag.GRAMMAR_LIMIT

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may follow."""
        return not self._over and self._matcher.is_stopped()

    def copy(self) -> "Match":
        other = Match.__new__(Match)
        other.__dict__.update(self.__dict__)
        other._matcher = self._matcher.deep_copy()
        return other
