"""The store ABI, version 1: what crosses between the kernel and the store host.

The store host is the only process that touches the disk and the only one that has keys. Blocks go
through windows: memory of the kernel's, as memfds that it makes before the host starts and numbers
in the order in which it passes them (a restarted host gets the same ones). A block's place there
is a byte offset. The kernel leaves what it names in a message alone until the answer.

The first message is Open; it is answered by Opened, or by a Fault that says what a person can do,
and then Open may be sent again. Every other message has a `job`, a number that the kernel chooses,
and has exactly one answer with that number. Messages of one lane are worked on in order of
arrival. There are two lanes: SWAP (SwapOut, SwapIn, FreeSlots) and SAVES, all others.

The swap file is the disk tier: ephemeral, without a name, its keys in the host's memory only, so
the host's death shreds it. The kernel names slots: slot s of an area begins at byte
area.offset + s * area.block_bytes of the file. A block comes back only as what it went out: its
associated data is the Area's, its own (owner, chain hash, counter) and its place.

A save is a context kept under a name, which belongs to an owner (a uid). One is written by a job

    BeginSave, then AddIds and AddBlocks in any order, then CommitSave, or AbortSave at any time

and read by a job OpenSave, then ReadIds and ReadBlocks, then CloseSave. A Fault ends the job; what
the kernel has sent for it already is answered by Faults of kind NO_JOB. A save replaces the one of
the same name at its CommitSave, whole, and Saved says that it is on the disk. After a Fault of
CommitSave or DropSave with the kind UNSURE, what there was and what was to be are both possible
until the store is opened again.

Integers are below 2**63. Texts and bytes that are longer than the limits below are refused. Ids
travel as raw little-endian int32 buffers. Blocks have one canonical order (drivers/base.py), and
the store looks at none of it.

The ABI grows at its ends, by the rules of drivers/base.py.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

ABI = (1, 0)
MAX_BLOCKS = 512
"""Blocks, slots or offsets of one message."""
MAX_IDS = 32 * 1024
"""Ids of one message."""
MAX_ROWS = 256
"""Saves of one Saves."""
MAX_HASH = 32
"""Bytes of a chain hash, and of a model's digest."""
MAX_NAME = 256
"""Bytes of a save's name and of a model's."""
MAX_WORD = 64
"""Bytes of a dtype or a layout."""
MAX_EXTRA = 4096
"""Bytes that the kernel may keep with a save for itself."""
MAX_LENGTH = 1 << 24
"""Ids of a save."""
MAX_SAVE_BLOCKS = 1 << 17
"""Blocks of a save."""
MAX_BLOCK_BYTES = 1 << 30
"""Of one block."""
MAX_SAVES = 1 << 17
"""Saves of one state directory."""


class FaultKind(IntEnum):
    """What failed, and so what the kernel can do about it."""

    INVALID = 1  # the message: it was refused whole, nothing has changed
    NO_JOB = 2  # the job has ended, or never began
    NOT_FOUND = 3  # this owner has no save of that name (and generation)
    CORRUPT = 4  # what is on the disk is not what was written
    NO_SPACE = 5  # ENOSPC, EDQUOT
    IO = 6  # another error of the disk
    UNSURE = 7  # likewise, at the moment at which it counts: old or new
    UNSAFE = 8  # of Open: others could read or change a folder or a key
    KEY_LOST = 9  # of Open: there are saves, and the key to them is not there
    UNSUPPORTED = 10  # a version, or something that was not opened (saves, swap)
    BUSY = 11  # a save of that name is being written


class BlockState(IntEnum):
    """What became of one block, a byte of Blocks.states."""

    OK = 0
    CORRUPT = 1  # it is not what was written there: cut, changed, exchanged or rolled back
    FAILED = 2  # the disk refused it; of SwapOut: the slot holds nothing now


class SaveState(IntEnum):
    """Whether a save is the one that was written last under its name."""

    CURRENT = 0
    STALE = 1  # authentic, but a later one had replaced it, or it was dropped: its ids only
    DAMAGED = 2  # it was the last one, and is not there or not sound: it cannot be opened


# --- kernel to store --------------------------------------------------------------------------


class Open(NamedTuple):
    """Open the state directory; what is missing in it is made.

    `state_dir` empty: nothing on disk. `keys_dir`, outside of it, has the root key and the keyring;
    empty: no saves. `swap_bytes` 0: no swap file.
    """

    major: int
    minor: int
    schema: str
    epoch: int
    state_dir: str
    keys_dir: str
    swap_bytes: int


class Area(NamedTuple):
    """Part of the swap file whose slots have one size, and what is common to its blocks."""

    offset: int
    block_bytes: int
    digest: bytes  # of the model
    kv_dtype: str
    layout: str


class Block(NamedTuple):
    """One block of a window and one slot, and what binds the two."""

    slot: int
    window_offset: int
    owner: int
    chain_hash: bytes
    counter: int  # of writes to this slot


class SwapOut(NamedTuple):
    """Write blocks of a window to slots; the answer is Blocks."""

    job: int
    area: Area
    window: int
    blocks: tuple[Block, ...]


class SwapIn(NamedTuple):
    """Read blocks back; the answer is Blocks. Where one is not OK, its window stays as it was."""

    job: int
    area: Area
    window: int
    blocks: tuple[Block, ...]


