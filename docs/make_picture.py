"""Write docs/run.svg: a real run of llmsh, as a terminal shows it.

    python docs/make_picture.py [--text]

A kernel with smollm2 is started in a home of its own, llmsh on a terminal, and LINES are typed into
it. The picture is what is on the screen in the end, letter by letter, in its colours; --text prints
it instead. Nothing is edited; the columns that differ from machine to machine (users, ages, pids of
the host) are not asked for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drivers.models.store import ModelStore, default_root
from userland.svg import picture_of

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "run.svg"
COLUMNS, ROWS = 92, 48
PATIENCE_S = 120.0
LINES = (
    "set temp=0",
    "? What is the capital of France?",
    "fork italy japan",
    '@italy "And of Italy?"',
    '@japan "And of Japan?" | tr a-z A-Z > japan.txt && cat japan.txt',
    "ctx",
    "ps -o pid,name,s,ctx,tok,blocks,shr,in,out",
    "pmap @italy",
    "free",
)
LLMOS = (sys.executable, "-m", "userland.cli")
LLMSH = (sys.executable, "-m", "userland.llmsh.main")
COLOURS = {"brown": "yellow", "default": ""}
"""What pyte calls colours, and rich."""


@contextmanager
def kernel(home: Path) -> Iterator[dict[str, str]]:
    """Run a kernel; yield the environment of its programs."""
    (home / "models").symlink_to(ModelStore(default_root()).root)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLM", "NO_COLOR"))}
    env = kept | {
        "LLMOS_HOME": str(home), "LLMSH_HISTORY": "", "PYTHONPATH": str(ROOT),
        "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    up = (*LLMOS, "up", "--model", "smollm2", "--kv-mem", "256M")
    subprocess.run(up, env=env, check=True, stdout=sys.stderr)
    try:
        yield env
    finally:
        subprocess.run((*LLMOS, "down"), env=env, check=True, stdout=sys.stderr)


class Terminal:
    """A terminal with llmsh on it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._child = pexpect.spawn(
            LLMSH[0], list(LLMSH[1:]), env=env, cwd=env["LLMOS_HOME"], dimensions=(ROWS, COLUMNS)
        )

    def type(self, line: str) -> None:
        """Type a line at the prompt, and wait for the next prompt."""
        self._wait()
        self._child.send(f"{line}\r")
        # the line is there, and below it a prompt that is empty
        self._read(lambda: line in self._text() and not self._prompts())
        self._wait()

    def leave(self) -> None:
        """End the shell, once its screen has been seen."""
        self._child.sendcontrol("d")
        self._child.expect(pexpect.EOF, timeout=PATIENCE_S)
        self._child.close()

    def _wait(self) -> None:
        self._read(self._prompts)

    def _prompts(self) -> bool:
        """Whether the cursor stands behind a prompt on which nothing is typed."""
        return self.screen.display[self.screen.cursor.y].rstrip().endswith(" $")

    def _text(self) -> str:
        return "\n".join(self.screen.display)

    def _read(self, condition) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, self._text()
            try:
                self._stream.feed(self._child.read_nonblocking(4096, timeout=0.2))
            except pexpect.TIMEOUT:
                continue

    def lines(self) -> list[Text]:
        """Return what can be seen, up to the last prompt."""
        last = self.screen.cursor.y
        while last and not self.screen.display[last - 1].strip():
            last -= 1
        return [self._line(row) for row in range(last)]

    def _line(self, row: int) -> Text:
        text = Text()
        cells = self.screen.buffer[row]
        for column in range(len(self.screen.display[row].rstrip())):
            cell = cells[column]
            style = " ".join(
                filter(None, ("bold" * cell.bold, "italic" * cell.italics, _colour(cell.fg)))
            )
            text.append(cell.data, style)
        return text


def _colour(name: str) -> str:
    """Return what rich calls a colour of pyte's: a name, or six hexadecimal digits."""
    name = COLOURS.get(name, name)
    if len(name) == 6 and all(letter in "0123456789abcdef" for letter in name):
        return f"#{name}"
    return name.replace("bright", "bright_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", action="store_true", help="print it, and write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, kernel(Path(home)) as env:
        terminal = Terminal(env)
        for line in LINES:
            terminal.type(line)
        lines = terminal.lines()
        terminal.leave()
    if arguments.text:
        print("\n".join(line.plain for line in lines))
    else:
        PICTURE.write_text(picture_of(lines, COLUMNS, "llmsh", "run"))


if __name__ == "__main__":
    main()
