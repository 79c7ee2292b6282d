"""From the text of one or several lines to nodes, by the grammar; or a ParseError."""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedToken, VisitError
from lark.lexer import Lexer as LarkLexer

from userland.llmsh.lexer import Lexer
from userland.llmsh.mistakes import Incomplete, ParseError, at_token
from userland.llmsh.nodes import (
    Call,
    Command,
    Compound,
    For,
    Group,
    If,
    Joint,
    Kind,
    Line,
    Pipeline,
    Redirect,
    Stage,
    While,
    Word,
)
from userland.llmsh.redirects import both, duplicate, redirect


def parse(text: str) -> Line:
    """Return the nodes of one or several lines."""
    return _parse(Lexer(text, _parse))


def is_incomplete(text: str) -> bool:
    """Return whether the text goes on on the next line."""
    try:
        parse(text)
    except Incomplete:
        return True
    except ParseError:
        return False
    return False


def _parse(lexer: Lexer) -> Line:
    try:
        nodes: Line = _Nodes(lexer.text).transform(_grammar().parse(lexer))
    except UnexpectedToken as error:
        raise at_token(lexer.text, error, lexer.at, lexer.closed, lexer.awaits) from None
    except VisitError as error:
        raise error.orig_exc from None
    return nodes


class _Tokens(LarkLexer):
    """What lark takes for a lexer: the tokens are made elsewhere."""

    __future_interface__ = 2

    def __init__(self, _: object) -> None:
        pass

    def lex(self, lexer_state: Any, parser_state: Any) -> Any:
        return iter(lexer_state.text)


@cache
def _grammar() -> Lark:
    source = files("userland.llmsh").joinpath("grammar.lark").read_text()
    return Lark(source, parser="lalr", start="line", lexer=_Tokens)


class _Nodes(Transformer[Token, Line]):
    """The tree of lark, bottom up: a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def line(self, found: list[Line]) -> Line:
        return tuple(pipeline for pipelines in found for pipeline in pipelines)

    body = line

    def and_or(self, found: list[Any]) -> Line:
        joints = [Joint.THEN, *(Joint(str(operator)) for operator in found[1::2])]
        pairs = zip(joints, found[0::2], strict=True)
        return tuple(Pipeline(joint, stages, negated) for joint, (stages, negated) in pairs)

    def pipeline(self, found: list[Any]) -> tuple[tuple[Stage, ...], bool]:
        negated = isinstance(found[0], Token)
        stages: list[Stage] = []
        for item in found[negated:]:
            if not isinstance(item, Token):
                stages.append(item)
            elif item.type == "PIPE_BOTH":
                last = stages[-1]
                stages[-1] = _with(last, (*last.redirects, duplicate("2>&1", item.start_pos or 0)))
        return tuple(stages), negated

    # --- commands and calls -------------------------------------------------------------------

    def redirect(self, found: list[Token]) -> tuple[Redirect, ...]:
        operator, column = found[0], found[0].start_pos or 0
        if operator.type == "DUPLICATE":
            return (duplicate(str(operator), column),)
        if operator.type == "BOTH":
            return both(str(operator), found[1].value, column)
        return (redirect(str(operator), found[-1].value),)

    def call(self, found: list[Token]) -> list[Token]:
        return found

    def command(self, found: list[Token]) -> tuple[Token, ...]:
        return tuple(found)

    def simple(self, found: list[Any]) -> Stage:
        head = next(item for item in found if isinstance(item, list) or _is_command(item))
        words = [item for item in found if isinstance(item, Token)]
        redirects = tuple(r for item in found if _is_redirect(item) for r in item)
        if isinstance(head, list):
            return self._call(head, words, redirects)
        assignments = tuple(token.value for token in head if token.type == "ASSIGN")
        first = [token for token in head if token.type != "ASSIGN"]
        return Command(assignments, tuple(t.value for t in (*first, *words)), redirects)

    def _call(self, head: list[Token], words: list[Token], redirects: tuple[Redirect, ...]) -> Call:
        context = self._context(head[0]) if head[0].type == "AT" else None
        first = head[-1]
        given: tuple[Word, ...] = (first.value, *(token.value for token in words))
        if first.type == "WORD" and not any(_is_quoted(word) for word in given):
            raise self._error("after @name comes a quoted prompt, or ? and text", first)
        if first.type != "WORD" and not any(_says(part) for part in first.value.parts):
            raise self._error("an empty prompt: there is nothing to ask", first)
        return Call(given, context, first.type == "FREE", redirects)

    def _context(self, token: Token) -> str:
        if not token.value:
            raise self._error("@ and the name of a context, without a blank between", token)
        return str(token.value)

    # --- compounds ----------------------------------------------------------------------------

    def compound(self, found: list[Any]) -> Compound:
        node: Compound = found[0]
        whole: Compound = _with(node, tuple(redirect for item in found[1:] for redirect in item))
        return whole

    def if_(self, found: list[Any]) -> If:
        condition, then, *rest = found
        otherwise: Line = ()
        if rest and isinstance(rest[-1], _Else):
            otherwise = rest.pop().body
        return If(((condition, then), *rest), otherwise)

    def elif_(self, found: list[Line]) -> tuple[Line, Line]:
        return found[0], found[1]

    def else_(self, found: list[Line]) -> "_Else":
        return _Else(found[0])

    def for_arguments(self, found: list[Any]) -> For:
        name, body = found
        return For(str(name), None, body)

    def for_words(self, found: list[Any]) -> For:
        name, *words, body = found
        return For(str(name), tuple(word.value for word in words), body)

    def while_(self, found: list[Any]) -> While:
        kind, condition, body = found
        return While(kind.type == "UNTIL", condition, body)

    def group(self, found: list[Line]) -> Group:
        return Group(found[0])

    def _error(self, message: str, token: Token) -> ParseError:
        return ParseError(message, self._text, token.start_pos or 0)


class _Else:
    def __init__(self, body: Line) -> None:
        self.body = body


def _with(stage: Any, redirects: tuple[Redirect, ...]) -> Any:
    return replace(stage, redirects=redirects) if redirects else stage


def _is_command(item: Any) -> bool:
    return isinstance(item, tuple) and isinstance(item[0], Token)


def _is_redirect(item: Any) -> bool:
    return isinstance(item, tuple) and isinstance(item[0], Redirect)


def _is_quoted(word: Word) -> bool:
    return bool(word.parts) and word.parts[0].quoted


def _says(part: Any) -> bool:
    return part.kind is not Kind.TEXT or bool(part.text.strip())
