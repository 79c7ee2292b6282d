"""file:// sources: a GGUF file or a checkpoint folder of this machine, used where it lies.

Nothing is copied unless a copy is asked for; then files are hard links where the file system has
them, else copies, so that the model outlives the place.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from drivers.models.errors import ModelError
from drivers.models.job import CHUNK, Got, Job, Progress, names_of, refuse_pickle


@dataclass(frozen=True, slots=True)
class PlaceSource:
    """A path of this machine, absolute."""

    path: Path
    name: str
    tag: str
    sha256: str = ""

    @property
    def text(self) -> str:
        return self.path.as_uri()

    def fetch(self, job: Job) -> Got:
        if not self.path.exists():
            what = f"there is no file or folder {self.path}"
            raise ModelError("ENOENT", what, "llmos pull smollm2, or the path of a .gguf file")
        if self.path.is_dir() or self.path.suffix.lower() == ".gguf":
            return Got(self.path)
        refuse_pickle(self.path.name)
        what = f"{self.path.name} is neither a .gguf file nor a folder"
        hint = f"llmos pull {self.path.parent}" if self.path.suffix == ".safetensors" else ""
        raise ModelError("ENOTSUP", what, hint or "give a .gguf file or a checkpoint's folder")


def place_source(path: Path, sha256: str = "") -> PlaceSource:
    """Return the source for a path; a folder with one GGUF file and no checkpoint is that file."""
    absolute = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  # links are kept
    if absolute.is_dir() and not (absolute / "config.json").exists():
        files = sorted(absolute.glob("*.gguf"))
        if len(files) > 1:
            what = f"{absolute} has {len(files)} GGUF files: {', '.join(f.name for f in files[:4])}"
            raise ModelError("EINVAL", what, f"llmos pull {files[0]}")
        absolute = files[0] if files else absolute
    stem = absolute.stem if absolute.suffix.lower() == ".gguf" else absolute.name
    return PlaceSource(absolute, *names_of(stem), sha256)


def path_of_uri(uri: str) -> Path:
    """Return the path that a file: URI names."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ModelError(
            "EINVAL", f"{uri} is no file of this machine", "file:///path/to/model.gguf"
        )
    return Path(path)


def take(source: Path, target: Path, progress: Progress) -> bool:
    """Put a file at `target`, as a hard link if that can be; return whether it is one."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        pass  # another file system, or one without links
    else:
        return True
    size, done = source.stat().st_size, 0
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(CHUNK):
            write.write(chunk)
            done += len(chunk)
            progress("copy", done, size)
    shutil.copystat(source, target)
    return False
