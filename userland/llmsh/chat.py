"""Chat: each line is a prompt in the current context.

    text        a prompt; @./path in it sends the file along
    /name ...   a builtin of the shell: /undo, /fork, /ctx, /set, /copy, /help
    !line       a line of the shell: !ls -l
    //text      a prompt that begins with /
    \"\"\"...\"\"\"   a prompt of several rows; Alt-Enter begins a row, too, and a paste stays one

Text is taken as it is: $x and $(...) are what they look like. Ctrl-C ends an answer, whose words
stay; Ctrl-D leaves, and the context is where it was.
"""

import re
from difflib import get_close_matches
from typing import TextIO

import click

from userland.asking import Question
from userland.exits import EXPECTED, USAGE, Failure
from userland.llmsh import keeping, pipeline
from userland.llmsh.builtins import BUILTINS
from userland.llmsh.completion import ChatWords
from userland.llmsh.person import attempt, greet, is_terminal, seated
from userland.llmsh.prompt import Prompt
from userland.llmsh.stage import Model, Stage
from userland.llmsh.state import State

_FILE = re.compile(r"(?<!\S)@(?=~?/|\.\.?/)(\S+)")
_COMMAND = re.compile(r"/(\S*)\s*(.*)", re.DOTALL)
_QUOTES = '"""'
_HINT = "each line is a prompt; /help lists what else there is; Ctrl-D leaves"
_HELP = __doc__.split("\n\n", 1)[1]
LEAVE = ("exit", "quit")


def run(state: State, args: list[str], out: TextIO) -> int:
    """Talk in a shell that is at work: the builtin `chat [-s TEXT] [-c @NAME]`."""
    command = click.Command("chat", params=list(options()), help="Each line is a prompt.")
    try:
        values = command.make_context("chat", list(args)).params
    except click.exceptions.Exit:
        return 0
    check_terminal(state.interactive)
    _begin(state, values["ctx"], values["system"], values["load"])
    state.note(_HINT)
    talk(state)
    _keep(state, values["save"])
    return 0


def options() -> tuple[click.Option, ...]:
    """Return what `llmos chat` and the builtin have in common."""
    return (
        click.Option(["-s", "--system"], metavar="TEXT", help="System prompt."),
        click.Option(["-c", "--ctx"], metavar="@NAME", help="Context; made if there is none such."),
        click.Option(["--load"], metavar="SAVE", help="Go on with what was saved."),
        click.Option(["--save"], metavar="SAVE", help="Save it at the end, under this name."),
    )


def start(
    state: State, ctx: str | None, system: str | None, load: str | None, save: str | None
) -> int:
    """Talk in a shell of its own: `llmos chat`."""
    check_terminal(True)

    def conversation() -> int:
        greet(state, _HINT)
        _begin(state, ctx, system, load)
        talk(state)
        _keep(state, save)
        return 0

    return seated(state, conversation)


def check_terminal(interactive: bool) -> None:
    """Raise Failure unless somebody can type and read here."""
    if not (interactive and is_terminal()):
        raise Failure(
            "chat needs a terminal", 'in a script a quoted string is a prompt: "why?"', USAGE
        )


def _begin(state: State, ctx: str | None, system: str | None, load: str | None) -> None:
    """Make the context that is talked in the current one: of a save, if one is named."""
    if load is None:
        begin(state, ctx, system)
        return
    if system is not None:
        raise Failure("-s is for a context without turns, a save has some", exit_code=USAGE)
    keeping.bring(state, load, ctx.removeprefix("@") if ctx is not None else None)


def _keep(state: State, name: str | None) -> None:
    """Save what was talked, if it is to be kept and there is anything."""
    if name is None:
        return
    named = state.contexts.open()
    if named.context.length:
        keeping.keep(state, named, name)
    else:
        state.note(f"@{named.name} is empty: nothing is saved")


def begin(state: State, ctx: str | None, system: str | None) -> None:
    """Make the context that is talked in the current one."""
    contexts = state.contexts
    name = ctx.removeprefix("@") if ctx is not None else contexts.current
    if name not in contexts.names():
        contexts.new(name, system)
        return
    if system is not None:
        named = contexts.open(name)
        if named.context.length:
            raise Failure(
                f"-s is for a context without turns, @{name} has {len(named.turns)}",
                "chat -c @NEW -s TEXT",
                USAGE,
            )
        named.context.system(system)
    contexts.use(name)


def talk(state: State) -> None:
    """Read and answer until Ctrl-D or /exit."""
    prompt = Prompt(state, ChatWords(state), _goes_on, "»", "llmsh_chat_history")
    while True:
        try:
            text = prompt.read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        prompt.history.add(text)
        found = _COMMAND.fullmatch(text.strip())
        if found is not None and found[1] in LEAVE:
            return
        attempt(state, lambda: _turn(state, text))  # noqa: B023  run before the next line


def _turn(state: State, text: str) -> None:
    """Do what one line says."""
    line = text.strip()
    if line.startswith("//"):
        _ask(state, line[1:])
    elif found := _COMMAND.fullmatch(line):
        _command(state, found[1], found[2])
    elif line.startswith("!"):
        _run(state, line[1:].strip())
    elif line:
        _ask(state, line)


def _run(state: State, line: str) -> None:
    from userland.llmsh.shell import Shell  # 0.1 s of lark, after the first prompt

    Shell(state).run_text(line)


def _command(state: State, name: str, rest: str) -> None:
    if name in ("help", ""):
        state.out.write(_HELP)
        state.out.flush()
        state.status = 0
    elif name in BUILTINS and name != "chat":
        _run(state, f"{name} {rest}")
        if name == "fork" and state.status == 0 and len(rest.split()) == 1:
            state.contexts.use(rest.strip().removeprefix("@"))
    else:
        close = get_close_matches(name, [*BUILTINS, *LEAVE], 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        state.note(f"there is no /{name}{meant}; /help lists what there is, // begins a prompt")
        state.status = USAGE


def _ask(state: State, text: str) -> None:
    if text.startswith(_QUOTES):
        text = text.strip().removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    files = tuple(_FILE.findall(text))
    question = Question(_FILE.sub(r"\1", text), files=files)
    try:
        state.status = pipeline.run(state, [Stage(Model(question), [])])
    except EXPECTED as error:
        state.status = state.report(error)


def _goes_on(text: str) -> bool:
    """Return whether Enter adds a row: between triple quotes, and after a backslash."""
    begun = text.lstrip()
    return begun.startswith(_QUOTES) and _QUOTES not in begun[len(_QUOTES) :]
