"""The line editor: prompt, history, completion, and lines that go on.

smollm2 main·3.9k/8k ✗75 $     model, context, how full it is, how the last command failed
"""

import os
from collections.abc import Callable

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import ColorDepth, create_output

from userland.exits import REFUSED, reason
from userland.llmsh.completion import Words
from userland.llmsh.history import history_path, make_private
from userland.llmsh.state import State

_MORE = "… "
_YELLOW, _RED = 0.6, 0.85
"""How full a context is when its colour changes."""


def open_history(note: Callable[[str], None]) -> History:
    """Return the history; one that lasts as long as the shell if there is no file to write."""
    path = history_path()
    if path is None:
        return InMemoryHistory()
    try:
        make_private(path)
        return _File(str(path), note)
    except OSError as error:
        note(f"no history: {path}: {error.strerror}")
        return InMemoryHistory()


class _File(FileHistory):
    """Lines that begin with a blank stay out of it, and a full disk does not end the shell."""

    def __init__(self, path: str, note: Callable[[str], None]) -> None:
        super().__init__(path)
        self._note = note

    def store_string(self, string: str) -> None:
        if string.startswith(" "):
            return
        try:
            super().store_string(string)
        except REFUSED as error:
            self._note(f"this line is not in the history: {reason(error)}")


class Prompt:
    """Reads lines."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._dumb = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
        self._output = create_output(always_prefer_tty=True)
        mono = self._dumb or bool(os.environ.get("NO_COLOR"))
        self._session: PromptSession[str] = PromptSession(
            history=open_history(state.note),
            auto_suggest=AutoSuggestFromHistory(),
            completer=Words(state),
            complete_while_typing=False,
            multiline=Condition(_goes_on),
            prompt_continuation=lambda width, line, wrap: "" if wrap else _MORE,
            color_depth=ColorDepth.DEPTH_1_BIT if mono else ColorDepth.DEPTH_4_BIT,
            output=self._output,
        )

    def read(self) -> str:
        """Return what was typed; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        self._begin_line()
        return self._session.prompt(fragments(self._state))

    def _begin_line(self) -> None:
        """Mark output that ended without a newline, and go to the next line.

        At the beginning of a line the mark and its blanks fill that line and are erased; anywhere
        else they run over into the next.
        """
        if self._dumb:
            return
        columns = self._output.get_size().columns
        self._output.write_raw("⏎" + " " * (columns - 1) + "\r\x1b[K")
        self._output.flush()


def _goes_on() -> bool:
    """Return whether Enter adds a line to what has been typed."""
    from userland.llmsh.parser import is_incomplete  # 0.1 s of lark, after the first prompt

    return is_incomplete(get_app().current_buffer.text)


def fragments(state: State) -> StyleAndTextTuples:
    """Return the prompt in its colours."""
    fill = state.contexts.fill()
    shown: StyleAndTextTuples
    if fill is None:
        shown = [("ansiyellow", "no kernel"), ("", " ")]
    else:
        model, length, limit = fill
        share = length / limit
        color = "ansired" if share >= _RED else "ansiyellow" if share >= _YELLOW else "ansigreen"
        name = state.contexts.current
        shown = [("", f"{model} {name}·"), (color, f"{_short(length)}/{_short(limit)}"), ("", " ")]
    if state.status:
        shown.append(("ansired", f"✗{state.status} "))
    return [*shown, ("", "$ ")]


def _short(tokens: int) -> str:
    """61, 3.9k, 8k: a limit is a power of two, and counted as such."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens / 1000:.1f}k"
