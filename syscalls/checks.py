"""Checks of decoded values against the types of an ABI row, made once per row from its annotations.

A check returns what is wrong with a value, or None: it never raises and never goes deeper than the
type that is declared, so no value that msgpack can give is too deep or too large for it.
"""

import types
import unicodedata
from collections.abc import Callable
from functools import cache
from math import isfinite
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from syscalls.abi import Blob, Int, Ints, Pairs, Real, Text

type_check = Callable[[Any], str | None]
"""Returns what is wrong with a value, or None."""


@cache
def compile_checks(row: Any) -> tuple[type_check, ...]:
    """Return one check per field of an argument row."""
    hints = get_type_hints(row, include_extras=True)
    return tuple(_check_for(hints[name]) for name in row._fields)


def _check_for(hint: Any) -> type_check:
    origin = get_origin(hint)
    if origin in (types.UnionType, Union):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        check = _check_for(inner)
        return lambda value: None if value is None else check(value)
    if origin is Annotated:
        return _annotated_check(get_args(hint)[1])
    if hint is bool:
        return lambda value: None if type(value) is bool else "must be true or false"
    raise TypeError(f"the ABI has no check for {hint}")


def _annotated_check(limit: Any) -> type_check:
    if isinstance(limit, Int):
        return _int_check(limit)
    if isinstance(limit, Real):
        return _real_check(limit)
    if isinstance(limit, Text):
        return _text_check(limit)
    if isinstance(limit, Blob):
        return _blob_check(limit)
    if isinstance(limit, Ints):
        return _ints_check(limit)
    if isinstance(limit, Pairs):
        return _pairs_check(limit)
    raise TypeError(f"the ABI has no check for {limit}")


def _int_check(limit: Int) -> type_check:
    lo, hi = limit
    wrong = f"must be a whole number from {lo} to {hi}"

    def check(value: Any) -> str | None:
        return None if type(value) is int and lo <= value <= hi else wrong

    return check


def _real_check(limit: Real) -> type_check:
    lo, hi = limit
    wrong = f"must be a finite number from {lo} to {hi}"

    def check(value: Any) -> str | None:
        if type(value) is not float and type(value) is not int:
            return wrong
        return None if isfinite(value) and lo <= value <= hi else wrong

    return check


def _text_check(limit: Text) -> type_check:
    wrong = f"must be text of at most {limit.max_bytes} bytes matching {limit.pattern.pattern}"

    def check(value: Any) -> str | None:
        if type(value) is not str or len(value) > limit.max_bytes:
            return wrong
        if len(value.encode()) > limit.max_bytes or not limit.pattern.fullmatch(value):
            return wrong
        return None if unicodedata.is_normalized("NFC", value) else "must be NFC text"

    return check


def _blob_check(limit: Blob) -> type_check:
    wrong = f"must be at most {limit.max_bytes} bytes"

    def check(value: Any) -> str | None:
        return None if type(value) is bytes and len(value) <= limit.max_bytes else wrong

    return check


def _ints_check(limit: Ints) -> type_check:
    wrong = f"must be at most {limit.max_len} whole numbers from {limit.lo} to {limit.hi}"

    def check(value: Any) -> str | None:
        if type(value) is not list or len(value) > limit.max_len:
            return wrong
        good = all(type(item) is int and limit.lo <= item <= limit.hi for item in value)
        return None if good else wrong

    return check


def _pairs_check(limit: Pairs) -> type_check:
    (lo, hi), (least, most) = limit.first, limit.second
    first, second = _int_check(limit.first), _real_check(limit.second)
    wrong = (
        f"must be at most {limit.max_len} pairs of a whole number from {lo} to {hi} and a finite "
        f"number from {least} to {most}"
    )

    def check(value: Any) -> str | None:
        if type(value) is not list or len(value) > limit.max_len:
            return wrong
        pairs = all(type(item) is list and len(item) == 2 for item in value)
        good = pairs and not any(first(a) or second(b) for a, b in value)
        return None if good else wrong

    return check
