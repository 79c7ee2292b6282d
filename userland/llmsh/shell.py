"""The shell: lines to pipelines, pipelines to stages, one after the other as `;`, `&&`, `||` say.

What the first word of a stage means has a fixed order, and nothing is ever guessed:

    a quoted string, ? or @name: a model call    a builtin    a program of the host    an error

A backslash or quotes in the word skip the builtins: `\\ps` is the host's ps.
"""

from typing import TextIO

from userland.exits import EXPECTED, INTERRUPTED, USAGE, Failure
from userland.llmsh import pipeline
from userland.llmsh.ask import Interrupted
from userland.llmsh.builtins import BUILTINS, UNBUILT, Leave
from userland.llmsh.host import NOT_FOUND, find
from userland.llmsh.mistakes import ParseError
from userland.llmsh.nodes import Call, Command, Joint, Line, Pipeline
from userland.llmsh.nodes import Stage as Node
from userland.llmsh.parser import parse
from userland.llmsh.stage import Host, Inner, Model, Stage
from userland.llmsh.state import State
from userland.llmsh.words import arguments, text_of


class Shell:
    """Runs lines on a state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def run_text(self, text: str) -> None:
        """Run one or several lines; `$?` says how it went."""
        try:
            line = parse(text)
        except ParseError as error:
            self.refuse(error)
        else:
            self.run(line)

    def refuse(self, error: ParseError, where: str = "") -> None:
        """Show what cannot be read, and where."""
        err = self.state.err
        err.write(f"llmsh: {where}column {error.column}: {error.message}\n{error.pointer()}\n")
        err.flush()
        self.state.status = USAGE

    def run(self, line: Line) -> None:
        """Run what has been parsed; Ctrl-C ends all of it (Interrupted)."""
        self._obey()
        for each in line:
            if each.joint is Joint.AND and self.state.status != 0:
                continue
            if each.joint is Joint.OR and self.state.status == 0:
                continue
            try:
                self.state.status = self._run(each)
            except (Interrupted, KeyboardInterrupt):
                self.state.status = INTERRUPTED
                raise Interrupted from None
            self._obey()
            if self.state.out_gone and not self.state.interactive:
                return

    def _obey(self) -> None:
        """End with the shell's task, if somebody has ended that."""
        status = self.state.contexts.killed()
        if status is not None:
            self.state.note("ended by kill")
            raise Leave(status)

    def _run(self, node: Pipeline) -> int:
        try:
            stages = [self._stage(stage) for stage in node.stages]
            return pipeline.run(self.state, stages)
        except EXPECTED as error:
            return self.state.report(error)

    # --- what a stage is ----------------------------------------------------------------------

    def _stage(self, node: Node) -> Stage:
        redirects = [(r.operator, text_of(r.target, self.state.lookup)) for r in node.redirects]
        if isinstance(node, Call):
            prompt = text_of(node.prompt, self.state.lookup)
            return Stage(Model(prompt, node.context), redirects)
        return Stage(self._command(node), redirects)

    def _command(self, node: Command) -> Host | Inner:
        words = [argument for word in node.words for argument in arguments(word, self.state.lookup)]
        if not words:
            raise Failure("the command is empty: its variable has no value", exit_code=NOT_FOUND)
        builtin = BUILTINS.get(node.words[0].bare or "")
        if builtin is not None:

            def run(args: list[str], out: TextIO) -> int:
                return builtin(self.state, args, out)

            return Inner(words, run)
        path = find(words[0])
        if path is None:
            raise _not_found(words[0])
        return Host(words, path)


def _not_found(name: str) -> Failure:
    if name in UNBUILT:
        return Failure(f"not in this version: {name}", "help lists what there is", NOT_FOUND)
    return Failure(
        f"command not found: {name} — to send the line to the model put ? in front or quote it",
        exit_code=NOT_FOUND,
    )
