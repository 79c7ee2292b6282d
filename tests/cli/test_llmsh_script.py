"""llmsh without a terminal: what is written where, how it ends, and that nothing stays behind."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.shell import LLMSH, check_no_tasks, environment, llmsh, talking
from userland.asking import Sampling
from userland.llmsh import script
from userland.llmsh.parser import parse
from userland.llmsh.shell import Shell
from userland.llmsh.state import State

ANSWER = re.compile(r"( w\d+|[\x00-\x7f�])*")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Some fifty tokens a second."""
    with talking(tmp_path_factory.mktemp("home"), step_us=20_000) as running:
        yield running


def say(home: Path, script: str, *options: str, cwd: Path | None = None) -> str:
    """Run a script that goes well; return what it wrote."""
    done = llmsh(home, script, *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_option_that_is_none_looks_like_every_error(home: Path) -> None:
    done = llmsh(home, "", "--nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("llmsh: No such option '--nope'")
    assert done.stderr.endswith("\n  try   llmsh --help\n")


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_is_on_stdout_and_a_note_about_it_is_not(home: Path) -> None:
    done = llmsh(home, '"hello"\n', "--max-tokens", "5")
    assert done.returncode == 0
    assert ANSWER.fullmatch(done.stdout) and done.stdout.endswith("\n") and done.stdout.strip()
    assert done.stderr == "llmsh: cut after 5 tokens; set max=N allows more\n"


def test_the_same_prompt_has_the_same_answer_in_each_form(home: Path) -> None:
    script = '"hello"\nundo\n? hello\nundo\n@main \'hello\'\nctx new b\n@main "x"\n"hello"\n'
    first, free, named, other, again = say(home, "set max=5\n" + script).splitlines()
    assert first == free == named == again != other


def test_a_file_and_an_argument_are_scripts_too(home: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text('#!/usr/bin/env llmsh\nset max=5\n"hello"\n')
    expected = say(home, 'set max=5; "hello"')
    assert say(home, "", str(tmp_path / "script")) == expected
    assert say(home, "", "-c", 'set max=5; "hello"') == expected


def sampled(text: str) -> str:
    return text.split(" top_p=")[0]


def test_sampling_options(home: Path) -> None:
    assert sampled(say(home, "set")) == "temp=0 max=512 seed=none"
    options = ("-t", "0.5", "--max-tokens", "9", "--seed", "3")
    assert sampled(say(home, "set", *options)) == "temp=0.5 max=9 seed=3"
    changed = "set temp=1.5 max=7 seed=none top_p=0.5 top_k=4 min_p=0.1\nset"
    assert sampled(say(home, changed, *options)) == "temp=1.5 max=7 seed=none"
    assert "top_p=0.5 top_k=4 min_p=0.1\n" in say(home, changed, *options)
    warm = [say(home, '"hello"', "-t", "9", "--seed", seed, "--max-tokens", "8") for seed in "112"]
    assert warm[0] == warm[1] != warm[2]


def test_what_is_configured_is_the_default(home: Path) -> None:
    def set_up(**variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*LLMSH, "--seed", "4", "-c", "set"], env=environment(home) | variables,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    shown = set_up(LLMOS_TEMPERATURE="0.7", LLMOS_SEED="3").stdout
    assert sampled(shown) == "temp=0.7 max=512 seed=4"
    wrong = set_up(LLMOS_TEMPERATURE="hot")
    assert wrong.returncode == 78 and "LLMOS_TEMPERATURE" in wrong.stderr and not wrong.stdout


@pytest.mark.parametrize(
    "words",
    [
        "temp=-1",
        "temp=nan",
        "temp=hot",
        "max=0",
        "seed=-1",
        "top=1",
        "max",
        "max=1 temp=x",
        "top_p=2",
        "top_k=-1",
        "verbose=1",
        "-z",
        "-o",
        "-o frob",
        "-ez",
    ],
)
def test_set_refuses(home: Path, words: str) -> None:
    done = llmsh(home, f"set {words}\nexit $?")
    assert done.returncode == 2 and done.stderr.startswith("llmsh: ")
    assert sampled(say(home, f"set {words}\nset")) == "temp=0 max=512 seed=none"


def test_a_prompt_may_span_lines(home: Path) -> None:
    one, two = say(home, "set max=4\n'two\nlines'\nundo\n'two lines'\n").splitlines()
    assert one != two
    table = rows(say(home, 'set max=4\n"two\nlines" > /dev/null\nctx\n'))
    assert table["main"][1] == "1"


# --- pipes and files ------------------------------------------------------------------------------


def test_what_comes_in_stands_before_the_prompt(home: Path) -> None:
    piped, asked = say(
        home, 'set max=5\nprintf "some text\\n" | "sum up"\nundo\n? some text\n'
    ).splitlines()
    assert piped != asked
    whole = say(home, "set max=5\n'some text\n\nsum up'\n").rstrip("\n")
    assert piped == whole


def test_an_answer_flows_into_host_commands_and_files(home: Path, tmp_path: Path) -> None:
    script = (
        'set max=5\n"hello" | tr w W | cat\nundo\n"hello" > out\necho more >> out\ncat out\n'
        "cat < out | wc -l\n"
    )
    upper, lower, more, count = say(home, script, cwd=tmp_path).splitlines()
    assert upper == lower.replace("w", "W") != lower
    assert (more, count.strip()) == ("more", "2")


def test_models_and_programs_in_any_order(home: Path) -> None:
    chain = 'set max=5\necho a | "b" | cat | "c" | "d" | cat\nctx ls\n'
    *_, answer, _, row = say(home, chain).splitlines()
    assert ANSWER.fullmatch(answer)
    assert row.split()[:4:3] == ["*", "3"]


def test_a_file_is_the_document(home: Path, tmp_path: Path) -> None:
    (tmp_path / "doc").write_text("some text")
    script = 'set max=5\n"sum up" < doc\nundo\ncat doc | "sum up"\n'
    first, second = say(home, script, cwd=tmp_path).splitlines()
    assert first == second


def test_a_program_that_says_much_between_two_model_calls_does_not_hang(home: Path) -> None:
    script = 'set max=3\n"a" | sh -c \'yes | head -c 900000; cat > /dev/null\' | "b"\n'
    done = llmsh(home, script)
    assert done.returncode == 1 and "@main has room for 8,1" in done.stderr


def test_too_much_input_is_refused_and_leaves_the_context_alone(home: Path) -> None:
    done = llmsh(home, 'set max=3\n"a"\nyes | "sum up"\nctx\n')
    assert "larger than 1 MiB" in done.stderr and "E2BIG" in done.stderr
    assert done.stdout.splitlines()[-1].split()[3] == "1"  # turns


def test_input_that_is_no_text_is_refused(home: Path) -> None:
    done = llmsh(home, "printf 'ab\\377' | \"what\"\n")
    assert done.returncode == 1 and done.stdout == ""
    assert "the input is not text: byte 2 of 3" in done.stderr


def test_empty_input_is_said(home: Path) -> None:
    done = llmsh(home, 'set max=3\ntrue | "what"\n')
    assert "the input is empty" in done.stderr and done.stdout


def test_builtins_in_pipes(home: Path) -> None:
    assert say(home, "ps | grep -c llmsh\nps --help | grep -c BLOCKS\n").splitlines()[0] == "1"
    assert say(home, "pwd | tr / :", cwd=Path("/usr")) == ":usr\n"


def test_a_reader_that_has_enough_stops_the_answer(slow: Daemon) -> None:
    home = slow.run_dir.parent
    done = llmsh(home, '"hello" | head -c 3\nctx ls\nexit 0\n')
    assert done.stdout.startswith(" w") and "Traceback" not in done.stderr
    length = int(done.stdout.splitlines()[-1].split()[2])
    assert 0 < length < 300  # of 512 and more if it had gone on
    done = llmsh(home, '"hello" | head -c 3\n')
    assert done.returncode == 141
    check_no_tasks(slow)


def test_a_reader_of_the_whole_script_that_has_enough_ends_it(slow: Daemon) -> None:
    home = slow.run_dir.parent
    shell = subprocess.Popen(
        [*LLMSH, "-c", '"hello"\necho not reached > reached'],
        env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdout and shell.stderr
    assert shell.stdout.read(2) == b" w"
    shell.stdout.close()
    err = shell.stderr.read()
    shell.stderr.close()
    assert shell.wait(60) == 141 and err == b""
    assert not (home / "reached").exists()
    check_no_tasks(slow)


# --- contexts -------------------------------------------------------------------------------------


def rows(text: str) -> dict[str, list[str]]:
    """The table of ctx: name to numbers."""
    lines = [line.removeprefix("*").split() for line in text.splitlines()]
    return {name: numbers for name, *numbers in lines[1:]}


def test_forks_share_and_go_their_own_ways(home: Path) -> None:
    script = 'set max=40\n"hello" > /dev/null\nfork a b\n@a "x"\nundo\n@b "x"\n'
    first, second = say(home, script).splitlines()
    assert first == second  # undo was on @main, the forks are equal
    table = rows(say(home, 'set max=40\n"hello" > /dev/null\nfork a b\n@a "x" > /dev/null\nctx\n'))
    assert list(table) == ["main", "a", "b"]
    assert [numbers[1] for numbers in table.values()] == ["1", "2", "1"]
    assert table["main"][2] == table["main"][3] == table["b"][3]  # every block is shared
    assert int(table["a"][2]) > int(table["a"][3]) > 0


def test_undo_goes_back_turn_by_turn(home: Path) -> None:
    script = 'set max=4\n"a" >f\nctx\n"b" >f\n"c" >f\nundo 2\nctx\nundo\nctx\nundo\n'
    done = llmsh(home, script, cwd=home)
    tables = [rows(part)["main"] for part in re.split(r"(?=^  NAME)", done.stdout, flags=re.M)[1:]]
    assert tables[0] == tables[1] and tables[0][1] == "1"
    assert tables[2][:3] == ["0", "0", "0"]
    assert "cannot undo 1 turns, @main has 0" in done.stderr and done.returncode == 1


def test_ctx_commands(home: Path) -> None:
    script = "ctx new a -s 'Be brief.'\nctx name b\nctx use main\nfork\nctx rm b main-1\nctx\n"
    assert list(rows(say(home, script))) == ["main"]
    for line, why in {
        "ctx use nope": "there is no context 'nope'",
        "ctx new a; ctx new a": "there is a context a already",
        "ctx new a/b": "cannot be a context's name",
        "fork a a": "a is given twice",
        "ctx frob": "ctx has no 'frob' in this version",
        "ctx fork": "fork [NAME]... branches the current one",
        '@nope "x"': "there is no context 'nope'",
        "ctx new man; @min 'x'": "did you mean @m",
    }.items():
        done = llmsh(home, line)
        assert done.returncode in (1, 2, 3) and why in done.stderr, line


def test_a_system_prompt_changes_the_answer(home: Path) -> None:
    script = 'set max=5\n"x"\nctx new a -s "Be brief."\n"x"\nundo\n"x"\n'
    plain, brief, again = say(home, script).splitlines()
    assert plain != brief == again


def test_variables(home: Path) -> None:
    script = 'set max=3\n"hello"\necho "<$_>"\nfalse\necho $?\necho $HOME\n'
    answer, kept, status, where = say(home, script).splitlines()
    assert kept == f"<{answer.strip()}>"
    assert (status, where) == ("1", os.environ["HOME"])


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("", 0), ("true\n", 0), ("false", 1), ("false\ntrue", 0), ("false; echo", 0),
        ("exit 7\ntrue", 7), ("false\nexit", 1), ("false || exit 3", 3), ("false && exit 3", 1),
        ("true && false || true", 0), ("false | true", 1), ("true | false", 1),
        ("sh -c 'kill -9 $$'", 137), ("nosuchcommand", 127), ("./nosuchfile", 127), ("/etc", 126),
        ("/etc/passwd", 126), ("$nosuchvariable", 127), ("ctx use x", 3), ("kill 99999", 3),
        ("kill x", 2), ("ps --frob", 2), ("ls | | wc", 2), ("cd /nosuch", 1), ("cat < /nosuch", 1),
        ("jobs", 127), ("echo 'open", 2),
    ],
)  # fmt: skip
def test_exit_status(home: Path, script: str, status: int) -> None:
    assert llmsh(home, script).returncode == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("echo a\0b", 126), ("cat < a\0b", 1), ("echo > a\0b", 1), ("cd a\0b", 1),
        ("ls a\0/*", 126), ("ls ~a\0b", 126), ("a\0b", 127), ("kill ²", 2), ("kill -² 1", 2),
    ],
)  # fmt: skip
def test_what_cannot_be_passed_on_is_an_error_like_any_other(
    home: Path, line: str, status: int
) -> None:
    done = llmsh(home, f"{line}\necho $?\n")
    assert (done.returncode, done.stdout) == (0, f"{status}\n"), done.stderr
    assert done.stderr.startswith("llmsh: ") and "bug" not in done.stderr


