"""From the source of a word, or of a text in quotes, to its parts.

    'as it is'   "with $name, ${name}, $(command) and \\" \\$ \\\\"   bare\\ with\\ backslash

`$` before anything else stands for itself, but ${name:-x} and its like are refused. What is inside
`$(...)` is read by `nested`, which takes the place after the bracket and returns the line in it and
the place after its end.
"""

import re
from collections.abc import Callable
from enum import Enum

from userland.llmsh.mistakes import Incomplete, ParseError, unbuilt
from userland.llmsh.nodes import Kind, Line, Part

Nested = Callable[[int], tuple[Line, int]]

_NAME = r"\$(?:(?P<name>[A-Za-z_]\w*|[?@*#0-9])|\{(?P<braced>[A-Za-z_]\w*|[?@*#]|[0-9]+)\})"
_VARIABLE = re.compile(_NAME)
_EXPANSION = re.compile(r"\$\{[#!]?[A-Za-z_0-9@*?][^}\n]*\}")
_BARE = re.compile(r"[^\s|&;<>()`'\"\\$]+")
SINGLE = re.compile(r"'([^']*)'")
_NEWLINE = re.compile(r"\\\r?\n")
_FILE = re.compile(r"@(?=~?/|\.\.?/)([^\s()]+)")


class Text(Enum):
    """Where a text ends, and what it has between."""

    QUOTED = '"'
    FREE = "the end of the line"
    HERE = "the end of the source"


_PLAIN = {
    Text.QUOTED: re.compile(r'[^\\$"]+'),
    Text.FREE: re.compile(r"(?:(?<![\s?])@|[^\\$@()\r\n])+"),
    Text.HERE: re.compile(r"[^\\$]+"),
}
_ESCAPED = {
    Text.QUOTED: re.compile(r"\\([$`\"\\])"),
    Text.FREE: re.compile(r"\\([$`\"\\@])"),
    Text.HERE: re.compile(r"\\([$`\\])"),
}


def scan_word(source: str, at: int, nested: Nested) -> tuple[list[Part], int]:
    """Return the parts of the word that begins here, and where it ends."""
    parts: list[Part] = []
    while at < len(source):
        if found := _BARE.match(source, at):
            parts.append(Part(found.group()))
        elif found := _NEWLINE.match(source, at):
            pass
        elif found := SINGLE.match(source, at):
            parts.append(Part(found[1], quoted=True))
        if found:
            at = found.end()
        elif source[at] == '"':
            inner, at = scan_text(source, at + 1, Text.QUOTED, nested)
            parts += inner
        elif source[at] == "'":
            raise Incomplete("' is not closed", source, at, "'")
        elif source[at] == "$":
            part, at = _dollar(source, at, nested, quoted=False)
            parts.append(part)
        elif source[at] == "\\":
            if source[at + 1 :].strip("\r\n") == "":
                raise Incomplete("a backslash at the end", source, at)
            parts.append(Part(source[at + 1], quoted=True))
            at += 2
        else:
            break
    return parts, at


def scan_text(
    source: str, at: int, kind: Text, nested: Nested, inside: bool = False
) -> tuple[list[Part], int]:
    """Return the parts of a text, and the place after it; `inside`: a bracket may end it, too."""
    parts = [Part("", quoted=True)]
    begin, depth = at - 1, 0
    while at < len(source):
        if kind is Text.QUOTED and source[at] == '"':
            return parts, at + 1
        if kind is Text.FREE and source[at] in "\r\n":
            break
        if found := _PLAIN[kind].match(source, at):
            parts.append(Part(found.group(), quoted=True))
            at = found.end()
        elif found := _ESCAPED[kind].match(source, at):
            parts.append(Part(found[1], quoted=True))
            at = found.end()
        elif kind is not Text.FREE and (found := _NEWLINE.match(source, at)):
            at = found.end()
        elif source[at] == "$":
            part, at = _dollar(source, at, nested, quoted=True)
            parts.append(part)
        elif found := _FILE.match(source, at):
            parts.append(Part(found[1], Kind.FILE, quoted=True))
            at = found.end()
        else:
            depth += {"(": 1, ")": -1}.get(source[at], 0)
            if inside and depth < 0:
                break
            parts.append(Part(source[at], quoted=True))
            at += 1
    if kind is Text.QUOTED:
        raise Incomplete('" is not closed', source, begin, '"')
    return parts, at


def _dollar(source: str, at: int, nested: Nested, quoted: bool) -> tuple[Part, int]:
    if source.startswith("$((", at):
        raise unbuilt(source, at) or AssertionError("arithmetic is built")
    if source.startswith("$(", at):
        line, end = nested(at + 2)
        return Part(source[at:end], Kind.COMMAND, quoted, line), end
    if found := _VARIABLE.match(source, at):
        return Part(found["name"] or found["braced"], Kind.VARIABLE, quoted), found.end()
    if _EXPANSION.match(source, at):
        raise ParseError("not in this version: ${ } with more than a name", source, at)
    return Part("$", quoted=quoted), at + 1
