"""Variables: the shell's own, those of the script, and the environment.

$? $_ $ctx $model $finish $usage    told by the shell; they cannot be assigned
$0 $1 ... $# $@                     of the script
NAME=value                          the shell's, until it is exported; then programs have it, too
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from userland.exits import REFUSED, Failure, reason

if TYPE_CHECKING:
    from userland.answer import Answer
    from userland.llmsh.state import State


class Unset(Failure):
    """A variable without a value under `set -u`; it ends a script."""


class Variables:
    """By name. A value that the environment has is kept there."""

    def __init__(self, state: "State") -> None:
        self.name = "llmsh"
        self.arguments: list[str] = []
        self._state = state
        self._own: dict[str, str] = {}
        self._finish = self._usage = ""
        self._told: dict[str, Callable[[], str]] = {
            "?": lambda: str(state.status),
            "_": lambda: state.answer,
            "ctx": lambda: state.contexts.current,
            "model": self._model,
            "finish": lambda: self._finish,
            "usage": lambda: self._usage,
            "#": lambda: str(len(self.arguments)),
            "0": lambda: self.name,
        }

    def __iter__(self) -> Iterator[str]:
        yield from (*self._told, *self._own, *os.environ)

    def lookup(self, name: str) -> str:
        """Return a value, nothing if there is none; with `set -u`, Failure."""
        if name in self._told:
            return self._told[name]()
        if name.isdecimal() and int(name) <= len(self.arguments):
            return self.arguments[int(name) - 1]
        if name.isdecimal() and self._state.interactive:
            return f"${name}"  # a person has no arguments, and asks what $5 are in another currency
        value = self._own.get(name, os.environ.get(name))
        if value is None and self._state.options.nounset:
            raise Unset(f"${name} has no value, and set -u is on")
        return value or ""

    def assign(self, name: str, value: str) -> None:
        """Give a variable a value; one of the environment changes there."""
        if name in self._told:
            raise Failure(f"{name} is told by the shell and cannot be assigned")
        if name in os.environ:
            self._export(name, value)
        else:
            self._own[name] = value

    def export(self, name: str) -> None:
        """Move a variable to the environment."""
        if name in self._told:
            raise Failure(f"{name} is the shell's own and cannot be exported")
        self._export(name, self._own.pop(name, os.environ.get(name, "")))

    def _export(self, name: str, value: str) -> None:
        try:
            os.environ[name] = value
        except REFUSED as error:
            raise Failure(f"{name} cannot be exported: {reason(error)}") from None

    def unset(self, name: str) -> None:
        """Take a variable away; harmless if there is none."""
        if name in self._told:
            raise Failure(f"{name} is told by the shell and cannot be unset")
        self._own.pop(name, None)
        os.environ.pop(name, None)

    def answered(self, answer: "Answer") -> None:
        """Keep how the last answer ended."""
        stream = answer.stream
        self._finish = stream.finish or ""
        self._usage = json.dumps(stream.usage._asdict()) if stream.usage else ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Bring everything back afterwards, the environment included."""
        own, arguments, environment = dict(self._own), list(self.arguments), dict(os.environ)
        try:
            yield
        finally:
            self._own, self.arguments = own, arguments
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)

    @contextmanager
    def with_values(self, values: Mapping[str, str]) -> Iterator[None]:
        """Have these in the environment, for one command."""
        if not values:
            yield
            return
        with self.kept():
            for name, value in values.items():
                self._export(name, value)
            yield

    def _model(self) -> str:
        fill = self._state.contexts.fill()
        return fill[0] if fill else ""
