"""Log ring: the kernel's last log records, for `log` and dmesg.

Records have numbers that rise by one and are never used again. The ring keeps the last ones, within
a number of records and of bytes; a reader who asks for one that has gone gets those that follow,
and sees by the numbers how many are missing. A record is one line of text without control
characters: it may quote what a driver said, and is read on a terminal.

The ring is filled by a `RingHandler`, which main puts on the logger `kernel`.
"""

import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

from syscalls.abi import LogLevel, LogResult, LogRow
from syscalls.errors import EINVAL

MAX_RECORDS = 4096
MAX_BYTES = 1 << 20
"""Of the texts, all together."""
MAX_TEXT = 2048
"""Bytes of one text."""
PAGE = 128
"""Records in one reply."""

FACILITIES = {
    "kernel.block": "mm", "kernel.pager": "mm",
    "kernel.sched": "sched", "kernel.step": "sched", "kernel.policy": "sched",
    "kernel.device": "drv", "kernel.link": "drv", "kernel.watch": "drv",
    "kernel.context": "ctx", "kernel.sys_ctx": "ctx",
    "kernel.loop": "ipc", "kernel.session": "ipc", "kernel.ipc": "ipc", "kernel.syscall": "ipc",
    "kernel.model": "model", "kernel.sys_model": "model",
}  # fmt: skip
"""Of the loggers; all others are `kern`."""
_LEVELS = (
    (logging.CRITICAL, LogLevel.CRIT), (logging.ERROR, LogLevel.ERR),
    (logging.WARNING, LogLevel.WARN), (logging.INFO, LogLevel.INFO),
)  # fmt: skip
_VISIBLE = {code: 0xFFFD for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_VISIBLE |= dict.fromkeys(map(ord, "\n\t"), ord(" "))


class LogRing:
    """The last records, oldest first."""

    def __init__(
        self,
        clock: Callable[[], float],
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.end = 1  # number of the record to come
        self._clock = clock
        self._born = clock()
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._rows: deque[LogRow] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, level: LogLevel, facility: str, text: str, wall_s: float) -> None:
        """Write a record; the oldest ones go if there are too many."""
        raw = text.translate(_VISIBLE).encode(errors="replace")
        if len(raw) > MAX_TEXT:
            raw = raw[: MAX_TEXT - 3] + "…".encode()
        uptime_s, text = self._clock() - self._born, raw.decode(errors="ignore")
        self._rows.append(LogRow(self.end, uptime_s, wall_s, int(level), facility, text))
        self._sizes.append(len(raw))
        self._bytes += len(raw)
        self.end += 1
        while len(self._rows) > self._max_records or self._bytes > self._max_bytes:
            self._rows.popleft()
            self._bytes -= self._sizes.popleft()

    def read(self, cursor: int) -> LogResult:
        """Return a page of the records from number `cursor` on; EINVAL beyond the one to come."""
        if cursor > self.end:
            raise EINVAL(
                f"there is no record {cursor}: the next one will be {self.end}",
                "cursors come from the reply before, of the same kernel",
            )
        first = self.end - len(self._rows)
        skip = max(0, cursor - first)
        rows = list(islice(self._rows, skip, skip + PAGE))
        return LogResult(list(rows), first + skip + len(rows), self.end)


class RingHandler(logging.Handler):
    """Puts what is logged into a ring."""

    def __init__(self, ring: LogRing) -> None:
        super().__init__()
        self._ring = ring

    def emit(self, record: logging.LogRecord) -> None:
        level = next((ours for least, ours in _LEVELS if record.levelno >= least), LogLevel.DEBUG)
        facility = FACILITIES.get(record.name, "kern")
        self._ring.add(level, facility, record.getMessage(), record.created)
