"""A question for a model: its text, what goes along with it, and how the answer is sampled.

`llmos ask` and the prompts of the shell take the same options, which are here; each lays them over
defaults of its own. Nothing here asks the kernel.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from typing import Any, TypeVar

import click

from syscalls import Context, Stream
from syscalls.abi import MAX_GRAMMAR
from syscalls.output import Usage
from userland.exits import REFUSED, Failure, reason

MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**64 - 1
MAX_TEMPERATURE = 100.0
MAX_BIAS = 100.0
MAX_DOCUMENT = 1 << 20
"""Bytes of a document that goes along; more than any context of today's models could hold."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Sampling:
    """How answers are sampled; the names are those of `set`."""

    temp: float
    max: int = 512
    seed: int | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    schema: str | None = None
    regex: str | None = None
    lark: str | None = None

    def over(self, changes: Mapping[str, Any]) -> "Sampling":
        """Return this with what is not None of the changes."""
        return replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )

    def infer(self, context: Context) -> Stream:
        """Ask for an answer."""
        return context.infer(
            self.max, self.temp, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            seed=self.seed, stop=self.stop, repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias, schema=self.schema, regex=self.regex, lark=self.lark,
        )  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One call of a model, as it was asked for."""

    prompt: str
    context: str | None = None
    system: str | None = None
    files: tuple[str, ...] = ()
    remove: bool = False
    raw: bool = False
    verbose: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What its options change of the sampling."""


# --- options --------------------------------------------------------------------------------------


def ask_options(command: Function) -> Function:
    """Give a click command the options of a question and of the context that it goes to."""
    for option in reversed(_CONTEXT_OPTIONS):
        command = option(command)
    return question_options(command)


def question_options(command: Function) -> Function:
    """Give a click command the options of a question; see `question_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Bias(click.ParamType[tuple[int, float]]):
    """ID=VALUE."""

    name = "bias"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        token, _, amount = value.partition("=")
        try:
            found = int(token), float(amount)
        except ValueError:
            found = -1, 0.0
        if found[0] < 0 or not abs(found[1]) <= MAX_BIAS:
            self.fail(f"{value!r} is not ID=VALUE, as 42=-100; a value is at most {MAX_BIAS:g}")
        return found


_PENALTY = click.FloatRange(-2, 2)
_CONTEXT_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option("-c", "--ctx", metavar="@NAME", help="The context to ask in."),
    click.option("--rm", "remove", is_flag=True,
                 help="Ask in a fork of the context, which is then freed."),
)  # fmt: skip

_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.argument("prompt", nargs=-1),
    click.option("-s", "--system", metavar="TEXT", help="System prompt; the context has no turns."),
    click.option("-f", "--file", "files", multiple=True, metavar="FILE",
                 type=click.Path(allow_dash=True),
                 help="Text that goes along, before the prompt; - is stdin. May be repeated."),
    click.option("-t", "--temperature", type=click.FloatRange(0, MAX_TEMPERATURE),
                 help="0: always the likeliest token."),
    click.option("-n", "--max-tokens", type=click.IntRange(1, MAX_TOKENS), help="Longest answer."),
    click.option("--top-p", type=click.FloatRange(0, 1), help="Only the likeliest, up to this."),
    click.option("--top-k", type=click.IntRange(0, MAX_TOKENS), help="Only the K likeliest."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Only those this near the best."),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT",
                 help="Text at which the answer ends. May be repeated."),
    click.option("--repetition-penalty", type=click.FloatRange(0.01, 10),
                 help="Above 1: what is in the context becomes less likely."),
    click.option("--presence-penalty", type=_PENALTY,
                 help="Above 0: what the answer has becomes less likely."),
    click.option("--frequency-penalty", type=_PENALTY, help="Likewise, each time more."),
    click.option("--logit-bias", multiple=True, type=Bias(), metavar="ID=VALUE",
                 help="Added to the logit of a token. May be repeated."),
    click.option("--schema", type=click.Path(), metavar="FILE",
                 help="The answer is JSON that the JSON schema in a file allows."),
    click.option("--regex", metavar="PATTERN", help="The answer is text that this describes."),
    click.option("--lark", type=click.Path(), metavar="FILE",
                 help="The answer is text that the Lark grammar in a file describes."),
    click.option("--raw", is_flag=True, help="The answer as it is, no Markdown drawn."),
    click.option("-v", "--verbose", is_flag=True, help="Tell tokens and times below the answer."),
)  # fmt: skip


_AS_THEY_ARE = (
    "top_p", "top_k", "min_p", "seed",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "regex",
)  # fmt: skip
GRAMMARS = "schema", "regex", "lark"


def question_of(values: Mapping[str, Any]) -> Question:
    """Return the question that the parameters of `ask_options` say.

    An answer that follows a grammar is no Markdown, and is not drawn as such.
    """
    ctx = values.get("ctx")
    return Question(
        " ".join(values["prompt"]),
        None if ctx is None else ctx.removeprefix("@"),
        values["system"],
        tuple(values["files"]),
        values.get("remove", False),
        values["raw"] or any(values[name] is not None for name in GRAMMARS),
        values["verbose"],
        {
            "temp": values["temperature"],
            "max": values["max_tokens"],
            "stop": tuple(values["stop"]) or None,
            "logit_bias": dict(values["logit_bias"]) or None,
            **{name: values[name] for name in _AS_THEY_ARE},
            **{name: _grammar(values[name]) for name in ("schema", "lark")},
        },
    )


def _grammar(path: str | None) -> str | None:
    """Return the text of a grammar's file; Failure if it can be none."""
    if path is None:
        return None
    try:
        with FileIO(path) as file:
            data = file.read(MAX_GRAMMAR + 1) or b""
    except REFUSED as error:
        raise Failure(f"cannot read {path}: {reason(error)}", code="EIO") from None
    if len(data) > MAX_GRAMMAR:
        raise Failure(
            f"{path} is larger than {MAX_GRAMMAR:,} bytes, the limit for a grammar",
            "leave descriptions out, or split the question",
            code="E2BIG",
        )
    return decoded(data, path)


