"""https:// sources, against a server that stops, lies, changes its mind and sends elsewhere."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.models import download
from drivers.models.errors import ModelError
from drivers.models.source import read_source
from drivers.models.store import ModelStore
from tests.helpers.gguf_writer import llama_file
from tests.helpers.web import Site, serving

DATA = llama_file() + random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PATH = "/some/Tiny-Model.Q8_0.gguf"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "LLMOS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    with serving() as site:
        site.files[PATH] = DATA
        yield site


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


class Puller:
    """Pulls, and keeps what it is told."""

    def __init__(self, models: ModelStore, url: str) -> None:
        self.models, self.url = models, url
        self.said: list[str] = []
        self.downloaded: list[int] = []

    def progress(self, phase: str, done: int, total: int | None) -> None:
        if phase == "download":
            self.downloaded.append(done)

    def pull(self, **options: Any) -> Path:
        model, _ = self.models.pull(self.url, self.progress, self.said.append, **options)
        assert model.weights.read_bytes() == DATA
        assert left(self.models) == []
        return model.weights

    def refused(self, code: str, *said: str, **options: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            self.models.pull(self.url, self.progress, self.said.append, **options)
        assert caught.value.code == code, caught.value
        for part in said:
            assert part in caught.value.message
        assert self.models.list() == []
        return caught.value


@pytest.fixture
def puller(site: Site, models: ModelStore) -> Puller:
    return Puller(models, site.url + PATH)


def left(models: ModelStore) -> list[str]:
    """Return what lies in the store beside models and locks."""
    return [path.name for path in models.root.glob(".*") if path.suffix != ".lock"]


def test_a_whole_file(site: Site, puller: Puller) -> None:
    weights = puller.pull(sha256=SHA256)
    assert weights.parent == puller.models.root / "tiny-model" / "q8_0"
    manifest = puller.models.find("tiny-model").manifest
    assert (manifest.sha256, manifest.source) == (SHA256, puller.url)
    assert puller.downloaded[-1] == len(DATA) and puller.said == []
    assert puller.models.pull(puller.url, puller.progress)[1] is False, "it is there already"
    assert site.gets(PATH) == [""]


def test_another_sum_than_was_asked_for(puller: Puller) -> None:
    puller.refused("ECORRUPT", "pinned is 000000", sha256="0" * 64)
    assert left(puller.models) == [], "a whole file that is wrong is of no use"


def test_it_goes_on_where_it_was_cut(site: Site, puller: Puller) -> None:
    site.cut(1000, 100_000 - 1000, 0)
    puller.pull()
    assert site.gets(PATH) == ["", "bytes=1000-", "bytes=100000-", "bytes=100000-"]
    assert puller.downloaded == sorted(puller.downloaded)
    assert len(puller.said) == 3 and all("retrying" in line for line in puller.said)


def test_it_gives_up_and_the_next_pull_goes_on(site: Site, puller: Puller) -> None:
    site.cut(5000, *[0] * download.MAX_TRIES)
    error = puller.refused("EIO", "5 times in a row")
    assert "0.0 MB are kept" in error.hint
    assert left(puller.models) == [".part-tiny-model:q8_0"]
    assert puller.models.leftovers()[0][1] > 5000
    site._cuts.clear()
    puller.pull()
    assert site.gets(PATH)[-1] == "bytes=5000-"


def test_a_stall_is_said_and_tried_again(
    site: Site, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_S", 0.2)
    site.hold(7000)
    puller.pull()
    assert puller.said == ["stalled for 0.2 s, retrying"]
    assert site.gets(PATH) == ["", "bytes=7000-"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(site: Site, puller: Puller, status: int) -> None:
    site.statuses = [(status, {"Retry-After": "0"})] * 3
    puller.pull()
    assert len(site.gets(PATH)) == 4 and f"answers {status}" in puller.said[0]


@pytest.mark.parametrize(("status", "code"), [(404, "ENOENT"), (403, "EPERM"), (400, "EIO")])
def test_an_answer_that_is_final(site: Site, puller: Puller, status: int, code: str) -> None:
    site.statuses = [(status, {})]
    puller.refused(code, f"answers {status}")
    assert len(site.gets(PATH)) == 1


# --- a file that is another when it goes on -------------------------------------------------------


def interrupted(site: Site, puller: Puller, size: int = 5000) -> None:
    """Leave a part of so many bytes."""
    site.cut(size, *[0] * download.MAX_TRIES)
    puller.refused("EIO")
    site._cuts.clear()
    puller.said.clear()
    site.asked.clear()


def test_a_file_that_has_changed_is_begun_anew(site: Site, puller: Puller) -> None:
    site.files[PATH] = bytes(len(DATA) + 7)
    interrupted(site, puller)
    site.files[PATH] = DATA
    puller.pull()
    assert site.gets(PATH) == ["bytes=5000-"], "one request: the server sends all of it"
    assert len(puller.said) == 1
    assert "has changed" in puller.said[0] and "starting over" in puller.said[0]


def test_a_server_without_ranges(site: Site, puller: Puller) -> None:
    interrupted(site, puller)
    site.ranges = False
    puller.pull()
    assert "cannot send the rest alone: starting over" in puller.said[0]


def test_without_a_validator_nothing_is_continued(site: Site, puller: Puller) -> None:
    """A weak etag says that two files mean the same, not that their bytes do."""
    site.etags[PATH] = 'W/"1"'
    interrupted(site, puller)
    puller.pull()
    assert site.gets(PATH) == [""]


def test_a_file_that_is_shorter_now(site: Site, puller: Puller) -> None:
    site.etags[PATH] = '"same"'
    site.files[PATH] = bytes(2 * len(DATA))
    interrupted(site, puller, len(DATA) + 100)
    site.files[PATH] = DATA
    puller.pull()
    assert "starting over" in puller.said[0]


@pytest.mark.parametrize(
    "said", ["bytes 4999-{last}/{total}", "bytes 5000-{last}/*", "nonsense", ""]
)
def test_a_rest_that_is_not_what_was_asked(site: Site, puller: Puller, said: str) -> None:
    interrupted(site, puller)
    total = len(DATA)
    site.extra[PATH] = {"Content-Range": said.format(last=total - 1, total=total)}
    puller.refused("EIO", "where bytes 5000 to")
    site.extra.clear()
    puller.pull()
    assert site.gets(PATH)[-1] == "", "nothing was kept of it"


def test_a_rest_that_is_longer_than_it_says(site: Site, puller: Puller) -> None:
    site.etags[PATH] = '"same"'
    interrupted(site, puller)
    site.files[PATH] = DATA + b"more"
    site.extra[PATH] = {"Content-Range": f"bytes 5000-{len(DATA) - 1}/{len(DATA)}"}
    puller.refused("EIO", f"more than the {len(DATA)} bytes")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"url": 1, "total": 9}', "[" * 50_000, "{}"])
def test_a_part_whose_origin_is_damaged(site: Site, puller: Puller, damage: str) -> None:
    interrupted(site, puller)
    (puller.models.root / ".part-tiny-model:q8_0" / "origin.json").write_text(damage)
    puller.pull()
    assert site.gets(PATH) == [""]


def test_a_part_of_another_address(site: Site, puller: Puller) -> None:
    interrupted(site, puller)
    site.files["/other" + PATH] = DATA
    puller.url = f"{site.url}/other{PATH}"
    puller.pull()
    assert site.gets("/other" + PATH) == [""]


def test_a_part_with_more_than_the_file_has(site: Site, puller: Puller) -> None:
    interrupted(site, puller)
    part = puller.models.root / ".part-tiny-model:q8_0"
    with (part / "file").open("ab") as file:
        file.write(bytes(len(DATA)))
    assert json.loads((part / "origin.json").read_bytes())["total"] == len(DATA)
    puller.pull()
    assert site.gets(PATH) == [""]


# --- what is refused ------------------------------------------------------------------------------


def test_a_server_that_does_not_say_how_much(site: Site, puller: Puller) -> None:
    site.extra[PATH] = {"Content-Length": ""}
    puller.refused("ENOTSUP", "how long the file is")


def test_a_file_that_is_packed_on_the_way(site: Site, puller: Puller) -> None:
    site.extra[PATH] = {"Content-Encoding": "gzip"}
    puller.refused("ENOTSUP", "encoding")


def test_a_disk_that_has_no_room(
    site: Site, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    puller.refused("ENOSPC", "has 1 MiB free")
    assert left(puller.models) == []


def test_a_file_that_is_no_model(site: Site, puller: Puller) -> None:
    site.files[PATH] = b"<html>" + bytes(1000)
    puller.refused("ECORRUPT", "does not begin with GGUF")
    assert left(puller.models) == []


def test_a_server_that_is_not_there(models: ModelStore) -> None:
    with serving() as gone:
        url = gone.url + PATH
    error = Puller(models, url).refused("ENETUNREACH", "cannot be reached from here")
    assert "file:///" in error.hint


def test_offline(site: Site, puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_OFFLINE", "1")
    puller.refused("ENETUNREACH", "LLMOS_OFFLINE is set")
    assert site.asked == []


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://example.org/x.gguf", "EINVAL", "proves nothing"),
        ("https://user:secret@example.org/x.gguf", "EINVAL", "password"),
        ("https:///x.gguf", "EINVAL", "no host"),
        ("https://example.org/x.bin", "ENOTSUP", "pickle"),
        ("https://example.org/x", "EINVAL", ".gguf"),
        ("ftp://example.org/x.gguf", "EINVAL", "no source"),
    ],
)
def test_addresses_that_are_refused(url: str, code: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        read_source(url)
    assert caught.value.code == code and caught.value.hint
    assert "secret" not in caught.value.message


def test_plain_http_with_a_sum() -> None:
    assert read_source("http://example.org/x.gguf", "0" * 64).sha256 == "0" * 64


# --- redirects ------------------------------------------------------------------------------------


def test_a_redirect_on_the_same_host(site: Site, puller: Puller) -> None:
    site.statuses = [(302, {"Location": "/elsewhere.gguf"})]
    site.files["/elsewhere.gguf"] = DATA
    puller.pull()
    assert site.gets("/elsewhere.gguf") == [""]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("https://10.0.0.1/x.gguf", "no public address"),
        ("https://[::1]/x.gguf", "no public address"),
        ("https://169.254.169.254/latest/meta-data", "no public address"),
        ("https://localhost/x.gguf", "no public address"),
        ("https://[::ffff:10.0.0.1]/x.gguf", "no public address"),
        ("https://2130706433/x.gguf", "no public address"),
        ("file:///etc/passwd", "not https"),
        ("ftp://127.0.0.1/x.gguf", "not https"),
    ],
)
def test_redirects_that_are_not_followed(
    site: Site, puller: Puller, target: str, said: str
) -> None:
    site.statuses = [(302, {"Location": target})]
    puller.refused("EPERM", said)
    assert len(site.asked) == 1


def test_https_does_not_lead_to_http(puller: Puller) -> None:
    with pytest.raises(ModelError, match="not https"):
        download._Download("https://example.org/x.gguf", None, None)._redirect(  # type: ignore[arg-type]
            "https://example.org/x.gguf", "http://example.org/x.gguf"
        )


def test_redirects_without_end(site: Site, puller: Puller) -> None:
    site.statuses = [(307, {"Location": PATH})] * 99
    puller.refused("EIO", "more than 5 times")
    assert len(site.asked) == 6
