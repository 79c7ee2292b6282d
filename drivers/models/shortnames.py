"""Shortnames: models that `llmos pull` knows by a bare name, pinned by the sha256 of their file."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shortname:
    """A model that can be pulled by its bare name. `terms` are to be read before it is used."""

    name: str
    tag: str
    title: str
    source: str
    sha256: str
    bytes: int
    wheel_bytes: int
    licence: str
    terms: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.name}:{self.tag}"


def shortnames() -> dict[str, Shortname]:
    """Return the table of shortnames.toml."""
    with Path(__file__).with_name("shortnames.toml").open("rb") as file:
        return {name: Shortname(name=name, **row) for name, row in tomllib.load(file).items()}
