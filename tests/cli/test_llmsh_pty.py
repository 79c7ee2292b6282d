"""llmsh on a terminal: what one sees, and what the keys do."""

import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon
from tests.helpers.shell import Typist, check_no_tasks, talking, typing
from userland.llmsh.streams import Sink


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Some fifty tokens a second, so that there is a middle of an answer."""
    with talking(tmp_path_factory.mktemp("home"), step_us=20_000) as running:
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


@pytest.fixture
def person(kernel: Daemon, home: Path) -> Iterator[Typist]:
    with typing(home) as typist:
        typist.prompt()
        yield typist
    check_no_tasks(kernel)


def test_the_prompt_tells_model_context_and_fill(person: Typist) -> None:
    assert person.screen().endswith("null main·0/8k $")
    person.type("set max=5\r? hello\r")
    person.see("cut after 5 tokens")
    shown = person.see(re.compile(r"main·\d\d/8k \$$"))
    assert re.search(r"^( w\d+|.)+$", shown, re.MULTILINE)
    person.type("ctx new other\r")
    person.see("null other·0/8k $")


def test_ctrl_d_leaves_with_the_last_status(person: Typist) -> None:
    person.type("false\r")
    person.prompt(1)
    person.ctrl("d")
    assert person.leave() == 1


def test_exit_leaves(person: Typist) -> None:
    person.type("exit 7\r")
    assert person.leave() == 7


def test_ctrl_c_in_an_answer_keeps_what_was_seen(person: Typist) -> None:
    person.type("? hello\r")
    person.see(re.compile(r"w\d+ w\d+ w\d+"))
    person.ctrl("c")
    shown = person.prompt(130)
    assert re.search(r"\^\n?C$", shown, re.MULTILINE), shown  # wherever the line ended
    (length,) = re.findall(r"main·(\d+)/8k ✗130", shown)
    person.type("ctx\r")
    row = person.see(re.compile(r"^\* main .*$", re.MULTILINE))
    assert re.search(rf"^\* main +{length} +1 ", row, re.MULTILINE)  # one turn
    person.type("undo; set max=3; ? hello again\r")  # the context is in order
    person.see(f"@main: {length} to 0 tokens")
    person.see("cut after 3 tokens")
    person.prompt()


def test_ctrl_c_before_the_first_word_takes_the_turn_back(person: Typist) -> None:
    person.type("set max=3; ? hello\r")
    shown = person.see(re.compile(r"main·\d\d/8k \$$"))
    person.type("cat | ? sum up\r")  # waits for the terminal, and with it the model call
    person.runs("cat")
    person.ctrl("c")
    after = person.prompt(130)
    assert shown.rsplit("main·")[-1].split("/")[0] == after.rsplit("main·")[-1].split("/")[0]
    person.type("ctx ls\r")
    person.see(re.compile(r"^\* main +\d\d +1 ", re.MULTILINE))


def test_ctrl_c_drops_a_line(person: Typist) -> None:
    before = person.screen().count("$")
    person.type("rm -rf precious")
    person.see("precious")
    person.ctrl("c")
    person.watch(lambda: person.screen().count("$") == before + 1, "another prompt")
    person.prompt()
    person.ctrl("c")
    person.watch(lambda: person.screen().count("$") == before + 2, "a third prompt")
    person.type("echo $? done\r")
    person.see("0 done")


def test_ctrl_c_ends_a_program_and_the_rest_of_the_line(person: Typist) -> None:
    person.type("sleep 1000; echo not reached\r")
    child = person.runs("sleep")
    assert os.getpgid(child.pid) == child.pid != os.getpgid(person.pid)
    person.ctrl("c")
    assert "reached\n" not in person.prompt(130).replace("echo not reached\n", "")
    assert not child.is_running()


def descriptors(person: Typist) -> int:
    return len(list(Path(f"/proc/{person.pid}/fd").iterdir()))


@pytest.mark.parametrize("line", ["cat < fifo", '"hello" > fifo', "ps >> fifo"])
def test_ctrl_c_gives_up_a_file_that_does_not_open(
    person: Typist, tmp_path: Path, line: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    person.type(f"cd {tmp_path}\r")
    person.prompt()
    before = descriptors(person)
    person.type(f"set; {line}\r")  # a builtin: from its words on, the keys are the shell's
    person.see("temp=0.2 max=512")
    person.ctrl("c")
    person.prompt(130)
    assert descriptors(person) == before


def test_ctrl_z_stops_nothing_yet(person: Typist) -> None:
    person.type("sleep 1000\r")
    person.runs("sleep")
    person.ctrl("z")
    person.see("not in this version: stopping a command; sleep goes on")
    person.ctrl("c")
    person.prompt(130)


def test_a_full_screen_program_has_the_terminal(person: Typist, home: Path) -> None:
    (home / "text").write_text("".join(f"line {number}\n" for number in range(200)))
    person.type("less text\r")
    person.see("line 38\n")
    person.type("G")
    person.see("line 199\n")
    person.type("q")
    person.prompt()
    person.type("cat text | less\r")
    person.see("line 38\n")
    person.type("q")
    person.prompt()


def test_a_pager_reads_an_answer(person: Typist) -> None:
    person.type('set max=30; "hello" | less\r')
    person.see("(END)")
    person.type("q")
    person.prompt()


def test_an_unknown_command_says_how_to_ask(person: Typist) -> None:
    person.type("summarise\r")
    person.see("command not found: summarise — to send the line to the model put ? in front")
    person.prompt(127)


def test_a_mistake_is_pointed_at(person: Typist) -> None:
    person.type("ls | | wc\r")
    person.see("llmsh: column 6: '|' makes no sense here\n  ls | | wc\n       ^\n")
    person.prompt(2)


def test_an_open_quote_goes_on(person: Typist) -> None:
    person.type('echo "one\r')
    person.see("\n…")
    person.type('two"\r')
    person.see("one\ntwo\n")
    person.prompt()


def test_a_line_that_is_wrapped_has_no_mark(person: Typist) -> None:
    words = " ".join(f"word{number}" for number in range(20))
    person.type(f"echo {words}")
    shown = person.see(re.compile(r"word19$"))
    assert "…" not in shown
    person.type("\r")
    person.see(re.compile(r"^word0 word1 ", re.MULTILINE))


def test_output_without_a_newline_keeps_its_line(person: Typist) -> None:
    person.type("printf abc\r")
    person.see("\nabc⏎\nnull main")
    person.type("printf 'def\\n'\r")
    person.see("\ndef\nnull main")


def test_tab_completes(person: Typist, home: Path) -> None:
    (home / "a file").write_text("found it")
    person.type("ctx new casual\r")
    person.see("null casual·")
    person.type("cat a\\ f\t")
    person.see("cat a\\ file")
    person.type("\r")
    person.see("found it")
    (home / "userland").mkdir()
    person.type("ctx us\t")
    person.see("ctx use")
    person.type(" m\t")
    person.see("ctx use main")
    person.type("\r")
    person.see(re.compile(r"null main·0/8k \$$"))


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    main, tty = os.openpty()
    try:
        Sink(tty).write("a\x1b]0;title\x07b\tc\rd\x9be")
        assert os.read(main, 100).decode() == "a�]0;title�b\tc�d�e"
    finally:
        os.close(main)
        os.close(tty)


def test_the_kernel_dies_in_an_answer_and_the_shell_does_not(tmp_path: Path) -> None:
    with talking(tmp_path, step_us=20_000) as kernel, typing(tmp_path) as person:
        person.prompt()
        person.type("? hello\r")
        person.see(re.compile(r"w\d+ w\d+"))
        kernel.stop(signal.SIGKILL)
        person.see("llmsh: the kernel went away (ECONNRESET)")
        person.see("@main: gone with the kernel")
        assert "no kernel ✗69 $" in person.prompt(69)
        person.type("echo still here\r")
        person.see("\nstill here\n")
        person.type("? hello\r")
        person.see("no kernel is running at")
        person.prompt(69)
        person.ctrl("d")
        assert person.leave() == 69


def test_without_a_kernel(tmp_path: Path) -> None:
    with typing(tmp_path) as person:
        person.see("no kernel $")
        assert "llmos up" in person.screen()


# --- history --------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    return [line[1:] for line in path.read_text().splitlines() if line.startswith("+")]


def test_history_is_kept_privately_without_lines_that_begin_with_a_blank(
    person: Typist, tmp_path: Path, home: Path
) -> None:
    history = home / "state" / "llmsh_history"
    history.unlink()
    with typing(home) as other:
        other.prompt()
        other.type("echo public\r")
        other.see("\npublic\n")
        other.type(" echo secret\r")
        other.see("\nsecret\n")
        other.ctrl("d")
        other.leave()
    assert lines(history) == ["echo public"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with typing(home) as other:
        other.prompt()
        other.type("\x1b[A\r")
        other.see("\npublic\n")


def test_history_elsewhere_and_nowhere(kernel: Daemon, tmp_path: Path) -> None:
    home = kernel.run_dir.parent
    before = (home / "state" / "llmsh_history").read_text()
    for given in (str(tmp_path / "mine"), ""):
        with typing(home, LLMSH_HISTORY=given) as person:
            person.prompt()
            person.type("echo word\r")
            person.see("\nword\n")
            person.type("help\r")
            person.see(given or "not kept")
    assert lines(tmp_path / "mine") == ["echo word", "help"]
    assert (home / "state" / "llmsh_history").read_text() == before


# --- plain terminals ------------------------------------------------------------------------------


def test_a_dumb_terminal(kernel: Daemon, home: Path) -> None:
    with typing(home, TERM="dumb") as person:
        person.see("null main·0/8k $")
        person.type("echo on\r")
        person.see("\non\n")
        assert "\x1b" not in person.screen() and "[" not in person.screen()
        person.ctrl("d")
        assert person.leave() == 0
    check_no_tasks(kernel)


def test_the_terminal_is_left_as_it_was(kernel: Daemon, home: Path) -> None:
    """The shell of a shell: the outer one has the terminal again, in its own group."""
    with typing(home) as outer:
        outer.prompt()
        outer.type(f"{sys.executable} -m userland.llmsh.main\r")
        outer.watch(lambda: outer.screen().count("Ctrl-D leaves") == 2, "the inner shell")
        outer.prompt()
        outer.type("sleep 1000\r")
        outer.runs("sleep")
        outer.ctrl("c")
        outer.prompt(130)
        outer.ctrl("d")
        outer.prompt(130)
        outer.type("stty -a | grep -c -- '-icanon'; exit 0\r")
        assert outer.leave() == 0
    check_no_tasks(kernel)


def test_starting_takes_no_heavy_imports(home: Path) -> None:
    with typing(home) as person:
        person.prompt()
        maps = Path(f"/proc/{person.pid}/maps").read_text()
        assert "torch" not in maps and "tokenizers" not in maps and "numpy" not in maps
