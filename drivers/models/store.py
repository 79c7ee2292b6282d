"""The model store: installed models under readable names, and how they get there. Torch-free.

    ROOT/smollm2/135m-q4_1/     what an installed model has, see `manifest`
         .pull-smollm2/         what a pull works in; gone when it ends
         .part-name:tag/        what a download has so far, see `part`
         .smollm2.lock

A model is installed by renaming a folder that is complete, checked and synced, so a name is either
absent or sound. A pull that is interrupted leaves nothing that is found; one that was killed leaves
a folder that the next pull removes, and a download its part, with which the next pull goes on. Two
pulls at once do not meet (a lock per name). What lies beside the model is made from it, and pulling
a model again makes it as this version of llmos does. Drawing progress is not done here; light to
import, what a pull takes is loaded when it is.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from stat import S_ISREG

from drivers.models.errors import ModelError as ModelError  # the store's face, like the next
from drivers.models.errors import short
from drivers.models.job import NAME, Job, Say, Source
from drivers.models.job import Progress as Progress
from drivers.models.manifest import MANIFEST
from drivers.models.manifest import InstalledModel as InstalledModel
from drivers.models.manifest import Manifest as Manifest
from drivers.models.manifest import read_manifest as read_manifest
from drivers.models.shortnames import shortnames as shortnames
from drivers.models.source import is_bare, known_source, read_source, unknown

log = logging.getLogger(__name__)


def default_root() -> Path:
    """Return $LLMOS_HOME/models, else the user's data directory."""
    home = os.environ.get("LLMOS_HOME")
    if home:
        return Path(home).absolute() / "models"
    from platformdirs import user_data_path

    return user_data_path("llmos") / "models"


