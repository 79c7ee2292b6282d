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

from userland.llmsh.markdown import Splitter
from userland.llmsh.page import Page, is_wanted

MARK = b"\x1b[?25h"
"""Something that shows nothing."""


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
            self._stream.feed(data)
            self.raw += data

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def settle(self) -> None:
        """Wait until all that has been written is on the screen."""
        os.write(self.fd, MARK)
        while not self.raw.endswith(MARK):
            os.sched_yield()

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
    monkeypatch.setattr("userland.llmsh.page.PERIOD_S", 0.0)
    monkeypatch.setattr("userland.llmsh.page.SHARE", 0)


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


ANSWERS = {
    "paragraphs": "\n\n".join(f"paragraph n{at} {'word ' * (at % 30)}" for at in range(40)),
    "verses": "\n".join(f"verse n{at}" for at in range(60)),
    "items": "\n".join(f"- item n{at} **bold**\n  more" for at in range(40)),
    "numbers": "\n".join(f"1. item n{at}" for at in range(40)),
    "code": "```python\n" + "\n".join(f"def f(): n{at}" for at in range(40)) + "\n```\nend n40",
    "table": "|a|b|\n|-|-|\n" + "\n".join(f"|n{at}|日本{at}|" for at in range(40)),
    "quote": "\n".join(f"> said n{at}" for at in range(40)),
    "wide": "\n".join(f"日本語の文 n{at} " + "漢字" * (at % 40) for at in range(40)),
    "long words": " ".join(f"n{at} {'x' * (at * 2)}" for at in range(40)),
    "cut": "before n0\n\n```c\n" + "\n".join(f"int n{at};" for at in range(1, 41)),
    "html": "\n".join(f"<p>n{at}</p>" for at in range(40)),
    "references": "\n".join(f"[n{at}]: http://x" for at in range(40)),
    "open": "**bold n0\n" + "\n".join(f"and `on n{at}" for at in range(1, 60)),
    "nested": "- n0\n" + "\n".join(f"  - inner n{at}" for at in range(1, 41)),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_line_once_on_a_small_terminal(kind: str, eager: None) -> None:
    rows = drawn(ANSWERS[kind])
    numbers = found(rows)
    assert numbers == list(range(len(numbers))) and len(numbers) >= 40, rows[-30:]


@pytest.mark.parametrize("kind", ["verses", "code"])
def test_two_thousand_lines(kind: str) -> None:
    text = "\n".join(f"line n{at}" for at in range(2000))
    assert found(drawn(text if kind == "verses" else f"```\n{text}")) == list(range(2000))


@pytest.mark.parametrize("kind", ["table", "wide", "verses", "code"])
def test_a_window_that_changes_in_the_middle(kind: str, eager: None) -> None:
    window = Window(60, 20)
    page = Page(window.fd)
    sizes = iter([(80, 20), (70, 24), (90, 30), (100, 30)])
    for number, piece in enumerate(pieces(ANSWERS[kind])):
        page.write(piece)
        if number % 25 == 24:
            window.settle()
            window.resize(*next(sizes, (100, 30)))
    page.end_line()
    numbers = found(window.close())
    assert numbers == list(range(len(numbers))) and len(numbers) >= 40


def test_what_is_finished_is_sent_once_and_little_is_sent_again() -> None:
    window = Window(60, 20)
    page = Page(window.fd)
    text = "\n\n".join(f"paragraph n{at} {'word ' * 20}" for at in range(100))
    for piece in pieces(text):
        page.write(piece)
    page.end_line()
    window.close()
    assert window.raw.count(b"n50") < 30 and len(window.raw) < 20 * len(text)


def test_an_answer_looks_as_it_should(eager: None) -> None:
    text = (
        "# Title\n\nSome **bold** text\nand `code`.\n\n1. one\n1. two\n\n- a\n- b\n\n"
        "```python\ndef f():\n\n    return 1\n\tb\n```\n\n| a | b |\n|---|---|\n| 1 | 日本 |"
    )
    assert drawn(text) == [
        "Title", "", "Some bold text", "and code.", "", " 1 one", " 2 two", "", " • a", " • b", "",
        "```python", "def f():", "", "    return 1", "        b", "```", "",
        " a  b", " ───────", " 1  日本",
    ]  # fmt: skip


def test_control_characters_do_not_reach_the_terminal(eager: None) -> None:
    window = Window(60, 20)
    page = Page(window.fd)
    page.write("a\x1b]0;title\x07b\x9bc\n```\nd\x1b[2Je\n")
    page.end_line()
    assert window.close() == ["a�]0;title�b�c", "", "```", "d�[2Je"]
    assert b"\x1b]" not in window.raw and b"\x1b[2J" not in window.raw


@pytest.mark.parametrize("key", ["^C", ""])
def test_an_end_in_the_middle_shows_what_there_was(key: str) -> None:
    window = Window(60, 20)
    page = Page(window.fd)
    for piece in ("one ", "two\n\n", "three ", "four"):
        page.write(piece)
    if key:
        page.key(key)
    else:
        page.end_line()
    assert window.close() == ["one two", "", f"three four{key}"]


def test_a_note_stands_between_what_is_finished_and_the_rest(eager: None) -> None:
    window = Window(60, 20)
    page = Page(window.fd)
    page.write("one\n\ntwo")
    page.aside()
    os.write(window.fd, b"a note\n")
    page.write(" three")
    page.end_line()
    assert window.close() == ["one", "a note", "", "two three"]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_no_text_is_lost_or_made_up(size: int) -> None:
    dice = random.Random(size)
    marks = ["\n", "\n\n", "```\n", "~~~", "- ", "1. ", "> ", "|", "|-|-|\n", "# ", "**", "    ",
             "word ", "===\n", "---\n", "[a]: b\n", "<p>", "\\", "`", "日本"]  # fmt: skip
    for _ in range(300):
        text = "".join(dice.choices(marks, k=dice.randint(1, 30)))
        splitter = Splitter()
        taken = []
        for at in range(0, len(text), size):
            splitter.feed(text[at : at + size])
            taken += splitter.finished()
        taken += splitter.rest()
        sources = "\n".join(piece.source for piece in taken)
        assert letters(sources) == letters(text), (text, taken)


def test_a_list_counts_on_as_its_items_are_taken() -> None:
    splitter, taken = Splitter(), []
    for char in "3. a\n\n3. b\n   3. inner\n3) c\n":
        splitter.feed(char)
        taken += splitter.finished()
    sources = [piece.source for piece in (*taken, *splitter.rest())]
    assert sources == ["3. a", "4. b\n   3. inner", "3) c\n"]


def letters(text: str) -> str:
    """What is left of a text if blanks and the numbers of lists are not looked at."""
    return re.sub(r"[\s0-9]", "", text)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False),
     ({"TERM": "xterm", "LLMOS_A11Y": "1"}, False)],
)  # fmt: skip
def test_who_wants_it(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted
