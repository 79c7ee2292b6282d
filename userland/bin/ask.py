"""ask: one question from the command line, and its answer on stdout."""

import os
import re
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from select import select
from types import FrameType
from typing import Any

import click

from syscalls import E2BIG, Context, Task
from userland import complete
from userland.answer import Answer
from userland.asking import (
    Question,
    Sampling,
    check_prompt,
    documents,
    footer,
    message,
    question_of,
    question_options,
)  # fmt: skip
from userland.config import read
from userland.desk import Desk, json_option, pass_desk
from userland.exits import CUT, TIMED_OUT, Failure
from userland.llmsh.streams import Sink
from userland.running import loaded_as
from userland.turns import check_system, say_user
from userland.waiting import Watch

STDIN = "-"
PATIENCE_S = 2.0
"""Seconds without a byte on stdin after which it is said that the question waits for it."""
LEAST_S, MOST_S = 0.001, 86400.0
"""Seconds that --timeout may be."""
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([smh]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_FENCED = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)(?:^\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


class Duration(click.ParamType[float]):
    """Seconds, or a number with its unit: 30, 0.5s, 5m, 1h."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = _DURATION.fullmatch(str(value))
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if not LEAST_S <= seconds <= MOST_S:
            self.fail(f"{value!r} is no time like 30, 30s or 5m, of 0.001 s to 24 h", param, ctx)
        return seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@question_options
@click.option(
    "-m",
    "--model",
    shell_complete=complete.loaded,
    help="Which of the loaded models; the kernel's first unless given.",
)
@click.option("-x", "--extract", is_flag=True, help="Write the first fenced block only.")
@click.option(
    "--fail-on", type=click.Choice(["length"]), help="End with 4 if the answer was cut there."
)
@click.option(
    "--timeout", type=Duration(), metavar="TIME",
    help="End with 124 if the answer takes longer, as 30, 30s or 5m; what was written stays.",
)  # fmt: skip
@json_option
@pass_desk
def ask(
    desk: Desk,
    /,
    model: str | None,
    extract: bool,
    fail_on: str | None,
    timeout: float | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Ask the model one question.

    \b
    Examples:
      llmos ask why is the sky blue
      git diff | llmos ask "a commit message for this"
      llmos ask -x "a shell script that counts files" > count.sh
      llmos ask --json -t 0 --seed 1 "name a river" | jq -r .data.text
      llmos ask --schema person.json -f mail.txt "who wrote this?" | jq .name
      llmos ask --regex "yes|no" "is the sky blue?"

    What is piped in goes along before the question, or is the question if there is no other. The
    exit code is 130 after Ctrl-C, 124 after --timeout, 4 if --fail-on says so; what had been
    written stays.
    """
    question = question_of(values)
    config = read()
    sampling = config.sampling().over(question.changes)
    told = _told(desk, question)
    task = desk.task
    context = task.alloc_ctx(loaded_as(task, model or config.explicit("model")))
    with _limited(timeout) as limit:
        answer = _answer(desk, task, context, question, told, sampling, extract or as_json)
    status = TIMED_OUT if limit.passed else answer.status
    if as_json:
        desk.say_json("ask", facts(answer, context))
    elif extract and not answer.status:
        desk.say(block(answer.text))
    _tell(desk, answer, context, sampling, timeout if limit.passed else None)
    if question.verbose and answer.stream.usage is not None:
        finish = answer.stream.finish or ""
        desk.note(footer(answer.stream.usage, finish, answer.first_s, answer.whole_s))
    return CUT if fail_on == answer.stream.finish else status


def _told(desk: Desk, question: Question) -> str:
    """Return what the model is told: files, stdin and the prompt, one of them at least."""
    files = list(question.files)
    if STDIN not in files and _attached(desk):
        files.append(STDIN)
    found = documents(files)
    if STDIN not in question.files:  # nobody asked for it: cron's is empty, a loop's may be
        found = [(path, text) for path, text in found if path != STDIN or text.strip()]
    found = [("stdin" if path == STDIN else path, text) for path, text in found]
    check_prompt("".join([question.prompt, *(text for _, text in found)]))
    return message(found, question.prompt).rstrip("\n")


def _attached(desk: Desk) -> bool:
    """Return whether stdin is a document: it is no terminal, and there is something to read.

    It may be a pipe that nobody ever closes; then the person is to know what is waited for.
    """
    if os.isatty(0):
        return False
    if not stat.S_ISREG(os.fstat(0).st_mode) and not select([0], [], [], PATIENCE_S)[0]:
        desk.note("waiting for stdin, which goes along with the question (</dev/null: nothing)")
    return True


def _answer(
    desk: Desk,
    task: Task,
    context: Context,
    question: Question,
    told: str,
    sampling: Sampling,
    silent: bool,
) -> Answer:
    """Put the question, and write the answer as it comes unless all of it is needed first."""
    sink = Silence() if silent else Sink(desk.out.fileno())
    try:
        if question.system is not None:
            check_system(task, context.model)
            context.system(question.system)
        say_user(task, context, told, desk.note)
        answer = Answer(sampling.infer(context), sink, Watch(task, context, desk.note))
        answer.write()
    except E2BIG as error:
        raise Failure(
            f"{error.message}; {context.model} has room for {context.max_ctx:,} tokens",
            "cut the input on purpose: ... | head -c 8000 | llmos ask ...",
            code="E2BIG",
        ) from None
    finally:
        if isinstance(sink, Sink):
            sink.end_line()
    return answer


class Silence:
    """Where an answer goes that is written when it is whole."""

    def write(self, text: str) -> None:
        """Drop it: the stream keeps its text."""


def _tell(
    desk: Desk, answer: Answer, context: Context, sampling: Sampling, timeout: float | None
) -> None:
    """Say how the answer ended, if it did not end by itself."""
    if timeout is not None:
        desk.note(f"cut after {answer.pieces:,} tokens: --timeout {timeout:g} s is over")
    elif answer.cut:
        how = "cancelled by a signal or by the kernel's shutdown"
        desk.note(f"cut after {answer.pieces:,} tokens: {how}")
    elif answer.stream.finish == "length" and context.length >= context.max_ctx:
        desk.note(f"cut: the context is full, {context.max_ctx:,} tokens")
    elif answer.stream.finish == "length":
        desk.note(f"cut after {sampling.max:,} tokens; -n N allows more")
    elif not answer.text and not answer.status:
        desk.note("the answer is empty")


def facts(answer: Answer, context: Context) -> Mapping[str, Any]:
    """Return what `--json` writes."""
    usage, stream = answer.stream.usage, answer.stream
    return {
        "text": stream.text,
        "finish": stream.finish,
        "usage": None if usage is None else usage._asdict(),
        "seed": stream.seed,
        "model": context.model,
        "first_s": round(answer.first_s, 6),
        "whole_s": round(answer.whole_s, 6),
    }


def block(text: str) -> str:
    """Return what stands in the first fenced block; Failure if there is none."""
    found = _FENCED.search(text)
    if found is None:
        raise Failure(
            f"the answer has no fenced block in its {len(text):,} characters",
            "without -x all of it is written",
        )
    return found[2].removesuffix("\n")


class Limit:
    """Whether the time is over."""

    passed = False


@contextmanager
def _limited(seconds: float | None) -> Iterator[Limit]:
    """Interrupt what is done after some seconds, exactly as Ctrl-C does."""
    limit = Limit()
    if seconds is None:
        yield limit
        return

    def ring(_: int, __: FrameType | None) -> None:
        limit.passed = True
        signal.raise_signal(signal.SIGINT)  # which the client library knows to hold back

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield limit
    except KeyboardInterrupt:
        if not limit.passed:
            raise
        raise Failure(f"no answer within {seconds:g} s", code="ETIMEDOUT") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
