"""map_reduce: ask about a file that is longer than the model's context.

    llmos run userland/agents/map_reduce.py "What was decided?" minutes.txt

The file is cut into parts, at blank lines where that is possible. Each part is read on a fork of
one context that holds the instructions (computed once, shared by all), and leaves a note that is
much shorter than the part. Notes that do not fit into one context together are parts themselves,
so the file may be of any length; the last round answers from all notes.

    file      [ part 1 ][ part 2 ][ part 3 ][ part 4 ]       -j of them at a time
    notes          n1        n2        n3        n4          a fork each, freed once it is read
    answer         [   n1   n2   n3   n4   ] -> answer       (further rounds if they do not fit)

Nothing is left out in silence: a part that cannot be cut small enough is an error, and -v says how
many parts and rounds it took.
"""

import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

import click

import syscalls
from syscalls import Context, KernelError

READ = "You read a part of a longer text, and write down briefly what it says about the question."
ANSWER = "You answer a question from notes about a text."
SEPARATORS = (r"\n\s*\n", r"\n", r"(?<=[.!?])\s", r"\s")
"""Where a text is cut, the best place first."""
MARKUP = 128
"""Ids that the chat's markup and the words around a part may take."""


def cut(text: str, limit: int, length: Callable[[str], int]) -> list[str]:
    """Cut a text into parts of at most `limit` ids each; ValueError if a word is longer."""
    return list(_packed(_pieces(text, limit, length, SEPARATORS), limit))


def _pieces(
    text: str, limit: int, length: Callable[[str], int], separators: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Yield pieces, each with its ids, cut no finer than is necessary."""
    size = length(text)
    if size <= limit:
        yield text, size
        return
    if not separators:
        raise ValueError(f"{text[:20]!r}… has {size} ids in one word, a part may have {limit}")
    for piece in _split(text, separators[0]):
        yield from _pieces(piece, limit, length, separators[1:])


def _split(text: str, separator: str) -> Iterator[str]:
    """Yield the pieces of a text, each with the separator behind it: nothing is lost."""
    start = 0
    for found in re.finditer(separator, text):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]


def _packed(pieces: Iterable[tuple[str, int]], limit: int) -> Iterator[str]:
    """Join neighbours as long as they fit together; two have no more ids than each alone."""
    part, used = "", 0
    for piece, size in pieces:
        if used + size > limit:
            yield part
            part, used = "", 0
        part, used = part + piece, used + size
    if part:
        yield part


def read_all(base: Context, question: str, parts: Sequence[str], jobs: int, note: int) -> list[str]:
    """Return a note about each part, `jobs` of them under way at a time."""
    notes: list[str] = []
    waiting: deque[tuple[Context, syscalls.Stream]] = deque()

    def take() -> None:
        fork, stream = waiting.popleft()
        notes.append(stream.read().strip())
        fork.free()

    for part in parts:
        if len(waiting) == jobs:
            take()
        fork = base.fork(name=f"part-{len(notes) + len(waiting) + 1}")
        fork.user(f"{part.strip()}\n\nQuestion: {question}\nWhat does this part say about it?")
        waiting.append((fork, fork.infer(max_tokens=note, temperature=0)))
    while waiting:
        take()
    return notes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("question")
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
@click.option("-m", "--model", help="Instead of the kernel's first.")
@click.option("-j", "--jobs", default=4, show_default=True, type=click.IntRange(1, 256))
@click.option("--part", type=click.IntRange(64), metavar="IDS", help="Of a part.  [default: fits]")
@click.option("--note", default=120, show_default=True, type=click.IntRange(16), metavar="IDS")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@click.option("-v", "--verbose", is_flag=True, help="Show parts and rounds on stderr.")
def main(
    question: str,
    file: TextIO,
    model: str | None,
    jobs: int,
    part: int | None,
    note: int,
    max_tokens: int,
    verbose: bool,
) -> None:
    """Answer QUESTION about FILE (stdin unless given), which may be longer than a context."""
    text = file.read()
    if not text.strip():
        raise click.UsageError(f"{file.name} is empty")
    with syscalls.connect("map-reduce") as task:
        base = task.alloc_ctx(model, name="instructions", system=READ)
        words = task.text_model(base.model)
        if words is None:
            raise click.ClickException(f"model {base.model} has no tokenizer")

        def length(piece: str) -> int:
            return len(words.encode(piece))

        room = base.max_ctx - base.length - length(question) - MARKUP
        limit = min(room - note, part or room)
        last = min(room - max_tokens, part or room)
        if min(limit, last) < 2 * note:
            raise click.UsageError(f"a part of {min(limit, last)} ids is no longer than two notes")
        rounds = 0
        while length(text) > last:
            try:
                parts = cut(text, limit, length)
            except ValueError as error:
                raise click.ClickException(str(error)) from None
            rounds += 1
            if verbose:
                click.echo(f"round {rounds}: {length(text):,} ids in {len(parts)} parts", err=True)
            text = "\n\n".join(read_all(base, question, parts, jobs, note))
        answer = task.alloc_ctx(model, name="answer", system=ANSWER)
        answer.user(f"{text.strip()}\n\nQuestion: {question}")
        for piece in answer.infer(max_tokens=max_tokens, temperature=0):
            click.echo(piece.text, nl=False)
        click.echo()


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except KernelError as error:
        sys.exit(f"map_reduce: {error}")
