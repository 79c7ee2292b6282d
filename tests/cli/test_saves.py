"""Saves on the command line and in the shell: kept, listed, brought back, moved as files."""

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest
from safetensors.numpy import load_file

from drivers.store import passphrase
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.shell import Typist, environment, llmsh, talking, typing
from userland import cli, portable
from userland.bin.up import _tell_store
from userland.desk import Desk
from userland.portable import Portable


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with talking(tmp_path_factory.mktemp("home"), keeps=True) as running:
        with running.connect() as task:
            eventually(lambda: task.store().state == "up", "store")
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Iterator[Path]:
    yield kernel.run_dir.parent
    with kernel.connect() as task:
        for row in task.saves():
            task.drop_save(row.name)


def ctx(home: Path, *words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home), clear=True):
        code = cli.run(Desk(out, err), ["ctx", *words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def chat(kernel: Daemon, home: Path) -> str:
    """Return the name of a save that has messages."""
    with kernel.connect() as task:
        context = task.alloc_ctx(system="Be brief.")
        context.user("Hé?")
        context.infer(max_tokens=4, temperature=0).read()
        context.save("chat")
    return "chat"


# --- llmos ctx ------------------------------------------------------------------------------------


def test_saves_are_listed_and_deleted(home: Path, chat: str, kernel: Daemon) -> None:
    with kernel.connect() as task, task.alloc_ctx() as context:
        context.append([1, 2, 3])
        context.save("draft 1")
    code, out, _ = ctx(home, "saves")
    assert code == 0
    assert re.search(r"^chat +null +\d+ .* 20\d\d-\d\d-\d\d \d\d:\d\d current$", out, re.M)
    rows = json.loads(ctx(home, "saves", "--json")[1])["data"]
    assert [(row["name"], row["state"]) for row in rows] == [
        ("chat", "current"), ("draft 1", "current"),
    ]  # fmt: skip
    code, _, err = ctx(home, "rm", "chat", "gone")
    assert code == 3 and "no save 'gone'" in err
    assert ctx(home, "rm", "chat", "draft 1", "chat")[0] == 0
    code, out, err = ctx(home, "saves")
    assert (code, len(out.splitlines())) == (0, 1) and "no saves" in err


# --- files ----------------------------------------------------------------------------------------


def test_a_save_goes_to_a_file_and_comes_back(
    home: Path, chat: str, kernel: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "chat.ctx"
    code, _, err = ctx(home, "export", chat, str(file))
    assert code == 0 and "readable by whoever has it" in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tensors = load_file(file)
    with kernel.connect() as task, task.load_ctx(chat) as context:
        assert list(tensors["ids"]) == context.read()
        turns = context.turns
    assert ctx(home, "rm", chat)[0] == 0
    assert ctx(home, "import", str(file), "again")[0] == 0
    with kernel.connect() as task, task.load_ctx("again") as context:
        assert context.turns == turns
        assert list(tensors["ids"]) == context.read()
        context.user("goes on")
    code, _, err = ctx(home, "import", str(file), "again")
    assert code == 1 and "already" in err and "--force" in err
    assert ctx(home, "import", str(file), "again", "--force")[0] == 0
    code, _, err = ctx(home, "export", "again", str(file))
    assert code == 1 and "already" in err
    assert ctx(home, "export", "again", str(file), "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.ctx"]


def test_a_file_under_a_passphrase(home: Path, chat: str, tmp_path: Path) -> None:
    file, secret, wrong = tmp_path / "f", tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("one two three\n")
    wrong.write_text("one two four\n")
    with patch.object(passphrase.seal, "__defaults__", ((1 << 10, 8, 1),)):
        assert ctx(home, "export", chat, str(file), "--passphrase-file", str(secret))[0] == 0
    assert b"null" not in file.read_bytes() and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ctx(home, "import", str(file), "a", "--passphrase-file", str(wrong))[0] == 77
    assert ctx(home, "import", str(file), "a")[0] == 2, "no terminal to ask on"
    assert ctx(home, "import", str(file), "a", "--passphrase-file", str(secret))[0] == 0
    assert ctx(home, "export", chat, str(tmp_path / "g"), "--encrypt")[0] == 2
    assert not (tmp_path / "g").exists()


def test_what_export_and_import_refuse(home: Path, chat: str, tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "f", tmp_path / "link", tmp_path / "pipe"
    code, _, err = ctx(home, "export", chat, str(file), "--kv")
    assert code == 1 and "ENOTSUP" in err and not file.exists()
    link.symlink_to(file)
    assert ctx(home, "export", chat, str(link))[0] == 1 and not file.exists()
    assert ctx(home, "export", chat, str(tmp_path / "none" / "f"))[0] == 74
    assert ctx(home, "export", "gone", str(file))[0] == 3 and not file.exists()
    os.mkfifo(pipe)
    assert ctx(home, "import", str(pipe), "a")[0] == 1
    assert ctx(home, "import", "/dev/zero", "a")[0] == 1
    file.write_bytes(b"GGUF" * 100)
    assert ctx(home, "import", str(file), "a")[0] == 74
    with file.open("wb") as large:
        large.truncate(portable.MAX_SEALED + 1)
    code, _, err = ctx(home, "import", str(file), "a")
    assert code == 1 and "E2BIG" in err
    other = _portable()
    file.write_bytes(portable.pack(other._replace(model="other")))
    code, _, err = ctx(home, "import", str(file), "a")
    assert code == 3 and "model other, which is not loaded" in err
    code, _, err = ctx(home, "import", str(file), "a", "--model", "null")
    assert code == 1 and "another tokenizer" in err
    assert json.loads(ctx(home, "saves", "--json")[1])["data"][0]["name"] == chat


def _portable() -> Portable:
    from array import array

    ids = array("i", [3, 1, 4, 1, 5])
    return Portable("null", "ab" * 32, 1_790_000_000, ids, b"\x01\x92\x00\x91\x92\x01\x05")


def test_a_file_that_is_changed_in_any_byte_is_refused() -> None:
    raw = portable.pack(_portable())
    assert portable.unpack(raw) == _portable()
    for at in range(len(raw)):
        for change in (1, 0x80):
            changed = bytearray(raw)
            changed[at] ^= change
            with pytest.raises(ValueError):
                portable.unpack(bytes(changed))
    for length in range(len(raw)):
        with pytest.raises(ValueError):
            portable.unpack(raw[:length])
    with pytest.raises(ValueError):
        portable.unpack(raw + b"\x00")


def _forged(**changes: object) -> bytes:
    """Return a file whose checksum is right and whose header is not."""
    said = {"format": "llmos.ctx/1", "model": "null", "saved_unix": "5", "tokenizer": ""}
    table: dict[str, object] = {
        "__metadata__": said | {"sha256": "0" * 64},
        "ids": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},
        "turns": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]},
    }
    for name, value in changes.items():
        where = table if name in table else table["__metadata__"]
        assert isinstance(where, dict)
        where[name] = value
    data = b"\x07\x00\x00\x00"

    def header() -> bytes:
        raw = json.dumps(table, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        return struct.pack("<Q", len(raw)) + raw

    digest = hashlib.sha256(header() + data).hexdigest()
    if isinstance(table["__metadata__"], dict):
        table["__metadata__"]["sha256"] = digest
    return header() + data


def test_a_forged_header_with_a_right_checksum_is_refused() -> None:
    assert list(portable.unpack(_forged()).ids) == [7]
    wide = {"dtype": "I32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}
    cases: list[dict[str, object]] = [
        {"ids": wide}, {"ids": {**wide, "shape": [-1]}}, {"ids": {**wide, "shape": [True]}},
        {"ids": {**wide, "shape": [0]}}, {"ids": {**wide, "shape": [1, 1]}}, {"ids": 5},
        {"ids": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"turns": {"dtype": "U8", "shape": [5000], "data_offsets": [4, 5004]}},
        {"model": ""}, {"model": "a b"}, {"model": 7}, {"model": "x" * 200}, {"saved_unix": "-1"},
        {"saved_unix": "9" * 40}, {"saved_unix": "٣"}, {"tokenizer": "zz"}, {"format": 5},
        {"format": "llmos.ctx/2"}, {"more": "x"}, {"__metadata__": []}, {"__metadata__": {}},
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(ValueError):
            portable.unpack(_forged(**case))
    with pytest.raises(ValueError, match="this version reads"):
        portable.unpack(_forged(format="llmos.ctx/2"))


def test_random_changes_never_raise_anything_else() -> None:
    random, raw = Random(3), portable.pack(_portable())
    for _ in range(3000):
        changed = bytearray(raw)
        for _ in range(random.randint(1, 6)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        try:
            portable.unpack(bytes(changed))
        except ValueError:
            continue
        assert bytes(changed) == raw


# --- llmsh ----------------------------------------------------------------------------------------


def test_contexts_of_the_shell_are_kept_and_brought_back(home: Path) -> None:
    first = llmsh(
        home,
        """set max=3
"one" > /dev/null
"two" > /dev/null
ctx new side -s "Be brief."
ctx save @main notes
ctx save
ctx saves | cut -d" " -f1
""",
    )
    assert first.returncode == 0, first.stderr
    assert re.search(r"saved @main as 'notes': \d+ tokens", first.stderr)
    assert "saved @side as 'side'" in first.stderr
    assert first.stdout.split() == ["NAME", "notes", "side"]
    second = llmsh(
        home,
        """set max=3
ctx load notes @again
undo
"more" > /dev/null
ctx load side
ctx
ctx drop notes
ctx drop notes || echo gone
""",
    )
    assert re.search(r"@again: \d+ tokens of null, \d+ with their KV", second.stderr)
    assert re.search(r"^  again +\d+ +2 ", second.stdout, re.M), "one of two is undone, one more"
    assert re.search(r"^\* side +\d+ +0 ", second.stdout, re.M)
    assert second.stdout.endswith("gone\n")


def test_a_save_takes_an_empty_main_and_nothing_else(home: Path, chat: str) -> None:
    done = llmsh(
        home,
        """ctx load "chat" @main
ctx load chat @main || echo refused
ctx load chat || echo fine
ctx load nothing || echo absent
ctx save a b || echo usage
ctx load || echo usage
ctx saves now || echo usage
ctx drop || echo usage
ctx save @none || echo none
ctx | cut -c1-6
""",
    )
    said = [line for line in done.stdout.splitlines() if line.isalpha()]
    assert said == ["refused", "absent", "usage", "usage", "usage", "usage", "none"], done.stderr
    assert "there is a context main already" in done.stderr


def test_a_chat_that_is_saved_at_its_end_and_goes_on(home: Path) -> None:
    command = cli_chat("--save", "talk")
    with typing(home, command=command) as person:
        person.see("»")
        person.type("hello\r")
        person.see(re.compile(r"null main·[1-9]\d*/8k »$"))
        person.ctrl("d")
        person.see("saved @main as 'talk'")
    with typing(home, command=cli_chat("--load", "talk")) as person:
        person.see(re.compile(r"@talk: \d+ tokens of null"))
        person.see(re.compile(r"null talk·[1-9]\d*/8k »$"))
        person.type("/undo\r")
        person.see(re.compile(r"@talk: \d+ to 0 tokens"))
        person.ctrl("d")


def cli_chat(*options: str) -> tuple[str, ...]:
    import sys

    return (sys.executable, "-m", "userland.cli", "chat", *options)


def test_saves_are_completed(home: Path, chat: str) -> None:
    with typing(home) as person:
        person.prompt()
        person.type("ctx saves\r")
        person.prompt()
        _complete(person, "ctx load ch\t", "ctx load chat")
        _complete(person, "ctx drop c\t", "ctx drop chat")


def _complete(person: Typist, keys: str, seen: str) -> None:
    person.type(keys)
    person.see(seen)
    person.ctrl("c")


# --- a store that has failed ----------------------------------------------------------------------


def run(home: Path, *words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home), clear=True):
        code = cli.run(Desk(out, err), list(words))
    return code, out.getvalue(), err.getvalue()


def test_what_is_seen_of_a_store(home: Path, chat: str) -> None:
    assert re.search(r"^store +is up, host pid \d+, saves: 1, ", run(home, "status")[1], re.M)
    store = json.loads(run(home, "status", "--json")[1])["data"]["store"]
    assert (store["state"], store["saves"], store["damaged"]) == ("up", 1, 0)
    assert re.search(r"^disk +store .* up +saves: 1, ", run(home, "lsdev")[1], re.M)
    assert re.search(r"^ok +saves +1 that can be opened", run(home, "doctor", "--quick")[1], re.M)


def test_what_is_seen_of_a_store_that_has_failed(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "root.key"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    with talking(tmp_path, keeps=True) as kernel:
        with kernel.connect() as task:
            eventually(lambda: task.store().state == "failed", "store")
            row = task.store()
        lines = run(tmp_path, "status")[1].splitlines()
        line = next(line for line in lines if line.startswith("store"))
        assert "has failed; " in line and "mode 0644" in line and "chmod 600" in line
        assert re.search(r"^disk .* failed +.*mode 0644", run(tmp_path, "lsdev")[1], re.M)
        code, out, _ = run(tmp_path, "doctor", "--quick")
        assert code == 1
        assert re.search(r"^fail +saves .*mode 0644.*\n +try +chmod 600", out, re.M)
        code, _, err = ctx(tmp_path, "saves")
        assert code == 74 and "mode 0644" in err and "chmod 600" in err
        said = StringIO()
        _tell_store(row, said)
        assert "nothing can be saved or loaded: " in said.getvalue()
        assert "  try   chmod 600" in said.getvalue()


def test_a_kernel_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    with talking(tmp_path):
        code, _, err = ctx(tmp_path, "saves")
        assert code == 1 and "ENOTSUP" in err and "--state-dir" in err
        assert "store    none: nothing is kept on disk\n" in run(tmp_path, "status")[1]
        assert json.loads(run(tmp_path, "status", "--json")[1])["data"]["store"] is None
        assert "disk " not in run(tmp_path, "lsdev")[1]
