"""Chat filters: the filters of chat templates that jinja2's own would let grow without payment.

Each gets the sandbox of template.py and pays it before, or while, it makes something.
"""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import pass_environment
from jinja2.filters import FILTERS

from syscalls.pricer import Excess

MAX_INDENT = 8
MAX_DIGITS = 16
WIDEST = 4  # bytes of a character


@pass_environment
def replace(sandbox: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = sandbox.text(text), sandbox.text(old), sandbox.text(new)
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(count, times)
    sandbox.spend(WIDEST * (len(text) + len(new) * times))
    return str(text.replace(old, new, times))


@pass_environment
def join(sandbox: Any, items: Any, separator: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = [sandbox.getitem(item, attribute) for item in items]
    texts = [sandbox.text(item) for item in items]
    separator = sandbox.text(separator)
    sandbox.spend(WIDEST * len(separator) * len(texts))
    return str(separator.join(texts))


def _join_method(sandbox: Any, separator: str, items: Any) -> str:
    return join(sandbox, items, separator)


GROWING: dict[str, Callable[..., str]] = {"replace": replace, "join": _join_method}
"""In place of the methods of str that make more than they are given."""


@pass_environment
def list_of(sandbox: Any, items: Any) -> list[Any]:
    """Make a list of anything, paying item by item."""
    return [sandbox.sized(item) for item in items]


@pass_environment
def sort(sandbox: Any, items: Any, *args: Any, **kwargs: Any) -> Any:
    return FILTERS["sort"](sandbox, list_of(sandbox, items), *args, **kwargs)


@pass_environment
def unique(sandbox: Any, items: Any, *args: Any, **kwargs: Any) -> Any:
    items = list_of(sandbox, items)
    sandbox.spend(len(items) ** 2)  # their hashes can be made to collide
    return FILTERS["unique"](sandbox, items, *args, **kwargs)


@pass_environment
def title(sandbox: Any, text: Any) -> str:
    text = sandbox.text(text)
    sandbox.scanned("title", text, ())
    return str(FILTERS["title"](text))


@pass_environment
def trim(sandbox: Any, text: Any, chars: str | None = None) -> str:
    text = sandbox.text(text)
    sandbox.scanned("strip", text, [chars])
    return str(text.strip(chars))


@pass_environment
def round_to(sandbox: Any, number: Any, precision: int = 0, method: str = "common") -> Any:
    if not -MAX_DIGITS <= precision <= MAX_DIGITS:
        raise Excess(f"it rounds to {precision} digits, the limit is {MAX_DIGITS}")
    return FILTERS["round"](sandbox.sized(number), precision, method)


@pass_environment
def tojson(sandbox: Any, value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise Excess(f"it indents JSON by {indent}, the limit is {MAX_INDENT}")
    encoder = json.JSONEncoder(ensure_ascii=False, indent=indent)
    return str(sandbox.concat(encoder.iterencode(sandbox.sized(value))))


def refuse(message: str) -> None:
    raise Excess(f"it refuses this chat: {message}")
