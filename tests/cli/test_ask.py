"""`llmos ask` from outside: what it is asked, what it writes where, and how it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from unittest.mock import Mock, patch

import click
import pytest

from tests.helpers.byte_tokenizer import byte_tokenizer
from tests.helpers.daemon import Daemon, daemon
from tests.helpers.shell import END, WORDS, check_no_tasks, environment, talking
from userland.asking import Sampling, question_of, question_options
from userland.bin.ask import Duration, block
from userland.cli import run
from userland.desk import Desk
from userland.exits import Failure
from userland.turns import say_user

LLMOS = (sys.executable, "-m", "userland.cli")


def ask(
    home: Path, *words: str, text: str | None = None, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Ask; without a text in this process, whose stdin is /dev/null as it is under cron."""
    command = [*LLMOS, "ask", *words]
    if text is not None:
        return subprocess.run(
            command, env=environment(home) | env, input=text, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
    err = StringIO()
    with TemporaryFile("w+") as out, patch.dict(os.environ, environment(home) | env, clear=True):
        code = run(Desk(out, err), command[len(LLMOS) :])
        out.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.getvalue())


def answer(home: Path, *words: str, text: str | None = None, **env: str) -> str:
    done = ask(home, "-n", "8", *words, text=text, **env)
    assert (done.returncode, done.stderr) == (0, "cut after 8 tokens; -n N allows more\n")
    return str(done.stdout)


# --- what is asked ----------------------------------------------------------------------------


def test_the_words_are_the_question(home: Path) -> None:
    said = answer(home, "-t", "0", "why is it")
    assert said.startswith(" w") and said.endswith("\n")
    assert answer(home, "-t", "0", "why", "is", "it") == said
    assert answer(home, "-t", "0", "why", "is", "that") != said


