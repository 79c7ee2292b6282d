"""What can be wrong with a line: it is not complete, not built in this version, or makes no sense.

Each error points at a column. From where the parser gave up, and what it would have taken there,
these functions find out which of the three it is.
"""

import re

from lark.exceptions import UnexpectedToken

_UNBUILT = (
    (r"&(?!&)", "& (jobs in the background)"),
    (r"[0-9]+[<>]|[<>]&", "redirecting other streams than 0, 1 and 2"),
    (r"[<>]\(", "<( ) and >( )"),
    (r"\$\(\(", "$(( )) (arithmetic)"),
    (r"`", "` ` (the output of a command as text); write $( )"),
    (r"[()]", "( ) (sub-shells)"),
)

_CLOSED = re.compile(
    r"""(?:'[^']*'|"(?:[^"\\$]|\\.|\$(?!\())*"|\\.|[^'"\\#?$]|\$(?!\())*""", re.DOTALL
)
"""As far as every quote is closed. What follows # or ? or $( may be no quote at all."""


class ParseError(Exception):
    """The text makes no sense at a column."""

    def __init__(self, message: str, text: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = text.count("\n", 0, at) + 1
        start = text.rfind("\n", 0, at) + 1
        self.column = at - start + 1
        self._source = text[start:].split("\n", 1)[0]

    def pointer(self) -> str:
        """Return the source line with a mark under the column."""
        blank = re.sub(r"[^\t]", " ", self._source[: self.column - 1])
        return f"  {self._source}\n  {blank}^"


class Incomplete(ParseError):
    """More lines could make sense of it. `awaits` is what these have to bring, if that is known:
    a quote, or the word that closes a compound."""

    def __init__(self, message: str, text: str, at: int, awaits: str = "") -> None:
        super().__init__(message, text, at)
        self.awaits = awaits


def still_open(awaits: str, line: str) -> str:
    """Return what is awaited after one more line; nothing if only the parser can tell."""
    if awaits in ("'", '"'):
        rest = _CLOSED.sub("", awaits + line, count=1)
        return rest[0] if rest.startswith(("'", '"')) else ""
    if awaits and awaits in line:
        return ""
    return awaits


def at_token(text: str, error: UnexpectedToken, at: int, nested: bool, awaits: str) -> ParseError:
    """Explain a token in the wrong place; `nested`: the text ended with the bracket of $( )."""
    token, accepts = error.token, error.accepts
    ended = token.type == "$END"
    last = token.start_pos or 0
    at = last if not ended else at - 1 if nested else len(text.rstrip())
    if not ended and (found := unbuilt(text, at)):
        return found
    if "FREE" in accepts and "AT" not in accepts:
        return ParseError("after @name comes a quoted prompt, or ? and text", text, at)
    if "WORD" in accepts and not accepts & {"INTO", "_NEWLINE"}:
        return ParseError("a file name is missing", text, at)
    goes_on = "_NEWLINE" in accepts or text.startswith(("\r", "\n"), last)
    if ended and not nested and goes_on:
        if awaits:
            return Incomplete(f"{awaits} is missing", text, at, awaits)
        # After | && || a line may end, the text may not.
        return Incomplete("a command is missing at the end", text, at)
    if ended or token.type == "_NEWLINE":
        where = "before )" if nested else "at the end of the line"
        return ParseError(f"a command is missing {where}", text, at)
    return ParseError(f"{str(token)!r} makes no sense here", text, at)


def unbuilt(text: str, at: int) -> ParseError | None:
    """Return the error if what stands there is a shell's syntax that this version lacks."""
    # What is one operator to a shell may be two tokens here, and the second of them in the way.
    for start in (max(0, at - 1), at):
        for pattern, what in _UNBUILT:
            if re.match(pattern, text[start:]):
                return ParseError(f"not in this version: {what}", text, start)
    return None
