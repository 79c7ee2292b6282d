"""policy: who goes first on the device, and who gives way."""

import click

from userland.desk import Desk, json_option, pass_desk


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@json_option
@pass_desk
def policy(desk: Desk, name: str | None, as_json: bool) -> None:
    """Say which policy decides, or let another one decide from the next step on.

    \b
    Examples:
      llmos policy
      llmos policy fifo

    \b
    fair      whoever has been served least, by the tree of users, groups and tasks
    fifo      first come, first served
    priority  a lower nice value goes first, always
    More come with packages that are installed beside the kernel (docs/policies.md).
    """
    decides, there = desk.task.policy(name)
    if as_json:
        desk.say_json("policy", {"policy": decides, "policies": there})
        return
    for known in there:
        desk.say(f"{'*' if known == decides else ' '} {known}")
