"""The line editor: prompt, history, completion, and lines that go on.

smollm2 main·3.9k/8k ✗75 $     model, context, how full it is, how the last command failed
smollm2 main·3.9k/8k »         the same in chat
"""

import os
from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output

from userland.exits import REFUSED, reason
from userland.llmsh import history
from userland.llmsh.state import State
from userland.llmsh.terminal import is_dumb

_MORE = "… "
_YELLOW, _RED = 0.6, 0.85
"""How full a context is when its colour changes."""


class Lines(History):
    """What the editor has of the history. Lines come in by `add`, after they were expanded."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self._state = state
        self._path = history.history_path(name)
        self.lines: list[str] = []
        if self._path is None:
            return
        try:
            history.make_private(self._path)
            self.lines = history.load(self._path)
        except OSError as error:
            state.note(f"no history: {self._path}: {error.strerror}")
            self._path = None

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self.lines)

    def append_string(self, string: str) -> None:
        """Leave out what the editor adds: the line may still be expanded."""

    def store_string(self, string: str) -> None:
        """Do nothing: the file is written by `add`."""

    def add(self, line: str) -> None:
        """Keep a line, unless it begins with a blank or is the one before it again."""
        repeated = self.lines[-1:] == [line]
        if not self._state.options.history or not line.strip() or line[0] == " " or repeated:
            return
        self.lines.append(line)
        super().append_string(line)
        if self._path is None:
            return
        try:
            history.append(self._path, line)
        except REFUSED as error:
            self._state.note(f"this line is not in the history: {reason(error)}")


class Prompt:
    """Reads lines of the shell, or with another mark and another history those of a chat."""

    def __init__(
        self,
        state: State,
        completer: Completer,
        goes_on: Callable[[str], bool],
        mark: str = "$",
        name: str = "llmsh_history",
    ) -> None:
        self._state = state
        self._mark = mark
        self._dumb = is_dumb(os.environ)
        self._output = create_output(always_prefer_tty=True)
        mono = self._dumb or bool(os.environ.get("NO_COLOR"))
        self.history = Lines(state, name)
        self._session: PromptSession[str] = PromptSession(
            history=self.history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=completer,
            complete_while_typing=False,
            multiline=Condition(lambda: goes_on(get_app().current_buffer.text)),
            prompt_continuation=lambda width, line, wrap: "" if wrap else _MORE,
            color_depth=ColorDepth.DEPTH_1_BIT if mono else ColorDepth.DEPTH_4_BIT,
            enable_open_in_editor=True,
            key_bindings=_keys(),
            output=self._output,
        )

    def read(self) -> str:
        """Return what was typed; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        self._begin_line()
        return self._session.prompt(fragments(self._state, self._mark))

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


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        """Begin a new row, whatever Enter would do."""
        event.current_buffer.insert_text("\n")

    return keys


def fragments(state: State, mark: str = "$") -> StyleAndTextTuples:
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
    return [*shown, ("", f"{mark} ")]


def _short(tokens: int) -> str:
    """61, 3.9k, 8k: a limit is a power of two, and counted as such."""
    if tokens < 1000:
        return str(tokens)
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens / 1000:.1f}k"
