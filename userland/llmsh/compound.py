"""if, for, while, until and { }: lines that run, or do not, or several times."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from userland.llmsh.nodes import For, Group, If, Line, While
from userland.llmsh.words import arguments

if TYPE_CHECKING:
    from userland.llmsh.shell import Shell

Kinds = If | For | While | Group
KINDS = (If, For, While, Group)


class Jump(Exception):
    """break or continue: leave this many loops, and go on with the last of them or not."""

    def __init__(self, loops: int, goes_on: bool) -> None:
        super().__init__(loops)
        self.loops = loops
        self.goes_on = goes_on


def run(shell: "Shell", node: Kinds) -> int:
    """Run a compound; return the status of its last command, 0 if nothing has run."""
    shell.state.loops += isinstance(node, For | While)
    try:
        if isinstance(node, If):
            return _if(shell, node)
        if isinstance(node, For):
            return _each(shell, _values(shell, node), node.body)
        if isinstance(node, While):
            return _each(shell, _while(shell, node), node.body)
        shell.run(node.body)
        return shell.state.status
    finally:
        shell.state.loops -= isinstance(node, For | While)


def _if(shell: "Shell", node: If) -> int:
    for condition, body in node.branches:
        if shell.met(condition):
            shell.run(body)
            return shell.state.status
    if not node.otherwise:
        return 0
    shell.run(node.otherwise)
    return shell.state.status


def _values(shell: "Shell", node: For) -> Iterator[None]:
    """Assign the next value before each turn of the loop."""
    if node.words is None:
        values = list(shell.arguments())
    else:
        values = [value for word in node.words for value in arguments(word, shell)]
    for value in values:
        shell.state.variables.assign(node.name, value)
        yield


def _while(shell: "Shell", node: While) -> Iterator[None]:
    while shell.met(node.condition) != node.until:
        yield


def _each(shell: "Shell", turns: Iterable[None], body: Line) -> int:
    status = 0
    for _ in turns:
        if shell.state.out_gone and not shell.state.interactive:
            break
        try:
            shell.run(body)
        except Jump as jump:
            if jump.loops > 1:
                raise Jump(jump.loops - 1, jump.goes_on) from None
            status = 0
            if not jump.goes_on:
                break
            continue
        status = shell.state.status
    return status
