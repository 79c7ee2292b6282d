"""The output of one infer: sampled ids turned into pieces of text, cut at a stop string.

One id is one `Piece`. Its text may be empty: the bytes of a character can span ids, and text that
may be the beginning of a stop string is held back until it is known not to be one.

    ids      t0      t1      t2      t3
    text     Hello   , wor   ld\\n    \\nQ:         stop = "\\n\\n"
                               ^ found: the text ends at "world"

When a stop string is found, the output ends with the id in which it starts if that id also holds
text before it (what was shown is in the context), else with the id before: `keep` ids in all.

Pure: the ids come from `feed`, whoever calls cancels the infer when `keep` is set.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from syscalls.errors import EINVAL
from syscalls.session import Token

if TYPE_CHECKING:
    from syscalls.text import StreamDecoder, TextModel


MAX_STOPS = 16
MAX_STOP_LEN = 1024
"""Stop strings of an infer, and characters of one: each id's text is compared with all of them."""


class Piece(NamedTuple):
    """One id of an output, with the text that became certain with it.

    The last piece of an output may have no id: it carries text that was held back.
    """

    id: int | None
    text: str
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


class Usage(NamedTuple):
    """What an infer used: ids, and its part of the time of steps in microseconds."""

    prompt: int
    cached: int
    output: int
    overrun: int
    device_us: int = 0


class Output:
    """Ids so far, their text, and where it stops."""

    def __init__(self, model: "TextModel | None", stop: Sequence[str]) -> None:
        if stop and model is None:
            raise EINVAL("stop strings need a tokenizer, and there is none here", "use stop_ids")
        if "" in stop:
            raise EINVAL("a stop string is empty")
        if len(stop) > MAX_STOPS:
            raise EINVAL(f"{len(stop)} stop strings, the limit is {MAX_STOPS}")
        longest = max(map(len, stop), default=0)
        if longest > MAX_STOP_LEN:
            raise EINVAL(f"a stop string of {longest} characters, the limit is {MAX_STOP_LEN}")
        self.ids: list[int] = []
        self.keep: int | None = None
        self._model = model
        self._stop = tuple(stop)
        self._restart()

    def _restart(self) -> None:
        self._decoder: StreamDecoder | None = self._model.stream_decoder() if self._model else None
        self._raw = ""  # all text decoded
        self._ends: list[int] = []  # its length after each id
        self._shown = 0  # how much of it is in pieces

    @property
    def text(self) -> str:
        """All text that is certain so far."""
        return self._raw[: self._shown]

    def feed(self, token: Token) -> list[Piece]:
        """Take sampled ids; return their pieces. Ids beyond `keep` are dropped."""
        pieces: list[Piece] = []
        for at, id in enumerate(token.ids):
            text = self._next(id)
            if self.keep is not None and len(self.ids) > self.keep:
                self._drop(self.keep)
                if text:
                    pieces.append(Piece(None, text))
                break
            logprob = token.logprobs[at] if token.logprobs else None
            pieces.append(Piece(id, text, logprob, token.top[at] if token.top else None))
            if self.keep is not None:
                break
        return pieces

    def finish(self) -> list[Piece]:
        """End the output: no more ids come, so nothing has to be held back."""
        if self.keep is None and self._decoder is not None:
            self._raw += self._decoder.flush()
        text = self._show(self._certain(final=True))
        return [Piece(None, text)] if text else []

    def cut(self, keep: int) -> None:
        """Drop ids from the end, for a cancel or a rewind."""
        if keep < len(self.ids):
            ids = self.ids[:keep]
            self.ids = []
            self._restart()
            for id in ids:
                self._next(id)

    def _next(self, id: int) -> str:
        self.ids.append(id)
        if self._decoder is None:
            return ""
        before = len(self._raw)
        self._raw += self._decoder.push(id)
        self._ends.append(len(self._raw))
        if self.keep is None:
            self._find(before)
        return self._show(self._certain())

    def _find(self, before: int) -> None:
        """Look for the first stop string that ends in the newest text."""
        found = [
            at
            for stop in self._stop
            if (at := self._raw.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if found:
            self._raw = self._raw[: min(found)]
            starts = [0, *self._ends[:-1]]
            self.keep = sum(start < len(self._raw) for start in starts)

    def _certain(self, final: bool = False) -> int:
        """How much of the text cannot be part of a stop string to come."""
        size = len(self._raw)
        if final or self.keep is not None:
            return size
        held = 0
        for stop in self._stop:
            for part in range(min(len(stop) - 1, size), held, -1):
                if self._raw.endswith(stop[:part]):
                    held = part
                    break
        return size - held

    def _show(self, end: int) -> str:
        text = self._raw[self._shown : end]
        self._shown = max(self._shown, end)
        return text

    def _drop(self, keep: int) -> None:
        del self.ids[keep:]
        del self._ends[keep:]
