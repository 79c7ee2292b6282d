"""Windows: the kernel's memory, as far as the store host reads and writes it.

Each is a memfd, mapped when it is first used, and again when it has grown. A place in one is a
byte offset, checked against its size.
"""

import mmap
import os
import threading
from collections.abc import Sequence

from drivers.store.base import invalid


class Windows:
    """The windows of one host, by number. Both lanes use them."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = tuple(fds)
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def view(self, window: int, offset: int, size: int) -> memoryview:
        """Return `size` writable bytes from `offset` on; INVALID outside of the window."""
        if not 0 <= window < len(self._fds):
            raise invalid(f"window {window}, there are {len(self._fds)}")
        with self._lock:
            mapped = self._maps.get(window)
            if mapped is None or offset + size > len(mapped):
                mapped = self._map(window)
        length = len(mapped) if mapped is not None else 0
        if mapped is None or offset < 0 or offset + size > length:
            raise invalid(f"bytes {offset} to {offset + size} of window {window}, it has {length}")
        return memoryview(mapped)[offset : offset + size]

    def _map(self, window: int) -> mmap.mmap | None:
        length = os.fstat(self._fds[window]).st_size
        if not length:
            return None
        # Views of the mapping before this one keep it until they are gone.
        self._maps[window] = mmap.mmap(self._fds[window], length)
        return self._maps[window]
