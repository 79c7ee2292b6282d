"""Tab: what a word could become.

Builtins and programs where a command begins, the verbs of `ctx`, contexts after those and @, paths
anywhere else.
"""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from userland.llmsh.builtins import BUILTINS
from userland.llmsh.ctx import VERBS
from userland.llmsh.state import State

_WORD = re.compile(r"(?:[^\s|&;<>\\]|\\.)*$")
_BEGINS = re.compile(r"(?:^|[|;&]|\n)\s*$")
_VERB = re.compile(r"(?:^|[|;&]|\n)\s*ctx\s+$")
_CONTEXT = re.compile(r"\bctx\s+(?:use|rm)\s.*$")
_SPECIAL = re.compile(r"([\s|&;<>()`'\"\\$#*?\[\]])")
_LIMIT = 500


class Words(Completer):
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state

    def get_completions(self, document: Document, _: CompleteEvent) -> Iterable[Completion]:
        """Offer what the word before the cursor could become; nothing inside quotes and prompts."""
        text = document.text_before_cursor
        found = _WORD.search(text)
        word = found.group() if found else ""
        before = text[: len(text) - len(word)]
        if before.count('"') % 2 or before.count("'") % 2 or before.lstrip().startswith("?"):
            return
        offers = sorted(set(self._offers(before, word)))[:_LIMIT]
        for offer in offers:
            yield Completion(offer, -len(word), display=offer.rstrip("/").rsplit("/", 1)[-1])

    def _offers(self, before: str, word: str) -> Iterator[str]:
        contexts = self._state.contexts.names()
        if _VERB.search(before):
            yield from (verb for verb in VERBS if verb.startswith(word))
        elif _CONTEXT.search(before):
            yield from (name for name in contexts if name.startswith(word))
        elif _BEGINS.search(before) and word.startswith("@"):
            yield from (f"@{name}" for name in contexts if name.startswith(word[1:]))
        elif _BEGINS.search(before) and "/" not in word:
            yield from (name for name in (*BUILTINS, *self._programs) if name.startswith(word))
        else:
            yield from _paths(word)

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


def _paths(word: str) -> Iterator[str]:
    """Return the paths that a word may become, special characters escaped, folders with a slash."""
    typed = re.sub(r"\\(.)", r"\1", word)
    head, slash, start = typed.rpartition("/")
    folder = (
        Path(head + slash or ".").expanduser() if typed.startswith("~/") else Path(head + slash)
    )
    try:
        with os.scandir(folder) as entries:
            names = [entry.name + "/" * entry.is_dir() for entry in entries]
    except OSError:
        return
    kept = "~/" if typed.startswith("~/") else ""
    prefix = (head + slash).removeprefix(kept)
    for name in names:
        if name.startswith(start) and (start or not name.startswith(".")):
            yield kept + _SPECIAL.sub(r"\\\1", prefix + name)
