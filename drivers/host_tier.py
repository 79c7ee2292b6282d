"""Host tier: a model's blocks in the host memory, which the kernel made and this process inherited.

    host memory   [ ... | block 0 | block 1 | ... | rest ][ another model's range ... ]
                        host_offset                       host_offset + host_bytes

Blocks lie there in canonical order, one behind the other, so whichever driver comes next can go on
with them. What is in the range when a model is loaded stays as it is.
"""

import mmap
import os
from typing import NamedTuple

from drivers.base import DriverFault, FaultKind, Load


class HostRange(NamedTuple):
    """Bytes of the host memory."""

    fd: int
    offset: int
    num_bytes: int  # of whole blocks; 0: no host tier

    def map(self) -> mmap.mmap:
        """Map it, shared with all that have the memory."""
        return mmap.mmap(self.fd, self.num_bytes, offset=self.offset)

    def untouched(self) -> int:
        """Return the bytes that have no memory yet; they take it from what is free when used."""
        end, at, held = self.offset + self.num_bytes, self.offset, 0
        while at < end:
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but holes from here on
                break
            at = min(os.lseek(self.fd, data, os.SEEK_HOLE), end)
            held += max(at - data, 0)
        return self.num_bytes - held


def host_range(load: Load, fd: int, block_bytes: int) -> HostRange:
    """Return where the blocks of a Load lie; refuse a range that is not within the host memory."""
    offset, asked = load.host_offset, load.host_bytes
    if not asked:
        return HostRange(fd, 0, 0)
    if fd < 0:
        what = f"a host tier of {asked} bytes: the kernel has no host memory for this device"
        raise DriverFault(FaultKind.UNSUPPORTED, what)
    size = os.fstat(fd).st_size
    if asked < 0 or offset < 0 or offset + asked > size:
        what = f"a host tier in bytes {offset} to {offset + asked}, the host memory has {size}"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    if offset % mmap.PAGESIZE:
        what = f"a host tier from byte {offset} on, which is no multiple of {mmap.PAGESIZE}"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    if load.num_host_blocks:
        what = f"{load.num_host_blocks} host blocks and a host tier of {asked} bytes: give one"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    return HostRange(fd, offset, asked // block_bytes * block_bytes)
