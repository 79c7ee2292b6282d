"""What a line means: a list of pipelines, each of stages, each a command or a model call.

Columns count from 0 within the text that was parsed.
"""

from dataclasses import dataclass
from enum import Enum


class Joint(Enum):
    """What stands before a pipeline."""

    THEN = ";"
    AND = "&&"
    OR = "||"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: text as it is, or the name of a variable."""

    text: str
    variable: bool = False
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """Pieces written without a blank between them."""

    parts: tuple[Part, ...]
    column: int

    @property
    def bare(self) -> str | None:
        """The word's text if nothing in it is quoted or variable, as a builtin's name must be."""
        if any(part.variable or part.quoted for part in self.parts):
            return None
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Redirect:
    """`<`, `>` or `>>`, and a file."""

    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Command:
    """Words: a builtin or a program of the host, and its arguments."""

    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A prompt for the model, in the named context or the current one."""

    prompt: Word
    context: str | None
    redirects: tuple[Redirect, ...]


Stage = Command | Call


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages, the output of each being the input of the next."""

    joint: Joint
    stages: tuple[Stage, ...]


Line = tuple[Pipeline, ...]
