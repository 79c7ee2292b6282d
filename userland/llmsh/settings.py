"""set: how model calls sample, how the shell behaves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, TextIO

from userland.asking import MAX_SEED, MAX_TEMPERATURE, MAX_TOKENS
from userland.exits import USAGE, Failure

if TYPE_CHECKING:
    from userland.llmsh.state import State


@dataclass
class Options:
    """What `set` switches on and off, by letter, with -o, or as NAME=on."""

    errexit: bool = False
    nounset: bool = False
    xtrace: bool = False
    pipefail: bool = True
    verbose: bool = False
    """Tell tokens and times below every answer."""
    markdown: bool = True
    history: bool = True


NAMES = ("temp", "max", "seed", "top_p", "top_k", "min_p", "verbose", "markdown", "history")
_LETTERS = {"e": "errexit", "u": "nounset", "x": "xtrace"}
_NAMED = (*_LETTERS.values(), "pipefail")
_SWITCHES = ("verbose", "markdown", "history")
_HELP = "set temp=0.2 max=512 seed=none top_p=1 | set -e -u -x -o pipefail | set verbose=on"


def run(state: "State", args: list[str], out: TextIO) -> int:
    """Set NAME=value, -e -u -x -o NAME, or with -- the arguments; show all without arguments."""
    if not args:
        _show(state, out)
        return 0
    changes = list(_parsed(args))  # all of them or none
    for owner, name, value in changes:
        if owner == "arguments":
            state.variables.arguments = value
        else:
            setattr(state.sampling if owner == "sampling" else state.options, name, value)
    return 0


def _show(state: "State", out: TextIO) -> None:
    sampling, options = state.sampling, state.options
    seed = "none" if sampling.seed is None else sampling.seed
    out.write(f"temp={sampling.temp:g} max={sampling.max} seed={seed}")
    out.write(f" top_p={sampling.top_p:g} top_k={sampling.top_k} min_p={sampling.min_p:g}\n")
    out.write(" ".join(f"{name}={_ON[getattr(options, name)]}" for name in _SWITCHES) + "\n")
    out.write("set " + " ".join(f"{'+-'[getattr(options, n)]}o {n}" for n in _NAMED) + "\n")


def _parsed(args: list[str]) -> Iterator[tuple[str, str, Any]]:
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            yield "arguments", "", rest
            return
        if arg[:1] in ("-", "+") and len(arg) > 1:
            yield from _flags(arg, rest)
        else:
            yield _assigned(arg)


def _flags(arg: str, rest: list[str]) -> Iterator[tuple[str, str, bool]]:
    on = arg[0] == "-"
    for letter in arg[1:]:
        name = _LETTERS.get(letter, "")
        if letter == "o":
            name = rest.pop(0) if rest else ""
        if name not in _NAMED:
            what = f"{arg[0]}o {name}" if letter == "o" else f"{arg[0]}{letter}"
            raise Failure(
                f"set {what}: not in this version", f"-e -u -x -o {'|'.join(_NAMED)}", USAGE
            )
        yield "options", name, on


def _assigned(arg: str) -> tuple[str, str, Any]:
    name, equals, text = arg.partition("=")
    if equals and name in _SWITCHES:
        if text not in _OFF_ON:
            raise Failure(f"{name}={text}: {name} is on or off", exit_code=USAGE)
        return "options", name, _OFF_ON[text]
    if name not in _READERS or not equals:
        raise Failure(f"cannot set {arg!r}", _HELP, USAGE)
    try:
        return "sampling", name, _READERS[name](text)
    except ValueError:
        raise Failure(f"{name}={text}: {name} is {_RANGES[name]}", exit_code=USAGE) from None


# --- values ---------------------------------------------------------------------------------------


def _real(high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not isfinite(value) or not 0 <= value <= high:
            raise ValueError
        return value

    return read


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _seed(text: str) -> int | None:
    return None if text == "none" else _whole(0, MAX_SEED)(text)


_OFF_ON = {"off": False, "on": True}
_ON = {False: "off", True: "on"}
_READERS: dict[str, Callable[[str], float | int | None]] = {
    "temp": _real(MAX_TEMPERATURE),
    "max": _whole(1, MAX_TOKENS),
    "seed": _seed,
    "top_p": _real(1.0),
    "top_k": _whole(0, MAX_TOKENS),
    "min_p": _real(1.0),
}
_RANGES = {
    "temp": f"0 to {MAX_TEMPERATURE:g}; 0 is always the likeliest token",
    "max": f"1 to {MAX_TOKENS} tokens",
    "seed": f"0 to {MAX_SEED}, or none",
    "top_p": "0 to 1; 1 is all tokens",
    "top_k": f"0 to {MAX_TOKENS}; 0 is all tokens",
    "min_p": "0 to 1; 0 is all tokens",
}
