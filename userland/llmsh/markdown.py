"""Splitting Markdown that is still being written: what is finished, and the tail that may change.

    blocks     all but the last are finished
    list       all items but the last
    paragraph  all lines but the last two: the next line may make a table or a heading of them
    code       all lines but the last

A newline in a paragraph is kept as one: models write verses, and mean it. Pure: text to pieces.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\s`]*)")
_NUMBER = re.compile(r"( {0,3})[0-9]+([.)])")
_PATIENCE = 40
"""Lines that a paragraph is held back for markup that is not closed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. `language` is None for Markdown, else the source is code."""

    source: str
    joined: bool = False
    """Goes on where the piece before it ended, without a line between."""
    language: str | None = None


class Splitter:
    """Takes an answer as it comes."""

    def __init__(self) -> None:
        self._tail = ""
        self._joined = False
        self._fence: tuple[str, str] | None = None
        """Marker and language of the code block that is open."""
        self._number = 1
        self._blank = False

    def feed(self, text: str) -> None:
        """Add what has come."""
        self._tail += text

    def finished(self) -> list[Piece]:
        """Take what cannot change any more."""
        return list(self._finished())

    def tail(self) -> Piece | None:
        """Return what may change; None if there is nothing."""
        if self._fence is not None:
            return Piece(self._tail, True, self._fence[1]) if self._tail else None
        return self._markdown(self._tail, self._joined) if self._tail.strip() else None

    def rest(self) -> list[Piece]:
        """Take all that is left: the answer is over."""
        pieces = self.finished()
        tail = self.tail()
        self._tail = ""
        return [*pieces, tail] if tail else pieces

    # --- what is finished ---------------------------------------------------------------------

    def _finished(self) -> Iterator[Piece]:
        while "\n" in self._tail:
            before = self._tail
            yield from self._code() if self._fence is not None else self._blocks()
            if self._tail == before:
                return

    def _code(self) -> Iterator[Piece]:
        """Take the finished lines of a code block, up to the fence that closes it."""
        assert self._fence is not None
        marker, language = self._fence
        *lines, rest = self._tail.split("\n")
        for number, line in enumerate(lines):
            stripped = line.strip()
            if stripped and not stripped.strip(marker[0]) and len(stripped) >= len(marker):
                yield Piece(line, True, "")
                self._fence, self._joined = None, False
                self._tail = "\n".join([*lines[number + 1 :], rest])
                return
            yield Piece(line, True, language)
        self._tail = rest

    def _blocks(self) -> Iterator[Piece]:
        """Take every block but the last, and of the last what is finished."""
        lines = self._tail.split("\n")
        blocks = [token for token in _tokens(lines) if token.map and not token.level]
        if not blocks:
            self._tail = lines[-1]  # blank lines
            return
        for token, following in zip(blocks, [*blocks[1:], None], strict=True):
            assert token.map is not None
            if token.type == "fence":
                yield self._open_fence(lines, token.map[0])
                return
            if following is None:
                yield from self._part(token, lines)
                return
            assert following.map is not None
            end = following.map[0]
            yield from self._whole(token, lines[token.map[0] : end])

    def _open_fence(self, lines: list[str], at: int) -> Piece:
        """Begin a code block: from here on its lines are taken one by one."""
        found = _FENCE.match(lines[at])
        assert found is not None, "the parser knows other fences"
        self._fence = found[1], found[2]
        self._tail = "\n".join(lines[at + 1 :])
        self._joined = False
        return Piece(lines[at], False, "")

    def _whole(self, token: "Token", lines: list[str]) -> Iterator[Piece]:
        yield self._markdown("\n".join(lines).rstrip(), self._joined)
        self._joined = False

    def _part(self, token: "Token", lines: list[str]) -> Iterator[Piece]:
        """Take what is finished of the block that is still being written."""
        assert token.map is not None
        rest = lines[token.map[0] :]
        if token.type in ("bullet_list_open", "ordered_list_open"):
            yield from self._items(token, rest)
        elif token.type == "paragraph_open":
            yield from self._verses(rest, token.map[1] - token.map[0])
        else:
            self._tail = "\n".join(rest)

    def _items(self, token: "Token", lines: list[str]) -> Iterator[Piece]:
        starts = [
            item.map[0]
            for item in _tokens(lines)
            if item.type == "list_item_open" and item.level == 1 and item.map
        ]
        for start, end in pairwise(starts):
            yield self._markdown("\n".join(lines[start:end]).rstrip(), self._joined)
            lines[end] = _renumbered(lines[start], lines[end])
            self._joined = True
        self._tail = "\n".join(lines[starts[-1] if starts else 0 :])

    def _verses(self, lines: list[str], end: int) -> Iterator[Piece]:
        """Take a paragraph that a blank line ends, or all but the last two lines of one."""
        if end < len(lines) - 1:
            yield self._markdown("\n".join(lines[:end]), self._joined)
            self._joined = False
            self._tail = "\n".join(lines[end:])
            return
        done = lines[:-2]
        self._tail = "\n".join(lines)
        if done and (not _is_open("\n".join(done)) or len(done) >= _PATIENCE):
            yield self._markdown("\n".join(done), self._joined)
            self._joined = True
            self._tail = "\n".join(lines[-2:])

    def _markdown(self, source: str, joined: bool) -> Piece:
        return Piece(source, joined)


def _tokens(lines: list[str]) -> "list[Token]":
    """Parse all lines but the last, which is not complete and may become something else."""
    return parser(inline=False).parse("\n".join(lines[:-1]))


def _is_open(text: str) -> bool:
    """Tell whether bold, code or a link that has begun may be closed further on."""
    return any(text.count(mark) % 2 for mark in ("`", "**", "__")) or (
        text.count("[") > text.count("]")
    )


def _renumbered(before: str, line: str) -> str:
    """Give an item the number after that of the item before it, as a list counts."""
    first, found = _NUMBER.match(before), _NUMBER.match(line)
    if first is None or found is None:
        return line
    number = int(first.group().strip().rstrip(".)")) + 1
    return f"{found[1]}{number}{found[2]}{line[found.end() :]}"


@cache
def parser(inline: bool = True) -> "MarkdownIt":
    """Return a parser by which every line is of some block, and HTML is text like any other."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return made.disable(["reference"] if inline else ["reference", "inline"])
