"""What an infer is to follow: a JSON schema, a regex or a Lark grammar, as the ABI takes it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from syscalls.abi import MAX_GRAMMAR, GrammarKind
from syscalls.errors import EINVAL

Schema = Mapping[str, Any] | bool | str
"""A JSON schema, as an object or as its text."""


class Follow(NamedTuple):
    """The fields of `abi.Infer` that say which grammar; no kind: none."""

    kind: int = 0
    text: bytes = b""


def follow(
    schema: Schema | None = None, regex: str | None = None, lark: str | None = None
) -> Follow:
    """Return what is asked for; EINVAL if that is more than one, or cannot be sent."""
    given = {
        GrammarKind.JSON_SCHEMA: schema, GrammarKind.REGEX: regex, GrammarKind.LARK: lark,
    }  # fmt: skip
    asked = [(kind, what) for kind, what in given.items() if what is not None]
    if not asked:
        return Follow()
    if len(asked) > 1:
        raise EINVAL("more than one of schema, regex and lark", "an infer follows one grammar")
    kind, what = asked[0]
    text = what if isinstance(what, str) else _spelled(what)
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise EINVAL(f"the grammar has half a letter at {error.start}") from None
    if len(raw) > MAX_GRAMMAR:
        raise EINVAL(
            f"a grammar of {len(raw):,} bytes, the limit is {MAX_GRAMMAR:,}",
            "leave descriptions out, or split the question",
            {"needed": len(raw), "limit": MAX_GRAMMAR},
        )
    return Follow(kind, raw)


def _spelled(schema: Any) -> str:
    try:
        return json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise EINVAL(
            f"the schema is no JSON: {error}", "give a dict as json.loads makes it, or a text"
        ) from None
