"""An installed model: the folder with its file, and what is made from that file beside it.

The tokenizer, the chat template and the configuration are what the kernel hands to clients, so
that nobody needs to open the model file for text. The manifest says where the model came from; it
is written last, and a folder without one is no model.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from drivers.models.config import ModelConfig, known
from drivers.models.errors import ModelError, short
from drivers.models.gguf import GgufFile
from drivers.models.tokenizer import tokenizer_json

MANIFEST = "manifest.json"


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


def read_installed(folder: Path) -> InstalledModel:
    """Read a folder's manifest; ECORRUPT if it is not that of a model that lies there."""
    path = folder / MANIFEST
    again = f"remove {folder}, then: llmos pull {folder.parent.name}"
    try:
        manifest = Manifest(**known(Manifest, json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("ECORRUPT", f"{path} is damaged: {error}", again) from None
    for field in fields(Manifest):
        if type(getattr(manifest, field.name)) is not field.type:
            raise ModelError("ECORRUPT", f"{path} is damaged: wrong {field.name}", again)
    model = InstalledModel(folder, manifest)
    if model.full_name != f"{folder.parent.name}:{folder.name}":
        raise ModelError("ECORRUPT", f"{path} is that of {short(model.full_name)}", again)
    if Path(manifest.file).name != manifest.file or not model.gguf.is_file():
        raise ModelError("ECORRUPT", f"{folder} has no file {short(manifest.file)}", again)
    return model


def describe(gguf: Path, **about: str) -> None:
    """Check a file's structure, then write what is made from it and the manifest beside it.

    `about` is what the file does not say: name, tag, title, source, sha256, licence.
    """
    with GgufFile(gguf) as file:
        texts = _texts(file)
        manifest = Manifest(
            file=gguf.name,
            bytes=gguf.stat().st_size,
            tensors=len(file.tensors),
            pulled=datetime.now(UTC).date().isoformat(),
            **about,
        )
    texts[MANIFEST] = json.dumps(asdict(manifest), indent=1)
    for name, text in texts.items():
        (gguf.parent / name).write_text(text, encoding="utf-8")


def refresh(model: InstalledModel) -> None:
    """Make again what is made from the file, where it is missing or differs."""
    with GgufFile(model.gguf) as file:
        texts = _texts(file)
    for name, text in texts.items():
        path = model.folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            new = path.with_name(f".{name}.new")
            new.write_text(text, encoding="utf-8")
            sync(new)
            new.replace(path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _texts(file: GgufFile) -> dict[str, str]:
    texts = {
        "config.json": ModelConfig.from_gguf(file).to_json(),
        "tokenizer.json": tokenizer_json(file),
    }
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        texts["chat_template.jinja"] = template
    return texts
