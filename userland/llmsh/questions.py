"""A model call of a line as a Question: `"prompt" -t 0`, `@name --rm -f file "prompt"`, `? text`.

Words and options are those of `ask`; text after ? has no options.
"""

from dataclasses import replace
from functools import cache
from typing import Any, TextIO

import click

from userland import asking
from userland.asking import Question
from userland.exits import USAGE, Failure
from userland.llmsh.nodes import Call
from userland.llmsh.words import Values, arguments, files_of, text_of


@cache
def ask_command() -> click.Command:
    """Return the click command that reads the words of a call."""

    @click.command(context_settings={"help_option_names": ["-h", "--help"]})
    @asking.ask_options
    def ask(**values: Any) -> dict[str, Any]:
        """Ask the model; a quoted string where a command may begin is the same.

        \b
        Examples:
          ask "why is the sky blue?"
          "one line: what changed?" -t 0 -n 30 -f diff.txt
          @triage --rm -f "$f" "bug or feature?"
        """
        return values

    return ask


def words_of(node: Call, values: Values) -> list[str]:
    """Return the words of a call; what is quoted is one word, whatever is in it."""
    if node.free:
        return [text_of(node.words[0], values).strip()]
    words: list[str] = []
    for word in node.words:
        quoted = all(part.quoted for part in word.parts)
        words += [text_of(word, values)] if quoted else arguments(word, values)
    return words


def question_of(node: Call, words: list[str]) -> Question | None:
    """Return the question, None if it is for help."""
    if node.free:
        asking.check_prompt(words[0])
        return Question(words[0], node.context, files=tuple(files_of(node.words[0])))
    try:
        context = ask_command().make_context("ask", list(words))
    except click.exceptions.Exit:
        return None
    question = asking.question_of(context.params)
    asking.check_prompt(question.prompt)
    if node.context is None:
        return question
    if question.context is not None:
        raise Failure(f"@{node.context} and -c are one too many", exit_code=USAGE)
    return replace(question, context=node.context)


def help_of(_: list[str], out: TextIO) -> int:
    """Write what `ask --help` says."""
    command = ask_command()
    out.write(command.get_help(click.Context(command, info_name="ask")) + "\n")
    return 0
