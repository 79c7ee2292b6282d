"""hf:// sources: the hub's own client against a server that speaks what it needs; and folders."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from drivers.models.errors import ModelError
from drivers.models.hub import hub_source
from drivers.models.source import read_source
from drivers.models.store import InstalledModel, ModelStore
from drivers.models.weights import open_source
from tests.helpers import checkpoints
from tests.helpers.gguf_writer import llama_file
from tests.helpers.web import COMMIT, Site, serving

DATA = llama_file()
REPO = "org/Tiny-Model"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A hub, and a cache that is empty. The client has read its variables when it was imported."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "LLMOS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving() as site:
        point_at(site.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield site


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client ask there."""
    form = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + form)


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def quiet(phase: str, done: int, total: int | None) -> None:
    """Progress that nobody reads."""


def pull(models: ModelStore, what: str, **options: Any) -> InstalledModel:
    model, fetched = models.pull(what, quiet, **options)
    assert fetched and list(models.root.glob(".p*")) == []
    return model


def refused(models: ModelStore, what: str, code: str, *said: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        models.pull(what, quiet)
    assert caught.value.code == code and caught.value.hint, caught.value
    for part in said:
        assert part in caught.value.message
    assert models.list() == []
    return caught.value


def folder(tmp_path: Path, case: str = "llama") -> dict[str, bytes]:
    """Return the files of a checkpoint, with some that nobody should fetch."""
    path = checkpoints.write(tmp_path / "hub", case)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    others = "pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "onnx/model.onnx"
    return files | dict.fromkeys(others, b"no")


def fetched(site: Site) -> set[str]:
    """Return the files whose bytes were asked for."""
    found = (re.search(r"/resolve/[^/]+/(.*)", asked.path) for asked in site.asked)
    return {match[1] for match in found if match}


# --- what is fetched ------------------------------------------------------------------------------


def test_a_checkpoint(site: Site, models: ModelStore, tmp_path: Path) -> None:
    files = folder(tmp_path)
    site.add_repository(REPO, files, "apache-2.0")
    seen: list[tuple[int, int | None]] = []
    model, _ = models.pull(
        f"hf://{REPO}", lambda phase, *step: seen.append(step) if phase == "download" else None
    )
    assert fetched(site) == {"config.json", "model.safetensors"}, "no pickle, no code"
    assert model.full_name == "tiny-model:latest" and model.in_place
    assert model.manifest.licence == "apache-2.0" and model.manifest.revision == COMMIT
    assert Path(model.manifest.place).is_relative_to(tmp_path / "cache")
    size = len(files["config.json"]) + len(files["model.safetensors"])
    assert seen[-1] == (size, size) and seen == sorted(seen)
    models.verify(model, quiet)
    source = open_source(str(model.folder))
    assert source.config.num_layers == 2
    source.close()


def test_shards(site: Site, models: ModelStore, tmp_path: Path) -> None:
    case = next(name for name, case in checkpoints.CASES.items() if case.shards > 1)
    site.add_repository(REPO, folder(tmp_path, case))
    model = pull(models, f"hf://{REPO}")
    assert len(model.manifest.files) > 3 and model.manifest.bytes == sum(
        file.bytes for file in model.manifest.files
    )


def test_one_file_of_several(site: Site, models: ModelStore) -> None:
    names = ["Tiny-Q4_K_M.gguf", "Tiny-Q8_0.gguf", "sub/Tiny-F16.gguf"]
    site.add_repository(f"{REPO}-GGUF", {name: DATA for name in names} | {"x.bin": b"no"})
    error = refused(models, f"hf://{REPO}-GGUF", "EINVAL", *names)
    assert "QUANT" in error.hint
    refused(models, f"hf://{REPO}-GGUF:Q5_0", "ENOENT", "Q5_0 not", *names)
    model = pull(models, f"hf://{REPO}-GGUF:q4_k_m")
    assert model.full_name == "tiny-model:q4_k_m" and fetched(site) == {names[0]}
    model = pull(models, f"hf://{REPO}-GGUF/sub/Tiny-F16.gguf")
    assert model.full_name == "tiny:f16" and model.weights.read_bytes() == DATA


def test_bytes_that_are_not_the_hubs_own(site: Site, models: ModelStore) -> None:
    site.add_repository(REPO, {"tiny.gguf": DATA})
    path = f"/{REPO}/resolve/main/tiny.gguf"
    site.files[path] = DATA[:-1] + b"x"
    refused(models, f"hf://{REPO}", "ECORRUPT", "by its source is")


def test_a_repository_that_changes_on_the_way(
    site: Site, models: ModelStore, tmp_path: Path
) -> None:
    """Files of two commits make no model."""
    site.add_repository(REPO, folder(tmp_path))
    site.extra[f"/{REPO}/resolve/main/model.safetensors"] = {"X-Repo-Commit": "d" * 40}
    refused(models, f"hf://{REPO}", "EBUSY", "has changed while it was being fetched")


def test_pickles_are_not_fetched(site: Site, models: ModelStore) -> None:
    site.add_repository(REPO, {"config.json": b"{}", "pytorch_model.bin": DATA})
    refused(models, f"hf://{REPO}", "ENOTSUP", "pickle")
    refused(models, f"hf://{REPO}/pytorch_model.bin", "ENOTSUP", "pickle")
    assert fetched(site) == set()


def test_what_is_in_the_cache_is_not_fetched_again(site: Site, models: ModelStore) -> None:
    site.add_repository(REPO, {"tiny.gguf": DATA})
    model = pull(models, f"hf://{REPO}")
    models.remove(model.folder)
    site.asked.clear()
    pull(models, f"hf://{REPO}")
    assert {asked.method for asked in site.asked if "/resolve/" in asked.path} == {"HEAD"}


def test_removing_leaves_the_cache(site: Site, models: ModelStore, tmp_path: Path) -> None:
    site.add_repository(REPO, {"tiny.gguf": DATA})
    model = pull(models, f"hf://{REPO}")
    models.remove(model.folder)
    assert Path(model.manifest.place).read_bytes() == DATA


def test_a_copy_outlives_the_cache(site: Site, models: ModelStore, tmp_path: Path) -> None:
    site.add_repository(REPO, folder(tmp_path))
    model = pull(models, f"hf://{REPO}", copy=True)
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        if not path.is_dir():
            path.unlink()
    assert models.find("tiny-model") == model
    assert {path.name for path in model.weights.iterdir()} == {"config.json", "model.safetensors"}
    open_source(str(model.folder)).close()


# --- a hub that is not there, or says no ----------------------------------------------------------


def test_a_hub_that_cannot_be_reached(
    models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as gone:
        point_at(gone.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    error = refused(models, f"hf://{REPO}", "ENETUNREACH", "cannot be reached from here")
    assert "llmos pull smollm2" in error.hint


@pytest.mark.parametrize("how", ["LLMOS_OFFLINE", "HF_HUB_OFFLINE", "gone"])
def test_the_cache_is_enough(
    site: Site, models: ModelStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site.add_repository(REPO, {"tiny.gguf": DATA})
    first = pull(models, f"hf://{REPO}/tiny.gguf@main")
    models.remove(first.folder)
    site.asked.clear()
    if how == "LLMOS_OFFLINE":
        monkeypatch.setenv(how, "1")
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, how, True)
    else:
        point_at("http://127.0.0.1:9", monkeypatch)
    said: list[str] = []
    model, _ = models.pull(f"hf://{REPO}/tiny.gguf@main", quiet, said.append)
    assert model.manifest.sha256 == first.manifest.sha256
    assert site.asked == []
    assert how == "LLMOS_OFFLINE" or "the cache has" in said[-1]


def test_offline_and_not_in_the_cache(
    site: Site, models: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add_repository(REPO, {"tiny.gguf": DATA})
    monkeypatch.setenv("LLMOS_OFFLINE", "1")
    refused(models, f"hf://{REPO}", "ENETUNREACH", "not in the hub's cache")
    assert site.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code", "said"),
    [
        ("RepoNotFound", 401, "ENOENT", "no such model"),
        ("GatedRepo", 403, "EPERM", "accept terms"),
        ("RevisionNotFound", 404, "ENOENT", "no revision"),
        ("", 500, "EIO", "answers 500"),
    ],
)
def test_a_hub_that_says_no(
    site: Site, models: ModelStore, error: str, status: int, code: str, said: str
) -> None:
    site.statuses = [(status, {"X-Error-Code": error})] * 9
    refused(models, f"hf://{REPO}", code, said)


@pytest.mark.parametrize(
    ("text", "repo", "quant", "file", "revision"),
    [
        ("hf://a/b", "a/b", "", "", ""),
        ("hf.co/a/b:Q4_K_M", "a/b", "Q4_K_M", "", ""),
        ("hf://a/b/c/d.gguf@v1.0", "a/b", "", "c/d.gguf", "v1.0"),
        ("https://huggingface.co/a/b@refs/pr/1", "a/b", "", "", "refs/pr/1"),
    ],
)
def test_addresses(text: str, repo: str, quant: str, file: str, revision: str) -> None:
    source = hub_source(text)
    assert (source.repo, source.quant, source.file, source.revision) == (
        repo, quant, file, revision,
    )  # fmt: skip
    assert hub_source(source.text) == source == read_source(text)


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://", "hf://a/b/../../c.gguf", "hf://-a/b", "hf://a/b@", "hf://a/b c"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        hub_source(text)
    assert caught.value.code == "EINVAL" and caught.value.hint


# --- folders of this machine ----------------------------------------------------------------------


def test_a_folder_in_place(models: ModelStore, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "Some-Checkpoint", "llama")
    model = pull(models, str(path))
    assert model.full_name == "some-checkpoint:latest"
    assert model.weights.is_symlink() and model.weights.samefile(path)
    own = json.loads((model.folder / "config.json").read_text())
    assert own["num_layers"] == 2, "ours, not that of the folder"
    assert model.manifest.quant == "BF16" and model.manifest.params > 10_000
    models.verify(model, quiet)
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match=r"model\.safetensors.* it had"):
        models.find("some-checkpoint")
    with pytest.raises(ModelError, match="it had"):
        open_source(str(model.folder))


def test_a_folder_with_one_file_changed(models: ModelStore, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "x", "llama")
    model = pull(models, str(path))
    (path / "config.json").write_text((path / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match=r"config\.json of x:latest"):
        models.verify(model, quiet)


def test_a_folder_has_no_one_sum(models: ModelStore, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "x", "llama")
    with pytest.raises(ModelError, match="which one sha256 says nothing of"):
        models.pull(str(path), quiet, sha256="0" * 64)
