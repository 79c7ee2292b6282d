"""kill: signals to tasks."""

import click

from syscalls import KernelError
from syscalls.abi import Sig
from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import Failure, report

NAMES = ", ".join(f"{sig.name} {int(sig)}" for sig in Sig if sig is not Sig.XCPU)


def parse_signal(word: str) -> int:
    """Return the number of STOP, SIGSTOP, stop or 19; the kernel says which it knows."""
    name = word.upper().removeprefix("SIG")
    if name in Sig.__members__:
        return int(Sig[name])
    if _is_number(name) and len(name) < 10:
        return int(name)
    raise Failure(f"there is no signal {word!r}", f"signals are {NAMES}", 2)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _split(words: tuple[str, ...], signal: str) -> tuple[int, list[str]]:
    """Take `-STOP` or `-9` off the front."""
    rest = list(words)
    if rest and rest[0].startswith("-") and rest[0] != "--":
        signal = rest.pop(0)[1:]
    return parse_signal(signal), [word for word in rest if word != "--"]


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
)
@click.option("-s", "--signal", default="TERM", metavar="SIGNAL", help="TERM unless given.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="[-SIGNAL] PID...",
    shell_complete=complete.signals_and_tasks,
)
@pass_desk
def kill(desk: Desk, signal: str, words: tuple[str, ...]) -> None:
    """Send a signal to tasks.

    \b
    Examples:
      kill 7
      kill -STOP 7 8

    \b
    TERM 15, KILL 9  end the task; its blocks are free after the step that runs
    INT 2            cancel what it is waiting for
    STOP 19, CONT 18 take it out of the batch, and let it go on
    """
    number, pids = _split(words, signal)
    if not pids:
        raise Failure("which task? kill needs a pid", "ps lists them", 2)
    for pid in pids:
        if not _is_number(pid) or len(pid) > 18:
            raise Failure(f"{pid!r} is not a pid", "ps lists them", 2)
    errors: list[KernelError] = []
    for pid in pids:
        try:
            desk.task.kill(int(pid), number)
        except KernelError as error:  # the others are to get theirs
            errors.append(error)
            if desk.task.lost:
                break
    for earlier in errors[:-1]:
        report(earlier, desk.err, desk.name)
    if errors:
        raise errors[-1]
