"""kill: signals to tasks."""

import click

from syscalls import KernelError
from syscalls.abi import Sig
from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import Failure, report
from userland.weights import GROUP

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
@click.option("--tree", is_flag=True, help="Also all that they have made.")
@click.option("-g", "--group", type=GROUP, metavar="NAME", shell_complete=complete.groups,
              help="All tasks of a group.")  # fmt: skip
@click.argument(
    "words",
    nargs=-1,
    metavar="[-SIGNAL] PID...",
    shell_complete=complete.signals_and_tasks,
)
@pass_desk
def kill(desk: Desk, signal: str, tree: bool, group: str | None, words: tuple[str, ...]) -> None:
    """Send a signal to tasks.

    \b
    Examples:
      kill 7
      kill -STOP 7 8
      kill --tree 7
      kill -CONT -g lab

    \b
    TERM 15          end the task, after the grace that its program has asked for, if it has
    KILL 9           end the task now; its blocks are free after the step that runs
    INT 2            cancel what it is waiting for; what was generated stays
    STOP 19, CONT 18 take it out of the batch, and let it go on
    HUP 1, USR1 10   tell its program
    """
    number, pids = _split(words, signal)
    if not pids and group is None:
        raise Failure("which task? kill needs a pid, or -g GROUP", "kill PID; ps lists them", 2)
    for word in pids:
        if not _is_number(word) or len(word) > 18:
            raise Failure(f"{word!r} is not a pid", "ps lists them", 2)
    errors: list[KernelError] = []
    targets: list[tuple[int, str | None]] = [(int(pid), None) for pid in pids]
    targets += [] if group is None else [(0, group)]
    for pid, name in targets:
        try:
            desk.task.kill(pid, number, tree, name)
        except KernelError as error:  # the others are to get theirs
            errors.append(error)
            if desk.task.lost:
                break
    for earlier in errors[:-1]:
        report(earlier, desk.err, desk.name)
    if errors:
        raise errors[-1]