def test_a_directory_that_is_not_utf8(home: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)  # noqa: PTH102  a name that is no text
    done = subprocess.run(
        [*LLMSH, "-c", "pwd"], cwd=odd, capture_output=True, timeout=100,
        env=environment(home) | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, odd + b"\n", b"")


def test_an_unknown_command_starts_nothing_and_says_what_to_do(home: Path, tmp_path: Path) -> None:
    done = llmsh(home, "touch made | summarise\necho on\n", cwd=tmp_path)
    assert done.stderr == (
        "llmsh: command not found: summarise — "
        "to send the line to the model put ? in front or quote it\n"
    )
    assert done.stdout == "on\n" and not (tmp_path / "made").exists()


def test_a_line_that_cannot_be_read_ends_the_script(home: Path) -> None:
    done = llmsh(home, "echo one\n\necho two | | wc\necho three\n")
    assert done.stdout == "one\n" and done.returncode == 2
    assert done.stderr == (
        "llmsh: line 3, column 12: '|' makes no sense here\n  echo two | | wc\n             ^\n"
    )


@pytest.mark.parametrize("form", ["stdin", "file", "-c"])
def test_a_line_that_goes_on_is_one_line(home: Path, tmp_path: Path, form: str) -> None:
    script = (
        "echo a \\\n  b\necho c |\n\n  # on the next line\n  tr c C\ntrue &&\n  echo d\n"
        "false ||  # or\n  echo e\necho 'f\ng \"h' |\\\n  cat"
    )
    (tmp_path / "script").write_text(script)
    options = {"stdin": (), "file": (str(tmp_path / "script"),), "-c": ("-c", script)}[form]
    assert say(home, script, *options) == 'a b\nC\nd\ne\nf\ng "h\n'