def check_prompt(text: str) -> None:
    """Raise Failure if there is nothing to ask."""
    if not text.strip():
        raise Failure("an empty prompt: there is nothing to ask", exit_code=2)


# --- what goes along ------------------------------------------------------------------------------


def documents(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return (path, text) of files; - is stdin. Failure if one is too large, or no text."""
    return [(path, _document(path)) for path in paths]


def message(documents: Sequence[tuple[str, str]], prompt: str) -> str:
    """Return what the model is told: the documents, each under its name if there are several."""
    texts = [text.rstrip() for _, text in documents]
    if len(texts) > 1:
        texts = [f"{path}:\n{text}" for (path, _), text in zip(documents, texts, strict=True)]
    return "\n\n".join([*texts, prompt])


def _document(path: str) -> str:
    try:
        with FileIO(os.dup(0) if path == "-" else path) as file:
            data = bytearray()
            while len(data) <= MAX_DOCUMENT and (chunk := file.read(1 << 16)):
                data += chunk
    except REFUSED as error:
        raise Failure(f"cannot read {path}: {reason(error)}", code="EIO") from None
    if len(data) > MAX_DOCUMENT:
        raise Failure(
            f"{path} is larger than {MAX_DOCUMENT >> 20} MiB",
            f"cut it on purpose: head -c 20000 {path} | ...",
            code="E2BIG",
        )
    return decoded(data, path)


def decoded(data: bytes | bytearray, what: str) -> str:
    """Return bytes as text; Failure if they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = f"byte {error.start:,} of {len(data):,} is no UTF-8"
        name = "stdin" if what == "-" else what
        raise Failure(f"{name} is not text: {place}") from None


# --- what is told of an answer --------------------------------------------------------------------


def footer(usage: Usage, finish: str, first_s: float, whole_s: float) -> str:
    """Return tokens and times of an answer as one line; `first_s` is when its first token came."""
    parts = [f"{usage.output:,} tok"]
    if usage.output > 1 and whole_s > first_s:
        parts.append(f"{(usage.output - 1) / (whole_s - first_s):.1f} tok/s")
    if usage.output:
        parts.append(f"first token {first_s:.2f} s")
    computed = f"prefill {usage.prompt - usage.cached:,}"
    return " · ".join([*parts, f"{computed} ({usage.cached:,} reused)", finish])