class FreeSlots(NamedTuple):
    """Zero these slots on the disk and forget them; the answer is Done."""

    job: int
    area: Area
    slots: tuple[int, ...]


class SaveMeta(NamedTuple):
    """What a save is of. `length` ids, of which `num_blocks` full blocks have their KV in it."""

    model: str
    digest: bytes
    kv_dtype: str
    layout: tuple[int, ...]  # of a block: layers, 2, block_size, kv_heads, head_dim
    block_size: int
    block_bytes: int
    length: int
    num_blocks: int
    extra: bytes  # the kernel's own


class BeginSave(NamedTuple):
    """Begin to write a save; the answer is Done, and the disk has room for all of it."""

    job: int
    owner: int
    name: str
    meta: SaveMeta


class AddIds(NamedTuple):
    """Ids of a save from position `start` on, which is where the last ones ended; Done."""

    job: int
    start: int
    ids: bytes


class AddBlocks(NamedTuple):
    """Blocks of a save from number `first` on, at these offsets of a window; Done."""

    job: int
    first: int
    window: int
    offsets: tuple[int, ...]


class CommitSave(NamedTuple):
    """Make the save durable under its name; the answer is Saved."""

    job: int


class AbortSave(NamedTuple):
    """Drop what was written of a save; Done."""

    job: int


class OpenSave(NamedTuple):
    """Open a save for reading; the answer is Found. `generation` 0: the one that there is."""

    job: int
    owner: int
    name: str
    generation: int


class ReadIds(NamedTuple):
    """The answer is Ids: `num_ids` of them from position `start` on."""

    job: int
    start: int
    num_ids: int


class ReadBlocks(NamedTuple):
    """Blocks from number `first` on to these offsets of a window; the answer is Blocks."""

    job: int
    first: int
    window: int
    offsets: tuple[int, ...]


class CloseSave(NamedTuple):
    """End a job that reads; Done."""

    job: int


class ListSaves(NamedTuple):
    """The answer is Saves: those of an owner by name, from the one after `after` on."""

    job: int
    owner: int
    after: str


class DropSave(NamedTuple):
    """Remove a save, in whichever state, for good; Done."""

    job: int
    owner: int
    name: str


class Stats(NamedTuple):
    """The answer is StatsReply."""

    job: int


class Close(NamedTuple):
    """Finish what was sent, then end the process."""


# --- store to kernel --------------------------------------------------------------------------


class Opened(NamedTuple):
    """What was found. `notes` are for the log and for people; they name no save."""

    major: int
    minor: int
    schema: str
    epoch: int
    host_pid: int
    swap_bytes: int
    num_saves: int  # current and sound
    num_stale: int
    num_damaged: int
    saves_bytes: int  # on the disk, all of them
    notes: tuple[str, ...]


class Done(NamedTuple):
    job: int


class Blocks(NamedTuple):
    """One BlockState a block, in order; `why` is what the disk said of the first that FAILED."""

    job: int
    states: bytes
    why: str


class Saved(NamedTuple):
    job: int
    generation: int  # higher than any that the name has had
    file_bytes: int


class Found(NamedTuple):
    job: int
    generation: int
    state: int
    saved_unix: int  # when it was begun, seconds
    meta: SaveMeta


class Ids(NamedTuple):
    job: int
    start: int
    ids: bytes


class SaveRow(NamedTuple):
    """One save. Of a DAMAGED one only name, generation and state are known."""

    name: str
    generation: int
    state: int
    model: str
    length: int
    num_blocks: int
    file_bytes: int
    saved_unix: int


class Saves(NamedTuple):
    job: int
    rows: tuple[SaveRow, ...]
    more: bool


class Fault(NamedTuple):
    """A message has failed; `hint` is what a person can do. `job` 0: it was Open."""

    job: int
    kind: int
    message: str
    hint: str
    needed: int = 0  # of NO_SPACE, where it is known: bytes
    available: int = 0


class Heartbeat(NamedTuple):
    """The process lives; sent about once a second while it owes an answer."""

    epoch: int


class StatsReply(NamedTuple):
    job: int
    mem_bytes: int  # resident bytes of the process
    swap_slots: int  # that hold a block
    swap_out_bytes: int  # since the epoch began
    swap_in_bytes: int
    num_saves: int
    saves_bytes: int


Message = (
    Open | SwapOut | SwapIn | FreeSlots | BeginSave | AddIds | AddBlocks | CommitSave | AbortSave
    | OpenSave | ReadIds | ReadBlocks | CloseSave | ListSaves | DropSave | Stats | Close
    | Opened | Done | Blocks | Saved | Found | Ids | Saves | Fault | Heartbeat | StatsReply
)  # fmt: skip
SWAP_LANE = (SwapOut, SwapIn, FreeSlots)
"""Messages that run beside all others."""


class StoreFault(Exception):
    """Raised inside the store; the kernel gets it as a Fault."""

    def __init__(
        self, kind: FaultKind, message: str, hint: str = "", needed: int = 0, available: int = 0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.needed = needed
        self.available = available


def invalid(message: str) -> StoreFault:
    """Return the fault of a message that is refused whole."""
    return StoreFault(FaultKind.INVALID, message)


Emit = Callable[[Any], None]
"""Sends an answer towards the kernel."""