def test_a_long_text_in_quotes_is_not_parsed_at_each_of_its_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(script, "parse", lambda text: (parsed.append(text), parse(text))[1])
    said = io.StringIO()
    shell = Shell(State(Sampling(0.0), io.StringIO(), said))
    text = ['pwd "one\n', *(f'two "line {number}"\n' for number in range(500)), '"\n']
    assert script.run_script(shell, text) == 2
    assert said.getvalue() == "llmsh: pwd takes no arguments\n"
    assert parsed == [text[0].rstrip(), "".join(text).rstrip()]


def test_a_quote_that_is_never_closed_is_pointed_at(home: Path) -> None:
    done = llmsh(home, 'echo one\necho "two\nthree\n')
    assert done.stdout == "one\n"
    assert 'line 2, column 6: " is not closed\n  echo "two\n       ^' in done.stderr


def test_a_program_does_not_take_lines_of_the_script(home: Path) -> None:
    assert say(home, "cat\necho on\n") == "on\n"


def test_programs_of_other_scripts_read_stdin(home: Path) -> None:
    assert say(home, "from stdin\n", "-c", "cat") == "from stdin\n"


@pytest.mark.parametrize("script", ['cat | "sum up"', '"sum up" < /dev/stdin'])
def test_a_prompt_reads_stdin_where_it_is_told_to(home: Path, script: str) -> None:
    fed = llmsh(home, "some text", "--max-tokens", "5", "-c", script)
    same = llmsh(home, 'set max=5\necho "some text" | "sum up"')
    assert fed.stdout == same.stdout != llmsh(home, 'set max=5\n"sum up"').stdout
    assert "no prompt has read stdin" not in fed.stderr