class ModelStore:
    """The installed models of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- what is there ----------------------------------------------------------------------------

    def list(self) -> "list[InstalledModel]":
        """Return the installed models by name; one that is damaged is logged and left out.

        Whether what is used in place is still there is not looked at.
        """
        models = []
        for folder in self._folders():
            try:
                models.append(read_manifest(folder))
            except ModelError as error:
                log.warning("%s; %s", error, error.hint)
        return models

    def find(self, name: str) -> InstalledModel:
        """Return a model by `name` or `name:tag`, its files there; ENOENT says what to pull."""
        model = read_manifest(self.folder(name))
        model.check()
        return model

    def folder(self, name: str) -> Path:
        """Return the folder of an installed model, sound or not; ENOENT, EINVAL."""
        folders = [folder for folder in self._folders() if _named(folder, name)]
        if len(folders) > 1:  # then the one that is pulled by that name
            known = known_source(name)
            folders = [f for f in folders if known and f.name == known[0].tag] or folders
        if len(folders) > 1:
            found = ", ".join(_full_name(folder) for folder in folders)
            what = f"{name} can be any of {found}"
            raise ModelError("EINVAL", what, f"say which, such as {_full_name(folders[0])}")
        if not folders:
            close = get_close_matches(name, [*self._names(), *shortnames()], 1)
            hint = f"llmos pull {close[0] if close else 'smollm2'}"
            raise ModelError("ENOENT", f"model {name} is not installed in {self.root}", hint)
        return folders[0]

    def facts(self, model: InstalledModel) -> Manifest:
        """Return what is known of a model; read from its files if an older version installed it."""
        if model.manifest.arch:
            return model.manifest
        from drivers.models.installed import examine, with_facts

        with os_errors(f"read {model.full_name}"):
            return with_facts(model.manifest, examine(model.weights))

    def verify(self, model: InstalledModel, progress: Progress) -> None:
        """Read all files of a model and compare their sha256; ECORRUPT if one differs."""
        from drivers.models.install import verify

        with os_errors(f"read {model.full_name}"):
            verify(model, progress)

    def leftovers(self) -> Sequence[tuple[Path, int]]:
        """Return what pulls that did not end have left, with its bytes on the disk."""
        with os_errors(f"read {self.root}"):
            found = [*self.root.glob(".part-*"), *self.root.glob(".pull-*")]
        return [(path, disk_bytes(path)) for path in sorted(found)]

    # --- what changes it --------------------------------------------------------------------------

    def pull(
        self,
        what: str,
        progress: Progress,
        say: Say = log.info,
        name: str = "",
        sha256: str = "",
        copy: bool = False,
    ) -> tuple[InstalledModel, bool]:
        """Install a model by shortname, address or path; return it, and whether it was fetched.

        `name` is what it is installed as, NAME or NAME:TAG. `sha256` is what its file must have.
        """
        source = self._source(what, sha256)
        if source is None and (name or copy):
            hint = f"llmos pull {self.find(what).manifest.source}, with the same options"
            raise ModelError("EINVAL", f"{what} is a model that is installed already", hint)
        if source is None:
            model = self.find(what)
            return self._again(model, "", progress), False
        as_name, _, as_tag = name.partition(":")
        as_name, as_tag = as_name or source.name, as_tag or source.tag
        for word in (as_name, as_tag):
            if not NAME.fullmatch(word):
                hint = "letters, digits and . _ - after the first, at most 64"
                raise ModelError("EINVAL", f"{short(word)} cannot be a model's name", hint)
        with os_errors(f"install {as_name} in {self.root}"), self._locked(as_name, say):
            return self._pull(source, self.root / as_name / as_tag, progress, say, copy)

    def remove(self, folder: Path) -> int:
        """Remove a model, and what a download has of it; return the bytes that this frees.

        Files used in place are somebody else's, and stay.
        """
        name = folder.parent.name
        with os_errors(f"remove {folder}"), self._locked(name):
            scratch, part = self._scratch(name), self._part(folder)
            freed = disk_bytes(folder, max_links=1) + disk_bytes(part)
            scratch.mkdir(mode=0o700)
            folder.rename(scratch / "removed")  # from here on it is not found
            shutil.rmtree(scratch)
            if part.exists():
                shutil.rmtree(part)
            self._tidy(folder.parent)
        return freed

    def _source(self, what: str, sha256: str) -> Source | None:
        """Return where to pull from; None for the name of a model that is installed already."""
        if not is_bare(what):
            return read_source(what, sha256)
        known = known_source(what)
        if known is not None:
            return known[1]
        if any(_named(folder, what) for folder in self._folders()):
            return None
        raise unknown(what, self._names())

    def _pull(
        self, source: Source, target: Path, progress: Progress, say: Say, copy: bool
    ) -> tuple[InstalledModel, bool]:
        from drivers.models.install import install

        scratch = self._scratch(target.parent.name)
        if target.exists():
            model = read_manifest(target)
            if not self._outdated(model, source, say, copy):
                return self._again(model, source.sha256, progress), False
        scratch.mkdir(mode=0o700)
        try:
            job = Job(scratch, self._part(target), progress, say, copy)
            install(source, job, target)
        finally:
            shutil.rmtree(scratch)
            self._tidy(target.parent)
        model = read_manifest(target)
        model.check()
        return model, True

    def _outdated(self, model: InstalledModel, source: Source, say: Say, copy: bool) -> bool:
        """Return whether a model of this name is to be installed anew, from the same source."""
        if model.manifest.source != source.text:
            what = f"{model.full_name} is there already, from {model.manifest.source}"
            hint = f"llmos models rm {model.full_name}, or take another name with --name"
            raise ModelError("EEXIST", what, hint)
        if not model.in_place:
            return False
        try:
            model.check()
        except ModelError as error:
            say(f"{error.message}: it is read anew")
            return True
        return copy

    def _again(self, model: InstalledModel, sha256: str, progress: Progress) -> InstalledModel:
        """Check a model that is there, and bring what lies beside its files up to date."""
        from drivers.models.installed import refresh

        self.verify(model, progress)
        if sha256 and model.manifest.sha256 != sha256:
            raise ModelError(
                "ECORRUPT",
                f"{model.full_name} has sha256 {model.manifest.sha256[:12]}…, "
                f"pinned is {sha256[:12]}…",
                f"remove {model.folder}, then: llmos pull {model.manifest.name}",
            )
        with os_errors(f"write {model.folder}"):
            return refresh(model)

    # --- the folder -------------------------------------------------------------------------------

    def _folders(self) -> Sequence[Path]:
        with os_errors(f"read {self.root}"):
            return sorted(path.parent for path in self.root.glob(f"[!.]*/*/{MANIFEST}"))

    def _names(self) -> Sequence[str]:
        return [_full_name(folder) for folder in self._folders()]

    @contextmanager
    def _locked(self, name: str, say: Say = log.info) -> Iterator[None]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.root / f".{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another pull of {name} to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _scratch(self, name: str) -> Path:
        """Return where the holder of a name's lock works; what the last one left there goes."""
        scratch = self.root / f".pull-{name}"
        if scratch.exists():  # left behind by nobody who still lives: the lock is ours
            shutil.rmtree(scratch)
        return scratch

    def _part(self, target: Path) -> Path:
        return self.root / f".part-{_full_name(target)}"

    def _tidy(self, folder: Path) -> None:
        """Remove the folder of a name that has no model."""
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def disk_bytes(folder: Path, max_links: int = 1 << 30) -> int:
    """Return the bytes of the files in a folder that have no more hard links than that."""
    stats = [path.lstat() for path in folder.rglob("*")]
    files = [stat for stat in stats if S_ISREG(stat.st_mode) and stat.st_nlink <= max_links]
    return sum(stat.st_size for stat in files)


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
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


def _full_name(folder: Path) -> str:
    return f"{folder.parent.name}:{folder.name}"


def _named(folder: Path, name: str) -> bool:
    return name in (folder.parent.name, _full_name(folder))
