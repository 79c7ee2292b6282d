"""Configuration: which value each key has, and where it comes from.

    built-in < /etc/llmos/config.toml < the user's config.toml < ./.llmos.toml < LLMOS_KEY < option

A file has the client's keys at its top and the kernel's in [kernel]; ./.llmos.toml, which comes
with a directory and not from the person, has the client's only. What is wrong in any of them is an
error that names the place. Clients read the client's keys; the kernel's are read by whoever starts
a kernel, and from then on the kernel's own values count (running.py).
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.store.places import default_keys_dir
from userland.asking import Sampling
from userland.daemon import state_dir
from userland.exits import BAD_SETUP, Failure
from userland.keys import CLIENT, Key, Unfit, Value, kernel_keys, unknown

BUILT_IN = "built-in"
SYSTEM = Path("/etc/llmos/config.toml")
PROJECT = ".llmos.toml"
NO_SETTINGS = frozenset({
    "LLMOS_HOST", "LLMOS_HOME", "LLMOS_CONFIG", "LLMOS_TICKET_FD", "LLMOS_LOG", "LLMOS_OFFLINE",
    "LLMOS_NO_AUTOSTART", "LLMOS_PROGRESS", "LLMOS_A11Y", "LLMOS_TOKEN_FILE",
})  # fmt: skip
"""Variables that say where things are or how they look, and set no key."""


_SAMPLING = {
    "temp": "temperature", "max": "max_tokens", "seed": "seed",
    "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
}  # fmt: skip
"""Fields of Sampling, and the keys that set them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The value that counts, and where it was set."""

    key: Key
    value: Value | None
    origin: str = BUILT_IN

    @property
    def explicit(self) -> bool:
        return self.origin != BUILT_IN


@dataclass(frozen=True, slots=True)
class Place:
    """A file that may set keys."""

    layer: str
    path: Path
    of_kernel: bool = True
    must_exist: bool = False


@dataclass
class Config:
    """Every key's setting, and what is wrong with what was read."""

    keys: tuple[Key, ...]
    settings: dict[str, Setting] = field(init=False)
    """By the name that is shown: `temperature`, `kernel.dtype`."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = {key.shown: Setting(key, key.default) for key in self.keys}

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.settings.values())

    def value(self, name: str) -> Any:
        """Return the value that counts."""
        return self.settings[name].value

    def explicit(self, name: str) -> Any:
        """Return the value that somebody has set, None if nobody has."""
        setting = self.settings[name]
        return setting.value if setting.explicit else None

    def sampling(self, default: Sampling | None = None) -> Sampling:
        """Return how to sample: a default (None: the built-in), and over it what has been set."""
        look_up = self.value if default is None else self.explicit
        changes = {own: look_up(name) for own, name in _SAMPLING.items()}
        return (default or Sampling(0.0)).over(changes)

    def set(self, key: Key, value: Value, origin: str) -> None:
        self.settings[key.shown] = Setting(key, value, origin)

    def find(self, name: str, of_kernel: bool) -> Key | None:
        """Return a key by its own name."""
        found = self.settings.get(f"kernel.{name}" if of_kernel else name)
        return found.key if found else None

    def refuse(self) -> "Config":
        """Return this; Failure with the first problem if there is one."""
        if self.problems:
            raise Failure(self.problems[0], "llmos config check lists all", BAD_SETUP)
        return self


def places(environ: Mapping[str, str], folder: Path) -> list[Place]:
    """Return the files in which keys may be set, the later ones winning."""
    named = environ.get("LLMOS_CONFIG")
    if named:
        user = Path(named).expanduser()
    elif home := environ.get("LLMOS_HOME"):
        user = Path(home).absolute() / "config.toml"
    else:
        from platformdirs import user_config_path

        user = user_config_path("llmos") / "config.toml"
    return [
        Place("system", SYSTEM),
        Place("user", user, must_exist=bool(named)),
        Place("project", folder / PROJECT, of_kernel=False),
    ]


def read(of_kernel: bool = False) -> Config:
    """Return this process's configuration; Failure (78) if something in it is wrong."""
    return gather(of_kernel).refuse()


def _take_places(config: Config) -> None:
    """Set what the kernel itself has no default for: where what it keeps lies."""
    for name, folder in (("state_dir", state_dir()), ("keys_dir", default_keys_dir())):
        key = config.find(name, of_kernel=True)
        if key is not None:
            config.set(key, str(folder), BUILT_IN)


def gather(of_kernel: bool, files: Iterable[Place] | None = None) -> Config:
    """Return this process's configuration with its problems; of files other than the usual ones."""
    keys = CLIENT + (kernel_keys() if of_kernel else ())
    config = Config(keys)
    if of_kernel:
        _take_places(config)
    for place in places(os.environ, Path()) if files is None else files:
        _take_file(config, place, of_kernel)
    _take_variables(config, os.environ)
    return config


