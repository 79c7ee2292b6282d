"""The shell's task of the kernel, and its contexts by name.

    no task --task()--> task --the session is lost--> no task        contexts are gone with the task
                        task --the kernel saves, stops, and is up again--> the same task

A `Named` context knows where each turn (a prompt with its answer) begins, so that `undo` can trim
it. `main` is made when it is first used; every other name has to be made by `ctx new` or `fork`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches

import syscalls
from syscalls import ECONNRESET, ESRCH, ETIMEDOUT, Context, KernelError
from syscalls.abi import ModelRow
from syscalls.turnmarks import marks_of
from userland.exits import USAGE, Failure
from userland.patience import PATIENCE_S, come_back
from userland.running import loaded_as, mind_variables
from userland.turns import say_user

MAIN = "main"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Named:
    """A context with its name and the lengths at which its turns begin."""

    def __init__(self, name: str, context: Context, turns: tuple[int, ...] = ()) -> None:
        self.name = name
        self.context = context
        self.turns = turns

    def undo(self, count: int) -> None:
        """Take the last turns back."""
        if count > len(self.turns):
            raise Failure(f"cannot undo {count} turns, @{self.name} has {len(self.turns)}")
        self.context.trim(self.turns[-count])
        self.turns = self.turns[:-count]


class Contexts:
    """What the shell has in the kernel."""

    def __init__(
        self, model: str | None, note: Callable[[str], None], address: str | None = None
    ) -> None:
        self.current = MAIN
        self._model = model
        self._address = address
        self._note = note
        self._task: syscalls.Task | None = None
        self._named: dict[str, Named] = {}
        self._loaded: ModelRow | None = None

    # --- the task -----------------------------------------------------------------------------

    def task(self) -> syscalls.Task:
        """Return the shell as a task that is known to be alive; connect if it is not one."""
        if self._task is not None:
            try:
                self._task.stat()
            except KernelError as error:
                if not self._come_back(self._task) and not self.drop(error):
                    raise
        if self._task is None:
            self._task = syscalls.connect("llmsh", address=self._address)
            mind_variables(self._task, self._note)
        return self._task

    @property
    def connected(self) -> bool:
        """Whether there is a task already, so that asking for it connects to nothing."""
        return self._task is not None

    def glance(self) -> None:
        """Come back to the task if its kernel has saved it, and is up by now."""
        if self._task is not None:
            with suppress(ECONNRESET, ETIMEDOUT):
                self._come_back(self._task, 0.0)

    def _come_back(self, task: syscalls.Task, patience_s: float = PATIENCE_S) -> bool:
        """Attach to the task again if its kernel has saved it; ECONNRESET while that is not up."""
        if not task.saved:
            return False
        try:
            come_back(task, self._note, patience_s)
        except ESRCH:
            return False
        names = ", ".join(f"@{name}" for name in self._named)
        self._note(f"the kernel is back{f': {names} as before' if names else ''}")
        self._loaded = None
        return True

    def drop(self, error: KernelError) -> bool:
        """Forget a task whose session is lost, be it by this error, and say what went with it.

        Not one that its kernel has saved: it is there when the kernel is.
        """
        gone = isinstance(error, ECONNRESET)
        if self._task is None or not (gone or self._task.lost) or self._task.saved:
            return False
        self._task.abandon()
        self._task = self._loaded = None
        if self._named:
            names = ", ".join(f"@{name}" for name in self._named)
            what = "kernel" if gone else "session"
            self._note(f"{names}: gone with the {what}; the next prompt begins anew in @main")
        self._named = {}
        self.current = MAIN
        return True

    def killed(self) -> int | None:
        """Return the status with which somebody has ended the task, None if nobody has."""
        if self._task is None:
            return None
        ends = [
            event.status
            for event in self._task.events()
            if isinstance(event, syscalls.Exited) and event.pid == self._task.pid
        ]
        return ends[0] if ends else None

    def close(self) -> None:
        """End the task, and with it every context."""
        if self._task is not None:
            self._task.close()
            self._task = None

    def fill(self) -> tuple[str, int, int] | None:
        """Return model, length and limit of the current context; None without a kernel."""
        named = self._named.get(self.current)
        if named is not None:
            return named.context.model, named.context.length, named.context.max_ctx
        if self._loaded is None and self._task is not None:
            try:
                rows = self._task.models()
            except KernelError:
                return None  # the next call says so
            up = [row for row in rows if row.state == "up"]
            self._loaded = next((row for row in up if self._model in (None, row.name)), None)
        return self._loaded and (self._loaded.name, 0, self._loaded.max_ctx)

    # --- contexts -----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Named]:
        return iter(self._named.values())

    def names(self) -> list[str]:
        """Return every name that can be used: those that exist, and main."""
        return list(dict.fromkeys((*self._named, MAIN)))

    def open(self, name: str | None = None) -> Named:
        """Return a context (None: the current one); main is made if need be."""
        task = self.task()
        name = name or self.current
        if name not in self._named and name == MAIN:
            self._named[MAIN] = Named(MAIN, task.alloc_ctx(loaded_as(task, self._model), MAIN))
        if name not in self._named:
            raise self._absent(name)
        return self._named[name]

    def use(self, name: str) -> None:
        """Make a context the current one."""
        if name not in self.names():
            raise self._absent(name)
        self.current = name

    def new(self, name: str, system: str | None) -> None:
        """Make a context and use it."""
        task = self.task()
        self._check_new(name)
        context = task.alloc_ctx(loaded_as(task, self._model), name, system=system)
        self._named[name] = Named(name, context)
        self.current = name

    def load(self, name: str, at: str | None) -> Named:
        """Make a context of a save and use it, as `at`, or as the save is called if that is free.

        main is taken over as long as nothing is in it.
        """
        task = self.task()
        wanted = at or (name if _NAME.fullmatch(name) else MAIN)
        old = self._named.get(wanted)
        if old is None or wanted != MAIN or old.context.length:
            self._check_new(wanted)
        context = task.load_ctx(name, title=wanted)
        if old is not None:
            old.context.free()
        made = context.loaded
        marks = marks_of(made.extra, made.length) if made else []
        turns = tuple(mark.start for mark in marks if mark.role == "user")
        self._named[wanted] = Named(wanted, context, turns)
        self.current = wanted
        return self._named[wanted]

    def fork(self, names: list[str]) -> Named:
        """Make contexts that go on from the current one; return the current one."""
        origin = self.open()
        for at, name in enumerate(names):
            self._check_new(name)
            if name in names[:at]:
                raise Failure(f"{name} is given twice", exit_code=USAGE)
        made: list[Named] = []
        try:
            for name in names:
                made.append(Named(name, origin.context.fork(name=name), origin.turns))
        except BaseException:
            for fork in made:
                fork.context.free()
            raise
        self._named |= {fork.name: fork for fork in made}
        return origin

    @contextmanager
    def scratch(self, origin: Named) -> Iterator[Named]:
        """Fork a context for one question; the fork is freed afterwards."""
        fork = Named(origin.name, origin.context.fork(), origin.turns)
        try:
            yield fork
        finally:
            with suppress(KernelError):  # the session is lost, and the fork with it
                fork.context.free()

    def say(self, named: Named, text: str) -> None:
        """Add a user's turn."""
        say_user(self.task(), named.context, text, self._note)

    def fresh(self) -> str:
        """Return a name for a fork of the current context that has none yet."""
        number = 1
        while f"{self.current}-{number}" in self._named:
            number += 1
        return f"{self.current}-{number}"

    def remove(self, name: str) -> None:
        """Free a context; if it was the current one, main is."""
        if name in self._named:
            self.task()  # which may be found to be gone, and the context with it
        if name not in self._named:
            raise self._absent(name)
        self._named[name].context.free()
        del self._named[name]
        if name == self.current:
            self.current = MAIN

    def rename(self, name: str) -> None:
        """Give the current context another name."""
        self._check_new(name)
        named = self.open()
        del self._named[named.name]
        named.name = name
        self._named[name] = named
        self.current = name

    def _check_new(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise Failure(
                f"{name!r} cannot be a context's name",
                "1 to 64 of letters, digits, dot, dash and underscore",
                USAGE,
            )
        if name in self._named:
            raise Failure(f"there is a context {name} already", f"ctx rm {name} frees it")

    def _absent(self, name: str) -> Failure:
        close = get_close_matches(name, self.names(), 1)
        hint = f"did you mean @{close[0]}?" if close else f"ctx ls; fork {name}; ctx new {name}"
        return Failure(f"there is no context {name!r}", hint, code="ENOENT")
