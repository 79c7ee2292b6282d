"""llmos: one command with a command for each thing to do. Modules are loaded when they are named.

Data goes to stdout, everything else to stderr; exit codes are those of `userland.exits`.
"""

import sys
from difflib import get_close_matches
from importlib import import_module

import click

from syscalls import KernelError
from syscalls.address import socket_path
from userland import standard
from userland.desk import Desk
from userland.exits import EXPECTED, INTERRUPTED, PIPE_CLOSED, PipeClosed, report

GROUPS = {
    "Daily": {
        "ask": "userland.bin.ask",
        "chat": "userland.bin.chat",
        "run": "userland.bin.run",
    },
    "Kernel": {
        "up": "userland.bin.up",
        "down": "userland.bin.up",
        "status": "userland.bin.status",
        "ping": "userland.bin.ping",
        "dmesg": "userland.bin.dmesg",
    },
    "Tasks": {
        "ps": "userland.bin.ps",
        "top": "userland.bin.top",
        "kill": "userland.bin.kill",
        "policy": "userland.bin.policy",
        "ports": "userland.bin.ports",
        "usage": "userland.bin.usage",
        "limit": "userland.bin.limit",
        "nice": "userland.bin.nice",
        "renice": "userland.bin.renice",
        "group": "userland.bin.group",
    },
    "Memory": {
        "free": "userland.bin.free",
        "vmstat": "userland.bin.vmstat",
        "pmap": "userland.bin.pmap",
        "ctx": "userland.bin.ctx",
    },
    "Devices": {"lsdev": "userland.bin.lsdev"},
    "Models": {
        "pull": "userland.bin.pull",
        "models": "userland.bin.models",
        "ls": "userland.bin.models",
        "load": "userland.bin.load",
        "unload": "userland.bin.load",
    },
    "Setup": {
        "doctor": "userland.bin.doctor",
        "explain": "userland.bin.explain",
        "config": "userland.bin.config",
        "key": "userland.bin.key",
        "completion": "userland.bin.completion",
    },
}
COMMANDS = {name: module for group in GROUPS.values() for name, module in group.items()}


class Commands(click.Group):
    """Commands by name, loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            close = get_close_matches(args[0], COMMANDS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                rows = []
                for name in names:
                    command = self.get_command(ctx, name)
                    assert command is not None
                    rows.append((name, command.get_short_help_str(60)))
                formatter.write_dl(rows)


def _address(_: click.Context, __: click.Parameter, host: str | None) -> str | None:
    try:
        if host is not None:
            socket_path(host)
    except KernelError as error:
        form = "it is like ipc:///path/to/kernel.sock"
        raise click.BadParameter(f"{error.message}; {form}") from None
    return host


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="llmos-kernel", prog_name="llmos")
@click.option(
    "-H",
    "--host",
    metavar="ADDRESS",
    callback=_address,
    help="The kernel's socket, as ipc:///path.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours; auto is on a terminal, unless NO_COLOR or the configuration says no.",
)
@click.option("-q", "--quiet", is_flag=True, help="Data and errors only, no notes.")
@click.pass_context
def llmos(context: click.Context, host: str | None, color: str, quiet: bool) -> None:
    """An operating-system kernel for language models.

    \b
    Examples:
      llmos pull smollm2 && llmos up
      llmos ps

    The shell is llmsh. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 69 no kernel,
    70 bug, 74 input or output, 75 try again, 77 not permitted, 78 bad set-up, 124 took
    too long, 130 Ctrl-C.
    """
    desk: Desk = context.obj
    desk.address, desk.color, desk.quiet = host, color, quiet


def main() -> None:
    """Entry point of llmos."""
    standard.fill()
    desk = Desk(sys.stdout, sys.stderr)
    sys.exit(run(desk, sys.argv[1:]))


def run(desk: Desk, words: list[str]) -> int:
    """Run one command at a desk; return the exit code."""
    try:
        try:
            result = llmos.main(words, "llmos", standalone_mode=False, obj=desk)
            desk.flush()
        finally:
            desk.close()
    except EXPECTED as error:
        as_json = desk.json_errors or _wants_json(error, words)
        return report(error, desk.err, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        desk.err.write("\n")
        return INTERRUPTED
    except PipeClosed:
        # What is still buffered has nowhere to go; the interpreter would complain of it at exit.
        sys.stdout = None
        return PIPE_CLOSED
    return result if isinstance(result, int) else 0


def _wants_json(error: Exception, words: list[str]) -> bool:
    """Return whether a command line that could not be read asks for JSON."""
    context = getattr(error, "ctx", None)
    if context is None or "--json" not in words:
        return False
    return any("--json" in parameter.opts for parameter in context.command.params)


if __name__ == "__main__":
    main()
