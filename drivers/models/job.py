"""What a pull gives a source to work with, and what it gets back.

A source (`pypi`, `place`, `download`, `hub`) fetches a model's files, or says where they lie. It
knows nothing of the store: it writes below `scratch`, which goes whatever happens, or below `part`,
which stays for the next pull of the same name to go on with. Light to import.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from drivers.models.errors import ModelError, short

Progress = Callable[[str, int, int | None], None]
"""(phase, done, total or None): download, extract and verify in bytes."""
Say = Callable[[str], None]
"""Takes a line for people."""

MARGIN = 16 << 20
"""Bytes that a pull leaves free on the disk."""
CHUNK = 1 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Files that run a program when they are opened."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
QUANT = re.compile(r"[-._]((?:i?q[1-8]|tq[12]|mxfp4|f16|f32|bf16|fp16)(?:_[a-z0-9]+)*)$")
"""How names of GGUF files end that say how they are quantized."""
LATEST = "latest"
"""The tag of a model whose name says nothing better."""


class Got(NamedTuple):
    """What a source has fetched or found."""

    path: Path  # a GGUF file or a checkpoint folder
    ours: bool = False  # it lies in `scratch` or `part`, and may be moved
    digests: Mapping[str, str] = {}  # sha256 by name, made by us while the file was written
    expected: Mapping[str, str] = {}  # sha256 by name, as the source has it
    title: str = ""
    licence: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One pull: where it may write, and whom it tells."""

    scratch: Path
    part: Path
    progress: Progress
    say: Say
    copy: bool = False

    def check_disk(self, what: str, needed: int, folder: Path | None = None) -> None:
        """Refuse what the disk has no room for; ENOSPC."""
        folder = folder or self.scratch
        free = shutil.disk_usage(folder).free
        if free < needed + MARGIN:
            raise ModelError(
                "ENOSPC",
                f"{what} needs {(needed + MARGIN) >> 20} MiB while it is installed, "
                f"{folder} has {free >> 20} MiB free",
                "free some space, or set LLMOS_HOME to a folder on another disk",
            )


class Source(Protocol):
    """Where a model comes from."""

    @property
    def text(self) -> str:
        """How the manifest has it."""

    @property
    def name(self) -> str:
        """What the model is called if nobody says otherwise, like the next."""

    @property
    def tag(self) -> str: ...

    @property
    def sha256(self) -> str:
        """What its file must have, "" if nothing is pinned."""

    def fetch(self, job: Job) -> Got: ...


@dataclass(frozen=True, slots=True)
class Pinned:
    """What is known of a source before anything is fetched; 0 and empty where it is not."""

    sha256: str = ""
    bytes: int = 0
    wheel_bytes: int = 0
    title: str = ""
    licence: str = ""
    terms: str = field(default="")


def names_of(stem: str) -> tuple[str, str]:
    """Make a name and a tag out of what a file or a folder is called."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    quant = QUANT.search(plain)
    name = (plain[: quant.start()] if quant else plain)[:64].strip("-._")
    if not name:
        raise ModelError(
            "EINVAL", f"{short(stem)} gives no name for a model", "say one with --name"
        )
    return name, quant[1] if quant else LATEST


def refuse_offline(what: str) -> None:
    """Refuse to reach for the network if LLMOS_OFFLINE says so."""
    if offline():
        raise ModelError(
            "ENETUNREACH",
            f"LLMOS_OFFLINE is set, so {what} is not fetched",
            "unset it, or pull a file of this machine: llmos pull /path/to/model.gguf",
        )


def offline() -> bool:
    """Return whether nothing may reach for the network."""
    return os.environ.get("LLMOS_OFFLINE", "").lower() not in ("", "0", "no", "false")


def refuse_pickle(name: str) -> None:
    """Refuse files that are programs; ENOTSUP."""
    if name.lower().endswith(PICKLES):
        what = f"{name} is a pickle, a program that opening it runs"
        raise ModelError("ENOTSUP", what, "take the model's .safetensors or .gguf files")
