"""From the text of one or several lines to nodes, by the grammar; or a ParseError."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedToken, VisitError

from userland.llmsh.mistakes import Incomplete, ParseError, at_character, at_token
from userland.llmsh.nodes import Call, Command, Joint, Line, Pipeline, Redirect, Stage, Word
from userland.llmsh.words import Unbuilt, split_text, split_word

_KEYWORDS = {
    "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac",
    "select", "function", "{", "}", "!", "[[", "time", "coproc",
}  # fmt: skip
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")


def parse(text: str) -> Line:
    """Return the nodes of one or several lines."""
    try:
        nodes: Line = _Nodes(text).transform(_grammar().parse(text))
    except UnexpectedCharacters as error:
        raise at_character(text, error.pos_in_stream or 0) from None
    except UnexpectedToken as error:
        raise at_token(text, error) from None
    except VisitError as error:
        raise error.orig_exc from None
    return nodes


def is_incomplete(text: str) -> bool:
    """Return whether the text goes on on the next line."""
    try:
        parse(text)
    except Incomplete:
        return True
    except ParseError:
        return False
    return False


@cache
def _grammar() -> Lark:
    source = files("userland.llmsh").joinpath("grammar.lark").read_text()
    return Lark(source, parser="lalr", start="line", maybe_placeholders=True)


class _Nodes(Transformer[Token, Line]):
    """The tree of lark, bottom up: a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def line(self, found: list[Line]) -> Line:
        return tuple(pipeline for pipelines in found for pipeline in pipelines)

    def and_or(self, found: list[Any]) -> Line:
        joints = [Joint.THEN, *(Joint(str(operator)) for operator in found[1::2])]
        return tuple(map(Pipeline, joints, found[0::2]))

    def pipeline(self, found: list[Stage]) -> tuple[Stage, ...]:
        return tuple(found)

    def redirect(self, found: list[Token]) -> Redirect:
        operator, target = found
        return Redirect(str(operator), self._word(target))

    def call(self, found: list[Token | None]) -> list[Token | None]:
        return found

    def command(self, found: list[Token]) -> Token:
        return found[0]

    def stage(self, found: list[Any]) -> Stage:
        redirects = tuple(item for item in found if isinstance(item, Redirect))
        head = next(item for item in found if not isinstance(item, Redirect))
        words = [item for item in found if isinstance(item, Token)]
        if isinstance(head, Token):
            return self._command(words, redirects)
        if words:
            raise self._error("not in this version: words and options after a prompt", words[0])
        context, prompt = head
        return Call(self._prompt(prompt), context and self._context(context), redirects)

    def _command(self, tokens: list[Token], redirects: tuple[Redirect, ...]) -> Command:
        name = str(tokens[0])
        if name in _KEYWORDS:
            raise self._error(f"not in this version: {name}", tokens[0])
        if _ASSIGNMENT.match(name):
            raise self._error(
                "not in this version: variables of your own (env NAME=value command)", tokens[0]
            )
        return Command(tuple(map(self._word, tokens)), redirects)

    def _prompt(self, token: Token) -> Word:
        if token.type != "FREE":
            word = self._word(token)
        else:
            source = str(token)[1:].lstrip()
            column = (token.start_pos or 0) + len(token) - len(source)
            word = Word(tuple(self._built(split_text, source.rstrip(), column)), column)
        if not any(part.text.strip() for part in word.parts):
            raise self._error("an empty prompt: there is nothing to ask", token)
        return word

    def _context(self, token: Token) -> str:
        if len(token) == 1:
            raise self._error("@ and the name of a context, without a blank between", token)
        return str(token)[1:]

    def _word(self, token: Token) -> Word:
        word: Word = self._built(split_word, str(token), token.start_pos or 0)
        return word

    def _built(self, split: Any, source: str, column: int) -> Any:
        try:
            return split(source, column)
        except Unbuilt as error:
            raise ParseError(
                "not in this version: $( ) in a text; \\$( stands for the characters",
                self._text,
                error.column,
            ) from None

    def _error(self, message: str, token: Token) -> ParseError:
        return ParseError(message, self._text, token.start_pos or 0)
