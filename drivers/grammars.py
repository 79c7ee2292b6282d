"""Grammars: those that a driver holds, by model and number, and the thread that makes them.

A Compile is tried (drivers/trial.py), then compiled, in a thread of its own beside the steps; the
answer is emitted from there. The vocabulary of a model is read with its first grammar: most models
never get one.
"""

import logging
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from drivers import base
from drivers.base import FaultKind
from drivers.grammar import Grammar, GrammarError, Vocabulary, compile_source
from drivers.models.errors import ModelError
from drivers.plan import invalid
from drivers.trial import Trials

log = logging.getLogger(__name__)

Read = Callable[[], Vocabulary]
"""Reads a model's vocabulary; ModelError if it has none."""


class Shelf:
    """The grammars of one model."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._vocabulary: Vocabulary | None = None
        self.grammars: dict[int, Grammar] = {}
        self.named: set[int] = set()  # those, and such as are being compiled

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = self._read()
        return self._vocabulary


class Grammars:
    """The grammars of a driver. Methods are called from one thread."""

    def __init__(self, emit: base.Emit) -> None:
        self._emit = emit
        self._shelves: dict[int, Shelf] = {}
        self._trials = Trials()
        self._thread = ThreadPoolExecutor(1, "grammar")
        weakref.finalize(self, _end, self._thread, self._trials)

    def add_model(self, model: int, read: Read) -> None:
        """Take a model in that may have grammars."""
        self._shelves[model] = Shelf(read)

    def remove_model(self, model: int) -> None:
        """Drop a model's grammars."""
        if self._shelves.pop(model, None) is not None:
            self._thread.submit(self._trials.forget, model)

    def of(self, model: int) -> Mapping[int, Grammar]:
        """Return what is compiled for a model, by number."""
        shelf = self._shelves.get(model)
        return shelf.grammars if shelf else {}

    def forget(self, forget: base.Forget) -> None:
        """Drop a grammar; PLAN_INVALID if there is none."""
        shelf = self._shelves.get(forget.model)
        if shelf is None or forget.number not in shelf.grammars:
            raise invalid(f"model {forget.model} has no grammar {forget.number}")
        shelf.named.remove(forget.number)
        del shelf.grammars[forget.number]

    def compile(self, compile: base.Compile) -> None:
        """Begin to compile; Compiled is emitted later. PLAN_INVALID if it may not be asked for."""
        shelf = self._shelves.get(compile.model)
        named = sum(len(shelf.named) for shelf in self._shelves.values())
        if shelf is None:
            raise invalid(f"model {compile.model} is not loaded")
        if compile.number <= 0 or compile.number in shelf.named:
            raise invalid(f"grammar {compile.number} of model {compile.model} is there, or no name")
        if len(compile.text) > base.MAX_GRAMMAR or named >= base.MAX_GRAMMARS:
            raise invalid(
                f"a grammar of {len(compile.text)} bytes beside {named}, the limits are "
                f"{base.MAX_GRAMMAR} and {base.MAX_GRAMMARS}"
            )
        shelf.named.add(compile.number)
        self._thread.submit(self._make, shelf, compile)

    def _make(self, shelf: Shelf, compile: base.Compile) -> None:
        """In the thread: try, compile, answer."""
        answer = base.Compiled(compile.model, compile.number)
        try:
            vocabulary = shelf.vocabulary
            source = self._trials.check(compile.model, vocabulary, compile.kind, compile.text)
            shelf.grammars[compile.number] = compile_source(source, vocabulary)
        except ModelError as error:
            answer = answer._replace(kind=FaultKind.UNSUPPORTED, message=error.message)
        except GrammarError as error:
            answer = answer._replace(kind=FaultKind.PLAN_INVALID, message=str(error))
        except Exception as error:
            log.exception("a grammar of model %d could not be made", compile.model)
            self._emit(base.Fault(0, 0, 0, FaultKind.DEVICE_LOST, base.lost(error), ()))
            return
        if answer.kind:
            shelf.named.discard(compile.number)
        self._emit(answer)


def _end(thread: ThreadPoolExecutor, trials: Trials) -> None:
    trials.stop()
    thread.shutdown(cancel_futures=True)
    trials.close()
