"""best_of_n: ask once, answer n times, keep the best.

    llmos run userland/agents/best_of_n.py -n 8 "A name for a boat that is always late?"

The question is computed once. Each answer is generated on a fork of its context, which shares the
question's KV blocks and copies none until it writes; the kernel runs all n in the same steps. Then
each answer gets a score, the best one is written to stdout, and the forks of the others are freed.

A score is the mean log-probability that the model gives the ids of its own answer or, with --judge,
how much likelier it says "Yes" than "No" when it is asked about the answer. The judge's question is
put on a fork of the answer, so that too costs a few ids and no answer is read twice.
"""

import sys
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import click

import syscalls
from syscalls import Answers, Context, KernelError

YES, NO = "Yes", "No"
SHOWN = 60
"""Characters of an answer in the table."""


class Candidate(NamedTuple):
    """One answer and what it is worth."""

    number: int
    text: str
    score: float
    length: int  # ids


def likelihood(answers: Answers) -> list[float]:
    """Score each answer by the mean log-probability of its ids."""
    scores = []
    for stream in answers:
        logprobs = [piece.logprob for piece in stream if piece.logprob is not None]
        scores.append(sum(logprobs) / len(logprobs) if logprobs else -float("inf"))
    return scores


def judged(answers: Answers, question: str) -> list[float]:
    """Score each answer by the model's own yes or no, as the part of the two that is yes."""
    forks: list[Context] = []
    for context, stream in zip(answers.contexts, answers, strict=True):
        stream.read()
        fork = context.fork(name="judge")
        fork.user(f"{question} Reply {YES} or {NO}.")
        forks.append(fork)
    scores = []
    for fork in forks:
        yes, no = fork.score([YES, NO])
        scores.append(exp(yes.total) / (exp(yes.total) + exp(no.total)))
        fork.free()
    return scores


def rank(answers: Answers, scores: Sequence[float]) -> list[Candidate]:
    """Return the answers, the best first; among equals the first of them."""
    found = [
        Candidate(index, stream.text.strip(), score, len(stream.ids))
        for index, (stream, score) in enumerate(zip(answers, scores, strict=True))
    ]
    return sorted(found, key=lambda candidate: -candidate.score)


def table(candidates: Sequence[Candidate], shared: int) -> str:
    """Return what -v shows."""
    lines = [f"{'score':>8} {'ids':>5}  answer"]
    for candidate in candidates:
        text = " ".join(candidate.text.split())
        text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        lines.append(f"{candidate.score:8.3f} {candidate.length:5}  {text}")
    return "\n".join([*lines, f"{shared} blocks of the question were shared by {len(candidates)}"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("question")
@click.option("-n", "count", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("-m", "--model", help="Instead of the kernel's first.")
@click.option("-s", "--system", help="System message.")
@click.option("-t", "--temperature", default=0.8, show_default=True, type=click.FloatRange(0, 100))
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(1, 2**31 - 1))
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Makes a run repeatable.")
@click.option("--judge", metavar="QUESTION", help='Like "Is that answer short and polite?"')
@click.option("-v", "--verbose", is_flag=True, help="Show all answers with their scores on stderr.")
def main(
    question: str,
    count: int,
    model: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    judge: str | None,
    verbose: bool,
) -> None:
    """Answer QUESTION n times, and write the best answer."""
    with syscalls.connect("best-of-n") as task:
        context = task.alloc_ctx(model, name="question", system=system)
        context.user(question)
        with context.infer_n(
            count, max_tokens=max_tokens, temperature=temperature, seed=seed, logprobs=0
        ) as answers:
            shared = min(fork.stat().shared for fork in answers.contexts)
            scores = judged(answers, judge) if judge else likelihood(answers)
            candidates = rank(answers, scores)
            answers.keep(candidates[0].number)
        if verbose:
            click.echo(table(candidates, shared), err=True)
        click.echo(candidates[0].text)


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except KernelError as error:
        sys.exit(f"best_of_n: {error}")
