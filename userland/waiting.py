"""What an answer waits for, if its next word does not come: a device that is not up, or was not."""

from collections.abc import Callable

from syscalls import KernelError, Task
from syscalls.abi import DeviceRow


class Watch:
    """Looks at the device of a model; made before the question is put."""

    patience_s = 2.0

    def __init__(self, task: Task, model: str, note: Callable[[str], None]) -> None:
        self._task = task
        self._note = note
        self._device = next((row.device for row in task.models() if row.name == model), "")
        before = self._row()
        self._epoch = before.epoch if before else 0
        self._said = ""

    def look(self) -> None:
        """Say what has not been said yet."""
        row = self._row()
        if row is None:
            return
        if row.state != "up":
            text = f"{row.device} is {row.state}; the answer waits for it"
        elif row.epoch != self._epoch:
            text = f"the driver of {row.device} was restarted; computing again"
        else:
            return
        if text != self._said:
            self._said = text
            self._note(text)

    def _row(self) -> DeviceRow | None:
        try:
            return next((row for row in self._task.devices() if row.device == self._device), None)
        except KernelError:
            return None  # the answer itself will say so