# --- files ----------------------------------------------------------------------------------------


def _take_file(config: Config, place: Place, of_kernel: bool) -> None:
    text = _text_of(config, place)
    if text is None:
        return
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        config.problems.append(f"{place.path}: {error}")
        return
    kernel = tables.pop("kernel", {})
    _take_table(config, place, text, tables, False)
    if not kernel:
        return
    if not place.of_kernel:
        where = _where(place, text, "kernel", True)
        config.problems.append(f"{where}: [kernel] is for your own config.toml, not for {PROJECT}")
    elif not isinstance(kernel, dict):
        where = _where(place, text, "kernel", False)
        config.problems.append(f"{where}: kernel is a table: [kernel], and its keys below")
    elif of_kernel:
        _take_table(config, place, text, kernel, True)


def _text_of(config: Config, place: Place) -> str | None:
    """Return what a file says; None if there is none, or it is not to be trusted."""
    try:
        if place.layer == "project" and place.path.stat().st_uid not in (0, os.getuid()):
            config.notes.append(f"{place.path} belongs to another user, and is not read")
            return None
        return place.path.read_text("utf-8")
    except FileNotFoundError:
        if place.must_exist:
            named = " (LLMOS_CONFIG names it)" if place.layer == "user" else ""
            config.problems.append(f"{place.path}: there is no such file{named}")
    except OSError as error:
        config.problems.append(f"{place.path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        config.problems.append(f"{place.path}: byte {error.start:,} is no UTF-8")
    return None


def _take_table(
    config: Config, place: Place, text: str, table: Mapping[str, Any], of_kernel: bool
) -> None:
    for name, value in table.items():
        where = _where(place, text, name, of_kernel)
        key = config.find(name, of_kernel)
        if key is None:
            config.problems.append(f"{where}: {_unknown(config, place, name, of_kernel)}")
            continue
        try:
            config.set(key, key.of_toml(value), where)
        except Unfit as unfit:
            config.problems.append(f"{where}: {name}: {unfit}")


def _unknown(config: Config, place: Place, name: str, of_kernel: bool) -> str:
    other = config.find(name, not of_kernel)
    if other is not None and of_kernel:
        return f"{name} is not the kernel's: it belongs above [kernel]"
    if other is not None and place.of_kernel:
        return f"{name} is the kernel's: it belongs below [kernel]"
    keys = tuple(key for key in config.keys if key.of_kernel is of_kernel)
    return unknown(name, keys, "in [kernel]" if of_kernel else "for clients")


def _where(place: Place, text: str, name: str, of_kernel: bool) -> str:
    """Return the file, and the line on which a key seems to be set: tomllib does not tell."""
    table = ""
    wanted = re.compile(rf"""\s*(kernel\s*\.\s*)?["']?{re.escape(name)}["']?\s*=""")
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"""\s*\[\s*["']?([\w-]+)["']?\s*\]""", line):
            table = header[1]
            if table == name:
                return f"{place.path}:{number}"
        elif (found := wanted.match(line)) and (table == "kernel" or bool(found[1])) is of_kernel:
            return f"{place.path}:{number}"
    return str(place.path)


# --- variables and options ------------------------------------------------------------------------


def _take_variables(config: Config, environ: Mapping[str, str]) -> None:
    for key in config.keys:
        if text := environ.get(key.variable):
            _take_text(config, key, text, key.variable)


def _take_text(config: Config, key: Key, text: str, origin: str) -> None:
    try:
        config.set(key, key.of_text(text), origin)
    except Unfit as unfit:
        config.problems.append(f"{origin}: {unfit}")


def take_options(config: Config, options: Mapping[str, Any], pairs: Iterable[str]) -> None:
    """Lay options over: those of a command by key, None where not given, and KEY=VALUE pairs."""
    for name, value in options.items():
        key = config.find(name, True) or config.find(name, False)
        assert key is not None, name
        if value is not None:
            option = "--" + name.replace("_", "-")
            try:
                config.set(key, key.of_text(str(value)), option)
            except Unfit as unfit:
                raise Failure(f"{option}: {unfit}", exit_code=2) from None
    for pair in pairs:
        name, _, text = pair.partition("=")
        key = config.find(name.removeprefix("kernel."), True)
        if key is None:
            keys = tuple(key for key in config.keys if key.of_kernel)
            raise Failure(f"--set: {unknown(name, keys, 'of the kernel')}", exit_code=2)
        try:
            config.set(key, key.of_text(text), f"--set {name}")
        except Unfit as unfit:
            raise Failure(f"--set {name}: {unfit}", exit_code=2) from None
