"""file:// sources: models used where they lie, and what becomes of them when their files change."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.models import place
from drivers.models.errors import ModelError
from drivers.models.manifest import check_unchanged
from drivers.models.source import read_source
from drivers.models.store import InstalledModel, ModelStore
from drivers.models.weights import open_source
from tests.helpers import tiny_model
from tests.helpers.gguf_writer import llama_file

DATA = llama_file()
NAMES = ["chat_template.jinja", "config.json", "manifest.json", "tokenizer.json"]


def quiet(phase: str, done: int, total: int | None) -> None:
    """Progress that nobody reads."""


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home" / "models")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "Some Model.Q4_1.gguf"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def install(models: ModelStore, path: Path | str, **options: object) -> InstalledModel:
    model, fetched = models.pull(str(path), quiet, **options)  # type: ignore[arg-type]
    assert fetched and list(models.root.glob(".pull-*")) == []
    return model


def refused(call: Callable[[], object], code: str, *said: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call()
    assert caught.value.code == code and caught.value.hint, caught.value
    for part in said:
        assert part in caught.value.message
    return caught.value


def test_a_file_is_used_in_place(models: ModelStore, file: Path) -> None:
    model = install(models, file)
    assert model.full_name == "some-model:q4_1" and model.in_place
    assert sorted(path.name for path in model.folder.iterdir()) == sorted(
        [*NAMES, "some-model-q4_1.gguf"]
    )
    assert model.weights.is_symlink() and model.weights.samefile(file)
    (row,) = model.manifest.files
    stat = file.stat()
    assert (row.path, row.bytes, row.mtime_ns) == (str(file), stat.st_size, stat.st_mtime_ns)
    assert model.manifest.source == file.as_uri() and model.manifest.place == str(file)
    models.verify(model, quiet)
    assert models.pull(str(file), quiet) == (model, False)
    assert models.pull(file.as_uri(), quiet) == (model, False)


@pytest.mark.parametrize("there", ["relative", "home", "uri", "folder"])
def test_ways_to_say_where(
    models: ModelStore, file: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    text = {
        "relative": file.name, "home": f"~/{file.name}", "uri": file.as_uri(), "folder": ".",
    }[there]  # fmt: skip
    assert install(models, text).manifest.place == str(file)


def test_another_name(models: ModelStore, file: Path) -> None:
    assert install(models, file, name="mine").full_name == "mine:q4_1"
    assert install(models, file, name="mine:two").full_name == "mine:two"
    refused(lambda: models.find("mine"), "EINVAL", "mine:q4_1, mine:two")
    assert models.find("mine:two").in_place
    for name in ("../x", ".x", "a/b", "x:../y", "-x", "x" * 65):
        refused(lambda name=name: models.pull(str(file), quiet, name=name), "EINVAL", "name")


def test_options_that_a_name_alone_cannot_have(models: ModelStore, file: Path) -> None:
    install(models, file, name="mine")
    assert models.pull("mine", quiet) == (models.find("mine"), False)
    error = refused(lambda: models.pull("mine", quiet, name="other"), "EINVAL", "already")
    assert file.as_uri() in error.hint


def test_a_pull_that_waits_says_so(models: ModelStore, file: Path) -> None:
    models.root.mkdir(parents=True)
    said: list[str] = []
    with (models.root / ".some-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            said.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        models.pull(str(file), quiet, say)
    assert said == ["waiting for another pull of some-model to end"]


def test_a_name_that_is_taken(models: ModelStore, file: Path) -> None:
    install(models, file, name="mine:1")
    other = file.with_name("other.gguf")
    other.write_bytes(DATA)
    error = refused(lambda: models.pull(str(other), quiet, name="mine:1"), "EEXIST", file.as_uri())
    assert "llmos models rm mine:1" in error.hint


# --- files that change ----------------------------------------------------------------------------


def written_to(file: Path) -> None:
    stat = file.stat()
    file.write_bytes(DATA[:-1] + b"x")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def longer(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"x")


CHANGES = {
    "written to": (written_to, "ECORRUPT", "was written to"),
    "longer": (longer, "ECORRUPT", f"has {len(DATA) + 1} bytes, it had {len(DATA)}"),
    "gone": (Path.unlink, "ENOENT", "is not there"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_no_model(models: ModelStore, file: Path, change: str) -> None:
    """Wherever it is looked up: by name, when it is verified, when a driver loads it."""
    model = install(models, file)
    do, code, said = CHANGES[change]
    do(file)
    for call in (
        lambda: models.find("some-model"),
        lambda: models.verify(model, quiet),
        lambda: check_unchanged(model.folder),
        lambda: open_source(str(model.folder)),
    ):
        error = refused(call, code, said, str(file))
        assert file.as_uri() in error.hint and "models rm some-model:q4_1" in error.hint
    assert models.list() == [model], "it is listed, for somebody to remove"


def test_bytes_that_change_and_no_time_that_does(models: ModelStore, file: Path) -> None:
    model = install(models, file)
    stat = file.stat()
    file.write_bytes(DATA[:-1] + b"x")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert models.find("some-model") == model
    refused(lambda: models.verify(model, quiet), "ECORRUPT", "its manifest says")


def test_pulling_a_changed_file_reads_it_anew(models: ModelStore, file: Path) -> None:
    before = install(models, file)
    longer(file)
    said: list[str] = []
    after, fetched = models.pull(str(file), quiet, said.append)
    assert fetched and "is read anew" in said[0]
    assert after.manifest.bytes == before.manifest.bytes + 1
    assert models.find("some-model") == after


def test_a_file_that_changes_while_it_is_read(models: ModelStore, file: Path) -> None:
    def change(phase: str, done: int, total: int | None) -> None:
        os.utime(file, ns=(1, 1))

    refused(lambda: models.pull(str(file), change), "ECORRUPT", "written to")
    assert models.list() == [] and list(models.root.glob(".pull-*")) == []


# --- copies, and removal --------------------------------------------------------------------------


def test_a_copy_is_a_hard_link_where_it_can_be(models: ModelStore, file: Path) -> None:
    model = install(models, file, copy=True)
    assert not model.in_place and not model.weights.is_symlink()
    assert model.weights.stat().st_ino == file.stat().st_ino
    file.unlink()
    assert models.find("some-model") == model, "it outlives the place"


def test_a_hard_link_is_written_to_by_others(models: ModelStore, file: Path) -> None:
    install(models, file, copy=True)
    written_to(file)
    refused(lambda: models.find("some-model"), "ECORRUPT", "was written to")


def test_a_copy_on_another_file_system(
    models: ModelStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(place.Path, "hardlink_to", refuse)
    model = install(models, file, copy=True)
    assert model.weights.stat().st_ino != file.stat().st_ino
    written_to(file)
    assert models.find("some-model") == model and model.weights.read_bytes() == DATA


def test_from_in_place_to_a_copy(models: ModelStore, file: Path) -> None:
    install(models, file)
    model = install(models, file, copy=True)
    assert not model.in_place and models.list() == [model]


def test_removing_leaves_the_file(models: ModelStore, file: Path) -> None:
    model = install(models, file)
    freed = models.remove(model.folder)
    assert 0 < freed < len(DATA) + 5000 and file.read_bytes() == DATA
    assert models.list() == []
    assert [path.name for path in models.root.iterdir()] == [".some-model.lock"]


def test_removing_a_copy_frees_what_only_it_has(models: ModelStore, file: Path) -> None:
    model = install(models, file, copy=True)
    linked = models.remove(model.folder)
    model = install(models, file, copy=True)
    file.unlink()
    assert models.remove(model.folder) == linked + len(DATA)


# --- what is refused ------------------------------------------------------------------------------


def test_paths_that_are_no_models(models: ModelStore, file: Path) -> None:
    folder = file.parent
    (folder / "model.bin").write_bytes(DATA)
    (folder / "model.safetensors").write_bytes(DATA)
    (folder / "empty").mkdir()
    (folder / "several").mkdir()
    for name in "ab":
        (folder / "several" / f"{name}.gguf").write_bytes(DATA)
    for path, code, said in (
        (folder / "gone.gguf", "ENOENT", "there is no file"),
        (folder / "model.bin", "ENOTSUP", "pickle"),
        (folder / "model.safetensors", "ENOTSUP", "neither a .gguf file nor a folder"),
        (folder / "empty", "ENOENT", "no config.json"),
        (folder / "several", "EINVAL", "2 GGUF files: a.gguf, b.gguf"),
    ):
        refused(lambda path=path: models.pull(str(path), quiet), code, said)
    assert models.list() == [] and list(models.root.glob(".pull-*")) == []


@pytest.mark.parametrize("uri", ["file://host/x.gguf", "file://"])
def test_uris_that_are_no_files_of_this_machine(uri: str) -> None:
    with pytest.raises(ModelError, match="no file of this machine"):
        read_source(uri)


def test_a_sum_that_the_file_has_not(models: ModelStore, file: Path) -> None:
    refused(
        lambda: models.pull(str(file), quiet, sha256="0" * 64), "ECORRUPT", "pinned is 00000000"
    )
    assert models.list() == []


def test_offline_is_for_the_network(
    models: ModelStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_OFFLINE", "1")
    assert install(models, file).in_place


def test_what_is_damaged_is_not_installed(models: ModelStore, file: Path) -> None:
    """A cut at each of many places: no model, and the same reason as from the file itself."""
    for size in range(0, len(DATA), len(DATA) // 20):
        file.write_bytes(DATA[:size])
        refused(lambda: models.pull(str(file), quiet), "ECORRUPT")
    assert models.list() == [] and list(models.root.glob(".pull-*")) == []


# --- what a driver makes of it --------------------------------------------------------------------


def test_a_driver_finds_the_file(models: ModelStore, tmp_path: Path) -> None:
    """The path of the installed folder is all that it gets."""
    folder = tmp_path / "weights"
    folder.mkdir()
    path = tiny_model.write(folder / "tiny.gguf")
    link = models.root / "tiny" / "1"
    link.mkdir(parents=True)
    (link / "tiny-1.gguf").symlink_to(path)
    source = open_source(str(link))
    assert source.config.num_layers == tiny_model.LAYERS
    source.close()
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="is no GGUF file"):
        open_source(str(link))
