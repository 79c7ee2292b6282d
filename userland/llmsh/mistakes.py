"""What can be wrong with a line: it is not complete, not built in this version, or makes no sense.

Each error points at a column. From where the parser gave up, and what it would have taken there,
these functions find out which of the three it is.
"""

import re

from lark.exceptions import UnexpectedToken

_UNBUILT = (
    (r"\|&", "|& (stderr into a pipe)"),
    (r"&(?!&)", "& (jobs in the background)"),
    (r"<<<", "<<< (here-strings)"),
    (r"<<", "<< (here-documents)"),
    (r"[0-9]+[<>]|[<>]&", "redirecting other streams than stdin and stdout"),
    (r"[<>]\(", "<( ) and >( )"),
    (r"\$\(\(", "$(( )) (arithmetic)"),
    (r"\$\(|`", "$( ) and ` ` (the output of a command as text)"),
    (r"[()]", "( ) (sub-shells)"),
)

_CLOSED = re.compile(r"""(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^'"\\#?])*""", re.DOTALL)
"""As far as every quote is closed. What follows # or ? may be no quote at all."""


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
    """More lines could make sense of it; those that close the quote, if one is open."""

    def __init__(self, message: str, text: str, at: int, quote: str = "") -> None:
        super().__init__(message, text, at)
        self.quote = quote


def open_quote(quote: str, line: str) -> str:
    """Return which quote is open after one more line; nothing if only the parser can tell."""
    rest = _CLOSED.sub("", quote + line, count=1)
    return rest[0] if rest.startswith(("'", '"')) else ""


def at_character(text: str, at: int) -> ParseError:
    """Explain a character with which no token begins."""
    rest = text[at:]
    if rest[0] in "'\"":
        return Incomplete(f"{rest[0]} is not closed", text, at, rest[0])
    if rest.rstrip("\r\n") == "\\":
        return Incomplete("a backslash at the end", text, at)
    return unbuilt(text, at) or ParseError(f"{rest[0]!r} makes no sense here", text, at)


def at_token(text: str, error: UnexpectedToken) -> ParseError:
    """Explain a token in the wrong place."""
    token = error.token
    ended = token.type == "$END"
    last = token.start_pos or 0  # at the end: where the token before it began
    at = len(text.rstrip()) if ended else last
    if not ended and (found := unbuilt(text, at)):
        return found
    if "FREE" in error.accepts and "WORD" not in error.accepts:
        return ParseError("after @name comes a quoted prompt, or ? and text", text, at)
    if "WORD" in error.accepts and "FREE" not in error.accepts:
        return ParseError("a file name is missing", text, at)
    if ended and ("_NEWLINE" in error.accepts or text.startswith(("\r", "\n"), last)):
        # After | && || a line may end, the text may not.
        return Incomplete("a command is missing at the end", text, at)
    if ended or token.type == "_NEWLINE":
        return ParseError("a command is missing at the end of the line", text, at)
    return ParseError(f"{str(token)!r} makes no sense here", text, at)


def unbuilt(text: str, at: int) -> ParseError | None:
    """Return the error if what stands there is a shell's syntax that this version lacks."""
    # What is one operator to a shell may be two tokens here, and the second of them in the way.
    for start in (max(0, at - 1), at):
        for pattern, what in _UNBUILT:
            if re.match(pattern, text[start:]):
                return ParseError(f"not in this version: {what}", text, start)
    return None
