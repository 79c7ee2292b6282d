"""What `llmos pull` takes, and which kind of source it names."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from drivers.models.download import https_source
from drivers.models.errors import ModelError, short
from drivers.models.hub import hub_source, is_hub
from drivers.models.job import Pinned, Source
from drivers.models.place import path_of_uri, place_source
from drivers.models.pypi import pypi_source
from drivers.models.shortnames import Shortname, shortnames

KINDS = "pypi://PACKAGE, hf://ORG/NAME, https://HOST/FILE.gguf, /PATH/FILE.gguf"


def is_bare(text: str) -> bool:
    """Return whether a text is a name, not an address or a path."""
    path = "/" in text or text in (".", "..", "~") or text.lower().endswith(".gguf")
    return not path


def read_source(text: str, sha256: str = "") -> Source:
    """Return the source that an address or a path names; EINVAL."""
    if is_hub(text):
        return hub_source(text, sha256)
    scheme, mark, _ = text.partition("://")
    if not mark:
        return place_source(Path(text), sha256)
    match scheme:
        case "pypi":
            return pypi_source(text, Pinned(sha256))
        case "file":
            return place_source(path_of_uri(text), sha256)
        case "https" | "http":
            return https_source(text, sha256)
    raise ModelError("EINVAL", f"there is no source {short(scheme)}://", f"it is like {KINDS}")


def known_source(text: str) -> tuple[Shortname, Source] | None:
    """Return the shortname that a bare name is, or None."""
    row = shortnames().get(text.partition(":")[0])
    if row is None or (":" in text and text != row.full_name):
        return None
    pinned = Pinned(row.sha256, row.bytes, row.wheel_bytes, row.title, row.licence, row.terms)
    return row, pypi_source(row.source, pinned, row.name, row.tag)


def unknown(text: str, installed: Sequence[str]) -> ModelError:
    """Say of a bare name that nobody knows what it may be."""
    names = [*installed, *shortnames()]
    close = get_close_matches(text, names, 3, 0.5)
    known = f"llmos pull {close[0]}" if close else f"known are: {', '.join(shortnames())}"
    what = f"there is no model {text} to pull"
    if close[1:]:
        what = f"{what}; close are {', '.join(close)}"
    return ModelError("ENOENT", what, f"{known}; or an address: {KINDS}")
