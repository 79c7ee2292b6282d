"""From text to the tokens of the grammar.

Whether a word begins a command decides what it is, as in every shell; this lexer keeps track of it.
It reads as it is asked, so that a mistake that the parser finds comes before those further on.

    begins   after a separator, an operator or a word of a compound: commands, prompts, keywords
    else     after the first word: words
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from lark import Token

from userland.llmsh.mistakes import Incomplete, ParseError, unbuilt
from userland.llmsh.nodes import Assignment, Line, Part, Word
from userland.llmsh.scan import SINGLE, Text, scan_text, scan_word

Parse = Callable[["Lexer"], Line]

_MAX_DEPTH = 25
_BLANK = re.compile(r"(?:[ \t]|\\\r?\n|#[^\n]*)+")
_OPERATORS = (
    ("_NEWLINE", r"\r?\n"),
    ("AND", r"&&"),
    ("OR", r"\|\|"),
    ("PIPE_BOTH", r"\|&"),
    ("PIPE", r"\|"),
    ("_SEMI", r";"),
    ("BOTH", r"&>>?"),
    ("DUPLICATE", r"[012]?[<>]&[012](?![^\s|&;<>()])"),
    ("HERE_STRING", r"0?<<<"),
    ("HERE_DOCUMENT", r"0?<<-?"),
    ("APPEND", r"[012]?>>"),
    ("INTO", r"[012]?>(?![&(|])"),
    ("FROM", r"0?<(?![&(>])"),
)
_OPERATOR = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _OPERATORS))
_FOREIGN = re.compile(r"[0-9]+[<>]")
"""A number before < or > would be a file descriptor, and this one is not built."""
_AT = re.compile(r"@[^\s|&;<>()`'\"\\$#]*(?=[\s)]|$)")
_FREE = re.compile(r"[ \t]+(?=\?)")
_IN = re.compile(r"[ \t]+(in)(?=[\s;]|$)")
NAME = re.compile(r"[A-Za-z_]\w*")
_ASSIGN = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_AFTER = re.compile(r"[\s|&;<>)]|$")
_KEYWORD = re.compile(r"(?:[a-z]+|[!{}])(?=[\s|&;<>)]|$)")
_KEYWORDS = {
    "if": "_IF", "then": "_THEN", "elif": "_ELIF", "else": "_ELSE", "fi": "_FI", "for": "_FOR",
    "do": "_DO", "done": "_DONE", "while": "WHILE", "until": "UNTIL", "{": "_LBRACE",
    "}": "_RBRACE", "!": "BANG",
}  # fmt: skip
_UNBUILT = {"case", "esac", "select", "function", "[[", "coproc"}
_CLOSE = {"_FI", "_DONE", "_RBRACE"}
_TARGETED = {"BOTH", "HERE_STRING", "APPEND", "INTO", "FROM"}
_CLOSERS = {"_IF": "fi", "_FOR": "done", "WHILE": "done", "UNTIL": "done", "_LBRACE": "}"}


class Lexer:
    """Reads one text from a place on; inside `$(`, up to its bracket."""

    def __init__(self, text: str, parse: Parse, at: int = 0, depth: int = 0) -> None:
        self.text = text
        self.at = at
        self.closed = False
        """The bracket that ends a nested text has been found."""
        self._depth = depth
        self._parse = parse
        self._begins = True
        self._documents: list[tuple[Token, str, bool, bool]] = []
        self._compounds: list[str] = []

    @property
    def awaits(self) -> str:
        """The word that closes the innermost compound that is open."""
        return self._compounds[-1] if self._compounds else ""

    def __iter__(self) -> Iterator[Token]:
        while True:
            if found := _BLANK.match(self.text, self.at):
                self.at = found.end()
            if self.at == len(self.text):
                break
            if self._depth and self.text[self.at] == ")":
                self.closed = True
                self.at += 1
                break
            yield from self._next()
        if self._documents:
            name = self._documents[0][1]
            raise Incomplete(f"the here-document is not closed by {name}", self.text, self.at, name)
        if self._depth and not self.closed:
            raise Incomplete("$( is not closed", self.text, self.at, ")")

    def _next(self) -> Iterator[Token]:
        if found := _OPERATOR.match(self.text, self.at):
            yield from self._operator(str(found.lastgroup), found.group())
        elif _FOREIGN.match(self.text, self.at):
            raise self._refused()
        elif self._begins:
            yield from self._beginning()
        else:
            yield self._word()

    def _beginning(self) -> Iterator[Token]:
        """Read what may begin a command."""
        char = self.text[self.at]
        if found := _KEYWORD.match(self.text, self.at):
            if found.group() in _KEYWORDS:
                yield from self._keyword(found.group())
                return
            if found.group() in _UNBUILT:
                raise ParseError(f"not in this version: {found.group()}", self.text, self.at)
        if found := _ASSIGN.match(self.text, self.at):
            yield self._assignment(found)
        elif found := _AT.match(self.text, self.at):
            self._begins = False
            yield self._token("AT", found.end(), found.group()[1:])
            yield from self._free_after_at()
        elif char == "?":
            yield self._free()
        else:
            token = self._string_or_word()
            self._begins = False
            yield token

    def _keyword(self, word: str) -> Iterator[Token]:
        kind = _KEYWORDS[word]
        if kind in _CLOSERS:
            self._deeper(self.at)
            self._compounds.append(_CLOSERS[kind])
        if kind in _CLOSE:
            self._begins = False
            del self._compounds[-1:]
        yield self._token(kind, self.at + len(word))
        if kind == "_FOR":
            yield from self._for()

    def _for(self) -> Iterator[Token]:
        """Read `name in`, or the name alone."""
        self._begins = False
        names = list(self._blank_word())
        if not names or not NAME.fullmatch(names[0].value.bare or ""):
            raise ParseError("for takes a name: for f in *.txt; do", self.text, self.at)
        yield from names
        if found := _IN.match(self.text, self.at):
            self.at = found.start(1)
            yield self._token("_IN", found.end())

    def _blank_word(self) -> Iterator[Token]:
        if found := _BLANK.match(self.text, self.at):
            self.at = found.end()
        if self.at < len(self.text) and not _AFTER.match(self.text, self.at):
            yield self._word()

    def _free_after_at(self) -> Iterator[Token]:
        if found := _FREE.match(self.text, self.at):
            self.at = found.end()
            yield self._free()

    # --- words --------------------------------------------------------------------------------

    def _token(self, kind: str, end: int, value: Any = None) -> Token:
        token = Token(kind, self.text[self.at : end], start_pos=self.at, end_pos=end)
        token.value = str(token) if value is None else value
        self.at = end
        return token

    def _word(self) -> Token:
        begin = self.at
        parts, end = scan_word(self.text, begin, self._nested)
        if end == begin:
            raise self._refused()
        return self._token("WORD", end, Word(tuple(parts), begin))

    def _string_or_word(self) -> Token:
        """Tell "a b" from "a"b: a prompt is one quoted string with nothing beside it."""
        begin, quote = self.at, self.text[self.at]
        if quote == '"':
            parts, end = scan_text(self.text, begin + 1, Text.QUOTED, self._nested)
        elif quote == "'" and (found := SINGLE.match(self.text, begin)):
            parts, end = [Part(found[1], quoted=True)], found.end()
        else:
            return self._word()
        if _AFTER.match(self.text, end):
            return self._token("PROMPT", end, Word(tuple(parts), begin))
        rest, end = scan_word(self.text, end, self._nested)
        return self._token("WORD", end, Word((*parts, *rest), begin))

    def _free(self) -> Token:
        self._begins = False
        begin = self.at + 1
        while self.text[begin : begin + 1] in (" ", "\t"):
            begin += 1
        inside = self._depth > 0
        parts, end = scan_text(self.text, begin, Text.FREE, self._nested, inside)
        return self._token("FREE", end, Word(tuple(parts), begin))

    def _assignment(self, found: "re.Match[str]") -> Token:
        if found[2]:
            raise ParseError("not in this version: NAME+=value", self.text, self.at)
        parts, end = scan_word(self.text, found.end(), self._nested)
        value = Word(tuple(parts) or (Part("", quoted=True),), found.end())
        return self._token("ASSIGN", end, Assignment(found[1], value))

    def _nested(self, at: int) -> tuple[Line, int]:
        inner = Lexer(self.text, self._parse, at, self._deeper(at - 2))
        return self._parse(inner), inner.at

    def _deeper(self, at: int) -> int:
        """Count what is open around here; all of it is read, and run, one within the other."""
        depth = self._depth + len(self._compounds) + 1
        if depth > _MAX_DEPTH:
            why = f"more than {_MAX_DEPTH} compounds and $( within each other"
            raise ParseError(why, self.text, at)
        return depth

    # --- operators ----------------------------------------------------------------------------

    def _operator(self, kind: str, text: str) -> Iterator[Token]:
        token = self._token(kind, self.at + len(text))
        if kind == "HERE_DOCUMENT":
            self._document(token)
        yield token
        if kind in _TARGETED:
            yield from self._blank_word()
        elif kind not in ("DUPLICATE", "HERE_DOCUMENT"):
            self._begins = True
        if kind == "_NEWLINE":
            self._read_documents()

    def _document(self, token: Token) -> None:
        """Note that a here-document begins on the next line; its token gets the text then."""
        words = list(self._blank_word())
        if not words:
            raise ParseError("the word that ends the here-document is missing", self.text, self.at)
        word: Word = words[0].value
        name = "".join(part.text for part in word.parts)
        literal = any(part.quoted for part in word.parts)
        self._documents.append((token, name, literal, str(token).endswith("-")))

    def _read_documents(self) -> None:
        for token, name, literal, indented in self._documents:
            lines = []
            while True:
                if self.at == len(self.text):
                    why = f"the here-document is not closed by {name}"
                    raise Incomplete(why, self.text, self.at, name)
                end = self.text.find("\n", self.at) + 1 or len(self.text)
                line, self.at = self.text[self.at : end], end
                line = line.lstrip("\t") if indented else line
                if line.rstrip("\r\n") == name:
                    break
                lines.append(line)
            body = "".join(lines)
            parts = [Part(body, quoted=True)]
            if not literal:
                inner = Lexer(body, self._parse, 0, self._depth)
                parts, _ = scan_text(body, 0, Text.HERE, inner._nested)
            token.value = Word(tuple(parts), token.start_pos or 0)
        self._documents = []

    def _refused(self) -> ParseError:
        char = self.text[self.at]
        plain = ParseError(f"{char!r} makes no sense here", self.text, self.at)
        return unbuilt(self.text, self.at) or plain
