"""renice: the weight of tasks and groups that run."""

import click

from syscalls import KernelError
from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import USAGE, Failure, report
from userland.weights import GROUP, NICE, pids_of


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-n", "nice", required=True, type=NICE, metavar="NICE", help="From -20 to 19.")
@click.option("-g", "--group", type=GROUP, metavar="NAME", shell_complete=complete.groups,
              help="A group, as a whole.")  # fmt: skip
@click.argument("pids", nargs=-1, metavar="[PID]...", callback=pids_of,
                shell_complete=complete.tasks)  # fmt: skip
@pass_desk
def renice(desk: Desk, nice: int, group: str | None, pids: tuple[int, ...]) -> None:
    """Change the weight of tasks, or of a group.

    \b
    Examples:
      renice -n 10 7 8
      renice -n -5 -g lab

    A task of nice n gets 1.25 ** -n of what one of nice 0 gets that stands beside it: another child
    of the same parent, or another task of the same group. What is below it shares that. To go below
    one's own nice is for the user whom the kernel runs as.
    """
    if not pids and group is None:
        raise Failure("which task? renice needs a pid or -g GROUP", "ps lists them", USAGE)
    errors: list[KernelError] = []
    targets: list[tuple[str, int, str | None]] = [(str(pid), pid, None) for pid in pids]
    targets += [] if group is None else [(f"group {group}", 0, group)]
    for what, pid, name in targets:
        try:
            before = desk.task.renice(nice, pid, name)
        except KernelError as error:  # the others are to get theirs
            errors.append(error)
            if desk.task.lost:
                break
        else:
            desk.note(f"{what}: nice {before} to {nice}")
    for earlier in errors[:-1]:
        report(earlier, desk.err, desk.name)
    if errors:
        raise errors[-1]
