"""nice: a program as a task of its own, with another weight than its neighbours."""

import click

from userland.bin.run import start
from userland.desk import Desk, pass_desk
from userland.weights import NICE


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "allow_interspersed_args": False,
    }
)
@click.option("-n", "nice", default=10, show_default=True, type=NICE, help="From -20 to 19.")
@click.option("--name", metavar="NAME", help="The task's name in ps.  [default: the file's]")
@click.argument("file", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@pass_desk
def nice(desk: Desk, /, nice: int, name: str | None, file: str, args: tuple[str, ...]) -> int:
    """Run a program that gives way to others, or goes before them.

    \b
    Examples:
      llmos nice agents/poet.py
      llmos nice -n 19 agents/poet.py --lines 400 > poem

    A program of nice n gets 1.25 ** -n of what one of nice 0 gets that is beside it, if neither
    ever lacks requests. All that it makes shares that. `llmos run` says what FILE may be, and with
    what exit code this ends; `llmos renice` changes it later.
    """
    return start(desk, file, args, name, nice)
