"""Prompts with options, scripts of prompts, and what is told of an answer."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

from tests.helpers.daemon import eventually
from tests.helpers.shell import LLMSH, check_no_tasks, environment, llmsh, talking


def say(home: Path, script: str, *options: str, cwd: Path | None = None) -> str:
    done = llmsh(home, script, *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_question_in_each_form(home: Path, tmp_path: Path) -> None:
    (tmp_path / "doc").write_text("some text\n")
    script = (
        'set max=5\n"sum up" < doc\nundo\n"sum up" -f doc\nundo\nask -n 5 "sum up" -f doc\nundo\n'
        "@main --file doc 'sum up'\nundo\ncat doc | ask sum up\nundo\n"
        '"sum up" <<< "some text"\nundo\n? sum up @./doc\n'
    )
    *same, other = say(home, script, cwd=tmp_path).splitlines()
    assert len(set(same)) == 1 and len(same) == 6
    assert other not in same  # the name stays where it was said


def test_files_are_told_apart_by_name(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"text {name}\n")
    script = "set max=5\n'x' -f a -f b\nundo\n'a:\ntext a\n\nb:\ntext b\n\nx'\n"
    first, second = say(home, script, cwd=tmp_path).splitlines()
    assert first == second


def test_options_are_for_one_question(home: Path) -> None:
    script = '"hello" -n 3\nundo\n"hello" -t 5 --seed 3 -n 3\nundo\n"hello" -n 3\nset\n'
    cold, hot, again, *shown = say(home, script).splitlines()
    assert cold == again != hot
    assert shown[0].startswith("temp=0 max=512 seed=none")


def test_rm_leaves_the_context_as_it_was(home: Path) -> None:
    script = 'set max=3\n"a" > /dev/null\nctx\n@main --rm "b" > /dev/null\n"b" --rm\nctx\n"b"\n'
    done = say(home, script)
    tables = re.findall(r"\* main .*", done)
    assert tables[0] == tables[1]
    *_, forked, _, _, real = done.splitlines()
    assert forked == real


def test_a_system_prompt_is_for_the_beginning(home: Path) -> None:
    script = 'set max=3\n"x" -s "Be brief."\nctx new a -s "Be brief."\n"x"\n"x" -s "More."\n'
    done = llmsh(home, script)
    first, second = done.stdout.splitlines()
    assert first == second and done.returncode == 2
    assert "-s is for a context without turns, @a has 1" in done.stderr


def test_a_stop_string_ends_the_answer(home: Path) -> None:
    words = say(home, '"hello" -n 20').split()
    assert len(words) > 8
    stopped = say(home, f'"hello" -n 20 --stop " {words[5]}" --stop nosuch; echo $finish')
    assert stopped.split() == [*words[:5], "stop"]


MISTAKES = {
    '"x" -t 101': (2, "101.0 is not in the range"), '"x" --frob': (2, "No such option"),
    '"x" -f nosuch': (74, "cannot read nosuch"), "ask": (2, "an empty prompt"),
    "ask -t 0 ''": (2, "an empty prompt"), '@main -c @main "x"': (2, "one too many"),
    '@nosuch -t 0 "x"': (3, "there is no context 'nosuch'"), '"x" -f -': (2, "-f - is what"),
    "? see @./nosuch": (74, "cannot read ./nosuch"), '"x" -f .': (74, "cannot read ."),
    '"x" -f /dev/zero': (1, "larger than 1 MiB"), '"x" -f "/bin/sh"': (1, "is not text"),
    'x=""; "$x"': (2, "an empty prompt"), '"x" -n': (2, "requires an argument"),
}  # fmt: skip


def test_what_cannot_be_asked(home: Path) -> None:
    done = llmsh(home, "".join(f"{line}\necho $?\n" for line in MISTAKES))
    assert done.stdout.split() == [str(status) for status, _ in MISTAKES.values()]
    said, at = done.stderr, 0
    for _, why in MISTAKES.values():
        at = said.index(why, at) + len(why)
    assert "bug" not in said


def test_help_of_a_question(home: Path) -> None:
    assert "--max-tokens" in say(home, "ask --help") and "--rm" in say(home, '"x" --help')


def test_what_is_told_of_an_answer(home: Path) -> None:
    script = 'set max=4\n"hello" > f\necho $finish $ctx $model\necho $usage\n"hi" -v > f\n'
    done = llmsh(home, f'{script}set verbose=on\n@main ? hi\nfinish=1; echo "$finish"', cwd=home)
    told, usage, *_, last = done.stdout.splitlines()
    assert told == "length main null" and json.loads(usage)["output"] == 4
    footer = r"4 tok( · [\d.]+ tok/s)? · first token \d+\.\d\d s · prefill \d+ \(\d+ reused\)"
    assert len(re.findall(f"^llmsh: {footer} · length$", done.stderr, re.MULTILINE)) == 2
    assert last == "length" and "finish is told by the shell" in done.stderr


def test_the_script_of_session_seven(home: Path, tmp_path: Path) -> None:
    (tmp_path / "triage.llmsh").write_text(
        "#!/usr/bin/env llmsh\n"
        "set -euo pipefail; set temp=0 seed=7 max=6\n"
        'ctx new triage -s "You label bug reports."\n'
        'for f in "$@"; do\n'
        '  kind=$(@triage --rm -f "$f" "bug, feature or question?") || exit $?\n'
        '  echo "$f,$kind"\n'
        "done\n"
    )
    names = ["one.txt", "two words.txt", "three.txt"]
    for name in names:
        (tmp_path / name).write_text(f"report {name}\n")
    command = [*LLMSH, "triage.llmsh", *names]
    done = subprocess.run(
        command, env=environment(home), cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    rows = [line.partition(",") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == names and done.returncode == 0, done.stderr
    assert len({row[2] for row in rows}) == 3 and all(row[2] for row in rows)
    failed = subprocess.run(
        [*command[:-3], "one.txt", "nosuch", "three.txt"],
        env=environment(home), cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert failed.returncode == 74 and len(failed.stdout.splitlines()) == 1


def test_an_answer_as_a_word_and_in_loops(home: Path, tmp_path: Path) -> None:
    script = (
        'set max=3\nx="$("a" | tr w W)"\necho "<$x>"\n"b $x" --rm > f\n'
        'for i in 1 2; do "same $i" --rm; done | sort | uniq | wc -l\n'
        'printf "1\\n2\\n" | while read i; do "same $i" --rm; done | wc -l\n'
        'if "yes?" > g; then ctx; fi | wc -l\n'
    )
    first, *counts = say(home, script, cwd=tmp_path).splitlines()
    assert re.fullmatch(r"<( ?W?\S*)+>", first)
    assert [int(count) for count in counts] == [2, 2, 2]


def test_notes_of_a_question_go_where_its_stderr_goes(home: Path, tmp_path: Path) -> None:
    done = llmsh(home, '"a" -n 3 2> f\n"a" -n 3 2>&1 | grep -c "cut after"\n', cwd=tmp_path)
    assert done.stdout.splitlines()[1] == "1" and done.stderr == ""
    assert (tmp_path / "f").read_text() == "llmsh: cut after 3 tokens; set max=N allows more\n"


def test_ctrl_c_in_a_substitution_ends_the_script(tmp_path: Path) -> None:
    with talking(tmp_path, step_us=20_000) as slow:
        shell = subprocess.Popen(
            [*LLMSH, "-c", "x=$(\"hello\" | tee f); echo not reached > reached"],
            env=environment(tmp_path), cwd=tmp_path, stderr=subprocess.PIPE,
        )  # fmt: skip
        eventually(lambda: (tmp_path / "f").exists() and (tmp_path / "f").stat().st_size, "words")
        shell.send_signal(signal.SIGINT)
        _, err = shell.communicate(timeout=60)
        assert (shell.returncode, err) == (130, b"")
        assert not (tmp_path / "reached").exists()
        check_no_tasks(slow)


def test_an_answer_whose_driver_dies_says_so_and_goes_on(tmp_path: Path) -> None:
    with talking(tmp_path, step_us=20_000) as slow:
        expected = llmsh(tmp_path, '"hello" -n 150\n').stdout
        shell = subprocess.Popen(
            [*LLMSH, "-c", '"hello" -n 150'], env=environment(tmp_path), bufsize=0,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert shell.stdout and shell.stdout.read(2) == b" w"
        host = slow.host_pid()
        os.kill(host, signal.SIGKILL)
        rest, _ = shell.communicate(timeout=60)
        assert b" w" + rest == expected.encode() and shell.returncode == 0
        check_no_tasks(slow)


def test_a_model_without_turns_completes(tmp_path: Path) -> None:
    with talking(tmp_path, template=None) as kernel:
        done = llmsh(tmp_path, 'set max=4\n"once"\n"upon"\nundo 2\n"once"\nctx\n')
        first, _, again, *_, row = done.stdout.splitlines()
        assert first == again and row.split()[2:4] == ["8", "1"]  # once, and four tokens
        assert done.stderr.count("null has no chat template: it completes the text as it is") <= 2
        check_no_tasks(kernel)
