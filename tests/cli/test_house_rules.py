"""House rules: what holds for every command of `llmos`, and is tested without naming any.

ROWS says of each command what the walker cannot know: words with which it works, the schema of its
JSON, words that name what is not there. A command without a row fails.
"""

import json
import os
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import click
import pytest

from drivers.models.store import default_root
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.json_schema import FOLDER, check, check_document
from tests.helpers.shell import environment, talking
from userland import cli
from userland.desk import Desk
from userland.exits import EXPECTED

ESCAPE, BOX = "\x1b", re.compile("[\u2500-\u259f]")
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Row:
    """What the walker has to know of a command."""

    works: tuple[str, ...] | None = ()
    """Words with which it works on a kernel that has one model; None: it is tested elsewhere."""
    schema: str | None = None
    """Of its --json."""
    kernel: bool = True
    """It needs one."""
    absent: tuple[str, ...] | None = None
    """Words that name what is not there."""
    absent_code: int = 3
    streams: bool = False
    """It writes to the descriptor of stdout, as it goes."""
    sentences: bool = False
    """Its lines are no rows, and a terminal may wrap them."""


MODELS = Row((), "models", kernel=False)
ROWS = {
    "ask": Row(("-n", "2", "-t", "0", "q"), "ask", absent=("-m", "gpt-9", "q"), streams=True),
    "chat": Row(None, kernel=False),
    "completion": Row(("bash",), kernel=False, sentences=True),
    "config check": Row((), "config.check", kernel=False, absent=("/none.toml",), absent_code=78),
    "config path": Row((), "config.path", kernel=False),
    "config show": Row(("--origin",), "config.show", kernel=False),
    "dmesg": Row((), "dmesg", sentences=True),
    "ctx export": Row(None, "ctx.export", absent=("gone", "/none/file")),
    "ctx import": Row(None, "ctx.import", absent=("/none/file", "name")),
    "ctx rm": Row(None, absent=("gone",)),
    "ctx saves": Row((), "saves"),
    "ctx ls": Row((), "contexts", absent=("999999",)),
    "ctx tree": Row((), "ctx.tree", absent=("999999",)),
    "doctor": Row(("--quick",), "doctor", kernel=False, sentences=True),
    "down": Row(None, kernel=False),
    "explain": Row(("EIO",), "explain", kernel=False, absent=("ENOSUCH",), sentences=True),
    "free": Row((), "free"),
    "key backup": Row(None, kernel=False, absent=("--keys-dir", "/none", "b")),
    "key restore": Row(None, kernel=False, absent=("/none.backup",)),
    "group": Row(None, absent=("lab", "999999")),
    "kill": Row(None, absent=("999999",)),
    "limit": Row((), "limit", absent=("999999", "output_ids", "10")),
    "load": Row(None, "load", kernel=False, absent=("gpt-9",)),
    "ls": MODELS,
    "lsdev": Row((), "lsdev"),
    "models": MODELS,
    "models du": Row((), "models.du", kernel=False),
    "models list": MODELS,
    "models rm": Row(None, "models.rm", kernel=False, absent=("gpt-9",)),
    "models show": Row(("smollm2",), "models.show", False, ("gpt-9",), sentences=True),
    "models verify": Row(None, "models.verify", kernel=False, absent=("gpt-9",)),
    "nice": Row(None, kernel=False, absent=("/none.py",), absent_code=127),
    "ping": Row((), "ping"),
    "pmap": Row((), "pmap", absent=("999999",)),
    "policy": Row((), "policy", absent=("lottery",)),
    "ports": Row((), "ports"),
    "ps": Row((), "ps"),
    "pull": Row(None, kernel=False, absent=("gpt-9",)),
    "renice": Row(None, absent=("-n", "5", "999999")),
    "run": Row(None, kernel=False, absent=("/none.py",), absent_code=127),
    "status": Row((), "status", sentences=True),
    "top": Row(("--batch", "-n", "1"), "top"),
    "unload": Row(None, absent=("gpt-9",)),
    "usage": Row((), "usage"),
    "vmstat": Row((), "vmstat"),
    "up": Row(None, kernel=False, absent=("-m", "gpt-9")),
}


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, those of groups as `group command`."""
    context = click.Context(group, info_name="llmos", obj=Desk(StringIO(), StringIO()))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield " ".join((*path, name)), command


ALL = dict(walk(cli.llmos))
GROUPS = {name.rsplit(" ", 1)[0] for name in ALL if " " in name}
EVERY = sorted({*ALL, *GROUPS})


WORKING = [name for name in ALL if name in ROWS and ROWS[name].works is not None]
WITH_JSON = [name for name in WORKING if ROWS[name].schema is not None]
DRAWING = [name for name in WORKING if not ROWS[name].streams]
NEEDING = [name for name in ALL if name in ROWS and ROWS[name].kernel]
NAMING = [name for name in ALL if name in ROWS and ROWS[name].absent is not None]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(default_root())
    with talking(home, keeps=True) as running:
        with running.connect() as task, task.alloc_ctx() as context:
            eventually(lambda: task.store().state == "up", "store")
            context.append([1, 2, 3])
            context.save("kept")
        yield running


@pytest.fixture(scope="module")
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


class Terminal(StringIO):
    """What a command takes for a terminal."""

    def isatty(self) -> bool:
        return True


def llmos(home: Path, *words: str, out: TextIO | None = None, **env: str) -> tuple[int, str, str]:
    """Run a command here; return its exit code and what it has written."""
    out, err = StringIO() if out is None else out, StringIO()
    with patch.dict(os.environ, environment(home) | env, clear=True):
        code = cli.run(Desk(out, err), list(words))
    return code, out.getvalue() if isinstance(out, StringIO) else "", err.getvalue()


def test_every_command_has_a_row() -> None:
    assert set(ALL) <= set(ROWS), "a new command needs a row in ROWS"
    for name, command in ALL.items():
        has_json = any("--json" in option.opts for option in command.params)
        assert has_json is (ROWS[name].schema is not None), f"{name}: --json and its schema"


# --- help -----------------------------------------------------------------------------------------


def help_of(name: str) -> str:
    """Return what `llmos NAME --help` writes."""
    context: click.Context | None = None
    command: click.Command = cli.llmos
    for word in ["llmos", *name.split()]:
        if context is not None:
            assert isinstance(command, click.Group)
            found = command.get_command(context, word)
            assert found is not None
            command = found
        context = command.context_class(command, context, word, **command.context_settings)
    assert context is not None
    return command.get_help(context)


def examples_of(text: str) -> list[str]:
    """Return the lines below "Examples:", up to a blank one."""
    found = re.search(r"^ *Examples:\n((?: +\S.*\n?)+)", text, re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


@pytest.mark.parametrize("name", EVERY)
def test_help_has_purpose_and_examples_and_fits(name: str) -> None:
    text = help_of(name)
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: llmos {name}")
    assert " ".join(lines[2 : lines.index("", 2)]).endswith("."), "it begins with a sentence"
    assert len(examples_of(text)) >= (1 if name in GROUPS else 2)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_option_is_documented(name: str) -> None:
    for option in ALL[name].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help and not option.help[0].islower(), option.opts


def commands_of(line: str, name: str) -> list[list[str]]:
    """Return the words of each command of `llmos` in a line of shell."""
    for inner in re.findall(r"\$\((.*?)\)", line):
        if "llmos" in inner:
            return commands_of(inner, name)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if re.fullmatch(r"[|&;]+", word):
            found.append([])
        elif re.fullmatch(r"[<>]+", word):
            skip = True
        elif skip:
            skip = False
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            found[-1].append(word)
    first = name.split()[0]
    ours = [words[1:] for words in found if words[:1] == ["llmos"]]
    return ours + [words for words in found if words[:1] == [first]]


def parse(words: Sequence[str]) -> list[click.Command]:
    """Take words apart as `llmos` would, run nothing; return the command with its groups."""
    desk = Desk(StringIO(), StringIO())
    command: click.Command = cli.llmos
    context = command.make_context("llmos", list(words), obj=desk)
    found: list[click.Command] = []
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest and command.invoke_without_command:
            break
        word, following, rest = command.resolve_command(context, rest)
        assert word is not None and following is not None
        found.append(following)
        command, context = following, following.make_context(word, rest, parent=context)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_example_can_be_parsed(name: str) -> None:
    for line in examples_of(help_of(name)):
        commands = commands_of(line, name)
        assert commands, f"no command of llmos in {line!r}"
        with patch.dict(os.environ, environment(Path("/none")), clear=True):
            parsed = [parse(words) for words in commands]
        assert any(command_of(name) in found for found in parsed), f"{line!r} is not about {name}"


def command_of(name: str) -> click.Command:
    """Return a command, or a group of commands."""
    command: click.Command = cli.llmos
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def test_a_wrong_example_would_be_seen() -> None:
    """The test of the test: a typo in an option, in a command, behind a pipe, in $( )."""
    for line in ("llmos ps --srot x", "llmos sp", "cat x | llmos ps -z", 'eval "$(llmos pz)"'):
        with pytest.raises(EXPECTED):
            for words in commands_of(line, "ps"):
                parse(words)


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_JSON)
def test_json_is_what_its_schema_says(home: Path, tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    assert row.schema is not None and row.works is not None
    code, out, err = work(home, tmp_path, name, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == f"llmos.{row.schema}/1"
    check_document(document)
    written = {json.dumps(document, indent=indent) + "\n" for indent in (1, None)}
    assert out in written, "one document, and nothing beside it"


def work(home: Path, tmp_path: Path, name: str, *more: str, **env: str) -> tuple[int, str, str]:
    """Run a command with words that work; its stdout is a file if it needs a descriptor."""
    row = ROWS[name]
    words = [*name.split(), *(row.works or ()), *more]
    if not row.streams:
        return llmos(home, *words, **env)
    path = tmp_path / "out"
    with path.open("w") as out:
        code, _, err = llmos(home, *words, out=out, **env)
    return code, path.read_text(), err


@pytest.mark.parametrize("name", WORKING)
def test_a_pipe_gets_plain_text(home: Path, tmp_path: Path, name: str) -> None:
    code, out, err = work(home, tmp_path, name)
    assert code == 0, err
    assert out.endswith("\n")
    assert ESCAPE not in out + err
    assert name == "completion" or not BOX.search(out)


@pytest.mark.parametrize("name", DRAWING)
def test_a_terminal_of_80_columns(home: Path, name: str) -> None:
    words = [*name.split(), *(ROWS[name].works or ())]

    def drawn(*options: str, **env: str) -> str:
        code, out, err = llmos(
            home, *options, *words, out=Terminal(), COLUMNS="80", TERM="xterm", **env
        )
        assert code == 0, err
        return out

    plain = SEQUENCE.sub("", drawn())
    if not ROWS[name].sentences:
        assert max(map(len, plain.splitlines()), default=0) <= 80
    assert not COLOR.search(drawn(NO_COLOR="1"))
    assert ESCAPE not in drawn("--color", "never")
    assert ESCAPE not in drawn(LLMOS_COLOR="never")


def test_colours_can_be_had_in_a_pipe(home: Path) -> None:
    assert ESCAPE in llmos(home, "--color", "always", "ps")[1]
    assert ESCAPE in llmos(home, "--color", "always", "ps", NO_COLOR="1")[1]
    assert ESCAPE in llmos(home, "ps", out=Terminal(), TERM="xterm")[1]


def test_quiet_leaves_data_and_errors(home: Path) -> None:
    noted = llmos(home, "ps", LLMOS_BLOCK_SIZE="99")
    assert "LLMOS_BLOCK_SIZE=99" in noted[2]
    assert llmos(home, "-q", "ps", LLMOS_BLOCK_SIZE="99")[2] == ""
    assert llmos(home, "-q", "kill", "999999")[2] != ""


# --- five ways to fail ----------------------------------------------------------------------------


def fails(
    home: Path, name: str, words: Sequence[str], code: int, errno: str = "", **env: str
) -> None:
    """A command fails with an exit code, and says why on stderr alone, as text and as JSON."""
    said = llmos(home, *name.split(), *words, **env)
    assert said[:2] == (code, ""), said
    lines = said[2].splitlines()
    assert lines[0].startswith("llmos: ") or "\nllmos: " in said[2]
    assert "Traceback" not in said[2]
    assert not errno or f"({errno})" in said[2]
    if ROWS[name].schema is not None:
        as_json = llmos(home, *name.split(), "--json", *words, **env)
        assert as_json[0] == code, as_json
        error = json.loads(as_json[2].splitlines()[-1])
        check(error, json.loads((FOLDER / "error.json").read_text()), "error")
        assert error["error"]["code"] == errno or not errno


@pytest.mark.parametrize("name", sorted(ALL))
def test_2_for_an_option_that_is_none(tmp_path: Path, name: str) -> None:
    fails(tmp_path, name, ["--nonsense"], 2)


@pytest.mark.parametrize("name", NAMING)
def test_3_for_what_is_not_there(home: Path, name: str) -> None:
    row = ROWS[name]
    code, _, err = llmos(home, *name.split(), *(row.absent or ()))
    assert code == row.absent_code, err
    assert "llmos: " in err and "Traceback" not in err


def some_words(name: str) -> Sequence[str]:
    row = ROWS[name]
    return row.absent or () if row.works is None else row.works


@pytest.mark.parametrize("name", NEEDING)
def test_69_without_a_kernel(tmp_path: Path, name: str) -> None:
    fails(tmp_path, name, some_words(name), 69, "ECONNRESET")


@pytest.mark.parametrize("name", NEEDING)
def test_77_where_others_could_have_put_the_socket(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    fails(tmp_path, name, some_words(name), 77, "EPERM")


@pytest.mark.parametrize("name", NEEDING)
def test_124_for_a_kernel_that_does_not_answer(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syscalls.client.HELLO_S", 0.02)
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "run" / "kernel.sock"))
        door.listen()
        fails(tmp_path, name, some_words(name), 124, "ETIMEDOUT")


@pytest.mark.parametrize("name", WORKING)
def test_74_for_a_disk_that_is_full(home: Path, name: str) -> None:
    words = [*name.split(), *(ROWS[name].works or ())]
    for more in ([], ["--json"] if ROWS[name].schema else []):
        out = open("/dev/full", "w")  # noqa: SIM115  its close may fail, too
        code, _, err = llmos(home, *words, *more, out=out)
        with suppress(OSError):
            out.close()
        assert code == 74, err
        assert "cannot write the output" in err