@pytest.mark.parametrize(
    ("source", "script", "said"),
    [("doc", '"x"', True), ("doc", '"x"; cat', False), ("doc", "pwd", False),
     ("/dev/null", '"x"', False)],
)  # fmt: skip
def test_a_file_that_no_prompt_reads_is_said(
    home: Path, tmp_path: Path, source: str, script: str, said: bool
) -> None:
    (tmp_path / "doc").write_text("some text\n")
    with (tmp_path / source).open() as stdin:
        done = run(home, stdin.fileno(), script)
    assert ("no prompt has read stdin" in done.stderr) == said


@pytest.mark.parametrize("said", [b"", b"some text\n"])
def test_a_prompt_does_not_wait_for_a_pipe_that_never_ends(home: Path, said: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, said)
    done = run(home, reader, '"x"')
    os.close(reader)
    os.close(writer)
    assert ("no prompt has read stdin" in done.stderr) == bool(said)


def run(home: Path, stdin: int, script: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*LLMSH, "--max-tokens", "3", "-c", script],
        env=environment(home), stdin=stdin, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_builtins_come_before_programs_and_a_backslash_after(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ps").write_text("#!/bin/sh\necho the host\n")
    (tmp_path / "ps").chmod(0o755)
    script = f"env PATH={tmp_path}:$PATH {sys.executable} -m userland.llmsh.main -c '\\ps; ps'\n"
    first, header, *_ = say(home, script).splitlines()
    assert first == "the host" and header.split()[0] == "PID"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_dev_null(home: Path, tmp_path: Path, closed: str) -> None:
    script = 'set max=3; "hello"; cat; pwd; echo on > made; readlink /proc/self/fd/1 >> made'
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *LLMSH, "-c", script],
        env=environment(home), cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "made").read_text() == f"on\n{tmp_path}/made\n"
    bare = ["sh", "-c", f'exec "$@" {closed}', "sh", *LLMSH]
    none = subprocess.run(bare, env=environment(home), stdin=subprocess.DEVNULL, timeout=100)
    assert none.returncode == 0


