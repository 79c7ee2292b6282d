"""Chat, history, completion, and what is typed while an answer comes."""

import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon
from tests.helpers.shell import Typist, check_no_tasks, environment, talking, typing

CHAT = (sys.executable, "-m", "userland.cli", "chat")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with talking(tmp_path_factory.mktemp("home"), step_us=20_000) as running:
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


@pytest.fixture
def person(kernel: Daemon, home: Path) -> Iterator[Typist]:
    with typing(home) as typist:
        typist.prompt()
        typist.type("set max=4\r")
        typist.prompt()
        yield typist
    check_no_tasks(kernel)


def ready(person: Typist, name: str = "main", status: int = 0) -> str:
    """Wait for the prompt of a chat."""
    failed = f"✗{status} " if status else ""
    return person.see(re.compile(rf"null {name}·\S+ {failed}»$"))


# --- chat -----------------------------------------------------------------------------------------


def test_chat_is_a_conversation_in_the_context_of_the_shell(person: Typist) -> None:
    person.type("? hello\r")
    person.prompt()
    person.type("chat\r")
    ready(person)
    person.type("what's $HOME | > x; $(touch made)?\r")
    person.see("cut after 4 tokens; set max=N allows more\nnull main·")
    person.type("/undo\r")
    person.see(re.compile(r"@main: \d+ to \d+ tokens"))
    person.type("/fork side\r")
    person.see("null side·")
    person.type("!echo from the host $ctx\r")
    person.see("\nfrom the host side\n")
    person.ctrl("d")
    person.see(re.compile(r"null side·\d+/8k \$$"))
    person.type("ctx\r")
    person.see(re.compile(r"^\* side +\d+ +1 ", re.MULTILINE))


MISTAKES = (
    ("/frob", "there is no /frob; /help lists", 2),
    ("/undp 1", "there is no /undp; did you mean undo?", 2),
    ("/etc/passwd", "there is no /etc/passwd", 2),
    ("/ ", "a prompt that begins with /", 0),
    ("/undo 5", "cannot undo 5 turns", 1),
    ("/set max=x", "max is 1 to", 2),
    ("/set 'open", "' is not closed", 2),
    ("see @./nosuch", "cannot read ./nosuch", 74),
    ("/chat", "there is no /chat", 2),
    ("!nosuchcommand", "command not found", 127),
    ("/ctx use nope", "no context 'nope'", 3),
)


def test_nothing_ends_a_chat(person: Typist) -> None:
    person.type("chat\r")
    ready(person)
    for line, said, status in MISTAKES:
        person.type(f"{line}\r")
        person.see(said)
        ready(person, status=status)
        person.type("!clear\r")
        person.watch(lambda: not person.screen().count("\n"), "a clear screen")
    person.type("/exit\r")
    person.prompt()


def test_ctrl_c_in_a_chat_keeps_what_was_written(person: Typist) -> None:
    person.type("set max=500; chat\r")
    ready(person)
    person.type("hello\r")
    person.see(re.compile(r"w\d+ w\d+ w\d+"))
    person.ctrl("c")
    shown = ready(person, status=130)
    (length,) = re.findall(r"main·(\d+)/8k ✗130", shown)
    assert re.search(r"\^\n?C$", shown, re.MULTILINE), shown
    assert int(length) > 10
    person.type("/ctx\r")
    person.see(re.compile(rf"^\* main +{length} +1 ", re.MULTILINE))
    person.type("/set max=2\r")
    ready(person)
    person.type("//again\r")
    person.see("cut after 2 tokens")


def test_several_rows_are_one_prompt(person: Typist, home: Path) -> None:
    (home / "file").write_text("in the file")
    person.type("chat\r")
    ready(person)
    rows = ["one\x1b\rtwo\r", "", '"""one\rtwo"""\r']
    for row in rows:
        if row:
            person.type(row)
        else:
            person.paste("one\r\ntwo")
            person.type("\r")
        person.see("cut after 4")
        ready(person)
        person.type("/ctx ls\r")
        person.see(re.compile(r"^\* main +\d+ +1 ", re.MULTILINE))
        person.type("/undo\r")
        person.see("to 0 tokens")
        person.type("!clear\r")
        person.watch(lambda: "tokens" not in person.screen(), "a clear screen")
        ready(person)
    person.type("what is @./file\r")
    person.see("cut after 4")
    person.ctrl("d")
    person.type("undo; history | grep -c file; ? what is @./file\r")
    person.see("cut after 4")


