"""llmos key: the passphrase from a file or a terminal, what is said, and how it fails."""

import os
import sys
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pexpect
import pytest

from drivers.store import backup
from drivers.store.files import Files
from drivers.store.keyring import Keyring
from drivers.store.keys import make_root
from tests.helpers.shell import environment
from userland import cli
from userland.desk import Desk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an LLMOS_HOME with keys, and a passphrase in a file."""
    monkeypatch.setattr(backup, "COST", (1 << 10, 8, 1))
    monkeypatch.setattr(backup.write_backup, "__defaults__", (False, (1 << 10, 8, 1)))
    keys = tmp_path / "keys"
    keys.mkdir(0o700)
    root = make_root(Files(), str(keys))
    Keyring.make(Files(), str(keys), root)
    (tmp_path / "passphrase").write_text("one two three\nnot this\n")
    return tmp_path


def llmos(home: Path, *words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home), clear=True):
        code = cli.run(Desk(out, err), ["key", *words])
    return code, out.getvalue(), err.getvalue()


def test_there_and_back(home: Path) -> None:
    words = str(home / "b"), "--passphrase-file", str(home / "passphrase")
    code, out, err = llmos(home, "backup", *words)
    assert (code, out) == (0, "") and "keys of one owner" in err and str(home / "b") in err
    key = (home / "keys" / "root.key").read_bytes()
    (home / "keys" / "root.key").unlink()
    code, out, err = llmos(home, "restore", *words)
    assert (code, out) == (0, "") and "the keyring there is kept" in err
    assert (home / "keys" / "root.key").read_bytes() == key
    for path in (home / "keys").iterdir():
        path.unlink()
    assert "with it keys of one owner" in llmos(home, "restore", *words)[2]


def test_what_it_refuses(home: Path) -> None:
    words = str(home / "b"), "--passphrase-file", str(home / "passphrase")
    assert llmos(home, "restore", *words)[0] == 3
    assert llmos(home, "backup", *words)[0] == 0
    code, _, err = llmos(home, "backup", *words)
    assert code == 1 and "there already (EEXIST)" in err and "--force" in err
    assert llmos(home, "backup", *words, "--force")[0] == 0
    (home / "passphrase").write_text("another one")
    code, _, err = llmos(home, "restore", *words)
    assert code == 77 and "does not open" in err
    (home / "passphrase").write_text("\nsecond line")
    assert llmos(home, "restore", *words)[0] == 2
    code, _, err = llmos(home, "restore", str(home / "b"), "--passphrase-file", "/none")
    assert code == 3 and "No such file" in err
    code, _, err = llmos(home, "backup", *words, "--force", "--keys-dir", str(home / "none"))
    assert code == 3 and "there is no root key" in err
    for name in ("b", "keys/root.key"):
        assert (home / name).stat().st_mode & 0o777 == 0o600


def test_without_a_terminal_it_does_not_ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("piped\n"))
    code, _, err = llmos(home, "backup", str(home / "b"))
    assert code == 2 and "no terminal" in err and "--passphrase-file" in err
    assert not (home / "b").exists()


def test_a_terminal_is_asked_twice_and_shows_nothing(home: Path) -> None:
    command = [sys.executable, "-m", "userland.cli", "key", "backup", str(home / "b")]
    path = os.environ.get("PYTHONPATH", "")
    child = pexpect.spawn(
        command[0], command[1:], cwd=ROOT, env=environment(home) | {"PYTHONPATH": path},
        timeout=60, encoding="utf-8",
    )  # fmt: skip
    said = StringIO()
    child.logfile_read = said
    for answers in (("one", "two"), ("one two three", "one two three")):
        for prompt, answer in zip(("Passphrase", "Once more"), answers, strict=True):
            child.expect(prompt)
            child.waitnoecho()
            child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and "one two three" not in said.getvalue()
    words = str(home / "b"), "--passphrase-file", str(home / "passphrase")
    assert llmos(home, "restore", *words)[0] == 0


def test_it_is_light_until_it_works() -> None:
    code = (
        "import sys, userland.bin.key, drivers.store.backup, drivers.store.places;"
        "sys.exit(bool({'cryptography', 'torch'} & set(sys.modules)))"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
