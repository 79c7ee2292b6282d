"""Tab: what a word could become.

    where a command begins      builtins, aliases, programs, @contexts
    words of a command of ours  what its click object says: options and their values
    ctx, set, $NAME             verbs, contexts, settings, variables
    in a prompt                 files after @./ and ./
    anywhere else               paths

Offers are looked for at most 200 ms, and nothing that goes wrong meanwhile is worth a word.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from syscalls import KernelError, ctxflow
from userland.llmsh import settings
from userland.llmsh.builtins import BUILTINS, SHARED, click_command
from userland.llmsh.ctx import NAMING, OF_SAVES, VERBS
from userland.llmsh.desk import ShellDesk
from userland.llmsh.state import State

_WORD = re.compile(r"(?:[^\s|&;<>\\]|\\.)*$")
_BEGINS = re.compile(r"[|;&\n{]|\$\(")
_KEYWORDS = ("if", "then", "elif", "else", "while", "until", "do", "!")
_VARIABLE = re.compile(r"\$\{?(\w*)$")
_MENTION = re.compile(r"(?:^|\s)(@(?=~?/|\.)|)((?:~?/|\.\.?/)\S*|\.{1,2})$")
_SPECIAL = re.compile(r"([\s|&;<>()`'\"\\$#*?\[\]])")
_LIMIT = 500
_LIMIT_S = 0.2

Offer = tuple[str, str]
"""What a word could become, and a few words of help."""


class Words(Completer):
    """Completes lines of the shell."""

    def __init__(self, state: State) -> None:
        self._state = state

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Offer what the word before the cursor could become."""
        try:
            return list(self._completions(document.text_before_cursor))
        except Exception:  # noqa: BLE001  somebody is typing: whatever it is, it can wait
            return []

    def _completions(self, text: str) -> Iterator[Completion]:
        found = _WORD.search(text)
        word = found.group().rsplit("$(", 1)[-1] if found else ""
        before = text[: len(text) - len(word)]
        if variable := _VARIABLE.search(text):
            names = {name for name in self._state.variables if name.startswith(variable[1])}
            yield from shown(((name, "") for name in names), variable[1])
        elif is_prose(text):
            yield from mentions(text)
        elif '"' not in word and "'" not in word:
            yield from shown(self._offers(before, word), word)

    def _offers(self, before: str, word: str) -> Iterator[Offer]:
        words = _BEGINS.split(before)[-1].split()
        while words and words[0] in _KEYWORDS:
            del words[0]
        if not words:
            yield from self._commands(word)
        elif words[0] == "ctx":
            yield from self._ctx(words, word)
        elif words[0] == "set" and "=" not in word:
            yield from ((f"{name}=", "") for name in settings.NAMES if name.startswith(word))
        elif words[-1] in ("-c", "--ctx"):
            yield from self._contexts(word, "@")
        elif words[0] in SHARED or words[0] == "ask" or words[0].startswith("@"):
            yield from self._of_click(words, word)
        else:
            yield from paths(word)

    def _commands(self, word: str) -> Iterator[Offer]:
        if word.startswith("@"):
            yield from self._contexts(word, "@")
        elif "/" in word:
            yield from paths(word)
        else:
            for name, run in BUILTINS.items():
                if name.startswith(word):
                    yield name, (run.__doc__ or "").split("\n")[0]
            yield from ((name, "alias") for name in self._state.aliases if name.startswith(word))
            yield from ((name, "") for name in self._programs if name.startswith(word))

    def _ctx(self, words: list[str], word: str) -> Iterator[Offer]:
        if len(words) == 1:
            yield from ((verb, "") for verb in VERBS if verb.startswith(word))
        elif words[1] in OF_SAVES and not word.startswith("@"):
            yield from self._saves(word)
        elif words[1] in NAMING:
            yield from self._contexts(word, "@" if word.startswith("@") else "")

    def _saves(self, word: str) -> Iterator[Offer]:
        """Offer the saves of the kernel that is known; one that is not asked yet has none."""
        if not self._state.contexts.connected:
            return
        with suppress(KernelError):
            task = self._state.contexts.task()
            for row in task.run_for(ctxflow.saves(task.caller), _LIMIT_S):
                if row.name.startswith(word):
                    yield row.name, f"{row.length:,} tokens"

    def _contexts(self, word: str, mark: str) -> Iterator[Offer]:
        lengths = {named.name: named.context.length for named in self._state.contexts}
        for name in self._state.contexts.names():
            if f"{mark}{name}".startswith(word):
                yield f"{mark}{name}", f"{lengths.get(name, 0):,} tokens"

    def _of_click(self, words: list[str], word: str) -> Iterator[Offer]:
        from click.shell_completion import ShellComplete

        from userland.llmsh.questions import ask_command

        name = words[0]
        command = click_command(name) if name in SHARED else ask_command()
        desk = ShellDesk(self._state, self._state.out)
        complete = ShellComplete(command, {"obj": desk}, name, "")
        for item in complete.get_completions(words[1:], word):
            if item.type in ("file", "dir"):
                yield from paths(word)
            else:
                yield item.value, item.help or ""

    @cached_property
    def _programs(self) -> frozenset[str]:
        """Names of executables; looked up once, at the first Tab."""
        found: set[str] = set()
        for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
            try:
                with os.scandir(directory) as entries:
                    found.update(entry.name for entry in entries if os.access(entry, os.X_OK))
            except OSError:
                continue
        return frozenset(found)


