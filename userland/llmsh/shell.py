"""The shell: lines to pipelines, pipelines to stages, one after the other as `;`, `&&`, `||` say.

What the first word of a stage means has a fixed order, and nothing is ever guessed:

    a quoted string, ? or @name: a model call    an alias    a builtin    a program    an error

A backslash or quotes in the word skip aliases and builtins: `\\ps` is the host's ps.
"""

from collections.abc import Sequence
from dataclasses import replace
from shlex import quote
from typing import TextIO

from userland.exits import EXPECTED, INTERRUPTED, USAGE, Failure
from userland.llmsh import compound, pipeline
from userland.llmsh.ask import Interrupted
from userland.llmsh.builtins import BUILTINS, UNBUILT, Leave
from userland.llmsh.capture import capture
from userland.llmsh.host import NOT_FOUND, Program, find
from userland.llmsh.mistakes import ParseError
from userland.llmsh.nodes import Assignment, Call, Command, Joint, Line, Pipeline, Word
from userland.llmsh.nodes import Stage as Node
from userland.llmsh.parser import parse
from userland.llmsh.questions import help_of, question_of, words_of
from userland.llmsh.stage import Block, Inner, Model, Stage
from userland.llmsh.state import State
from userland.llmsh.variables import Unset
from userland.llmsh.words import arguments, text_of


class Shell:
    """Runs lines on a state. It is also where the values of words come from."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._conditions = 0
        """Conditions that are being tested: a command may fail there under `set -e`."""
        self._captured = 0
        """The status of the last $( ) since it was set to 0."""

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
        for at, each in enumerate(line):
            if each.joint is Joint.AND and self.state.status != 0:
                continue
            if each.joint is Joint.OR and self.state.status == 0:
                continue
            try:
                status = self._run(each)
            except (Interrupted, KeyboardInterrupt):
                self.state.status = INTERRUPTED
                raise Interrupted from None
            self.state.status = int(not status) if each.negated else status
            self._obey()
            if self.state.out_gone and not self.state.interactive:
                return
            last = at + 1 == len(line) or line[at + 1].joint is Joint.THEN
            if self.state.status and last and not each.negated:
                self._mind()

    def met(self, condition: Line) -> bool:
        """Run a condition; return whether it is met."""
        self._conditions += 1
        try:
            self.run(condition)
        finally:
            self._conditions -= 1
        return self.state.status == 0

    def _mind(self) -> None:
        """Under `set -e` a command that failed ends the script."""
        options = self.state.options
        if options.errexit and not self._conditions and not self.state.interactive:
            raise Leave(self.state.status)

    def _obey(self) -> None:
        """End with the task, if somebody has ended that; come back to one that was saved."""
        status = self.state.contexts.killed()
        if status is not None:
            self.state.note("ended by kill")
            raise Leave(status)
        self.state.contexts.glance()

    def _run(self, node: Pipeline) -> int:
        try:
            if len(node.stages) == 1 and not node.stages[0].redirects:
                only = node.stages[0]
                if isinstance(only, compound.KINDS):
                    return compound.run(self, only)
                if isinstance(only, Command) and not only.words:
                    return self._assign(only.assignments)
            stages = [self._stage(stage, len(node.stages) > 1) for stage in node.stages]
            return pipeline.run(self.state, stages)
        except EXPECTED as error:
            status = self.state.report(error)
            if isinstance(error, Unset) and not self.state.interactive:
                raise Leave(status) from None
            return status

    # --- values -------------------------------------------------------------------------------

    def lookup(self, name: str) -> str:
        """Return the value of a variable."""
        return self.state.variables.lookup(name)

    def arguments(self) -> list[str]:
        """Return the arguments of the script."""
        return self.state.variables.arguments

    def capture(self, line: Line) -> str:
        """Run a line and return what it writes."""
        text, self._captured = capture(self.state, lambda: self.run(line))
        return text

    def _assign(self, assignments: Sequence[Assignment]) -> int:
        """Assign from left to right; the status is that of the last $( ) in it."""
        self._captured = 0
        for assignment in assignments:
            value = text_of(assignment.value, self)
            if self.state.options.xtrace:
                self._trace([f"{assignment.name}={value}"])
            self.state.variables.assign(assignment.name, value)
        return self._captured

    def _trace(self, words: Sequence[str]) -> None:
        shown = " ".join(word if word[:1] == "@" else quote(word) for word in words)
        self.state.err.write(f"+ {shown}\n")
        self.state.err.flush()

    # --- what a stage is ----------------------------------------------------------------------

    def _stage(self, node: Node, piped: bool) -> Stage:
        redirects = [(r.fd, r.operator, text_of(r.target, self)) for r in node.redirects]
        if isinstance(node, compound.KINDS):
            return Stage(Block(lambda: self._nested(node, piped)), redirects)
        if isinstance(node, Call):
            return Stage(self._call(node), redirects)
        return Stage(self._command(node), redirects)

    def _nested(self, node: compound.Kinds, piped: bool) -> int:
        """Run a compound; within a pipeline the terminal belongs to all of that."""
        before, self.state.nested = self.state.nested, self.state.nested or piped
        try:
            return compound.run(self, node)
        finally:
            self.state.nested = before

    def _call(self, node: Call) -> Model | Inner:
        words = words_of(node, self)
        if self.state.options.xtrace:
            self._trace([f"@{node.context}" if node.context else "ask", *words])
        return self._asked(node, words)

    def _asked(self, node: Call, words: list[str]) -> Model | Inner:
        question = question_of(node, words)
        return Inner(["ask"], help_of) if question is None else Model(question)

    def _command(self, node: Command) -> Program | Inner | Model:
        node = self._expanded(node)
        values = {a.name: text_of(a.value, self) for a in node.assignments}
        words = [argument for word in node.words for argument in arguments(word, self)]
        if not words:
            raise Failure("the command is empty: its variable has no value", exit_code=NOT_FOUND)
        if self.state.options.xtrace:
            self._trace([*(f"{name}={value}" for name, value in values.items()), *words])
        name = node.words[0].bare or ""
        if name == "ask":
            return self._asked(Call(node.words[1:], None), words[1:])
        builtin = BUILTINS.get(name)
        if builtin is not None:

            def run(args: list[str], out: TextIO) -> int:
                with self.state.variables.with_values(values):
                    return builtin(self.state, args, out)

            return Inner(words, run)
        path = find(words[0], values.get("PATH"))
        if path is None:
            raise _not_found(words[0])
        return Program(words, path, values)

    def _expanded(self, node: Command) -> Command:
        """Put the words of an alias in the place of its name; each name once."""
        seen: set[str] = set()
        while node.words and (name := node.words[0].bare or "") in self.state.aliases:
            if name in seen:
                break
            seen.add(name)
            first: tuple[Word, ...] = _alias(name, self.state.aliases[name])
            node = replace(node, words=(*first, *node.words[1:]))
        return node


def _alias(name: str, text: str) -> tuple[Word, ...]:
    try:
        (only,) = parse(text)
        (command,) = only.stages
    except (ParseError, ValueError):
        command = None
    if not isinstance(command, Command) or command.redirects or command.assignments:
        raise Failure(f"alias {name}={text!r} is not the words of one command", exit_code=USAGE)
    return command.words


def _not_found(name: str) -> Failure:
    if name in UNBUILT:
        return Failure(f"not in this version: {name}", "help lists what there is", NOT_FOUND)
    return Failure(
        f"command not found: {name} — to send the line to the model put ? in front or quote it",
        exit_code=NOT_FOUND,
    )
