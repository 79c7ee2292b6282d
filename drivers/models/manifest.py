"""The manifest of an installed model: what it is, where it came from, and which files it has.

    ROOT/NAME/TAG/manifest.json                   written last: a folder without one is no model
                  config.json  tokenizer.json  chat_template.jinja   made from the model's files
                  NAME-TAG.gguf  or  checkpoint/  the model: its own copy, or used in place

What is used in place is a symbolic link to an absolute path. Such files are somebody else's, so
their sizes and times are recorded: one that is gone or has changed since is an error wherever the
model is looked up or loaded, never a model that silently is another. Light to import.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from drivers.models.errors import ModelError, short

MANIFEST = "manifest.json"
MAX_BYTES = 4 << 20
"""Of a manifest; one file of a model takes some 200."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model.

    `path` is absolute if it is used in place, else relative to the model's folder. A file that
    others may change (used in place, or a hard link) has `mtime_ns`, our own copies have 0.
    """

    path: str
    bytes: int
    sha256: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where an installed model came from and what it is. `file` is the model in its folder.

    `sha256` is that of the file; of a model of several, that of the lines "SHA256  NAME" about
    them, sorted. Fields from `files` on are empty in what older versions wrote.
    """

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
    files: tuple[ModelFile, ...] = ()
    place: str = ""  # where it is used in place, absolute
    revision: str = ""  # what the source called this state of it
    arch: str = ""
    params: int = 0
    quant: str = ""
    max_ctx: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this machine."""

    folder: Path
    manifest: Manifest

    @property
    def full_name(self) -> str:
        return f"{self.manifest.name}:{self.manifest.tag}"

    @property
    def weights(self) -> Path:
        """The GGUF file or checkpoint folder; a symbolic link if it is used in place."""
        return self.folder / self.manifest.file

    @property
    def in_place(self) -> bool:
        return bool(self.manifest.place)

    def files(self) -> "Iterator[tuple[Path, ModelFile]]":
        """Yield the files of the model with what is known of them."""
        m = self.manifest
        for file in m.files or (ModelFile(m.file, m.bytes, m.sha256),):
            yield self.folder / file.path, file

    def check(self) -> None:
        """Compare what can be seen of the files at once; ENOENT, ECORRUPT if it is another."""
        for path, file in self.files():
            _check_file(self, path, file)


def _check_file(model: InstalledModel, path: Path, file: ModelFile) -> None:
    again = f"llmos pull {model.manifest.source}, or llmos models rm {model.full_name}"
    try:
        stat = path.stat()
    except OSError as error:
        what = f"{model.full_name} is used in place, and {path} is not there: {error.strerror}"
        if not file.mtime_ns:
            what = f"{model.full_name} has no file {path}: {error.strerror}"
        raise ModelError("ENOENT" if file.mtime_ns else "ECORRUPT", what, again) from None
    if stat.st_size != file.bytes:
        what = f"{path} of {model.full_name} has {stat.st_size} bytes, it had {file.bytes}"
        raise ModelError("ECORRUPT", f"{what} when it was pulled", again)
    if file.mtime_ns and stat.st_mtime_ns != file.mtime_ns:
        what = f"{path} of {model.full_name} was written to after it was pulled"
        raise ModelError("ECORRUPT", what, again)


def read_manifest(folder: Path) -> InstalledModel:
    """Read a folder's manifest; ECORRUPT if it is not that of a model that lies there.

    Files are not looked at, see `InstalledModel.check`.
    """
    path = folder / MANIFEST
    again = f"remove {folder}, then: llmos pull {folder.parent.name}"
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise ValueError("it is no file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        manifest = _read(json.loads(raw))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("ECORRUPT", f"{path} is damaged: {error}", again) from None
    model = InstalledModel(folder, manifest)
    if model.full_name != f"{folder.parent.name}:{folder.name}":
        raise ModelError("ECORRUPT", f"{path} is that of {short(model.full_name)}", again)
    there = model.weights.is_symlink() or model.weights.exists()
    if Path(manifest.file).name != manifest.file or not there:
        raise ModelError("ECORRUPT", f"{folder} has no file {short(manifest.file)}", again)
    return model


def check_unchanged(folder: Path) -> None:
    """Refuse a folder whose files are not those that were pulled; one without manifest is fine."""
    if (folder / MANIFEST).exists():
        read_manifest(folder).check()


def _read(raw: Any) -> Manifest:
    values = known(Manifest, raw)
    files = tuple(ModelFile(**known(ModelFile, row)) for row in values.pop("files", []))
    manifest = Manifest(**values, files=files)
    rows: tuple[Manifest | ModelFile, ...] = (manifest, *files)
    for row in rows:
        for field in fields(row):
            if field.name != "files" and type(getattr(row, field.name)) is not field.type:
                raise ValueError(f"wrong {field.name}")
    for file in files:
        if not Path(file.path).is_absolute() and ".." in Path(file.path).parts:
            raise ValueError(f"wrong path {short(file.path)}")
    return manifest


def known(cls: Any, read: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataclass takes of a JSON object: a newer llmos may have written more."""
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in read.items() if name in names}
