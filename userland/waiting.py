"""What an answer waits for, if its next word does not come.

A device that is not up, or was not; a prompt that is long.
"""

from collections.abc import Callable

from syscalls import Context, KernelError, Task
from syscalls.abi import DeviceRow

READING = 5
"""Looks from one word about the prompt to the next."""


class Watch:
    """Looks at a context and the device of its model; made before the question is put."""

    patience_s = 2.0

    def __init__(self, task: Task, context: Context, note: Callable[[str], None]) -> None:
        self._task = task
        self._context = context
        self._note = note
        self._looks = 0
        models = (row for row in task.models() if row.name == context.model)
        self._device = next((row.device for row in models), "")
        before = self._row()
        self._epoch = before.epoch if before else 0
        self._said = ""

    def look(self) -> None:
        """Say what has not been said yet."""
        row = self._row()
        self._looks += 1
        if row is None:
            return
        if row.state != "up":
            text = f"{row.device} is {row.state}; the answer waits for it"
        elif row.epoch != self._epoch:
            text = f"the driver of {row.device} was restarted; computing again"
        else:
            text = self._reading() if self._looks % READING == 1 else ""
        if text and text != self._said:
            self._said = text
            self._note(text)

    def _reading(self) -> str:
        """Say how much of the prompt has been computed; nothing if all of it has."""
        try:
            row = self._context.stat()
        except KernelError:
            return ""
        left = row.length - row.computed
        read = f"{row.computed:,} of {row.length:,} tokens"
        return f"reading the prompt: {read}" if left > 1 else ""

    def _row(self) -> DeviceRow | None:
        try:
            return next((row for row in self._task.devices() if row.device == self._device), None)
        except KernelError:
            return None  # the answer itself will say so
