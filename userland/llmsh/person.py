"""A shell with a person at it: lines are read, expanded, kept and run, until Ctrl-D or exit."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from syscalls import KernelError
from userland import bug
from userland.exits import INTERRUPTED, Failure
from userland.llmsh.ask import Interrupted
from userland.llmsh.builtins import Leave
from userland.llmsh.history import expanded
from userland.llmsh.state import State
from userland.llmsh.terminal import controlling

if TYPE_CHECKING:
    from userland.llmsh.prompt import Prompt


def converse(state: State) -> int:
    """Read and run lines; return the exit status."""
    from userland.llmsh.completion import Words
    from userland.llmsh.prompt import Prompt

    def conversation() -> int:
        greet(state, '"quoted text" or ? text asks the model; help lists the rest; Ctrl-D leaves')
        prompt = Prompt(state, Words(state), _goes_on)
        state.history = prompt.history.lines
        while True:
            turn(state, prompt)

    return seated(state, conversation)


def seated(state: State, converse: Callable[[], int]) -> int:
    """Have the terminal during a conversation, and leave it as it was."""
    state.terminal = controlling()
    try:
        return converse()
    except EOFError:
        return state.status
    except Leave as leave:
        return leave.status
    finally:
        if state.terminal is not None:
            state.terminal.close()


def greet(state: State, hint: str) -> None:
    """Connect, so that the prompt can say what is there; without a kernel the host still is."""
    try:
        state.contexts.task()
    except KernelError as error:
        state.report(error)
        state.note("programs of the host work; a prompt looks for a kernel again")
    else:
        state.note(hint)


def turn(state: State, prompt: "Prompt") -> None:
    """Read one line and run it."""
    try:
        text = prompt.read()
    except KeyboardInterrupt:
        return
    attempt(state, lambda: _run(state, prompt, text))


def _run(state: State, prompt: "Prompt", text: str) -> None:
    from userland.llmsh.shell import Shell  # 0.1 s of lark, after the first prompt

    try:
        line = expanded(text, prompt.history.lines)
    except Failure as failure:
        state.status = state.report(failure)
        return
    prompt.history.add(line)
    if line != text:
        state.err.write(f"{line}\n")
        state.err.flush()
    Shell(state).run_text(line)


def attempt(state: State, run: Callable[[], None]) -> None:
    """Run what a person asked for: Ctrl-C and bugs end it, and nothing else."""
    try:
        run()
    except (Interrupted, KeyboardInterrupt):
        # ^C is there already, from the terminal or from the answer.
        state.status = INTERRUPTED
        state.err.write("\n")
        state.err.flush()
    except Leave:
        raise
    except Exception:  # noqa: BLE001  a bug must not take the contexts of a person with it
        state.status = bug.save("llmsh", state.err)


def _goes_on(text: str) -> bool:
    """Return whether Enter adds a row to what has been typed."""
    from userland.llmsh.parser import is_incomplete  # with lark, too

    return is_incomplete(text)


def is_terminal() -> bool:
    """Tell whether somebody can type and read here."""
    return os.isatty(0) and os.isatty(1)