class ChatWords(Completer):
    """Completes lines of a chat: /builtins and their words, !lines of the shell, @./files."""

    def __init__(self, state: State) -> None:
        self._words = Words(state)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor.lstrip()
        if text[:1] == "!" or (text[:1] == "/" and " " in text):
            return self._words.get_completions(Document(text[1:]), event)
        if text[:1] == "/":
            names = [name for name in (*BUILTINS, "quit") if name.startswith(text[1:])]
            return list(shown(((name, "") for name in names), text[1:]))
        return list(mentions(text))


def is_prose(text: str) -> bool:
    """Tell whether the cursor is in quotes, or in a prompt after ?."""
    line = text.rsplit("\n", 1)[-1]
    free = re.search(r"(?:^|[|;&])\s*(?:@\S*\s+)?\?", line)
    plain = re.sub(r"\\.", "", text)
    return bool(free) or plain.count('"') % 2 == 1 or plain.count("'") % 2 == 1


def mentions(text: str) -> Iterator[Completion]:
    """Offer files for @./path and ./path in prose; a blank in a name ends the path there."""
    found = _MENTION.search(text)
    if found is not None:
        plain = ((offer, "") for offer, _ in paths(found[2]) if "\\" not in offer)
        yield from shown(plain, found[2])


def shown(offers: Iterable[Offer], word: str) -> Iterator[Completion]:
    """Turn offers into what the editor shows, in order, as far as there is time."""
    deadline = time.monotonic() + _LIMIT_S
    found: dict[str, str] = {}
    for offer, text in offers:
        found.setdefault(offer, text)
        if time.monotonic() > deadline:
            break
    for offer in sorted(found)[:_LIMIT]:
        name = offer.rstrip("/").rsplit("/", 1)[-1]
        yield Completion(offer, -len(word), display=name, display_meta=found[offer])


def paths(word: str) -> Iterator[Offer]:
    """Offer the paths that a word may become, special characters escaped, folders with a slash."""
    typed = re.sub(r"\\(.)", r"\1", word)
    head, slash, start = typed.rpartition("/")
    home = typed.startswith("~/")
    folder = Path(head + slash or ".").expanduser() if home else Path(head + slash)
    kept = "~/" if home else ""
    prefix = (head + slash).removeprefix(kept)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(start) and (start or not name.startswith(".")):
                    escaped = _SPECIAL.sub(r"\\\1", prefix + name)
                    yield kept + escaped + "/" * entry.is_dir(), ""
    except OSError:
        return
