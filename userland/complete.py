"""What a word of a command could become: models, tasks, contexts, devices, signals.

Each function is the `shell_complete` of a click parameter, so `llmos` (through the script that
`llmos completion` prints) and llmsh offer the same. The kernel is asked with a limit; one that is
not there, or has no time, completes nothing. A Tab never is an error.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from userland.desk import Desk
from userland.exits import EXPECTED

if TYPE_CHECKING:
    import syscalls

LIMIT_S = 0.2
"""How long the kernel is asked in all, and hello, too."""

Offers = Iterable[tuple[str, str]]
"""What a word could become, each with a few words of help."""
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(offers: Callable[[click.Context], Offers]) -> Complete:
    """Make a `shell_complete` of a function that knows the offers."""

    def complete(
        context: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found: list[CompletionItem] = []
        with suppress(*EXPECTED, OSError):
            for value, text in offers(context):
                if value.startswith(incomplete):
                    found.append(CompletionItem(value, help=text))
        return found

    return complete


def _installed(context: click.Context) -> Offers:
    from userland.models import store

    for model in store().list():
        yield model.manifest.name, f"{model.full_name}, {model.manifest.title}"


def _known(context: click.Context) -> Offers:
    from drivers.models.store import shortnames

    return [(name, row.title) for name, row in shortnames().items()]


def _loaded(context: click.Context) -> Offers:
    models = _ask(context, lambda task: task.caller.listed("list_models", _abi().ModelRow))
    return [(row.name, f"{row.arch} on {row.device}") for row in models]


def _devices(context: click.Context) -> Offers:
    devices = _ask(context, lambda task: task.caller.listed("list_devices", _abi().DeviceRow))
    return [(row.device, row.state) for row in devices]


def _tasks(context: click.Context) -> Offers:
    rows = _ask(context, lambda task: task.caller.snapshot("tasks", _abi().TaskRow))
    return [(str(row.pid), f"{row.name}, {row.contexts} contexts") for row in rows]


def _groups(context: click.Context) -> Offers:
    rows = _ask(context, lambda task: task.caller.snapshot("tasks", _abi().TaskRow))
    counts = Counter(row.group for row in rows if row.group)
    return [(name, f"{count} tasks") for name, count in sorted(counts.items())]


def _contexts(context: click.Context) -> Offers:
    rows = _ask(context, lambda task: task.caller.snapshot("contexts", _abi().CtxRow))
    return [(f"@{row.name}", f"{row.length:,} tokens, pid {row.pid}") for row in rows if row.name]


def _saves(context: click.Context) -> Offers:
    from syscalls import ctxflow

    rows = _ask(context, lambda task: ctxflow.saves(task.caller))
    return [(row.name, f"{row.length:,} tokens of {row.model}") for row in rows]


def _signals(context: click.Context) -> Offers:
    return [(f"-{sig.name}", f"signal {int(sig)}") for sig in _abi().Sig]


def _signals_and_tasks(context: click.Context) -> Iterator[tuple[str, str]]:
    yield from _signals(context)
    yield from _tasks(context)


def _groups_and_tasks(context: click.Context) -> Iterator[tuple[str, str]]:
    yield from _groups(context)
    yield from _tasks(context)


def _tasks_and_contexts(context: click.Context) -> Iterator[tuple[str, str]]:
    yield from _contexts(context)
    yield from _tasks(context)


models = completer(_installed)
"""Installed models."""
pullable = completer(_known)
"""Models that can be pulled by their bare name."""
loaded = completer(_loaded)
"""Models that the kernel has loaded."""
devices = completer(_devices)
"""Devices of the kernel."""
tasks = completer(_tasks)
"""Pids, with the task's name."""
groups = completer(_groups)
"""Groups of tasks."""
groups_and_tasks = completer(_groups_and_tasks)
"""What `group` takes."""
contexts = completer(_contexts)
"""Named contexts of all tasks, as @name."""
saves = completer(_saves)
"""Contexts that are kept on the disk."""
signals_and_tasks = completer(_signals_and_tasks)
"""What `kill` takes."""
tasks_and_contexts = completer(_tasks_and_contexts)
"""What `pmap` takes."""


def _abi() -> Any:
    from syscalls import abi

    return abi


def _ask(context: click.Context, flow: "Callable[[syscalls.Task], Any]") -> Any:
    """Ask at the shell's task if this is llmsh, otherwise at one of our own."""
    import syscalls

    desk = context.find_object(Desk)
    if desk is not None and desk.has_task:
        return desk.task.run_for(flow(desk.task), LIMIT_S)
    address = context.find_root().params.get("host")
    with closing(syscalls.connect("llmos", address=address, timeout=LIMIT_S)) as task:
        return task.run(flow(task))
