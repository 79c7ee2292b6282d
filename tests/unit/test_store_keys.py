"""Keys: made once, in a place that only we can read, never made again where saves need others."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.store import backup
from drivers.store.backup import BackupError, restore_backup, write_backup
from drivers.store.base import FaultKind
from drivers.store.files import Files
from drivers.store.keyring import MAGIC, Keyring, WrongRoot, unpack
from drivers.store.keys import RootKey, find_root
from drivers.store.places import default_keys_dir
from drivers.store.seal import NotAuthentic, Seal, bind
from tests.helpers.store_client import (
    OWNER,
    Client,
    Refused,
    Window,
    client,
    content,
    files_below,
)

OTHER = OWNER + 1
CHEAP = (1 << 10, 8, 1)
"""Of scrypt, for tests."""


class Home:
    """A state directory and keys on a real disk."""

    def __init__(self, folder: Path, window: Window) -> None:
        self.state, self.keys = folder / "state", folder / "keys"
        self.window = window
        self.root, self.ring = self.keys / "root.key", self.keys / "keyring"

    def store(self, **how: str) -> Iterator[Client]:
        with client(Files(), self.window, **how) as made:
            yield made

    def open(self, *saves: str, credentials: str = "") -> tuple[str, ...]:
        """Open the store once, save what is named; return the notes."""
        with client(Files(), self.window, credentials=credentials) as store:
            notes = store.open(str(self.state), str(self.keys)).notes
            for name in saves:
                store.save(name, content(1))
            return notes

    def loads(self, name: str = "n", owner: int = OWNER, credentials: str = "") -> bool:
        with client(Files(), self.window, credentials=credentials) as store:
            store.open(str(self.state), str(self.keys))
            return store.load(name, owner).content == content(1)

    def refused(self, kind: FaultKind, *said: str, credentials: str = "") -> None:
        """Opening is refused, with a reason and something to do; nothing is changed by it."""
        before = files_below(self.state) | files_below(self.keys)
        with pytest.raises(Refused) as caught:
            self.open(credentials=credentials)
        fault = caught.value.fault
        assert caught.value.kind == kind and fault.hint
        for part in said:
            assert part in f"{fault.message}; {fault.hint}"
        assert files_below(self.state) | files_below(self.keys) == before


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    window = Window()
    yield Home(tmp_path, window)
    window.close()


# --- the root key ---------------------------------------------------------------------------------


def test_it_is_made_at_first_use_and_kept(home: Home) -> None:
    (note,) = home.open("n")
    assert str(home.root) in note and "llmos key backup" in note
    assert home.root.stat().st_mode & 0o777 == 0o600 and home.root.stat().st_size == 32
    assert home.keys.stat().st_mode & 0o777 == 0o700
    key = home.root.read_bytes()
    assert home.open() == () and home.loads()
    assert home.root.read_bytes() == key
    assert key not in b"".join(files_below(home.state).values()) + home.ring.read_bytes()


def test_a_lost_root_key_is_told_and_never_made_anew(home: Home) -> None:
    home.open("n")
    key = home.root.read_bytes()
    home.root.unlink()
    home.refused(FaultKind.KEY_LOST, str(home.root), "llmos key restore", str(home.state))
    home.ring.rename(home.keys / "elsewhere")
    home.refused(FaultKind.KEY_LOST, str(home.root))  # the saves alone are reason enough
    home.root.touch(0o600)
    home.root.write_bytes(key)
    home.refused(FaultKind.KEY_LOST, str(home.ring))
    (home.keys / "elsewhere").rename(home.ring)
    assert home.loads()


def test_a_keyring_alone_is_reason_enough(home: Home) -> None:
    home.open()
    home.root.unlink()
    home.refused(FaultKind.KEY_LOST, str(home.root))


def test_saves_moved_away_are_given_up(home: Home) -> None:
    """What the hint says works."""
    home.open("n")
    home.root.unlink()
    (home.state / "saves").rename(home.state / "old")
    home.ring.rename(home.keys / "old")
    (note,) = home.open("n")
    assert "made" in note and home.loads()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700, 0o666, 0o602])
def test_a_root_key_that_others_could_have(home: Home, mode: int) -> None:
    home.open("n")
    home.root.chmod(mode)
    home.refused(FaultKind.UNSAFE, f"{mode:04o}", "chmod 600")
    home.root.chmod(0o400)
    assert home.loads()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["root", "keys", "state"])
def test_what_belongs_to_somebody_else(home: Home, what: str) -> None:
    home.open("n")
    path: Path = getattr(home, what)
    os.chown(path, 12345, 12345)
    home.refused(FaultKind.UNSAFE, "12345", "chown")


def test_links_are_not_followed(home: Home, tmp_path: Path) -> None:
    home.open("n")
    real = tmp_path / "real"
    home.root.rename(real)
    home.root.symlink_to(real)
    home.refused(FaultKind.UNSAFE, str(home.root), "no plain file")
    home.root.unlink()
    os.mkfifo(home.root, 0o600)
    home.refused(FaultKind.UNSAFE, "no plain file")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_root_key_of_another_size(home: Home, size: int) -> None:
    home.open("n")
    home.root.write_bytes(bytes(size))
    home.refused(FaultKind.KEY_LOST, f"{size} bytes, a key has 32")


def test_another_root_key(home: Home) -> None:
    home.open("n")
    own = find_root(Files(), str(home.keys))
    home.root.write_bytes(bytes(32))
    other = find_root(Files(), str(home.keys))
    assert own and other
    home.refused(FaultKind.KEY_LOST, own.name, other.name)


def test_a_credential_wins(home: Home, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir(0o700)
    given = credentials / "llmos-root"
    given.touch(0o400)
    home.open(credentials=str(credentials / "none"))
    home.root.unlink()
    home.ring.unlink()
    given.write_bytes(b"k" * 32)
    assert home.open("n", credentials=str(credentials)) == ()
    assert not home.root.exists(), "nothing was made"
    given.chmod(0o440)
    assert home.loads(credentials=str(credentials)), "as systemd gives it with an ACL"
    home.refused(FaultKind.KEY_LOST)
    for mode in (0o444, 0o460, 0o420):
        given.chmod(mode)
        home.refused(FaultKind.UNSAFE, f"{mode:04o}", credentials=str(credentials))


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["keys", "state", "state/saves"])
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_folders_that_others_could_read(home: Home, what: str, mode: int) -> None:
    home.open("n")
    folder = home.state.parent / what
    folder.chmod(mode)
    home.refused(FaultKind.UNSAFE, str(folder), f"{mode:04o}", f"chmod 700 {folder}")


def test_folders_that_are_none(home: Home, tmp_path: Path) -> None:
    home.open("n")
    home.state.rename(tmp_path / "real")
    home.state.symlink_to(tmp_path / "real")
    with pytest.raises(Refused, match="no folder"):
        home.open()
    home.state.unlink()
    home.state.write_text("a file")
    with pytest.raises(Refused, match="no folder"):
        home.open()


def test_keys_may_not_lie_with_what_they_lock(home: Home) -> None:
    home.keys = home.state / "keys"
    with pytest.raises(Refused, match="would lie with what they lock") as caught:
        home.open()
    assert caught.value.kind == FaultKind.UNSAFE
    with pytest.raises(Refused, match="no whole path"):
        home.keys = home.state.parent / "keys" / ".." / "state" / "keys"
        home.open()
    with pytest.raises(Refused, match="no whole path"), client(Files(), home.window) as store:
        store.open("state", str(home.state.parent / "keys"))


def test_where_the_keys_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    assert default_keys_dir() == tmp_path / "keys"
    monkeypatch.delenv("LLMOS_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert default_keys_dir() == tmp_path / "config" / "llmos" / "keys"


# --- the keyring ----------------------------------------------------------------------------------


def test_each_owner_has_a_key_that_is_there_before_it_is_used(home: Home) -> None:
    with client(Files(), home.window) as store:
        store.open(str(home.state), str(home.keys))
        root = find_root(Files(), str(home.keys))
        assert root is not None
        _, owners = unpack(home.ring.read_bytes(), root)
        assert list(owners) == [OWNER], "whoever runs this has one from the start"
        before = home.ring.read_bytes()
        store.save("n", content(1), OTHER)
        _, owners = unpack(home.ring.read_bytes(), root)
        assert sorted(owners) == [OWNER, OTHER] and len(set(owners.values())) == 2
        store.save("m", content(1), OTHER)
    assert home.loads("n", OTHER)
    raw = home.ring.read_bytes()
    assert raw != before and all(key not in raw for key in owners.values())


@pytest.mark.parametrize("at", range(0, 190, 7))
def test_a_damaged_keyring_is_told(home: Home, at: int) -> None:
    home.open("n")
    raw = bytearray(home.ring.read_bytes())
    raw[at % len(raw)] ^= 4
    home.ring.write_bytes(raw)
    kind = FaultKind.UNSUPPORTED if at == 14 else FaultKind.KEY_LOST
    home.refused(kind, str(home.ring))


@pytest.mark.parametrize("length", [0, 10, 16, 24, 84, 100, -1])
def test_a_keyring_that_was_cut(home: Home, length: int) -> None:
    home.open("n")
    home.ring.write_bytes(home.ring.read_bytes()[:length])
    home.refused(FaultKind.KEY_LOST, "damaged")


def test_a_keyring_has_a_limit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.open("n")
    monkeypatch.setattr("drivers.store.keyring.MAX_BYTES", home.ring.stat().st_size + 10)
    with client(Files(), home.window) as store:
        store.open(str(home.state), str(home.keys))
        with pytest.raises(Refused, match="2 owners") as caught:
            store.save("n", content(1), OTHER)
        assert caught.value.kind == FaultKind.NO_SPACE
    assert home.loads()


def test_a_keyring_of_a_newer_version(home: Home) -> None:
    home.open("n")
    home.ring.write_bytes(home.ring.read_bytes().replace(MAGIC, b"llmos keyring 2\n"))
    home.refused(FaultKind.UNSUPPORTED, "newer version")


def test_who_is_forgotten_cannot_be_read_any_more(home: Home) -> None:
    home.open("n")
    with client(Files(), home.window) as store:
        store.open(str(home.state), str(home.keys))
        store.save("n", content(1), OTHER)
    root = find_root(Files(), str(home.keys))
    assert root is not None
    before = home.ring.read_bytes()
    Keyring.load(Files(), str(home.keys), root, str(home.state)).forget(OTHER)
    after = home.ring.read_bytes()
    keys = [Seal(root.key).open(raw[24:84], bind(MAGIC, root.name)) for raw in (before, after)]
    assert len({*keys, root.key}) == 3, "the keyring key is another one"
    assert home.loads("n", OWNER)
    with client(Files(), home.window) as store:
        assert store.open(str(home.state), str(home.keys)).num_damaged == 1
        with pytest.raises(Refused) as caught:
            store.load("n", OTHER)
        assert caught.value.kind == FaultKind.CORRUPT
        assert store.load("n", OWNER).content == content(1)


# --- backup ---------------------------------------------------------------------------------------


def test_a_backup_brings_everything_back(home: Home, tmp_path: Path) -> None:
    home.open("n")
    file = tmp_path / "backup"
    kept = write_backup(home.keys, file, lambda: "one two three", cost=CHEAP)
    assert (kept.num_owners, kept.keyring) == (1, "written")
    assert file.stat().st_mode & 0o777 == 0o600
    raw = file.read_bytes()
    assert home.root.read_bytes() not in raw and home.root.read_bytes().hex().encode() not in raw
    home.root.unlink()
    assert restore_backup(home.keys, file, lambda: "one two three").keyring == "kept"
    assert home.loads()
    for path in home.keys.iterdir():
        path.unlink()
    home.keys.rmdir()
    back = restore_backup(home.keys, file, lambda: "one two three")
    assert (back.keyring, back.name) == ("restored", kept.name)
    assert home.loads() and home.root.stat().st_mode & 0o777 == 0o600


def refuses(code: str, do: object, said: str = "") -> None:
    with pytest.raises(BackupError) as caught:
        assert callable(do)
        do()
    assert caught.value.code == code and said in caught.value.message, caught.value
    assert caught.value.hint or code in ("ENOENT", "EIO")


def never() -> str:
    raise AssertionError("asked for a passphrase for nothing")


def test_what_a_backup_refuses(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    refuses("ENOENT", lambda: write_backup(home.keys, file, never), "no root key")
    home.open("n")
    write_backup(home.keys, file, lambda: "secret", cost=CHEAP)
    refuses("EEXIST", lambda: write_backup(home.keys, file, never), "there already")
    before = file.read_bytes()
    write_backup(home.keys, file, lambda: "other", force=True, cost=CHEAP)
    assert file.read_bytes() != before
    refuses("EPERM", lambda: restore_backup(home.keys, file, lambda: "secret"), "passphrase")
    refuses("ENOENT", lambda: restore_backup(home.keys, tmp_path / "none", never))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refuses("EEXIST", lambda: write_backup(home.keys, tmp_path / "link", never))
    home.root.chmod(0o644)
    refuses("EPERM", lambda: write_backup(home.keys, tmp_path / "b", never), "0644")


def test_restoring_does_not_replace_other_keys(home: Home, tmp_path: Path) -> None:
    home.open("n")
    file = tmp_path / "backup"
    write_backup(home.keys, file, lambda: "s", cost=CHEAP)
    keys, ring = home.root.read_bytes(), home.ring.read_bytes()
    (home.state / "saves").rename(tmp_path / "old saves")
    home.root.unlink()
    home.ring.unlink()
    home.open("new")
    others = files_below(home.keys)
    refuses("EEXIST", lambda: restore_backup(home.keys, file, lambda: "s"), "does not belong")
    home.root.unlink()  # a keyring alone does not belong, either
    refuses("EEXIST", lambda: restore_backup(home.keys, file, lambda: "s"), "does not belong")
    home.root.touch(0o600)
    home.root.write_bytes(others["root.key"])
    assert files_below(home.keys) == others
    restore_backup(home.keys, file, lambda: "s", force=True)
    found = files_below(home.keys)
    assert (found["root.key"], found["keyring"]) == (keys, ring)
    assert found["root.key.replaced"] == others["root.key"]
    assert found["keyring.replaced"] == others["keyring"]
    refuses(
        "EEXIST",
        lambda: (
            home.root.write_bytes(bytes(32)),
            restore_backup(home.keys, file, lambda: "s", True),
        ),
        "replaced is there already",
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"format": "llmos.key-backup/2"}',
        b'{"format": "llmos.key-backup/1", "n": 1024, "r": 8, "p": 1, "salt": "00", "sealed": ""}',
    ],
    ids=lambda raw: repr(raw[:40]),
)  # fmt: skip
def test_what_is_no_backup(home: Home, tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "backup"
    file.write_bytes(raw)
    refuses("ECORRUPT", lambda: restore_backup(home.keys, file, never), "no backup")


@pytest.mark.parametrize(
    "numbers", [(1 << 30, 8, 1), (1000, 8, 1), (0, 8, 1), (1024, 99, 1), (1, 1, 1)]
)
def test_a_backup_that_asks_for_too_much(
    home: Home, tmp_path: Path, numbers: tuple[int, int, int]
) -> None:
    file = tmp_path / "backup"
    n, r, p = numbers
    file.write_text(
        f'{{"format": "{backup.FORMAT}", "n": {n}, "r": {r}, "p": {p}, '
        f'"salt": "{"00" * 16}", "sealed": ""}}'
    )
    refuses("ECORRUPT", lambda: restore_backup(home.keys, file, never), "no backup")


def test_every_byte_of_a_backup_counts(home: Home, tmp_path: Path) -> None:
    home.open()
    file = tmp_path / "backup"
    write_backup(home.keys, file, lambda: "s", cost=(2, 1, 1))
    raw = file.read_bytes()
    others = files_below(home.keys)
    for at in range(0, len(raw) - 2):
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            restore_backup(home.keys, file, lambda: "s")
        except BackupError as error:
            assert error.code in ("EPERM", "ECORRUPT")
        else:
            assert raw[at : at + 1].isspace() or raw[at - 1 : at + 1].isspace(), at
        assert files_below(home.keys) == others
    with pytest.raises((WrongRoot, NotAuthentic)):
        unpack(home.ring.read_bytes(), RootKey(bytes(32), ""))