def test_what_is_piped_or_attached_goes_before_it(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "document"
    path.write_text("a document\n")
    whole = answer(home, "-t", "0", "a document\n\nwhat is it?")
    assert answer(home, "-t", "0", "what is it?", text="a document\n") == whole
    assert answer(home, "-t", "0", "-f", str(path), "what is it?") == whole
    assert answer(home, "-t", "0", "-f", "-", "what is it?", text="a document\n") == whole
    assert answer(home, "-t", "0", text="a document\n\nwhat is it?\n") == whole
    several = f"{path}:\na document\n\nstdin:\nmore\n\nwhich?"
    both = answer(home, "-t", "0", "-f", str(path), "which?", text="more")
    assert both == answer(home, "-t", "0", several)


@pytest.mark.parametrize(
    ("words", "text", "code", "said"),
    [
        ([], None, 2, "nothing to ask"),
        (["  "], "\n", 2, "nothing to ask"),
        (["-f", "/no/such/file", "q"], None, 74, "/no/such/file"),
        (["-m", "gpt-9", "q"], None, 3, "gpt-9 is not loaded"),
        (["-t", "-1", "q"], None, 2, "-1"),
        (["-n", "0", "q"], None, 2, "0"),
        (["q"], "x" * (1 << 20) + "y", 1, "larger than 1 MiB"),
        (["q"], "w " * 9000, 1, "room for 8,192 tokens"),
    ],
)
def test_what_cannot_be_asked(
    home: Path, words: list[str], text: str | None, code: int, said: str
) -> None:
    done = ask(home, *words, text=text)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    as_json = ask(home, "--json", *words, text=text)
    assert (as_json.returncode, as_json.stdout) == (code, "")
    assert said in json.loads(as_json.stderr)["error"]["message"]


def test_bytes_that_are_no_text_are_refused(home: Path) -> None:
    done = subprocess.run(
        [*LLMOS, "ask", b"\xff"], env=environment(home), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"") and b"Traceback" not in done.stderr


# --- how it is sampled ------------------------------------------------------------------------


def test_sampling_comes_from_file_variable_and_option_in_this_order(home: Path) -> None:
    config = home / "config.toml"
    config.write_text("max_tokens = 3\ntemperature = 1.5\nseed = 1\n")
    try:
        first = json.loads(ask(home, "--json", "q").stdout)["data"]
        assert (first["usage"]["output"], first["seed"]) == (3, 1)
        second = json.loads(ask(home, "--json", "q", LLMOS_SEED="2").stdout)["data"]
        assert (second["usage"]["output"], second["seed"]) == (3, 2)
        both = ask(home, "--json", "q", "-n", "4", "--seed", "3", LLMOS_SEED="2")
        third = json.loads(both.stdout)["data"]
        assert (third["usage"]["output"], third["seed"]) == (4, 3)
        config.write_text("max_tokens = 0\n")
        done = ask(home, "q")
        assert (done.returncode, done.stdout) == (78, "")
        assert f"{config}:1: max_tokens: expected a whole number, 1 to" in done.stderr
    finally:
        config.unlink()


def test_a_seed_repeats_and_a_stop_ends(home: Path) -> None:
    first = answer(home, "-t", "1", "--seed", "7", "q")
    assert answer(home, "-t", "1", "--seed", "7", "q") == first
    assert answer(home, "-t", "1", "--seed", "8", "q") != first
    third = first.split()[2]
    done = ask(home, "-t", "1", "--seed", "7", "--stop", third, "q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == first.split()[:2]


def test_top_k_of_one_is_greedy(home: Path) -> None:
    assert answer(home, "-t", "2", "--top-k", "1", "q") == answer(home, "-t", "0", "q")


def test_a_bias_changes_what_is_likeliest(home: Path) -> None:
    first = answer(home, "-t", "0", "q").split()[0]
    token = 256 + int(first.removeprefix("w"))
    assert answer(home, "-t", "0", "--logit-bias", f"{token}=-100", "q").split()[0] != first
    assert answer(home, "-t", "0", "--logit-bias", f"{token}=1.5", "q").split()[0] == first


@pytest.mark.parametrize("bias", ["7", "x=1", "-1=2", "7=nan", "7=100.5"])
def test_a_bias_that_is_none(home: Path, bias: str) -> None:
    done = ask(home, "--logit-bias", bias, "q")
    assert done.returncode == 2 and "ID=VALUE" in done.stderr


def test_penalties_reach_the_call() -> None:
    words = ["--repetition-penalty", "1.5", "--presence-penalty", "0.5", "--frequency-penalty",
             "-0.25", "--logit-bias", "7=1", "--logit-bias", "9=-2", "q"]  # fmt: skip
    command = question_options(click.Command("ask", params=[]))
    question = question_of(command.make_context("ask", words).params)
    context = Mock()
    Sampling(0.0).over(question.changes).infer(context)
    told = context.infer.call_args.kwargs
    assert told["repetition_penalty"] == 1.5
    assert (told["presence_penalty"], told["frequency_penalty"]) == (0.5, -0.25)
    assert told["logit_bias"] == {7: 1.0, 9: -2.0}


def test_grammars_reach_the_call(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    for name, given, text in (
        ("schema", str(path), '{"type": "integer"}'), ("lark", str(path), '{"type": "integer"}'),
        ("regex", "a+", "a+"),
    ):  # fmt: skip
        command = question_options(click.Command("ask", params=[]))
        question = question_of(command.make_context("ask", [f"--{name}", given, "q"]).params)
        context = Mock()
        Sampling(0.0).over(question.changes).infer(context)
        told = context.infer.call_args.kwargs
        assert [told[key] for key in ("schema", "regex", "lark") if told[key] is not None] == [text]
        assert told[name] == text and question.raw, "it is no Markdown"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"), (b"x" * 49153, "larger than 49,152 bytes"), (b"{\xff}", "not text"),
        (b"{", "no JSON"), (b'{"type": "colour"}', "Invalid type"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none(
    home: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    done = ask(home, "--schema", str(path), "q")
    assert done.returncode != 0 and done.stdout == ""
    assert said in done.stderr, done.stderr
    assert "error" in json.loads(ask(home, "--json", "--schema", str(path), "q").stderr)


def test_a_regex_says_what_the_answer_is(home: Path) -> None:
    assert ask(home, "--regex", "(yes|maybe){2}", "q").stdout in {
        f"{a}{b}\n" for a in ("yes", "maybe") for b in ("yes", "maybe")
    }


# --- what is written --------------------------------------------------------------------------


def test_json_has_the_text_and_what_it_took(home: Path) -> None:
    done = ask(home, "--json", "-t", "0", "-n", "5", "q")
    document = json.loads(done.stdout)
    assert document["schema"] == "llmos.ask/1"
    data = document["data"]
    assert (data["finish"], data["model"]) == ("length", "null")
    assert data["usage"]["output"] == 5 and data["usage"]["prompt"] > 5
    assert data["text"] == ask(home, "-t", "0", "-n", "5", "q").stdout.removesuffix("\n")
    assert 0 < data["first_s"] <= data["whole_s"]


def test_the_footer(home: Path) -> None:
    done = ask(home, "-v", "-n", "5", "q")
    assert re.search(
        r"^5 tok · [\d.]+ tok/s · first token [\d.]+ s · prefill \d+ \(\d+ reused\) · length$",
        done.stderr, re.MULTILINE,
    ), done.stderr  # fmt: skip


def test_a_cut_answer_can_be_a_failure(home: Path) -> None:
    done = ask(home, "-t", "0", "-n", "8", "--fail-on", "length", "q")
    assert done.returncode == 4 and done.stdout == answer(home, "-t", "0", "q")
    stop = done.stdout.split()[1]
    ended = ask(home, "-t", "0", "-n", "8", "--stop", stop, "--fail-on", "length", "q")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so:\n```sh\nls | wc -l\n```\nand\n```\nno\n```\n", "ls | wc -l"),
        ("~~~~\na\n~~~\nb\n~~~~", "a\n~~~\nb"),
        ("```py\nis cut", "is cut"),
        ("```\n```", ""),
    ],
)
def test_the_first_fenced_block(text: str, found: str) -> None:
    assert block(text) == found


def test_an_answer_without_a_block_is_a_failure(home: Path) -> None:
    with pytest.raises(Failure, match="no fenced block"):
        block("text with `code`")
    done = ask(home, "-x", "-n", "3", "q")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no fenced block" in done.stderr


# --- how it ends ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with talking(tmp_path_factory.mktemp("slow"), step_us=20_000) as running:
        yield running


def start(kernel: Daemon, *words: str) -> "subprocess.Popen[str]":
    """Ask for more than there is time for, and wait until the answer has begun."""
    process = subprocess.Popen(
        [*LLMOS, "ask", "-n", "4000", *words, "q"], env=environment(kernel.run_dir.parent),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(3)
    return process


def test_ctrl_c_keeps_what_was_written_and_leaves_nothing(slow: Daemon) -> None:
    process = start(slow)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.endswith("\n") and "Traceback" not in err
    check_no_tasks(slow)


def test_a_signal_of_the_kernel_is_told(slow: Daemon) -> None:
    process = start(slow)
    with slow.connect("killer") as task:
        asking = next(row.pid for row in task.ps() if row.name == "llmos")
        task.kill(asking, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"cut after \d+ tokens: cancelled by a signal", err)
    check_no_tasks(slow)


@pytest.mark.parametrize(
    ("words", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), (".5s", 0.5), ("24h", 86400)]
)
def test_a_time_has_a_unit(words: str, seconds: float) -> None:
    assert Duration().convert(words, None, None) == seconds


@pytest.mark.parametrize(
    "words", ["", "s", "abc", "-1", "0", "25h", "1e3", "30 s", "inf", "\u0663"]
)
def test_a_time_that_is_none(home: Path, words: str) -> None:
    done = ask(home, "--timeout", words, "q")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no time like 30, 30s or 5m" in done.stderr


def test_stdin_that_is_no_text_is_called_so(home: Path) -> None:
    done = subprocess.run(
        [*LLMOS, "ask", "q"], env=environment(home), input=b"a\xff", capture_output=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.startswith(b"llmos: stdin is not text")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_timeout_cuts_and_keeps(slow: Daemon, options: list[str]) -> None:
    home = slow.run_dir.parent
    done = ask(home, "-n", "4000", "--timeout", "1", *options, "q")
    assert done.returncode == 124, done.stderr
    text = json.loads(done.stdout)["data"]["text"] if options else done.stdout
    assert 1 <= len(text.split()) < 200
    assert "--timeout 1 s is over" in done.stderr
    check_no_tasks(slow)


def test_a_reader_that_goes_away_ends_it(slow: Daemon) -> None:
    process = start(slow)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    check_no_tasks(slow)


def test_a_pipe_that_stays_open_is_told(kernel: Daemon, home: Path) -> None:
    reader, writer = os.pipe()
    patched = "import userland.bin.ask as a; a.PATIENCE_S = 0.01; from userland.cli import main"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{patched}; main()", "ask", "-n", "3", "-t", "0", "q"],
        env=environment(home), stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(reader)
    assert process.stderr is not None
    assert "waiting for stdin" in process.stderr.readline()
    os.close(writer)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ask(home, "-n", "3", "-t", "0", "q").stdout)


def test_on_a_terminal_stdin_is_left_alone(home: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*LLMOS, "ask", "-n", "3", "-t", "0", "q"], env=environment(home), stdin=theirs,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout == ask(home, "-n", "3", "-t", "0", "q").stdout


# --- a model without turns ----------------------------------------------------------------------


def test_a_model_without_a_template_completes(tmp_path: Path) -> None:
    builtin = f"null:vocab={END + 1},eos={END},max_ctx=8192"
    folder = tmp_path / builtin
    folder.mkdir()
    (folder / "tokenizer.json").write_text(byte_tokenizer(WORDS))
    (folder / "config.json").write_text("{}")
    with daemon(tmp_path, builtin=builtin, cwd=tmp_path) as kernel:
        done = ask(tmp_path, "--json", "-n", "3", "-t", "0", "abc")
        assert done.returncode == 0
        assert done.stderr.count("has no chat template: it completes the text as it is") == 1
        data = json.loads(done.stdout)["data"]
        assert data["usage"]["prompt"] == 3, "the text alone, and no markup"
        notes: list[str] = []
        with kernel.connect() as task, task.alloc_ctx() as context:
            for _ in range(2):
                say_user(task, context, "abc", notes.append)
        assert len(notes) == 1, "said once for a context"
        refused = ask(tmp_path, "-s", "be brief", "abc")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "takes no system prompt" in refused.stderr
        check_no_tasks(kernel)
