"""Entry point of llmsh: a shell for a person, or for a script, from its options to its end."""

import io
import signal
import subprocess
import sys
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import click

from syscalls import KernelError
from userland import bug, standard
from userland.exits import INTERRUPTED
from userland.llmsh.ask import Interrupted, Sampling
from userland.llmsh.builtins import Leave
from userland.llmsh.shell import Shell
from userland.llmsh.state import State
from userland.llmsh.streams import has_unread
from userland.llmsh.terminal import controlling
from userland.llmsh.variables import MAX_SEED, MAX_TEMPERATURE, MAX_TOKENS

if TYPE_CHECKING:
    from userland.llmsh.prompt import Prompt

PERSON = Sampling(temp=0.2, top_p=0.9)
"""What SmolLM2's card recommends."""
SCRIPT = Sampling(temp=0.0)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="llmos-kernel", prog_name="llmsh")
@click.option("-c", "lines", metavar="LINES", help="Run these lines instead of a script.")
@click.option("-m", "--model", help="Model of new contexts; the kernel's own unless given.")
@click.option(
    "-t",
    "--temperature",
    type=click.FloatRange(0, MAX_TEMPERATURE),
    help="0: always the likeliest token, the default of scripts; of a person 0.2.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MAX_TOKENS),
    default=512,
    show_default=True,
    help="Longest answer.",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Makes sampling repeatable.")
@click.argument("script", required=False, type=click.File(encoding="utf-8", lazy=False))
@click.pass_context
def main(
    context: click.Context,
    lines: str | None,
    model: str | None,
    temperature: float | None,
    max_tokens: int,
    seed: int | None,
    script: TextIO | None,
) -> None:
    """A shell in which a quoted string is a prompt for the model.

    \b
    Examples:
      llmsh
      llmsh -c 'git log -5 | "one line: what happened?"'
      printf '"Name a river."\\nps\\n' | llmsh
      git diff | llmsh -c 'cat | "sum up"'

    On a terminal it is interactive, `help` lists what there is. Otherwise it reads lines from
    SCRIPT, -c or stdin, writes answers to stdout and everything else to stderr; its exit status
    is that of the last command. A prompt reads what a pipe or < feeds it, and never stdin by
    itself: with -c or SCRIPT, `cat | "..."` gives it stdin.
    """
    standard.fill()
    if lines is not None and script is not None:
        raise click.UsageError("-c and a script exclude each other", context)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths are bytes, and are written as such
    interactive = lines is None and script is None and sys.stdin.isatty()
    sampling = PERSON if interactive else SCRIPT
    temperature = sampling.temp if temperature is None else temperature
    state = State(
        Sampling(temperature, max_tokens, seed, sampling.top_p if interactive else 1.0),
        sys.stdout,
        sys.stderr,
        interactive=interactive,
        model=model,
    )
    context.exit(_run(state, _source(state, lines, script)))


def _source(state: State, lines: str | None, script: TextIO | None) -> Iterable[str] | None:
    """Return the lines of a script, None for a person's."""
    if state.interactive:
        return None
    if lines is not None:
        return io.StringIO(lines, newline=None)
    if script is None:
        # A program that read stdin would take lines of the script.
        state.host_stdin = subprocess.DEVNULL
    return script or sys.stdin


def _run(state: State, lines: Iterable[str] | None) -> int:
    """Run a shell; whatever happens, its task ends with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        if lines is None:
            return _converse(state)
        from userland.llmsh.script import run_script

        status = run_script(Shell(state), lines)
        if status == 0:
            _mind_stdin(state, lines)
        return status
    finally:
        state.contexts.close()
        if state.out_gone:
            sys.stdout = None  # the interpreter would complain about what is left in its buffer


def _mind_stdin(state: State, lines: Iterable[str]) -> None:
    """Say that input has been left alone, which somebody may have meant for a prompt.

    No prompt reads stdin by itself: it may be a pipe that never ends, or the list of a loop around
    this shell.
    """
    if lines is not sys.stdin and state.asked_alone and has_unread(0):
        state.note('no prompt has read stdin: cat | "..." does; </dev/null if none is to')


def _end(number: int, _: FrameType | None) -> None:
    """Leave through every `finally` on the way."""
    sys.exit(128 + number)


# --- with a person --------------------------------------------------------------------------------


def _converse(state: State) -> int:
    """Read and run lines until Ctrl-D or exit."""
    from userland.llmsh.prompt import Prompt

    state.terminal = controlling()
    try:
        _greet(state)
        prompt = Prompt(state)
        shell = Shell(state)
        while True:
            _turn(shell, prompt)
    except EOFError:
        return state.status
    except Leave as leave:
        return leave.status
    finally:
        if state.terminal is not None:
            state.terminal.close()


def _greet(state: State) -> None:
    """Connect, so that the prompt can say what is there; without a kernel the host still is."""
    try:
        state.contexts.task()
    except KernelError as error:
        state.report(error)
        state.note("programs of the host work; a prompt looks for a kernel again")
    else:
        state.note('"quoted text" or ? text asks the model; help lists the rest; Ctrl-D leaves')


def _turn(shell: Shell, prompt: "Prompt") -> None:
    try:
        text = prompt.read()
    except KeyboardInterrupt:
        return
    try:
        shell.run_text(text)
    except (Interrupted, KeyboardInterrupt):
        # The terminal has echoed ^C.
        shell.state.status = INTERRUPTED
        shell.state.err.write("\n")
        shell.state.err.flush()
    except Leave:
        raise
    except Exception:  # noqa: BLE001  a bug must not take the contexts of a person with it
        shell.state.status = bug.save("llmsh", shell.state.err)


if __name__ == "__main__":
    main()