def test_directories(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    script = f"cd {tmp_path}\ncd 'a b' && pwd\necho $PWD\ncd - > /dev/null\npwd\ncd\npwd\n"
    expected = [f"{tmp_path}/a b", f"{tmp_path}/a b", str(tmp_path), str(Path.home())]
    assert say(home, script).splitlines() == expected


def test_ctrl_c_ends_a_script(slow: Daemon) -> None:
    home = slow.run_dir.parent
    shell = subprocess.Popen(
        [*LLMSH, "-c", '"hello"\necho not reached'], bufsize=0,
        env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdout
    first = shell.stdout.read(2)
    shell.send_signal(signal.SIGINT)
    rest, err = shell.communicate(timeout=60)
    assert shell.returncode == 130 and err == b""
    assert first == b" w" and b"not reached" not in rest and rest.endswith(b"\n")
    check_no_tasks(slow)


@pytest.mark.parametrize("end", ["kill", "shutdown"])
def test_an_answer_that_is_cut_from_outside_says_so(tmp_path: Path, end: str) -> None:
    with talking(tmp_path, step_us=20_000) as kernel, kernel.connect() as other:
        shell = subprocess.Popen(
            [*LLMSH, "-c", '"hello"\necho not reached'],
            env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert shell.stdout and shell.stdout.read(2) == b" w"
        if end == "kill":
            other.kill(next(row.pid for row in other.ps() if row.name == "llmsh"), signal.SIGINT)
        else:
            other.shutdown(0.0)
        out, err = shell.communicate(timeout=60)
        assert shell.returncode == 130 and b"not reached" not in out
        assert re.fullmatch(r"llmsh: cut after [\d,]+ tokens: cancelled by .*\n", err.decode())
        if end == "shutdown":
            kernel.process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_shell_that_is_killed_leaves_no_task(slow: Daemon, number: signal.Signals) -> None:
    home = slow.run_dir.parent
    shell = subprocess.Popen(
        [*LLMSH, "-c", '"hello"'], env=environment(home), stdout=subprocess.PIPE
    )
    assert shell.stdout and shell.stdout.read(2) == b" w"
    shell.send_signal(number)
    with shell.stdout:
        shell.wait(60)
    check_no_tasks(slow)


def test_kill_ends_a_shell_after_its_command(home: Path) -> None:
    shell = subprocess.Popen(
        LLMSH, env=environment(home), text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdin and shell.stdout
    shell.stdin.write("ps --no-headers -o name,pid | sed -n 's/^llmsh *//p'\n")
    shell.stdin.flush()
    pid = shell.stdout.readline().strip()
    out, err = shell.communicate(f"kill {pid}; echo not reached\necho nor this\n", timeout=60)
    assert (shell.returncode, out, err) == (143, "", "llmsh: ended by kill\n")


def test_two_shells_are_two_tasks(home: Path) -> None:
    inner = f"{sys.executable} -m userland.llmsh.main -c 'ctx new inner; ctx; ps'"
    out = say(home, f"ctx new outer\n{inner}\nctx\n")
    assert out.count(" llmsh") == 2
    assert out.index("inner") < out.index("outer")
    assert list(rows(out[out.rindex("  NAME") :])) == ["outer"]


# --- without a kernel -----------------------------------------------------------------------------


def test_without_a_kernel_the_host_is_still_there(tmp_path: Path) -> None:
    done = llmsh(tmp_path, 'echo on\n"hello"\necho $?\nps\n')
    assert done.stdout == "on\n69\n" and done.returncode == 69
    assert "no kernel is running" in done.stderr and "llmos up" in done.stderr


def test_a_model_without_text_is_said(tmp_path: Path) -> None:
    with daemon(tmp_path) as kernel:
        done = llmsh(tmp_path, '"hello"\n')
        assert done.returncode == 1 and "has no tokenizer" in done.stderr
        check_no_tasks(kernel)


def test_the_kernel_dies_and_another_comes(tmp_path: Path) -> None:
    """A shell lives through it: what is lost is said, and the next prompt finds the new kernel."""
    with talking(tmp_path, step_us=20_000) as first:
        shell = subprocess.Popen(
            LLMSH, env=environment(tmp_path), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert shell.stdin and shell.stdout and shell.stderr
        shell.stdin.write('ctx new a\n"hello"\n')
        shell.stdin.flush()
        assert shell.stdout.read(2) == " w"
        first.stop(signal.SIGKILL)
        shell.stdin.write("echo $?\n")
        shell.stdin.flush()
        rest = iter(shell.stdout.readline, "")
        assert "69\n" in rest
        assert "the kernel went away (ECONNRESET)" in shell.stderr.readline()
        eventually(lambda: "@a: gone with the kernel" in shell.stderr.readline(), "what is lost")
    (tmp_path / "next").mkdir()
    for path in tmp_path.glob("null*"):
        path.rename(tmp_path / "next" / path.name)
    with talking(tmp_path) as second:
        shell.stdin.write("set max=4\n'hello'\nctx\n")
        shell.stdin.close()
        assert shell.wait(60) == 0
        assert list(rows(shell.stdout.read().split("\n", 1)[1])) == ["main"]
        shell.stdout.close()
        shell.stderr.close()
        check_no_tasks(second)
