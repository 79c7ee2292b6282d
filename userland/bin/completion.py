"""completion: what makes Tab complete `llmos` in the host's shell."""

import click
from click.shell_completion import get_completion_class

from userland.desk import Desk, pass_desk

VARIABLE = "_LLMOS_COMPLETE"
"""By which a shell asks `llmos` what a word could become; click reads it."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_desk
def completion(desk: Desk, shell: str) -> None:
    """Write the script that makes Tab complete commands, models and pids.

    \b
    Examples:
      eval "$(llmos completion bash)"
      llmos completion zsh >> ~/.zshrc
      llmos completion fish > ~/.config/fish/completions/llmos.fish
    """
    context = click.get_current_context().find_root()
    made = get_completion_class(shell)
    assert made is not None
    desk.say(made(context.command, {}, "llmos", VARIABLE).source())
