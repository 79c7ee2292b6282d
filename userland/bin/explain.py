"""explain: what a code of an error means and what to do; what a task waits for."""

from difflib import get_close_matches

import click
from click.shell_completion import CompletionItem

from syscalls.errors import Errno
from userland import choosing, complete
from userland.catalogue import ENTRIES, EXITS, exit_meaning, meaning, number_of
from userland.desk import Desk, json_option, pass_desk
from userland.exits import Failure, code_of


def _words(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    if incomplete.startswith("@") or context.params.get("of_task"):
        return complete.tasks_and_contexts(context, parameter, incomplete)
    known = {**{name: meaning(name) for name in ENTRIES}, **{str(n): t for n, t in EXITS.items()}}
    upper = incomplete.upper()
    return [
        CompletionItem(name, help=text) for name, text in known.items() if name.startswith(upper)
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[CODE | PID [CTX] | @NAME]", shell_complete=_words)
@click.option("-p", "--task", "of_task", is_flag=True, help="The number is a task, not a code.")
@json_option
@pass_desk
def explain(desk: Desk, words: tuple[str, ...], of_task: bool, as_json: bool) -> None:
    """Explain a code of an error or of an exit; or what a task waits for, and what its KV came to.

    \b
    Examples:
      llmos explain ENOMEM
      llmos explain 75
      llmos explain
      llmos explain -p 57
      llmos explain 57 3
      llmos explain @main

    Without words it lists all codes. Codes are explained without a kernel and without a network.

    \b
    Of a task, for each of its contexts: what it waits for; where the KV of its tokens is; and what
    of it was lost, the newest first: when, why, for whom, and what it costs to have it again. A
    number alone that is a code is explained as one; -p says that it is a task.
    """
    code = words[0] if words else None
    if of_task or len(words) > 1 or (code is not None and not _is_code(code)):
        from userland.bin.explain_task import explain_task

        explain_task(desk, words, as_json)
        return
    if code is None:
        facts = [error_facts(name) for name in ENTRIES] + [exit_facts(n) for n in EXITS]
    elif code.isascii() and code.isdecimal() and len(code) < 10:
        facts = [_number(int(code))]
    else:
        facts = [_name(code.upper())]
    if as_json:
        desk.say_json("explain", facts)
    elif code is None:
        for fact in facts:
            desk.say(f"{fact['code']:<10} {fact['meaning']}")
    else:
        _show(desk, facts[0])
        if choosing.number_of(code) is not None:
            desk.note(f"a task of that number: explain -p {code}")


def _is_code(word: str) -> bool:
    """Return whether a word is explained without a kernel: all but numbers of tasks and @NAME."""
    number = choosing.number_of(word)
    if number is None:
        return not word.startswith("@")
    return exit_meaning(number) is not None or number in Errno._value2member_map_


Fact = dict[str, str | int | list[str] | None]


def error_facts(name: str) -> Fact:
    """Return what is known of an errno."""
    entry = ENTRIES[name]
    return {
        "code": name, "number": number_of(name), "exit_code": code_of(name),
        "meaning": meaning(name), "causes": list(entry.causes), "steps": list(entry.steps),
    }  # fmt: skip


def exit_facts(code: int) -> Fact:
    """Return what is known of an exit code."""
    names = [name for name in ENTRIES if code_of(name) == code]
    causes = [f"{name}: {meaning(name)}" for name in names] if code != 1 else []
    return {
        "code": str(code), "number": code, "exit_code": code,
        "meaning": exit_meaning(code), "causes": causes, "steps": [],
    }  # fmt: skip


def _number(number: int) -> Fact:
    """Explain a number: an exit code; what is none may be an errno of the ABI."""
    if exit_meaning(number) is not None:
        return exit_facts(number)
    if number in Errno._value2member_map_:
        return error_facts(Errno(number).name)
    raise Failure(f"no command ends with {number}", "llmos explain lists all codes", code="ENOENT")


def _name(name: str) -> Fact:
    if name in ENTRIES:
        return error_facts(name)
    close = get_close_matches(name, ENTRIES, 1, 0.4)
    hint = f"llmos explain {close[0]}" if close else "llmos explain lists all codes"
    raise Failure(f"there is no code {name!r}", hint, code="ENOENT")


def _show(desk: Desk, fact: Fact) -> None:
    code = fact["code"]
    tail = "" if code == str(fact["exit_code"]) else f" (errno {fact['number']})"
    desk.say(f"{code}{tail}: {fact['meaning']}")
    for title, key in (("why", "causes"), ("try", "steps")):
        lines = fact[key]
        assert isinstance(lines, list)
        for at, line in enumerate(lines):
            desk.say(f"  {title if at == 0 else '':<5} {line}")
    if tail:
        desk.say(f"  exit  {fact['exit_code']}")
