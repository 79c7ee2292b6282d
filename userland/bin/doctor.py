"""doctor: is this machine fit, and what to do if it is not."""

from functools import partial

import click

from userland.checks import installation, machine, service
from userland.checks.finding import FAIL, OK, WARN, Check, Finding
from userland.desk import Desk, json_option, pass_desk
from userland.exits import FAILED

COLORS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Leave out importing torch, which takes seconds.")
@json_option
@pass_desk
def doctor(desk: Desk, quick: bool, as_json: bool) -> int:
    """Check the machine, the installation, the models and the kernel.

    \b
    Examples:
      llmos doctor
      llmos doctor --quick --json | jq '.data[] | select(.level != "ok")'

    Each line is ok, warn (it works, not as it could) or fail (it does not), and then what to do.
    The exit code is 1 if anything is fail. No network is used, and nothing is changed.
    """
    found: list[Finding] = []
    for check in checks(desk.address, quick):
        for finding in check():
            found.append(finding)
            if not as_json:
                _show(desk, finding)
    if as_json:
        desk.say_json("doctor", [
            {"check": f.check, "level": f.level, "text": f.text, "todo": f.todo} for f in found
        ])  # fmt: skip
    return FAILED if any(finding.level == FAIL for finding in found) else 0


def checks(address: str | None, quick: bool) -> list[Check]:
    """Return what is looked at, in this order."""
    found: list[Check] = [
        machine.python, machine.linux, installation.packages, installation.configuration,
        partial(service.socket_directory, address), partial(service.kernel, address),
        machine.memory, machine.cores, machine.files, installation.models, machine.accelerators,
        installation.log,
    ]  # fmt: skip
    return found if quick else [*found, machine.torch]


def _show(desk: Desk, finding: Finding) -> None:
    """Write a finding at once: the next may take a while."""
    lines = [f"{finding.level:<4}  {finding.check:<9} {finding.text}"]
    if finding.todo:
        lines.append(f"{'':<15} try   {finding.todo}")
    if desk.out.isatty() or desk.color == "always":
        from rich.text import Text

        console = desk.console()
        for line in lines:
            text = Text(line)
            text.stylize(COLORS[finding.level], 0, 4 if line is lines[0] else 0)
            with desk.writing():
                console.print(text, soft_wrap=True)
    else:
        for line in lines:
            desk.say(line)
    desk.flush()
