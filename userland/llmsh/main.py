"""Entry point of llmsh: a shell for a person, or for a script, from its options to its end."""

import io
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from userland import standard
from userland.asking import MAX_SEED, MAX_TEMPERATURE, MAX_TOKENS, Sampling
from userland.config import read
from userland.exits import EXPECTED, REFUSED, USAGE, Failure, reason, report
from userland.llmsh.state import State
from userland.llmsh.streams import has_unread

PERSON = Sampling(temp=0.2, top_p=0.9)
"""What SmolLM2's card recommends."""
SCRIPT = Sampling(temp=0.0)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False}
)
@click.version_option(None, "-V", "--version", package_name="llmos-kernel", prog_name="llmsh")
@click.option("-c", "lines", metavar="LINES", help="Run these lines instead of a script.")
@click.option("-n", "parse_only", is_flag=True, help="Parse only, and run nothing.")
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
    help="Longest answer; 512 unless given.",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Makes sampling repeatable.")
@click.argument("words", nargs=-1, metavar="[SCRIPT [ARGUMENT]...]")
def main(lines: str | None, words: tuple[str, ...], **options: Any) -> None:
    """A shell in which a quoted string is a prompt for the model.

    \b
    Examples:
      llmsh
      llmsh -c 'git log -5 | "one line: what happened?"'
      llmsh triage.llmsh reports/*.txt > out.csv
      printf '"Name a river."\\nps\\n' | llmsh
      git diff | llmsh -c 'cat | "sum up"'

    On a terminal it is interactive, `help` lists what there is. Otherwise it reads lines from
    SCRIPT, -c or stdin, writes answers to stdout and everything else to stderr; its exit status
    is that of the last command. A prompt reads what a pipe or < feeds it, and never stdin by
    itself: with -c or SCRIPT, `cat | "..."` gives it stdin. After -c LINES, as after SCRIPT, come
    arguments: $1, $2 ... and "$@".
    """
    standard.fill()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths are bytes, and are written as such
    interactive = lines is None and not words and sys.stdin.isatty() and not options["parse_only"]
    leave = click.get_current_context().exit  # whoever called `main` may have more to do
    try:
        state = new_state(interactive, **options)
        source = _source(state, lines, words)
    except EXPECTED as error:
        leave(report(error, sys.stderr, "llmsh"))
    leave(_run(state, source, options["parse_only"]))


def new_state(
    interactive: bool,
    model: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    address: str | None = None,
    **_: Any,
) -> State:
    """Return a new shell's state, of a person's or a script's; Failure (78) if set up wrongly."""
    config = read()
    sampling = config.sampling(PERSON if interactive else SCRIPT).over(
        {"temp": temperature, "max": max_tokens, "seed": seed}
    )
    model = model or config.explicit("model")
    return State(
        sampling, sys.stdout, sys.stderr, interactive=interactive, model=model, address=address
    )


def _source(state: State, lines: str | None, words: tuple[str, ...]) -> Iterable[str] | None:
    """Return the lines of a script, None for a person's; the words after it are its arguments."""
    if state.interactive:
        return None
    if lines is not None:
        state.variables.arguments = list(words)
        return io.StringIO(lines, newline=None)
    if words:
        state.variables.name, *state.variables.arguments = words
        return _opened(words[0])
    # A program that read stdin would take lines of the script.
    state.host_stdin = subprocess.DEVNULL
    return sys.stdin


def _opened(path: str) -> Iterable[str]:
    try:
        return Path(path).open(encoding="utf-8")  # until the end
    except REFUSED as error:
        raise Failure(f"cannot read {path}: {reason(error)}", exit_code=USAGE) from None


def _run(state: State, lines: Iterable[str] | None, parse_only: bool) -> int:
    """Run a shell; whatever happens, its task ends with it."""
    end_with_signals()
    try:
        if lines is None:
            from userland.llmsh.person import converse

            return converse(state)
        from userland.llmsh.script import check_script, run_script
        from userland.llmsh.shell import Shell

        if parse_only:
            return check_script(Shell(state), lines)
        status = run_script(Shell(state), lines)
        if status == 0:
            _mind_stdin(state, lines)
        return status
    finally:
        close(state)


def end_with_signals() -> None:
    """Have what would kill the shell go through every `finally`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def close(state: State) -> None:
    """End the shell's task."""
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


if __name__ == "__main__":
    main()
