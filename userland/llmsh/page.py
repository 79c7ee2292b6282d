"""An answer on a terminal: Markdown, drawn as it comes.

What is finished is written once and never touched again, so it scrolls away like any output. Below
it stands the tail, which is erased and drawn anew; it is never higher than the window, whose rows
above cannot be reached any more.

    finished    written once               | scrolls
    tail        the last rows of it        | drawn anew, at most every 50 ms and a fifth of the time

Rows are counted at the width of the moment: a terminal that wraps old rows anew while an answer
is being written may keep a row of the tail.
"""

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from io import StringIO
from typing import TYPE_CHECKING

from syscalls.shield import Shield
from userland.exits import Failure, PipeClosed
from userland.llmsh.markdown import Piece, Splitter
from userland.llmsh.streams import VISIBLE, Sink
from userland.llmsh.terminal import is_dumb

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PERIOD_S = 0.05
SHARE = 5
_CONTEXT = 60
"""Lines of code that are looked at to colour the next."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_BLANKS_AT_END = re.compile(r"[ \t]+((?:\x1b\[[0-9;]*m)*)$")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether a terminal can have its rows drawn anew, and its reader wants that."""
    return not is_dumb(environment) and not environment.get("LLMOS_A11Y")


class Page(Sink):
    """A terminal, from where the cursor stands."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._splitter = Splitter()
        self._rows = 0
        """Of the tail that is drawn; the cursor stands in the last one."""
        self._begun = False
        self._due = 0.0
        self._code: list[str] = []

    def write(self, text: str) -> None:
        """Take text; it is drawn now or with one of the next."""
        if not text:
            return
        self.ends_line = False
        self._splitter.feed(text.translate(VISIBLE))
        begin = time.monotonic()
        if begin >= self._due:
            self._draw()
            end = time.monotonic()
            self._due = end + max(PERIOD_S, SHARE * (end - begin))

    def end_line(self) -> None:
        """Draw all that is left, and begin a new line."""
        if not self.ends_line:
            with suppress(PipeClosed, Failure):
                self._draw(final=True)
                self._send("\n" * self._begun)
            self.ends_line = True

    def key(self, name: str) -> None:
        """Draw all that is left, and show a key that ended it."""
        self._draw(final=True)
        self._send(name)
        self.ends_line = False

    def aside(self) -> None:
        """Make room for a line that is not of the answer: it takes the place of the tail."""
        self._send(self._erased())
        self._rows, self._due = 0, 0.0

    # --- drawing ------------------------------------------------------------------------------

    def _draw(self, final: bool = False) -> None:
        with Shield():  # an interrupt in between would lose lines, or write them twice
            self._draw_all(final)

    def _draw_all(self, final: bool) -> None:
        columns, lines = os.get_terminal_size(self._fd)
        console = _console(max(columns, 10))
        done: list[str] = []
        for piece in self._splitter.rest() if final else self._splitter.finished():
            done += self._rendered(piece, console)
        tail = None if final else self._splitter.tail()
        rows = self._tail(tail, console)[-max(1, lines - 2) :] if tail else []
        if final and done:
            rows = [done.pop()]  # the cursor stays behind the last word
        parts = [self._erased(), *(f"{line}\n" for line in done), "\n".join(rows)]
        self._rows = len(rows)
        self._send("".join(parts))

    def _erased(self) -> str:
        up = self._rows - 1
        return "\r" + (f"\x1b[{up}A" if up > 0 else "") + "\x1b[J"

    def _rendered(self, piece: Piece, console: "Console") -> list[str]:
        """Return the rows of a finished piece; they may be longer than the window is wide."""
        gap = [] if piece.joined or not self._begun else [""]
        self._begun = True
        if piece.language is None:
            self._code = []
            return [*gap, *_markdown(piece.source, console)]
        if not piece.joined or not piece.language:
            self._code = []
        return [*gap, self._colored(piece.source, piece.language, console)]

    def _tail(self, piece: Piece, console: "Console") -> list[str]:
        gap = [] if piece.joined or not self._begun else [""]
        if piece.language is None:
            return [*gap, *_markdown(piece.source, console)]
        from rich.cells import chop_cells

        return [*gap, *chop_cells(piece.source.expandtabs(8), console.width)]

    def _colored(self, line: str, language: str, console: "Console") -> str:
        """Return a line of code in its colours, which depend on the lines before it."""
        if not language:
            return _plain(line, console, "dim" if line.lstrip().startswith(("```", "~~~")) else "")
        from rich.syntax import Syntax

        self._code = [*self._code[-_CONTEXT:], line]
        text = Syntax("", language, theme="ansi_dark", tab_size=8).highlight("\n".join(self._code))
        text.rstrip()
        last = text.split("\n", allow_blank=True)[-1] if line.strip() else None
        return _line(last, console) if last is not None else line


def _console(width: int) -> "Console":
    from rich.console import Console

    return Console(
        file=StringIO(), force_terminal=True, width=width, color_system="standard",
        highlight=False, emoji=False, markup=False, no_color=bool(os.environ.get("NO_COLOR")),
    )  # fmt: skip


def _markdown(source: str, console: "Console") -> list[str]:
    """Return the rows of Markdown, without blank ones at either end."""
    from userland.llmsh.look import Look

    with console.capture() as capture:
        console.print(Look(_verses(source)))
    rows = [_BLANKS_AT_END.sub(r"\1", row) for row in capture.get().split("\n")]
    said = [at for at, row in enumerate(rows) if _ANSI.sub("", row)]
    return rows[said[0] : said[-1] + 1] if said else []


def _verses(source: str) -> str:
    """Make every newline one that stays."""
    return re.sub(r"(?<=\S)[ \t]*\n(?=[ \t]*\S)", "  \n", source)


def _plain(line: str, console: "Console", style: str) -> str:
    from rich.text import Text

    return _line(Text(line, style), console)


def _line(text: "Text", console: "Console") -> str:
    with console.capture() as capture:
        console.print(text, soft_wrap=True, end="")
    return capture.get()
