"""Installing: from what a source gave to a folder that is renamed into the store.

    fetch -> take (move, link or copy the files) -> sums -> examine -> describe -> sync -> rename

Nothing before the rename can be found, and whatever stops it stops all of it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from drivers.models.checkpoint import FOLDER
from drivers.models.errors import ModelError
from drivers.models.installed import describe, examine, sync, with_facts
from drivers.models.job import CHUNK, Got, Job, Progress, Source
from drivers.models.manifest import InstalledModel, Manifest, ModelFile
from drivers.models.place import take

AGAIN = "pull it again; if that does not help, its source has another file than it says"


def install(source: Source, job: Job, target: Path) -> None:
    """Fetch a model and put its folder at `target`, in place of what is there."""
    got = source.fetch(job)
    folder = job.scratch / "model"
    folder.mkdir()
    try:
        _install(source, got, job, folder, target)
    finally:
        if got.ours and job.part.exists():  # a whole file that is unfit would be unfit again
            for path in job.part.iterdir():
                path.unlink()
            job.part.rmdir()


def _install(source: Source, got: Got, job: Job, folder: Path, target: Path) -> None:
    name, tag = target.parent.name, target.name
    if source.sha256 and got.path.is_dir():
        what = f"{source.text} is a folder, which one sha256 says nothing of"
        raise ModelError("EINVAL", what, "leave --sha256 out, or pull a .gguf file")
    file = FOLDER if got.path.is_dir() else f"{name}-{tag}.gguf"
    in_place = not got.ours and not job.copy
    weights = folder / file
    watched: set[Path] = set()
    if got.ours:
        got.path.rename(weights)
    elif in_place:
        weights.symlink_to(got.path)
    else:
        watched = _copy(got.path, weights, job)
    paths = examine(weights).files if weights.is_dir() else (weights,)
    files = tuple(_sums(got, paths, weights, in_place, watched, job))
    _check_sums(source, got, files)  # what is not what was meant is not looked into
    found = examine(weights)
    for note in found.notes:
        job.say(f"{name}: {note}")
    manifest = with_facts(
        Manifest(
            name=name,
            tag=tag,
            title=got.title or found.title or name,
            file=file,
            source=source.text,
            sha256=files[0].sha256 if len(files) == 1 else sum_of(files),
            bytes=sum(file.bytes for file in files),
            tensors=found.tensors,
            licence=got.licence or found.licence or "not stated",
            pulled=datetime.now(UTC).date().isoformat(),
            files=files,
            place=str(got.path) if in_place else "",
            revision=got.revision,
        ),
        found,
    )
    describe(manifest, found.texts, folder)
    InstalledModel(folder, manifest).check()  # what is somebody else's may have changed meanwhile
    _rename(folder, target, job)


def _copy(source: Path, target: Path, job: Job) -> set[Path]:
    """Link or copy a file, or the files of a checkpoint; return those that are links."""
    if source.is_file():
        job.check_disk(target.name, source.stat().st_size)
        return {target} if take(source, target, job.progress) else set()
    found = examine(source)
    job.check_disk(target.name, sum(path.stat().st_size for path in found.files))
    target.mkdir()
    pairs = [(path, target / path.name) for path in found.files]
    return {copy for path, copy in pairs if take(path, copy, job.progress)}


def _sums(
    got: Got,
    paths: Sequence[Path],
    weights: Path,
    in_place: bool,
    watched: set[Path],
    job: Job,
) -> Iterable[ModelFile]:
    """Yield what is recorded of each file; the times of those that others may change."""
    total, done = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        before = path.stat()
        digest = got.digests.get(got.path.name if path == weights else path.name)
        if digest is None:
            digest = _digest(path, done, total, job.progress)
        done += before.st_size
        folder = weights.parent
        place = got.path if path == weights else got.path / path.name
        yield ModelFile(
            str(place if in_place else path.relative_to(folder)),
            before.st_size,
            digest,
            before.st_mtime_ns if in_place or path in watched else 0,
        )


def _check_sums(source: Source, got: Got, files: tuple[ModelFile, ...]) -> None:
    """Compare with what was pinned, and with what the source itself says of its files."""
    for file in files:
        path = Path(file.path)
        name = path.name if path.is_absolute() or got.path.is_dir() else got.path.name
        expected = {Path(key).name: value for key, value in got.expected.items()}.get(name, "")
        for whose, sha256 in (("pinned", source.sha256), ("by its source", expected)):
            if sha256 and sha256.lower() != file.sha256:
                raise ModelError(
                    "ECORRUPT",
                    f"the file {name} of {source.text} has sha256 {file.sha256[:12]}… "
                    f"({file.bytes} bytes), {whose} is {sha256[:12]}…; nothing was installed",
                    AGAIN,
                )


def sum_of(files: Iterable[ModelFile]) -> str:
    """Return one sha256 for several files: that of the lines that sha256sum would write."""
    lines = sorted(f"{file.sha256}  {Path(file.path).name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify(model: InstalledModel, progress: Progress) -> None:
    """Read all files of a model and compare their sha256; ECORRUPT, and as `check` says."""
    model.check()
    done = 0
    for path, file in model.files():
        found = _digest(path, done, model.manifest.bytes, progress)
        done += file.bytes
        if found != file.sha256:
            raise ModelError(
                "ECORRUPT",
                f"{path.name} of {model.full_name} has sha256 {found[:12]}…, "
                f"its manifest says {file.sha256[:12]}…",
                f"remove {model.folder}, then: llmos pull {model.manifest.source}",
            )


def _digest(path: Path, before: int, total: int, progress: Progress) -> str:
    """Return a file's sha256; `before` bytes of the total are done."""
    digest, done = hashlib.sha256(), before
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("verify", min(done, total), total)
    return digest.hexdigest()


def _rename(folder: Path, target: Path, job: Job) -> None:
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    if target.exists():
        target.rename(job.scratch / "replaced")
    folder.rename(target)
    sync(target.parent)
