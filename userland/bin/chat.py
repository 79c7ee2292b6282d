"""chat: a conversation with a model, in the terminal."""

import click

from userland import complete
from userland.desk import Desk, pass_desk


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-m", "--model", metavar="NAME", help="Model; the kernel's own unless given.")
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@click.option("-c", "--ctx", metavar="@NAME", help="Name of the context, main unless given.")
@click.option(
    "--load", metavar="SAVE", shell_complete=complete.saves, help="Go on with what was saved."
)
@click.option(
    "--save",
    metavar="SAVE",
    shell_complete=complete.saves,
    help="Save it at the end, under this name.",
)
@pass_desk
def chat(
    desk: Desk, model: str | None, system: str | None, ctx: str | None, load: str | None,
    save: str | None,
) -> int:  # fmt: skip
    """Talk with a model: each line is a prompt.

    \b
    Examples:
      llmos chat
      llmos chat --load notes --save notes
      llmos chat -m smollm2 -s "Answer in one sentence."

    @./path in a line sends a file along, /help lists the commands, Ctrl-D leaves. In llmsh `chat`
    does the same in the contexts of the shell.
    """
    from userland.llmsh.chat import start
    from userland.llmsh.main import close, end_with_signals, new_state

    state = new_state(True, model=model, address=desk.address)
    end_with_signals()
    try:
        return start(state, ctx, system, load, save)
    finally:
        close(state)
