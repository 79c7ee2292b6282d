"""top: tasks, blocks and speed, again and again."""

import os
import shutil
import time

import click

from syscalls import KernelError
from syscalls.abi import Sig
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure
from userland.glyphs import unicode_to
from userland.rates import sample
from userland.topmodel import SORTS, TopModel
from userland.topscreen import Line, Screen

FIRST_S = 0.5
"""Until the second look, with which there are rates."""
COLORS = {"R": "green", "P": "green", "Q": "yellow", "D": "yellow", "T": "blue", "Z": "dim"}
KEYS = "q quit  P M T N sort  V tree  up/down select  k kill  space pause  +/- interval"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("-b", "--batch", is_flag=True, help="Print frames, as in a pipe.")
@click.option(
    "-n",
    "--frames",
    type=click.IntRange(1),
    metavar="N",
    help="End after N frames; 1 in a pipe unless -d or -b is given.",
)
@click.option(
    "-s",
    "--sort",
    type=click.Choice([name for name, _ in SORTS.values()]),
    default="tok/s",
    show_default=True,
    help="What comes first.",
)
@click.option("--tree", is_flag=True, help="Children below their parents.")
@json_option
@click.pass_context
@pass_desk
def top(
    desk: Desk,
    context: click.Context,
    delay: float,
    batch: bool,
    frames: int | None,
    sort: str,
    tree: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what the kernel is doing, as it does it.

    \b
    Examples:
      top
      top -d 0.5 --sort blocks
      top --batch -n 3
      top --json -n 2

    \b
    KV        ▓ shared █ private ▒ cached ░ limbo: blocks of each pool; the number is of those
              in use. host: the tier that blocks are swapped out to, and in and out of it
    hit       tokens of new prompts that had KV already
    lost      KV that was dropped, and has to be computed again when it is needed
    step      time of a step at the device, sequences and tokens in it
    waiting   infers that have no place in the batch yet
    The columns are those of ps. The first frame has no rates: they are of the time between two
    looks. --json is one frame a line.

    \b
    Keys: q quit; P M T N sort by tok/s, blocks, age, pid; V as a tree, and back; up, down,
    page up, page down select; k ends the selected task, once you say y; space pauses;
    + and - change the interval.
    """
    model = TopModel(len(os.sched_getaffinity(0)))
    model.tree = tree
    model.sort = next(key for key, (name, _) in SORTS.items() if name == sort)
    if as_json or batch or not desk.out.isatty():
        given = context.get_parameter_source("delay") is not click.core.ParameterSource.DEFAULT
        endless = batch or given or as_json
        _print_frames(desk, model, delay, frames or (None if endless else 1), as_json)
        return
    if not os.isatty(0):
        raise Failure("top takes keys, and stdin is no terminal", "top --batch -n 1", USAGE)
    model.feed(sample(desk.task))
    with Screen(desk.out, desk.console(), 0) as screen:
        _Session(desk, model, screen, delay, frames).run()


def _print_frames(
    desk: Desk, model: TopModel, delay: float, frames: int | None, as_json: bool
) -> None:
    width = shutil.get_terminal_size().columns if desk.out.isatty() else 1 << 16
    fancy, printed = unicode_to(desk.out), 0
    while True:
        model.feed(sample(desk.task))
        if as_json:
            desk.say_json("top", model.document(), stream=True)
        else:
            lines = [*model.header(width, fancy), "", *model.table(width)]
            desk.say("\n".join(lines + [""] * (printed + 1 != frames)))
            desk.flush()
        printed += 1
        if printed == frames:
            return
        time.sleep(delay)


class _Session:
    """One person in front of one screen."""

    def __init__(
        self, desk: Desk, model: TopModel, screen: Screen, delay: float, frames: int | None
    ) -> None:
        self._desk = desk
        self._model = model
        self._screen = screen
        self._delay = delay
        self._frames = frames
        self._said = KEYS
        self._asked: int | None = None  # pid that is to be killed, if the answer is y
        self._top = 0  # the first row that is seen

    def run(self) -> None:
        """Draw and obey until q, Ctrl-C, or the last frame."""
        looks, due = 1, time.monotonic() + min(FIRST_S, self._delay)
        while True:
            self._draw()
            if looks == self._frames:
                return
            left = due - time.monotonic()
            key = self._screen.key(3600.0 if self._model.paused else left)
            if key is not None and not self._obey(key):
                return
            if time.monotonic() >= due and not self._model.paused:
                self._model.feed(sample(self._desk.task))
                looks, due = looks + 1, time.monotonic() + self._delay

    # --- keys ---------------------------------------------------------------------------------

    def _obey(self, key: str) -> bool:
        """Do what a key says; False: it says quit."""
        if self._asked is not None:
            self._answer(key)
            return True
        self._said = KEYS
        model = self._model
        if key == "q":
            return False
        if key.upper() in SORTS:
            model.sort = key.upper()
        elif key in ("up", "down"):
            model.select(1 if key == "down" else -1)
        elif key in ("page up", "page down"):
            model.select(10 if key == "page down" else -10)
        elif key in ("v", "V"):
            model.tree = not model.tree
        elif key == " ":
            model.paused = not model.paused
        elif key in "+-":
            self._delay = min(max(self._delay * (2.0 if key == "+" else 0.5), 0.1), 60.0)
            self._said = f"every {self._delay:g} s"
        elif key == "k":
            self._ask()
        return True

    def _ask(self) -> None:
        if self._model.selected_task() is None:
            self._model.select(0)
        task = self._model.selected_task()
        if task is not None:
            self._asked = task.pid
            self._said = f"End task {task.pid} ({task.name}) with TERM? y or n"

    def _answer(self, key: str) -> None:
        pid, self._asked, self._said = self._asked, None, KEYS
        if key not in "yY" or pid is None:
            return
        try:
            self._desk.task.kill(pid, int(Sig.TERM))
            self._said = f"task {pid} got TERM"
        except KernelError as error:
            if self._desk.task.lost:
                raise
            self._said = f"task {pid}: {error.message}"

    # --- drawing ------------------------------------------------------------------------------

    def _draw(self) -> None:
        width, height = self._screen.size
        model, fancy = self._model, unicode_to(self._desk.out)
        above = model.header(width, fancy)
        head, *rows = model.table(width - 2)
        room = max(1, height - len(above) - 3)
        tasks = model.tasks
        at = next((n for n, task in enumerate(tasks) if task.pid == model.selected), 0)
        self._top = max(0, min(self._top, at, len(rows) - 1))
        if at >= self._top + room:
            self._top = at - room + 1
        lines: list[Line] = [(line, "") for line in above]
        lines += [("", ""), (f"  {head}", "bold")]
        for row, task in list(zip(rows, tasks, strict=True))[self._top : self._top + room]:
            chosen = task.pid == model.selected
            style = "reverse" if chosen else COLORS.get(task.state, "")
            lines.append((f"{'>' if chosen else ' '} {row}", style))
        lines += [("", "")] * (height - 1 - len(lines))
        said = f"PAUSED  {self._said}" if model.paused else self._said
        lines[height - 1 :] = [(said[:width], "bold" if self._asked is not None else "dim")]
        self._screen.draw(lines)
