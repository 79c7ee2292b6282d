"""panel: one text, one question, and somebody else who answers it in each of n tasks.

    llmos run userland/agents/panel.py -r "a lawyer" -r "a child" "Is that fair?" contract.txt

The agent reads the text once, and forks itself for each role: fork_task makes a child task with a
fork of the context, so no child computes the text again and none copies its KV. Each child is a
process of its own, goes on from there, and exits; the parent waits for all of them.

    panel   ctx [ text ]  --fork_task--> child 1   [ text | as a lawyer ... ] -> answer
                          --fork_task--> child 2   [ text | as a child ... ] --> answer

`llmos ps --tree` shows them below their parent, `llmos kill --tree PID` ends all of it at once.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import click

import syscalls
from syscalls import Child, KernelError
from syscalls.abi import Sig

ROLES = ("an optimist", "a sceptic", "somebody in a hurry")
READ = "Somebody asks you about a text. Answer briefly, in the role that you are given."


def speak(role: str, question: str, max_tokens: int, seed: int | None) -> None:
    """Be a child: answer on the context that the task has inherited."""
    with syscalls.connect("role") as task:
        (context,) = task.inherited
        context.user(f"Answer as {role}: {question}")
        click.echo(context.infer(max_tokens=max_tokens, seed=seed).read().strip())


def hear(children: Sequence[Child]) -> list[tuple[str, int]]:
    """Wait for the children; return what each has said, and its status."""
    heard = []
    for child in children:
        assert child.process is not None and child.process.stdout is not None
        with child.process.stdout as pipe:
            said = pipe.read().decode(errors="replace").strip()
        heard.append((said, child.wait().status))
    return heard


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("question")
@click.argument("file", default="-", type=click.File(encoding="utf-8"))
@click.option("-r", "--role", "roles", multiple=True, help="Who answers. May be repeated.")
@click.option("-m", "--model", help="Instead of the kernel's first.")
@click.option("--max-tokens", default=96, show_default=True, type=click.IntRange(1, 2**31 - 1))
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Makes a run repeatable.")
@click.option("--as", "role", hidden=True)
def main(
    question: str,
    file: TextIO,
    roles: tuple[str, ...],
    model: str | None,
    max_tokens: int,
    seed: int | None,
    role: str | None,
) -> None:
    """Ask several people about a FILE, each of them a fork of this agent."""
    if role is not None:
        speak(role, question, max_tokens, seed)
        return
    text = file.read().strip()
    if not text:
        raise click.UsageError("the text is empty: there is nothing to ask about")
    roles = roles or ROLES
    options = ["--max-tokens", str(max_tokens), *(() if seed is None else ("--seed", str(seed)))]
    children: list[Child] = []
    with syscalls.connect("panel") as task:
        context = task.alloc_ctx(model, name="text", system=f"{READ}\n\n{text}")
        try:
            for each in roles:
                command = [sys.executable, str(Path(__file__)), "--as", each, *options, question]
                name = "-".join(each.split())
                children.append(task.fork(command, [context], name, stdout=subprocess.PIPE))
            heard = hear(children)
        except BaseException:
            for child in children:
                with suppress(KernelError):
                    child.kill(Sig.KILL)
            raise
    for each, (said, _) in zip(roles, heard, strict=True):
        click.echo(f"{each}: {said}")
    if any(status for _, status in heard):
        sys.exit("panel: not all of them have answered")


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except KernelError as error:
        sys.exit(f"panel: {error}")
