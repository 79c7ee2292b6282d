"""Words: how what is written becomes text, by bash's rules as far as they go here.

    'as it is'   "with $name, ${name}, $? and \\" \\$ \\\\"   bare\\ with\\ backslash   ~   *.txt

A variable outside quotes is split at blanks and vanishes if it is empty; a pattern is replaced by
the paths it matches, and stays as it is if there are none. `$` before anything else stands for
itself; `$(...)` is not built, and is an error rather than text.
"""

import re
from collections.abc import Callable
from glob import escape, glob
from pathlib import Path

from userland.llmsh.nodes import Part, Word

Lookup = Callable[[str], str]
"""The value of a variable; empty if it has none."""

_VARIABLE = r"\$(?:(?P<name>[A-Za-z_]\w*|\?)|\{(?P<braced>[A-Za-z_]\w*|\?)\})"
_WORD = re.compile(
    rf"""(?P<single>'[^']*') | (?P<double>"(?:[^"\\]|\\.)*") | \\(?P<escaped>.) | {_VARIABLE}
    | (?P<bare>[^'"\\$]+ | .)""",
    re.VERBOSE | re.DOTALL,
)
_TEXT = re.compile(
    rf"""\\(?P<escaped>[$`"\\]|\r?\n) | (?P<command>\$\() | {_VARIABLE}
    | (?P<bare>[^\\$]+ | .)""",
    re.VERBOSE | re.DOTALL,
)
_PATTERN = re.compile(r"[*?\[]")


class Unbuilt(Exception):
    """`$(...)` at this place of a text."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


# --- from the source to parts ---------------------------------------------------------------------


def split_word(source: str, column: int) -> Word:
    """Return the parts of a word as the grammar found it."""
    parts: list[Part] = []
    for found in _WORD.finditer(source):
        if found["single"]:
            parts.append(Part(found["single"][1:-1], quoted=True))
        elif found["double"]:
            parts += split_text(found["double"][1:-1], column + found.start() + 1)
        elif found["escaped"]:
            parts.append(Part(found["escaped"], quoted=True))
        else:
            parts.append(_bare(found, quoted=False))
    return Word(tuple(parts), column)


def split_text(source: str, column: int) -> list[Part]:
    """Return the parts of a text between double quotes, or after `?`."""
    parts = [Part("", quoted=True)]
    for found in _TEXT.finditer(source):
        if found["command"]:
            raise Unbuilt(column + found.start())
        if found["escaped"]:
            parts.append(Part(found["escaped"].strip("\r\n"), quoted=True))
        else:
            parts.append(_bare(found, quoted=True))
    return parts


def _bare(found: re.Match[str], quoted: bool) -> Part:
    name = found["name"] or found["braced"]
    return Part(name, True, quoted) if name else Part(found["bare"], False, quoted)


# --- from parts to text ---------------------------------------------------------------------------


def text_of(word: Word, lookup: Lookup) -> str:
    """Return a word as one text: a prompt, the target of a redirection."""
    text = "".join(lookup(part.text) if part.variable else part.text for part in word.parts)
    return _home(word, text)


def arguments(word: Word, lookup: Lookup) -> list[str]:
    """Return the arguments that a word of a command stands for."""
    texts, patterns = [""], [""]
    exists = any(part.quoted for part in word.parts)
    for part in word.parts:
        value = lookup(part.text) if part.variable else part.text
        pieces = [value]
        if part.variable and not part.quoted:
            pieces = _split(value)
        pattern = not (part.quoted or part.variable)
        for number, piece in enumerate(pieces):
            if number:
                texts.append("")
                patterns.append("")
            texts[-1] += piece
            patterns[-1] += piece if pattern else escape(piece)
    if len(texts) == 1:
        texts[0], patterns[0] = _home(word, texts[0]), _home(word, patterns[0])
    words = zip(texts, patterns, strict=True)
    return [path for text, pattern in words if text or exists for path in _paths(text, pattern)]


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
    if first.quoted or first.variable or not first.text.startswith("~"):
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
