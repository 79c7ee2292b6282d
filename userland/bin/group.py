"""group: tasks that are limited, weighed and signalled together."""

import click

from syscalls import KernelError
from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import USAGE, Failure, report
from userland.weights import GROUP, pid_of


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", is_flag=True, help="Out of the group that they are in; no NAME then.")
@click.argument(
    "words", nargs=-1, metavar="[NAME] PID...", shell_complete=complete.groups_and_tasks
)
@pass_desk
def group(desk: Desk, out: bool, words: tuple[str, ...]) -> None:
    """Put tasks into a group, with all that they have made.

    \b
    Examples:
      group lab 7 8
      group --out 8

    A group is made when a task is put into it, where that task stands, and ends with its last one.
    What tasks of it make is in it, too, and does not leave it by itself. ps -o pid,group,name shows
    groups; kill -g and renice -g are for all of one.
    """
    name, pids = (None, words) if out else (words[0] if words else None, words[1:])
    if not pids:
        raise Failure("which tasks? group needs a name and pids", "group lab 7", USAGE)
    if name is not None:
        name = GROUP.convert(name, None, None)
    errors: list[KernelError] = []
    for pid in map(pid_of, pids):
        try:
            now = desk.task.group(name, pid)
        except KernelError as error:  # the others are to get theirs
            errors.append(error)
            if desk.task.lost:
                break
        else:
            desk.note(f"{pid}: in {now}" if now else f"{pid}: in no group")
    for earlier in errors[:-1]:
        report(earlier, desk.err, desk.name)
    if errors:
        raise errors[-1]
