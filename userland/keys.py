"""Keys of the configuration: what each is called, which values it takes, what it is unless set.

A client's keys are here. The kernel's are in the kernel's own table, and userland imports no
kernel: `llmosd --show-config` tells them, so there is one table and both programs read it.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from userland.asking import MAX_SEED, MAX_TEMPERATURE, MAX_TOKENS
from userland.exits import BAD_SETUP, USAGE, Failure

Value = str | int | float | bool
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
WORDS = {"true": True, "yes": True, "on": True, "1": True,
         "false": False, "no": False, "off": False, "0": False}  # fmt: skip


class Unfit(ValueError):
    """A value that a key does not take."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `kind` is str, int, float or bool, or one of two that are written otherwise.

    "size" is bytes, like 720M; 0 is taken where it is the default: nothing, and not all there is.
    "folder" is a path, taken from here or from ~, or nothing.
    """

    name: str
    kind: str
    default: Value | None
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    of_kernel: bool = False

    @property
    def shown(self) -> str:
        """What it is called where both kinds of keys are listed."""
        return f"kernel.{self.name}" if self.of_kernel else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"LLMOS_{self.name.upper()}"

    @property
    def expected(self) -> str:
        """Which values it takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        word = {
            "str": "text", "bool": "true or false", "int": "a whole number", "float": "a number",
            "size": "a size like 720M or 2GiB", "folder": "a folder, or nothing",
        }[self.kind]  # fmt: skip
        if self.kind in ("int", "float") and math.isfinite(self.least):
            top = f" to {self.most:,}" if math.isfinite(self.most) else " or more"
            word += f", {self.least:,}{top}"
        return word

    def of_toml(self, value: Any) -> Value:
        """Take a value of a file; Unfit says what was expected and what was got."""
        if self.kind == "size" and isinstance(value, str):
            return self._fit(size_of(value), value)
        if self.kind == "float" and type(value) is int:
            return self._fit(float(value), value)
        if type(value) is not {
            "size": int,
            "int": int,
            "str": str,
            "folder": str,
            "bool": bool,
        }.get(self.kind, float):
            raise Unfit(f"expected {self.expected}, got {_described(value)}")
        return self._fit(value, value)

    def of_text(self, text: str) -> Value:
        """Take a value that is written as text: of a variable, or behind an option."""
        value: Value | None = text
        if self.kind == "size":
            value = 0 if text.strip() == "0" and self.default == 0 else size_of(text)
        elif self.kind == "bool":
            value = WORDS.get(text.lower())
        elif self.kind not in ("str", "folder"):
            try:
                value = int(text) if self.kind == "int" else float(text)
            except ValueError:
                value = None
        return self._fit(value, text)

    def _fit(self, value: Any, written: Any) -> Value:
        fits = value is not None
        if self.choices:
            fits = value in self.choices
        elif fits and self.kind in ("int", "float", "size"):
            fits = self.least <= value <= self.most  # and so no NaN
        if not fits:
            raise Unfit(f"expected {self.expected}, got {_described(written)}")
        result: Value = value
        if self.kind == "folder" and value:
            result = str(Path(value).expanduser().absolute())
        return result


def _described(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "a whole number", float: "a number",
             list: "a list", dict: "a table"}  # fmt: skip
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else f'"{value[:40]}…"'
    if isinstance(value, int | float):
        return f"{value}"
    return kinds.get(type(value), "a date or a time")


def size_of(text: str) -> int | None:
    """Return the bytes of 64M, 1.5GiB or 1000000; None if that is no size."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in UNITS else ""
    try:
        found = int(float(number.removesuffix(unit)) * UNITS[unit])
    except (ValueError, OverflowError):
        return None
    return found if 0 < found < 1 << 60 else None


def parse_size(text: str) -> int:
    """Return the bytes of a size; a usage error if it is none."""
    found = size_of(text)
    if found is None:
        raise Failure(f"{text!r} is not a size", "sizes are like 720M, 1.5GiB or 1000000", USAGE)
    return found


CLIENT = (
    Key("model", "str", "smollm2"),
    Key("temperature", "float", 0.2, 0, MAX_TEMPERATURE),
    Key("max_tokens", "int", 512, 1, MAX_TOKENS),
    Key("top_p", "float", 0.9, 0, 1),
    Key("top_k", "int", 0, 0, MAX_TOKENS),
    Key("min_p", "float", 0.0, 0, 1),
    Key("seed", "int", None, 0, MAX_SEED),
    Key("color", "str", "auto", choices=("auto", "always", "never")),
)
"""What commands and the shell go by. `up` loads `model`; contexts are made for it if it is set."""

DTYPES = ("bfloat16", "float32")
RENAMED = {"kv_bytes": "kv_mem", "host_bytes": "host_mem", "swap_bytes": "swap_mem"}
"""Keys of the kernel that people know by another name; its options keep theirs."""
FOLDERS = ("state_dir", "keys_dir")
_FIELDS = {name: key for key, name in RENAMED.items()}


@cache
def kernel_keys() -> tuple[Key, ...]:
    """Return the keys of the kernel that would be started here."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kernel.main", "--show-config"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = done.stderr.strip().rsplit("\n", 1)[-1]
        raise Failure(f"llmosd cannot say its configuration: {why}", exit_code=BAD_SETUP)
    return tuple(_key(row) for row in json.loads(done.stdout)["data"])


def _key(row: dict[str, Any]) -> Key:
    name = row["key"]
    kind = kind_of(RENAMED.get(name, name), row["type"])
    choices = DTYPES if name == "dtype" else ()
    return Key(
        RENAMED.get(name, name), kind, row["default"], row["least"],
        choices=choices, of_kernel=True,
    )  # fmt: skip


def kind_of(name: str, type_name: str) -> str:
    """Return the kind of a key of the kernel, from its name here and its type there."""
    if name in FOLDERS:
        return "folder"
    return "size" if is_size(name) else type_name


def is_size(name: str) -> bool:
    """Return whether a key of the kernel is a number of bytes."""
    return name in RENAMED.values() or name.endswith("_bytes")


def option_of(key: Key) -> str:
    """Return the option of llmosd that sets a key of the kernel."""
    return "--" + field_of(key).replace("_", "-")


def field_of(key: Key) -> str:
    """Return what the kernel itself calls a key."""
    return _FIELDS.get(key.name, key.name)


def unknown(name: str, keys: tuple[Key, ...], where: str) -> str:
    """Say that there is no such key, and which may be meant."""
    close = get_close_matches(name, [key.name for key in keys], 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no key {name!r} {where}{hint}"
