"""Words: how the parts of what is written become text, by bash's rules as far as they go here.

    'as it is'   "with $name and $(command)"   bare\\ with\\ backslash   ~   *.txt   "$@"

A variable or a command outside quotes is split at blanks and vanishes if it is empty; a pattern is
replaced by the paths it matches, and stays as it is if there are none. "$@" is one word for each
argument.
"""

import re
from glob import escape, glob
from pathlib import Path
from typing import Protocol

from userland.llmsh.nodes import Kind, Line, Part, Word

_PATTERN = re.compile(r"[*?\[]")


class Values(Protocol):
    """Where the values of variables and commands come from."""

    def lookup(self, name: str) -> str:
        """Return the value of a variable; empty if it has none."""

    def arguments(self) -> list[str]:
        """Return `$1`, `$2` and so on."""

    def capture(self, line: Line) -> str:
        """Run a line and return what it writes, without the newlines at its end."""


def value_of(part: Part, values: Values) -> str:
    """Return what a part stands for as one text."""
    if part.kind is Kind.VARIABLE:
        if part.text in ("@", "*"):
            return " ".join(values.arguments())
        return values.lookup(part.text)
    return values.capture(part.line) if part.kind is Kind.COMMAND else part.text


def text_of(word: Word, values: Values) -> str:
    """Return a word as one text: a prompt, a value, the target of a redirection."""
    return _home(word, "".join(value_of(part, values) for part in word.parts))


def files_of(word: Word) -> list[str]:
    """Return the paths of files that go along with a prompt."""
    return [part.text for part in word.parts if part.kind is Kind.FILE]


def arguments(word: Word, values: Values) -> list[str]:
    """Return the arguments that a word of a command stands for."""
    texts, patterns = [""], [""]
    exists = _exists(word, values)
    for part in word.parts:
        pattern = not part.quoted and part.kind is Kind.TEXT
        for number, piece in enumerate(_pieces(part, values)):
            if number:
                texts.append("")
                patterns.append("")
            texts[-1] += piece
            patterns[-1] += piece if pattern else escape(piece)
    if len(texts) == 1:
        texts[0], patterns[0] = _home(word, texts[0]), _home(word, patterns[0])
    words = zip(texts, patterns, strict=True)
    return [path for text, pattern in words if text or exists for path in _paths(text, pattern)]


def _exists(word: Word, values: Values) -> bool:
    """Tell whether a word stays even if it is empty: '' does, "$@" without arguments does not."""
    if any(_is_all(part) for part in word.parts) and not values.arguments():
        return any(part.quoted and part.text and not _is_all(part) for part in word.parts)
    return any(part.quoted for part in word.parts)


def _is_all(part: Part) -> bool:
    return part.quoted and part.kind is Kind.VARIABLE and part.text == "@"


def _pieces(part: Part, values: Values) -> list[str]:
    """Return what a part stands for, split where it ends one word and begins another."""
    if _is_all(part):
        return values.arguments()
    value = value_of(part, values)
    return [value] if part.quoted or part.kind is Kind.TEXT else _split(value)


def _split(value: str) -> list[str]:
    """Split at blanks; a blank at an end separates from what stands beside the variable."""
    pieces = value.split()
    if not pieces:
        return [""]
    if value[0].isspace():
        pieces.insert(0, "")
    if value[-1].isspace():
        pieces.append("")
    return pieces


def _home(word: Word, text: str) -> str:
    """Replace ~ and ~user at the beginning, unless it is quoted."""
    first = word.parts[0]
    if first.quoted or first.kind is not Kind.TEXT or not first.text.startswith("~"):
        return text
    name, slash, rest = text.partition("/")
    try:
        return f"{Path(name).expanduser()}{slash}{rest}"
    except (RuntimeError, ValueError):  # no such user, no such name
        return text


def _paths(text: str, pattern: str) -> list[str]:
    if _PATTERN.search(pattern.replace("[*]", "").replace("[?]", "").replace("[[]", "")):
        try:
            return sorted(glob(pattern)) or [text]  # noqa: PTH207  words are text: ./a and a differ
        except ValueError:  # a NUL is in no path
            return [text]
    return [text]
