"""Watching: a table drawn again and again, until Ctrl-C.

On a terminal each frame takes the place of the one before; elsewhere frames follow one another,
with an empty line between them.
"""

import io
import shutil
import time
from collections.abc import Callable
from typing import Any, Final

import click

from userland.desk import Desk

DEFAULT_S: Final = 2.0

watch_option = click.option(
    "-w",
    "--watch",
    is_flag=False,
    flag_value=DEFAULT_S,
    type=click.FloatRange(0.1, 86_400),
    metavar="[SECONDS]",
    help="Draw it again every 2 s, or as often as given.",
)


class _Page(io.StringIO):
    """A frame of a terminal, before it is on it."""

    def __init__(self, encoding: str | None) -> None:
        super().__init__()
        self._encoding = encoding

    def isatty(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding or "ascii"


def repeat(desk: Desk, seconds: float, draw: Callable[[Desk], Any]) -> None:
    """Draw until something ends it: Ctrl-C, a closed pipe, the kernel's end."""
    if not desk.out.isatty():
        while True:
            draw(desk)
            desk.say("")
            desk.flush()
            time.sleep(seconds)
    with desk.writing():
        desk.out.write("\x1b[2J")
    while True:
        page = _Page(getattr(desk.out, "encoding", None))
        inner = Desk(page, page, desk.task, name=desk.name)
        inner.color, inner.quiet = desk.color, desk.quiet
        draw(inner)
        when = time.strftime("%H:%M:%S")
        lines = [f"{when}, every {seconds:g} s; Ctrl-C ends", "", *page.getvalue().splitlines()]
        height = shutil.get_terminal_size().lines
        if len(lines) > height:
            lines[height - 1 :] = [f"... {len(lines) - height + 1} more lines"]
        with desk.writing():
            desk.out.write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
        desk.flush()
        time.sleep(seconds)
