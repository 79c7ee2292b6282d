"""What a line means: a list of pipelines, each of stages: a command, a model call, or a compound.

Columns count from 0 within the text that was parsed.
"""

from dataclasses import dataclass
from enum import Enum


class Joint(Enum):
    """What stands before a pipeline."""

    THEN = ";"
    AND = "&&"
    OR = "||"


class Kind(Enum):
    """What a part of a word is replaced by."""

    TEXT = "itself"
    VARIABLE = "the value of the variable of that name"
    COMMAND = "what a command writes"
    FILE = "the path of a file, which goes along with the prompt"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word. `line` is what a COMMAND runs, `text` its source."""

    text: str
    kind: Kind = Kind.TEXT
    quoted: bool = False
    line: "Line" = ()


@dataclass(frozen=True, slots=True)
class Word:
    """Pieces written without a blank between them."""

    parts: tuple[Part, ...]
    column: int

    @property
    def bare(self) -> str | None:
        """The word's text if nothing in it is quoted or replaced, as a builtin's name must be."""
        if any(part.kind is not Kind.TEXT or part.quoted for part in self.parts):
            return None
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a stream goes: `>` `>>` `<` to a file, `&` to another stream, `<<<` to a text."""

    fd: int
    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Assignment:
    """NAME=value."""

    name: str
    value: Word


@dataclass(frozen=True, slots=True)
class Command:
    """Words: a builtin or a program of the host, and its arguments; or assignments alone."""

    assignments: tuple[Assignment, ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A prompt for the model: its text or texts, and options; `free` has no options."""

    words: tuple[Word, ...]
    context: str | None
    free: bool = False
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """Conditions with their bodies, and what happens if none is met."""

    branches: "tuple[tuple[Line, Line], ...]"
    otherwise: "Line"
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """A body for each word; without `in`, for each argument of the script."""

    name: str
    words: tuple[Word, ...] | None
    body: "Line"
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class While:
    """A body as long as a condition is met, or with `until`, is not."""

    until: bool
    condition: "Line"
    body: "Line"
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """{ ...; }: several pipelines where one is expected."""

    body: "Line"
    redirects: tuple[Redirect, ...] = ()


Compound = If | For | While | Group
Stage = Command | Call | Compound


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages, the output of each being the input of the next."""

    joint: Joint
    stages: tuple[Stage, ...]
    negated: bool = False


Line = tuple[Pipeline, ...]
