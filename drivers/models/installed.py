"""What is made from a model's files when it is installed, and written beside them.

The tokenizer, the chat template and the configuration are what the kernel hands to clients, so
that nobody needs to open the model's file for text. `examine` reads a GGUF file or a checkpoint
folder and checks its structure; no weights are read. `describe` writes what it found.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple

from drivers.models.checkpoint import describe_checkpoint, is_checkpoint
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from drivers.models.manifest import MANIFEST, InstalledModel, Manifest
from drivers.models.tokenizer import tokenizer_json


class Examined(NamedTuple):
    """What a model's files say of it. `files` are all that it consists of."""

    texts: Mapping[str, str]  # by the names that they are written under
    files: tuple[Path, ...]
    config: ModelConfig
    tensors: int
    params: int
    quant: str
    title: str
    licence: str
    notes: tuple[str, ...] = ()


def examine(path: Path) -> Examined:
    """Read a GGUF file or a checkpoint folder; ECORRUPT, ENOTSUP, ENOENT."""
    return _examine_folder(path) if path.is_dir() else _examine_gguf(path)


def describe(manifest: Manifest, texts: Mapping[str, str], folder: Path) -> None:
    """Write what a model's folder has beside its files; the manifest last."""
    for name, text in texts.items():
        _write(folder / name, text)
    _write(folder / MANIFEST, manifest.to_json())


def refresh(model: InstalledModel) -> InstalledModel:
    """Make again what is made from the files, where it is missing or differs."""
    found = examine(model.weights)
    for name, text in found.texts.items():
        path = model.folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            _write(path, text)
    manifest = with_facts(model.manifest, found)
    if manifest != model.manifest:
        _write(model.folder / MANIFEST, manifest.to_json())
    return InstalledModel(model.folder, manifest)


def with_facts(manifest: Manifest, found: Examined) -> Manifest:
    """Return a manifest with what the files say themselves."""
    return replace(
        manifest,
        tensors=found.tensors,
        arch=found.config.arch,
        params=found.params,
        quant=found.quant,
        max_ctx=found.config.max_ctx,
    )


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)


def _examine_gguf(path: Path) -> Examined:
    with GgufFile(path) as file:
        config = ModelConfig.from_gguf(file)
        texts = {"config.json": config.to_json(), "tokenizer.json": tokenizer_json(file)}
        template = file.metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            texts["chat_template.jinja"] = template
        return Examined(
            texts,
            (path,),
            config,
            len(file.tensors),
            sum(prod(tensor.shape) for tensor in file.tensors.values()),
            _quant(file),
            _text(file, "general.name"),
            _text(file, "general.license"),
        )


def _quant(file: GgufFile) -> str:
    """Return the file's own word for how it is quantized, else the type of most of its bytes."""
    from gguf import LlamaFileType

    number = file.metadata.get("general.file_type")
    named = {kind.value: kind.name for kind in LlamaFileType if kind.name != "GUESSED"}
    if type(number) is int and number in named:
        return named[number].removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes = Counter[str]()
    for tensor in file.tensors.values():
        sizes[tensor.type_name] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def _text(file: GgufFile, key: str) -> str:
    """Return a line of the file's metadata that people will read, without what moves a cursor."""
    value = file.metadata.get(key)
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value[:80] if char.isprintable()).strip()


def _examine_folder(folder: Path) -> Examined:
    if not is_checkpoint(folder):
        what = f"{folder} has no config.json with .safetensors files beside it"
        raise ModelError("ENOENT", what, "give a .gguf file, or the folder of a checkpoint")
    found = describe_checkpoint(folder)
    places = found.places.values()
    return Examined(
        found.texts,
        found.files,
        found.config,
        len(found.places),
        sum(prod(place.tensor.shape) for place in places),
        found.dtype.partition(",")[0],
        "",
        "",
        tuple(found.notes),
    )
