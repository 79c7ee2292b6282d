"""set: how model calls sample."""

from collections.abc import Callable
from math import isfinite
from typing import TextIO

from userland.exits import USAGE, Failure
from userland.llmsh.state import State

MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**64 - 1
MAX_TEMPERATURE = 100.0


def set_sampling(state: State, args: list[str], out: TextIO) -> int:
    """Set temp=N max=N seed=N|none; show all three without arguments."""
    changes = [_parse(arg) for arg in args]  # all of them or none
    for name, value in changes:
        setattr(state.sampling, name, value)
    if not args:
        sampling = state.sampling
        seed = "none" if sampling.seed is None else sampling.seed
        out.write(f"temp={sampling.temp:g} max={sampling.max} seed={seed}\n")
    return 0


def _parse(arg: str) -> tuple[str, float | int | None]:
    name, equals, text = arg.partition("=")
    if name not in _READERS or not equals:
        raise Failure(f"cannot set {arg!r}", "set temp=0.2 max=512 seed=none", USAGE)
    try:
        return name, _READERS[name](text)
    except ValueError:
        raise Failure(f"{name}={text}: {name} is {_RANGES[name]}", exit_code=USAGE) from None


def _temp(text: str) -> float:
    value = float(text)
    if not isfinite(value) or not 0 <= value <= MAX_TEMPERATURE:
        raise ValueError
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _seed(text: str) -> int | None:
    return None if text == "none" else _whole(0, MAX_SEED)(text)


_READERS: dict[str, Callable[[str], float | int | None]] = {
    "temp": _temp,
    "max": _whole(1, MAX_TOKENS),
    "seed": _seed,
}
_RANGES = {
    "temp": f"0 to {MAX_TEMPERATURE:g}; 0 is always the likeliest token",
    "max": f"1 to {MAX_TOKENS} tokens",
    "seed": f"0 to {MAX_SEED}, or none",
}
