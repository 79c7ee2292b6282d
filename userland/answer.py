"""An answer as it comes: its pieces written at once, and how it ended."""

import time
from collections.abc import Iterator
from typing import Protocol

from syscalls import Piece, Stream
from userland.exits import INTERRUPTED, PIPE_CLOSED, PipeClosed
from userland.waiting import Watch


class Out(Protocol):
    """Where an answer is written; PipeClosed if nobody reads it any more."""

    def write(self, text: str) -> None: ...


class Answer:
    """What came of a call, and how it ended."""

    def __init__(self, stream: Stream, out: Out, watch: Watch) -> None:
        self.stream = stream
        self.status = 0
        self.pieces = 0
        self.cut = False
        """Ended by somebody else: kill -INT, or a kernel that stops."""
        self.first_s = self.whole_s = 0.0
        self._out = out
        self._watch = watch

    @property
    def text(self) -> str:
        return self.stream.text

    def write(self) -> None:
        """Write the pieces as they come, until the end, Ctrl-C or a reader that has gone."""
        begin = time.monotonic()
        try:
            for piece in self._arriving():
                # First counted, then written: the context has whatever a person has seen.
                self.pieces += piece.id is not None
                self.first_s = self.first_s or time.monotonic() - begin
                self._out.write(piece.text)
        except (KeyboardInterrupt, PipeClosed) as end:
            self.status = INTERRUPTED if isinstance(end, KeyboardInterrupt) else PIPE_CLOSED
            self.stream.cancel(self.pieces)
        else:
            self.cut = self.stream.finish == "cancelled"
            if self.cut:
                self.status = INTERRUPTED
        self.whole_s = time.monotonic() - begin

    def _arriving(self) -> Iterator[Piece]:
        """Yield the pieces; say what the next one waits for if it takes long."""
        while True:
            while not self.stream.wait(self._watch.patience_s):
                self._watch.look()
            piece = next(self.stream, None)
            if piece is None:
                return
            yield piece
