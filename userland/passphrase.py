"""Passphrase: from the first line of a file, or asked for on the terminal."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from userland.exits import USAGE, Failure, reason

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the passphrase from the first line of a file.",
)


def asking(file: Path | None, twice: bool) -> Callable[[], str]:
    """Return what gives the passphrase when it is needed."""
    return (lambda: _from_file(file)) if file else (lambda: _from_terminal(twice))


def _from_file(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            line = opened.readline(4096)
    except (OSError, ValueError) as error:
        raise Failure(
            f"cannot read the passphrase in {file}: {reason(error)}", code="ENOENT"
        ) from None
    return _some(line.rstrip("\r\n"), f"the first line of {file}")


def _from_terminal(twice: bool) -> str:
    if not sys.stdin.isatty():
        raise Failure(
            "there is no terminal to ask for a passphrase", "--passphrase-file FILE", USAGE
        )
    answer: str = click.prompt(
        "Passphrase", hide_input=True, confirmation_prompt="Once more" if twice else False, err=True
    )
    return _some(answer, "the passphrase")


def _some(passphrase: str, what: str) -> str:
    if not passphrase:
        raise Failure(f"{what} is empty", "a passphrase of several words is a good one", USAGE)
    return passphrase
