"""Screens of the inspection commands, on a kernel that stands still (tests/helpers/scene.py)."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from syscalls import abi
from syscalls.errors import EBADCTX, EINVAL, ENOTSUP
from tests.helpers.daemon import ROOT
from tests.helpers.fake_kernel import FakeKernel, Reply
from tests.helpers.json_schema import FOLDER, check, check_document
from tests.helpers.scene import (
    BLOCK,
    CASES,
    CONTEXTS,
    LOG,
    POOLS,
    ROWS,
    SCREENS,
    drawn,
    scene,
    screen,
)  # fmt: skip
from userland.bin.dmesg import parse_levels, parse_since
from userland.bin.ps import kv_total
from userland.cli import COMMANDS
from userland.exits import Failure
from userland.picture import cells


@pytest.fixture(scope="module")
def kernel() -> Iterator[FakeKernel]:
    with scene() as standing:
        yield standing


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_screen_is_as_it_was(kernel: FakeKernel, name: str, way: str) -> None:
    """`python -m tests.helpers.scene` writes the files anew."""
    assert drawn(kernel, name, way) == (SCREENS / f"{name}.{way}.txt").read_text()


def test_every_file_is_of_a_screen() -> None:
    assert {path.name for path in SCREENS.iterdir()} == {f"{n}.{way}.txt" for n, way in CASES}


@pytest.mark.parametrize(("name", "way"), [case for case in CASES if case[1] != "pipe"])
def test_a_screen_fits_the_terminal_and_a_pipe_has_no_colour(name: str, way: str) -> None:
    text = (SCREENS / f"{name}.{way}.txt").read_text().split("--- stderr")[0]
    if way == "plain":
        assert "<3" not in text
    if way in ("letters", "a11y") and name == "pmap":
        assert text.isascii()
    if not name.startswith("dmesg") and name != "ps-full":
        bare = re.sub(r"<[\d;]*>", "", text)
        room = {"wide": 120, "narrow": 40}.get(way, 80)
        assert max(map(len, bare.splitlines())) <= room
    assert "<" not in (SCREENS / f"{name}.pipe.txt").read_text().replace("560 < 570", "")


# --- JSON ---------------------------------------------------------------------------------------

DOCUMENTS = [
    ["ps"], ["ps", "--sort", "-kv"], ["ps", "--contexts"], ["free"], ["pmap"], ["pmap", "57", "3"],
    ["pmap", "@main"], ["lsdev"], ["dmesg"], ["dmesg", "-n", "0"], ["vmstat"], ["ctx", "ls"],
    ["ctx", "saves"],
    ["ctx", "tree"], ["ctx", "tree", "57"], ["explain", "57"], ["explain", "-p", "1"],
    ["explain", "@main"],
]  # fmt: skip


@pytest.mark.parametrize("words", DOCUMENTS, ids=" ".join)
def test_json_is_as_its_schema_says(kernel: FakeKernel, words: list[str]) -> None:
    for tty in (False, True):
        status, out, err = screen(kernel, *words, "--json", tty=tty)
        assert (status, err) == (0, "")
        check_document(json.loads(out))


def test_frames_of_top_are_a_document_a_line(kernel: FakeKernel) -> None:
    status, out, _ = screen(kernel, "top", "--json", "-n", "2", "-d", "0.1")
    frames = [json.loads(line) for line in out.splitlines()]
    assert (status, len(frames)) == (0, 2)
    for frame in frames:
        check_document(frame)
    assert frames[0]["data"]["rates"] is None
    assert frames[1]["data"]["rates"]["output_tok_s"] == 0.0
    assert frames[0]["data"]["tasks"][0]["pid"] == 41


def test_a_schema_that_is_broken_is_noticed() -> None:
    """The checker itself: a missing field, one too many, a wrong type, a word that is none."""
    schema = json.loads((FOLDER / "dmesg.record.json").read_text())
    good = {"number": 1, "uptime_s": 0.5, "wall_s": 1.0, "level": "err", "facility": "mm",
            "text": "x"}  # fmt: skip
    document = {"schema": "llmos.dmesg.record/1", "data": good}
    check(document, schema, "x")
    for data in (
        {k: v for k, v in good.items() if k != "text"}, good | {"more": 1}, good | {"number": 1.5},
        good | {"level": "worse"}, good | {"number": True}, [],
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(document | {"data": data}, schema, "x")


OF_DOCUMENTS = sorted(path for path in FOLDER.iterdir() if path.stem != "error")


@pytest.mark.parametrize("path", OF_DOCUMENTS, ids=lambda path: path.stem)
def test_schemas_name_the_document_that_they_are_of(path: Path) -> None:
    schema = json.loads(path.read_text())
    assert schema["properties"]["schema"]["const"] == f"llmos.{path.stem}/1"
    assert schema["required"] == ["schema", "data"]


def test_colours_are_as_they_are_asked_for(kernel: FakeKernel) -> None:
    for words in (["ps"], ["pmap"], ["dmesg"], ["lsdev"], ["free"], ["ctx", "tree"]):
        for tty, color, colored in (
            (False, "always", True), (True, "never", False), (False, "auto", False),
        ):  # fmt: skip
            status, out, _ = screen(kernel, "--color", color, *words, tty=tty)
            assert (status, "\x1b[" in out) == (0, colored), (words, tty, color)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["pmap", "99"], 3, "there is no task 99 (ESRCH)"),
        (["pmap", "41", "8"], 3, "task 41 has no context 8 (EBADCTX)"),
        (["pmap", "@man"], 3, "did you mean @main?"),
        (["pmap", "@main", "7"], 2, "out of place"),
        (["pmap", "one"], 2, "out of place"),
        (["pmap", "1", "2", "3"], 2, "out of place"),
        (["pmap", "²"], 2, "out of place"),
        (["dmesg", "-l", "loud"], 2, "crit,err,warn,info,debug"),
        (["dmesg", "-f", "oom"], 2, "mm,sched,drv,ctx,ipc,model,kern"),
        (["dmesg", "--since", "yesterday"], 2, "like 30s, 5m"),
        (["dmesg", "-n", "-1"], 2, "-n"),
        (["ps", "--forest", "--contexts"], 2, "contexts are no tree"),
        (["ps", "--forest", "--json"], 2, "--json has every field"),
        (["ps", "-p", "x"], 2, "'x' is no pid"),
        (["ps", "--sort", "bogus"], 2, "bogus"),
        (["ps", "--contexts", "-o", "wait"], 2, "'wait'"),
        (["ps", "-w", "0"], 2, "-w"),
        (["top", "-d", "0"], 2, "-d"),
        (["top", "--sort", "x"], 2, "--sort"),
        (["top"], 2, "top --batch"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_what_is_wrong_is_said(
    kernel: FakeKernel, words: list[str], status: int, said: str
) -> None:
    code, out, err = screen(kernel, *words)
    assert (code, out) == (status, ""), err
    assert said in err
    if "json" not in " ".join(words) and words != ["top"]:
        code, out, err = screen(kernel, *words, "--json", tty=False)
        assert (code, out) == (status, "")
        error = json.loads(err)["error"]
        assert error["message"] and (status != 3 or error["code"].startswith("E"))


def test_ps_chooses(kernel: FakeKernel) -> None:
    def names(*words: str) -> list[str]:
        status, out, err = screen(kernel, "ps", *words, "--no-headers", "-o", "name", tty=False)
        assert status == 0, err
        return out.split()

    everyone = ["init", "llmsh", "formal", "casual", "researcher"]
    assert names() == names("-e") == everyone
    assert names("-p", "42,43", "-p", "57") == everyone[2:]
    assert names("--ppid", "41") == ["formal", "casual"]
    assert names("-C", "casual") == ["casual"]
    assert names("-u", "ana") == everyone
    assert names("-u", "nobody-of-this-name") == []
    assert names("--sort", "-kv") == ["llmsh", "formal", "casual", "researcher", "init"]
    assert names("--forest") == ["init", "\\_llmsh", "\\_formal", "\\_casual", "\\_researcher"]


def test_a_share_is_of_the_devices_kv() -> None:
    assert kv_total(POOLS) == 2048 * BLOCK + 512 * 2 * BLOCK


def test_contexts_are_chosen_by_their_tasks(kernel: FakeKernel) -> None:
    status, out, _ = screen(
        kernel, "ps", "--contexts", "-p", "57", "-o", "ctx,dev", "--no-headers", tty=False
    )
    assert (status, out.split()) == (0, ["3", "cpu0", "4", "cpu0"])


def test_dmesg_chooses(kernel: FakeKernel) -> None:
    def count(*words: str) -> int:
        status, out, err = screen(kernel, "dmesg", *words, tty=False)
        assert status == 0, err
        return len(out.splitlines())

    assert count() == len(LOG)
    assert count("-l", "warn+") == count("-l", "err,warn") == 2
    assert count("-l", "err") == 1
    assert count("-f", "drv,mm") == 4
    assert count("-f", "drv", "-l", "info") == 2
    assert count("-n", "3") == 3
    assert count("-n", "0") == 0
    assert count("--since", "2026-09-21T15:20:00+00:00") == 3


@pytest.mark.parametrize(
    ("text", "seconds_ago"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172_800)]
)
def test_since_ago(text: str, seconds_ago: float) -> None:
    assert parse_since(text, 1e9) == 1e9 - seconds_ago


def test_since_a_time_of_today_or_a_date() -> None:
    now = 1_790_000_000.0
    assert now - parse_since("00:00", now) < 86_400
    assert parse_since("0:00", now) == parse_since("00:00:00", now)
    assert parse_since("1970-01-02T00:00:00+00:00", now) == 86_400
    for text in ("", "5", "5w", "25:00", "-5m", "99999999999d", "²m"):
        with pytest.raises(Failure):
            parse_since(text, now)


def test_levels() -> None:
    assert parse_levels("err") == {3}
    assert parse_levels("warn+") == {2, 3, 4}
    assert parse_levels("debug+") == {2, 3, 4, 6, 7}
    assert parse_levels("ERR, info") == {3, 6}


# --- pictures -----------------------------------------------------------------------------------


def test_rows_of_a_large_context_that_repeat_are_counted() -> None:
    """A million ids: some lines, not a thousand."""
    runs = [abi.BlockRun(0, 65_000, 3, 2, 1, 0, 0), abi.BlockRun(1_040_000, 100, 2, 1, 9, 0, 0)]
    found = abi.PmapResult(1, 1, "", "m", "d", 0, 0, 16, 1, 65_100, list(runs), [], 0, 0)
    rows = ["".join(text for text, _ in row) for row in cells(found, 80, True)]
    assert len(rows) == 5 and rows[1] == "      * 1,014 more rows like this one"
    assert [row.split()[0] for row in rows] == ["0", "*", "64960", "65024", "65088"]


def test_a_map_of_nothing(kernel: FakeKernel) -> None:
    status, out, err = screen(kernel, "pmap", "1")
    assert (status, out, err) == (0, "", "no contexts\n")


def test_names_cannot_speak_to_the_terminal(kernel: FakeKernel) -> None:
    for words in (
        ["ps", "--contexts"], ["pmap"], ["pmap", "-x"], ["lsdev"], ["top", "-b", "-n1"],
        ["ctx", "ls"], ["ctx", "tree"], ["explain", "57"],
    ):  # fmt: skip
        for tty in (False, True):
            _, out, _ = screen(kernel, *words, tty=tty, NO_COLOR="1")
            assert "\x9b" not in out and "\u202e" not in out
            assert not tty or "needs;\n5" not in out


# --- a kernel that says odd things ---------------------------------------------------------------


@pytest.mark.parametrize("call", ["pmap", "log"])
def test_pages_that_do_not_move_on_are_an_error(call: str) -> None:
    with scene() as kernel:
        stuck = {
            "pmap": abi.PmapResult(1, 1, "", "m", "d", 0, 0, 16, 1, 9, [], [], 0, 5),
            "log": abi.LogResult([abi.LogRow(1, 0, 0, 6, "kern", "x")], 1, 9),
        }
        kernel.replace[call] = lambda request: Reply(stuck[call])
        words = {"pmap": ["pmap", "@main"], "log": ["dmesg"]}[call]
        status, _, err = screen(kernel, *words)
    assert status == 1 and "does not move on" in err


def test_records_that_were_gone_before_they_were_read() -> None:
    with scene() as kernel:
        asked: list[int] = []

        def log(request: object) -> Reply:
            asked.append(request.args.cursor)  # type: ignore[attr-defined]
            if len(asked) == 3:
                raise KeyboardInterrupt  # never: the next one ends it
            number = 1 if len(asked) == 1 else 9
            row = abi.LogRow(number, 0.0, 0.0, 6, "kern", f"record {number}")
            return Reply(abi.LogResult([row], number + 1, number + 1))

        kernel.replace["log"] = log
        kernel.replace["exit"] = lambda _: Reply()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("userland.bin.dmesg.time.sleep", lambda _: _end_after(asked, 2))
            status, out, err = screen(kernel, "dmesg", "-w", tty=False)
    assert status == 130
    assert [line.split()[-1] for line in out.splitlines()] == ["1", "9"]
    assert "7 records were gone" in err and asked == [0, 2]


def _end_after(asked: list[int], calls: int) -> None:
    if len(asked) >= calls:
        raise KeyboardInterrupt


AS_OLD = {
    abi.TaskRow: "swapped", abi.CtxRow: "host_blocks", abi.PoolRow: "promised",
    abi.KernelRow: "out_blocks",
}  # fmt: skip
"""The first field of each row that a kernel before the tiers did not have."""


@pytest.mark.parametrize(
    "words",
    [["ps"], ["ps", "-f"], ["ctx", "ls"], ["ctx", "tree"], ["free"], ["free", "-h"], ["vmstat"],
     ["pmap"], ["top", "-b", "-n", "1"], ["status"]],
    ids=" ".join,
)  # fmt: skip
def test_a_kernel_that_knows_no_tiers_is_shown(words: list[str]) -> None:
    with scene() as kernel:
        snapshot = kernel.replace["snapshot"]

        def older(request: Any) -> Reply:
            if request.args.what == "store":
                raise EINVAL("there is no snapshot of store")
            page = snapshot(request).row
            rows = [row[: row._fields.index(AS_OLD[type(row)])] for row in page.rows]
            return Reply(page._replace(rows=rows))

        kernel.replace["snapshot"] = older
        for tty in (True, False):
            status, out, _ = screen(kernel, *words, tty=tty)
            assert status == 0 and out
        if "-f" not in words:
            status, out, err = screen(kernel, *words, "--json", tty=False)
            assert (status, err) == (0, "")
            check_document(json.loads(out))


def test_a_kernel_that_cannot_explain_says_so() -> None:
    with scene() as kernel:

        def unbuilt(_: object) -> Reply:
            raise ENOTSUP("explain is reserved, and not built in this kernel")

        kernel.replace["explain"] = unbuilt
        status, out, err = screen(kernel, "explain", "57", tty=False)
    assert (status, out) == (1, "") and "not built in this kernel (ENOTSUP)" in err


def test_a_context_that_has_gone_meanwhile_is_left_out() -> None:
    with scene() as kernel:

        def gone(_: object) -> Reply:
            raise EBADCTX("there is no such context")

        kernel.replace["explain"] = kernel.replace["pmap"] = gone
        for words in (["explain", "57"], ["ctx", "tree"]):
            status, out, _ = screen(kernel, *words, tty=False)
            assert (status, "57 researcher" in out) == (0, True)


def test_too_many_contexts_to_ask_about_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [CONTEXTS[0]._replace(ctx=n, name="") for n in range(1, 1002)]
    monkeypatch.setitem(ROWS, "contexts", many)
    with scene() as kernel:
        for command in ("pmap", "explain"):
            status, out, err = screen(kernel, command, "41", tty=False)
            assert (status, out) == (2, "") and "1,001 contexts" in err
        status, out, _ = screen(kernel, "ctx", "ls", tty=False)
        assert (status, len(out.splitlines())) == (0, 1002)


def test_frames_of_vmstat_have_a_header_a_screenful(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("userland.bin.vmstat.time.sleep", lambda _: None)
    for tty, headers in ((True, 3), (False, 1)):
        status, out, _ = screen(kernel, "vmstat", "1", "50", tty=tty)
        lines = out.splitlines()
        heads = [at for at, line in enumerate(lines) if line.startswith(" r  q")]
        assert (status, len(lines), heads) == (0, 50 + headers, [0, 23, 46][:headers])


# --- watching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ps", "free", "lsdev"])
def test_watching_repeats(
    kernel: FakeKernel, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("userland.watch.time.sleep", sleep)
    status, out, _ = screen(kernel, command, "-w", tty=False)
    frames = out.split("\n\n")
    assert (status, len(frames), slept) == (130, 4, [2.0] * 3)
    assert frames[0] == frames[1] == frames[2] and frames[3] == ""
    status, out, _ = screen(kernel, command, "-w", "0.5")
    assert (status, slept[3:]) == (130, [0.5] * 3)
    assert out.count("\x1b[H") == 3 and "every 0.5 s; Ctrl-C ends\x1b[K\n" in out
    status, out, _ = screen(kernel, command, "-w", "--json", tty=False)
    documents = [json.loads(line) for line in out.splitlines() if line]
    assert (status, len(documents)) == (130, 3)
    for document in documents:
        check_document(document)


def test_a_watched_table_ends_where_the_screen_does(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("userland.watch.time.sleep", sleep)
    _, out, _ = screen(kernel, "ps", "-w", LINES="5")
    lines = out.split("\n")
    assert len(lines) == 5 and lines[-1].startswith("... 4 more lines")


# --- help ---------------------------------------------------------------------------------------

MINE = ("ps", "top", "free", "pmap", "lsdev", "dmesg", "vmstat", "ports")


@pytest.mark.parametrize("name", MINE)
def test_examples_in_help_are_commands(name: str) -> None:
    command = getattr(import_module(COMMANDS[name]), name)
    shown = CliRunner().invoke(command, ["--help"], terminal_width=80).output
    examples = shown.split("Examples:")[1].split("\n\n")[0].split("\n")
    lines = [line.split() for line in examples if line.strip()]
    assert len(lines) >= 2
    for words in lines:
        assert words[0] == name
        with command.make_context(name, words[1:]):
            pass


@pytest.mark.parametrize("name", MINE)
def test_a_command_brings_nothing_heavy(name: str) -> None:
    program = (
        f"import sys; import {COMMANDS[name]}\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'prompt_toolkit', 'rich', 'psutil',"
        " 'transformers', 'textual', 'asyncio'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
