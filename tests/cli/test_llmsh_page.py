"""An answer on a terminal: every line once, whatever comes in between, and nothing of it lost."""

import fcntl
import os
import random
import re
import struct
import termios
import threading
from collections.abc import Iterator

import pyte
import pytest

from userland.llmsh.page import Page


class Window:
    """A terminal with rows that have scrolled away, and something that reads it all the time."""

    def __init__(self, columns: int, lines: int) -> None:
        self.main, self.fd = os.openpty()
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(columns, lines)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.main, 1 << 16)
            except OSError:  # the other end is closed
                return
            self.raw += data
            self._stream.feed(data)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def close(self) -> list[str]:
        """Return all rows, those that have scrolled away first."""
        os.close(self.fd)
        self._reader.join()
        os.close(self.main)
        columns = self._screen.columns
        gone = ["".join(row[at].data for at in range(columns)) for row in self._screen.history.top]
        rows = [row.rstrip() for row in (*gone, *self._screen.display)]
        while rows and not rows[-1]:
            rows.pop()
        return rows


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw at every piece, not only every 50 ms: as much as can go wrong."""
    monkeypatch.setattr("userland.llmsh.page._PERIOD_S", 0.0)
    monkeypatch.setattr("userland.llmsh.page._SHARE", 0)


def pieces(text: str, seed: int = 1) -> Iterator[str]:
    """Cut a text as tokens might."""
    dice, at = random.Random(seed), 0
    while at < len(text):
        size = dice.randint(1, 9)
        yield text[at : at + size]
        at += size


def drawn(text: str, columns: int = 60, lines: int = 20) -> list[str]:
    window = Window(columns, lines)
    page = Page(window.fd)
    for piece in pieces(text):
        page.write(piece)
    page.end_line()
    return window.close()


def found(rows: list[str]) -> list[int]:
    return [int(number) for row in rows for number in re.findall(r"\bn(\d+)\b", row)]


BIG = {
    "paragraphs": "\n\n".join(f"paragraph n{at} {'word ' * (at % 30)}" for at in range(300)),
    "verses": "\n".join(f"verse n{at}" for at in range(2000)),
    "items": "\n".join(f"- item n{at} **bold**" for at in range(400)),
    "numbers": "\n".join(f"1. item n{at}" for at in range(120)),
    "code": "```python\n" + "\n".join(f"def f(): n{at}" for at in range(400)) + "\n```\nend n400",
    "table": "|a|b|\n|-|-|\n" + "\n".join(f"|n{at}|日本{at}|" for at in range(60)),
    "quote": "\n".join(f"> said n{at}" for at in range(60)),
    "wide": "\n".join(f"日本語の文 n{at} " + "漢字" * (at % 40) for at in range(200)),
    "cut": "before n0\n\n```c\n" + "\n".join(f"int n{at};" for at in range(1, 60)),
    "html": "\n".join(f"<p>n{at}</p>" for at in range(60)),
    "references": "\n".join(f"[n{at}]: http://x" for at in range(60)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BIG)
def test_every_line_once_on_a_small_terminal(kind: str, eager: None) -> None:
    if kind in ("paragraphs", "verses", "code"):
        pytest.MonkeyPatch().undo()
    rows = drawn(BIG[kind])
    numbers = found(rows)
    assert numbers == list(range(len(numbers))) and len(numbers) >= 60, rows[-30:]