def test_a_paste_does_not_run(person: Typist, home: Path) -> None:
    person.paste("echo one > pasted\necho two > pasted\n")
    person.see("echo two > pasted")
    person.ctrl("c")
    person.type("ls pasted\r")
    person.see("cannot access 'pasted'")


def test_llmos_chat_opens_the_same(kernel: Daemon, home: Path) -> None:
    with Typist(home, command=[*CHAT, "-s", "Be brief.", "-c", "@talk"]) as person:
        shown = person.see(re.compile(r"null talk·\d+/8k »$"))
        assert "·0/" not in shown
        person.type("/set max=3\r")
        ready(person, "talk")
        person.type("hello\r")
        person.see("cut after 3 tokens")
        ready(person, "talk")
        person.type("/ctx rm talk\r")
        ready(person)
        person.ctrl("d")
        assert person.leave() == 0
    check_no_tasks(kernel)


def test_chat_needs_a_terminal(kernel: Daemon, home: Path) -> None:
    done = subprocess.run(
        CHAT, input="hello\n", env=environment(home), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "chat needs a terminal" in done.stderr and not done.stdout
    check_no_tasks(kernel)


# --- what is typed while an answer comes ----------------------------------------------------------


def test_what_is_typed_in_an_answer_waits_for_the_prompt(person: Typist) -> None:
    person.type("set max=60 markdown=off; ? hello\r")  # a drawn one would cover an echo
    person.see(re.compile(r"w\d+ w\d+"))
    person.type("echo typed $((")
    person.type("\x7f\x7f\x7fahead\r")
    shown = person.see("\ntyped ahead\n")
    answer, _, rest = shown.partition("cut after 60 tokens")
    assert "typed" not in answer and rest.count("echo typed ahead") == 1


def test_a_paste_in_an_answer_does_not_run(person: Typist, home: Path) -> None:
    person.type("set max=150; ? hello\r")
    person.see(re.compile(r"w\d+ w\d+"))
    person.paste("echo one > pasted2\necho two > pasted2\n")
    person.see(re.compile(r"\$ echo one > pasted2\n… echo two > pasted2"))
    person.ctrl("c")
    person.type("echo begun; cat\r")  # a program gets a paste as it is
    person.see("\nbegun")
    person.runs("cat")
    person.paste("plain\n")
    person.see("\nplain\nplain")
    person.ctrl("d")
    person.prompt()
    person.type("ls pasted2\r")
    person.see("cannot access 'pasted2'")


def test_echo_is_back_after_an_answer_however_it_ends(person: Typist) -> None:
    person.type("? hello\r")
    person.prompt()
    person.type("set max=500; ? hello\r")
    person.see(re.compile(r"cut after.*w\d+ w\d+", re.DOTALL))
    person.ctrl("c")
    person.prompt(130)
    person.type("cat\r")
    person.runs("cat")
    person.type("echoed\r")
    person.see("\nechoed\nechoed")
    person.ctrl("d")
    person.prompt()


# --- Markdown -------------------------------------------------------------------------------------


def test_an_answer_is_drawn_on_a_terminal_and_raw_elsewhere(person: Typist, home: Path) -> None:
    person.type('set max=40; "hello" > raw; undo; "hello"; echo "<$_>" > kept\r')
    person.prompt()
    person.see(re.compile(r"^w\d+ w", re.MULTILINE))  # a paragraph begins at the left
    person.type('clear; undo; set markdown=off; "hello"; undo; set markdown=on; "hello" --raw\r')
    person.watch(lambda: len(re.findall(r"^ w\d+ w", person.screen(), re.M)) == 2, "raw answers")
    words = (home / "raw").read_text().split()
    assert (home / "kept").read_text().split() == [f"<{words[0]}", *words[1:-1], f"{words[-1]}>"]


def test_copy_hands_the_raw_answer_to_the_terminal(person: Typist) -> None:
    person.type("? hello\r")
    person.prompt()
    person.type("copy\r")
    person.see("characters handed to the terminal's clipboard")
    person.type("copy 1\r")
    person.see("the last answer has 0 blocks of code")


# --- history --------------------------------------------------------------------------------------


def saved(home: Path, name: str = "llmsh_history") -> list[str]:
    path = home / "state" / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return [line[1:] for line in path.read_text().splitlines() if line.startswith("+")]


def test_earlier_lines_come_back_and_are_shown_first(person: Typist, home: Path) -> None:
    person.type("echo first one\r")
    person.prompt()
    person.type("!! two\r")
    person.see("\necho first one two\nfirst one two\n")
    person.type("!echo && false '!!' \"!!\"\r")
    person.see("\necho first one two && false '!!' \"!!\"\nfirst one two\n")
    person.prompt(1)
    person.type("!nosuch\r")
    person.see("!nosuch: there is no such line")
    person.prompt(1)
    person.type("? wow !!\r")
    person.see("cut after 4")
    person.type("history 2\r")
    person.see(re.compile(r"^ +\d+  \? wow !!\n +\d+  history 2$", re.MULTILINE))
    assert "echo first one two && false '!!' \"!!\"" in saved(home)
    assert "!nosuch" not in saved(home) and "!! two" not in saved(home)


def test_history_can_be_off(person: Typist, home: Path) -> None:
    person.type("set history=off\r")
    person.prompt()
    person.type("echo private\r")
    person.see("\nprivate\n")
    person.type("chat\r")
    ready(person)
    person.type("secret\r")
    person.see("cut after 4")
    ready(person)
    assert not {"echo private", "secret"} & {*saved(home), *saved(home, "llmsh_chat_history")}
    person.type("/set history=on\r")
    ready(person)
    person.type("no secret\r")
    person.see(re.compile(r"no secret.*cut after 4", re.DOTALL))
    ready(person)
    assert saved(home, "llmsh_chat_history")[-1] == "no secret"


def test_shells_at_once_lose_no_line(kernel: Daemon, home: Path) -> None:
    with typing(home) as one, typing(home) as two:
        for person in (one, two):
            person.prompt()
        for number in range(5):
            for name, person in (("one", one), ("two", two)):
                person.type(f"echo {name}{number}\r")
        for name, person in (("one", one), ("two", two)):
            person.see(f"\n{name}4\n")
    lines = saved(home)
    for name in ("one", "two"):
        assert [line for line in lines if re.match(rf"echo {name}\d", line)] == [
            f"echo {name}{number}" for number in range(5)
        ]


# --- completion -----------------------------------------------------------------------------------


COMPLETIONS = {
    "ps --no-h": "ps --no-headers", "ask --max": "ask --max-tokens", "hist": "history",
    "set verb": "set verbose=", "echo $usag": "echo $usage", "ask -c @ma": "ask -c @main",
    "? see @./a_fi": "? see @./a_file.txt", "if true; then histo": "if true; then history",
    "x=$(histo": "x=$(history", "cat ./a_fi": "cat ./a_file.txt", "@ma": "@main",
    "ls > a_fi": "ls > a_file.txt", "ask --nosuch=": "ask --nosuch=",
}  # fmt: skip


@pytest.fixture
def fresh(kernel: Daemon, home: Path) -> Iterator[Typist]:
    """Somebody without a history, from which the editor would suggest."""
    (home / "a_file.txt").touch()
    with typing(home, LLMSH_HISTORY="") as typist:
        typist.prompt()
        yield typist
    check_no_tasks(kernel)


def test_tab(fresh: Typist) -> None:
    person = fresh
    for typed, becomes in COMPLETIONS.items():
        person.type(f"{typed}\t")
        person.see(re.compile(rf"\$ {re.escape(becomes)}$"))
        person.ctrl("u")
        person.prompt()


def test_tab_in_a_chat(fresh: Typist) -> None:
    person = fresh
    person.type("chat\r")
    ready(person)
    for typed, becomes in {
        "/und": "/undo", "/ctx us": "/ctx use", "look at @./a_fi": "look at @./a_file.txt",
        "!cat a_fi": "!cat a_file.txt", "/quit": "/quit",
    }.items():  # fmt: skip
        person.type(f"{typed}\t")
        person.see(re.compile(rf"» {re.escape(becomes)}$"))
        person.ctrl("u")
        ready(person)
