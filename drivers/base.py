"""The driver ABI, version 1: what crosses between the kernel and a device.

The kernel owns block ids, the driver owns bytes. One message of the kernel is one `Submit`: ops
for one queue, in order, closed by a fence (epoch, queue, value). Ops of one queue run in the order
submitted; a queue's values rise by one; `waits` name fences of other queues that must have passed
first. The driver answers every Submit with exactly one `Complete` or `Fault` carrying that fence,
in order per queue. Plans are stateless: full block tables each time, so a restarted driver (a new
epoch) needs no resync. A driver keeps only a cache per sequence, keyed by (slot, generation): its
last sampled id and, since 1.1, how its logits are adjusted (drivers/slots.py). Asked for one that
it does not have, it faults with SLOT_LOST, never guesses; a Reset gives it what it needs.

Integers travel as raw little-endian int32 buffers (`ints`), reals as float32 (`reals`), seeds as
uint64. S sequences, T tokens, R rows to sample, N block-table entries in one step.

Within one Execute, every layer stores the keys and values of all T tokens before any of them is
read. Block 0 of every pool is the null block: writes to it may repeat and are never read.

Blocks move in one canonical order, [layers, 2, block_size, kv_heads, head_dim] in the stored
dtype, so that any driver can import them; a device's own layout is private.

The ABI grows at its ends, and what has been published never changes. The fields without a default
are version 1.0 (`drivers.wire.schema` is their digest, and equal on both sides or no go). A later
field goes last and has a default that means "as before"; later messages, ops and numbers go last.
Each addition raises the minor version. A driver takes rows that lack later fields, refuses what it
does not know (it would not do what it was asked), and refuses a value that it does not support; so
the kernel uses an addition only where Ready says that it is there, by its minor or its features.
The kernel leaves out what a newer driver adds to its answers. `drivers.wire` has the bytes.

1.1 adds: adjusted logits (Reset from `start` on, Sample.adjust; features "penalties", "bias") and
Score with Scored and Loaded.max_logit_rows (feature "score"). A driver with the feature
"load_beside" answers Submits of the models that it has while it loads a further one.

1.2 adds the host tier in memory of the kernel's (Load.host_bytes; feature "host_tier") and KV in
another dtype than the weights (Load.kv_dtype; a feature "kv_NAME" for each), and Loaded.digest: two
models with the same one can go on with each other's KV. The kernel makes that memory, as a memfd,
before the first host starts; a host that is started again gets the same one, so what is in it
outlives the driver. Blocks are there in canonical order, so any driver can go on with them. The
kernel zeroes a host block itself, once nothing submitted names it. A driver with the feature
"copy_queues" runs Submits of the queues COPY_OUT and COPY_IN beside those of COMPUTE, and then
answers are in order within a queue only; without it, all queues run in order of arrival. An Unload
comes after the Submits of its model that came before it; what else is no Submit may be answered
while Submits wait.

1.3 adds grammars (feature "grammar"): Compile, Forget and Compiled; Reset.grammar, and the flags of
rows that have one. A driver compiles beside its steps and answers when it is done. What a grammar
costs is limited (drivers/grammar.py), for it comes from a user: one that takes too much, or that is
none, is refused and harms nobody else.

A driver with the feature "steps_ahead" takes Submits on COMPUTE while others wait there, and the
LAST_SAMPLE of one may be what an earlier one of them will have sampled: it is looked up when its
turn comes. A row that is flagged has a last sample, too, of no meaning.

KV in int8 ("kv_int8"): behind each vector of head_dim numbers, -127 to 127, are the two bytes of a
bfloat16, its scale; an element is number * scale.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

ABI = (1, 3)
NULL_BLOCK = 0
LAST_SAMPLE = -1
"""As a token id: the id that this (slot, generation) sampled last."""
MAX_LOGPROBS = 64
"""Best ids of one row of a Sample."""
MAX_CHECKSUMS = 4096
"""Blocks of one Checksum."""
MAX_BIAS = 300
"""Ids of one sequence whose logits have a bias."""
MAX_GRAMMAR = 48 * 1024
"""Bytes of a grammar's text."""
MAX_GRAMMARS = 128
"""Grammars that a driver holds, of all models together."""


class Queue(IntEnum):
    """Queues of a device. Each runs in order; between queues only fences order."""

    COMPUTE = 0
    COPY_OUT = 1
    COPY_IN = 2


class Direction(IntEnum):
    """Of a Copy: device to device, device to host tier, host to device, host to host."""

    D2D = 0
    D2H = 1
    H2D = 2
    H2H = 3


class FaultKind(IntEnum):
    """What failed, and whom it concerns."""

    PLAN_INVALID = 1  # the Submit: it was refused whole, nothing ran
    OOM = 2  # the Submit: no memory for its temporaries
    COPY_FAILED = 3  # items: blocks of the Copy's target that were not written
    TIMEOUT = 4  # the Submit
    MODEL_LOAD = 5  # the Load
    DEVICE_LOST = 6  # everything: the process must be replaced
    SLOT_LOST = 7  # items: slots whose state is gone; send Reset
    UNSUPPORTED = 8  # the driver does not do this; see capabilities


class RowFlag(IntEnum):
    """Bits of Sampled.flags, one byte per row."""

    NUMERIC = 1  # NaN or Inf among the logits: the id is not valid
    COMPLETE = 2  # the grammar ends with this id: nothing but an end may follow
    # Without an id that is valid, and so for all later rows of this slot until a Reset:
    NO_MATCH = 4  # none follows by the grammar
    GRAMMAR_LIMIT = 8  # to find one takes more than a step may


class GrammarKind(IntEnum):
    """What the text of a grammar is written in."""

    JSON_SCHEMA = 1
    REGEX = 2  # for all of the text, in the syntax of Rust's regex crate
    LARK = 3  # as llguidance reads it


class Fence(NamedTuple):
    """Passed when the queue has completed `value` in this epoch."""

    epoch: int
    queue: int
    value: int


# --- kernel to driver -------------------------------------------------------------------------


class Hello(NamedTuple):
    """First message of the kernel: refuse (UNSUPPORTED) if major or schema differ."""

    major: int
    minor: int
    schema: str
    epoch: int
    device: str  # cpu0, null0


class Load(NamedTuple):
    """Load a model and make its KV pool.

    `kv_bytes` is the budget; num_blocks > 0 asks for that many instead. The driver sends an
    Estimate first and refuses (OOM) what cannot fit. `threads` 0: the driver's default. A host tier
    or another dtype for KV than `dtype` is UNSUPPORTED where there is none.

    `host_bytes` > 0: the host tier is that range of the host memory, from byte `host_offset` on (a
    multiple of the page size), with as many blocks as fit whole; num_host_blocks is 0 then. Its
    block b begins at host_offset + b * block_bytes, and is what it was before the Load.
    """

    model: int
    path: str  # folder of an installed model, or a builtin of the driver
    dtype: str  # float32 | bfloat16
    block_size: int
    num_blocks: int
    kv_bytes: int
    max_ctx: int  # 0: the model's own
    deterministic: bool
    threads: int
    num_host_blocks: int = 0  # of the host tier; block 0 of it is a block like any other
    kv_dtype: str = ""  # empty: that of the weights
    host_bytes: int = 0
    host_offset: int = 0


class Unload(NamedTuple):
    model: int


class Reset(NamedTuple):
    """Rebuild the state of a slot from the ids of its sequence (ints); last sample = last id.

    `num_prompt` >= 0: count the ids, of which those from that position on are output; -1: do not.
    Counted ids may come in several Resets: the first has `start` 0 and all the rest, each later one
    only ids that go on at `start`, where the one before has ended (SLOT_LOST if it has not).

    How a row of this slot is adjusted where a Sample says so, one after the other: bias[i] (reals)
    is added to the logit of bias_ids[i] (ints, distinct, at most MAX_BIAS); of an id that is in the
    sequence, a logit above 0 is divided by `repetition` (> 0), another one multiplied with it; from
    the logit of an id that is n > 0 times in the output, presence + n * frequency is taken.

    `grammar` > 0, if the ids are counted: the ids from position `grammar_from` on follow this
    grammar, which was compiled before. Of the ids that come next, those that the grammar does not
    allow are not drawn. Ids that end a text are allowed where the grammar may end; other special
    ids and such without a token never are.
    """

    slot: int
    generation: int
    ids: bytes
    start: int = 0
    num_prompt: int = -1
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias_ids: bytes = b""
    bias: bytes = b""
    grammar: int = 0
    grammar_from: int = 0


class Copy(NamedTuple):
    """Copy whole blocks, src[i] to dst[i] (ints). All are read before any is written."""

    direction: int
    src: bytes
    dst: bytes
    group: int = 0  # KV group that the blocks are of


class Scrub(NamedTuple):
    """Zero these blocks (ints)."""

    blocks: bytes
    group: int = 0


class BlockTable(NamedTuple):
    """Block tables of one KV group for one step.

    Sequence s reads blocks[indptr[s]:indptr[s+1]]; token t is stored at slot write_slot[t] =
    block * block_size + offset. No slot repeats, but for those of the null block.
    """

    indptr: bytes  # ints[S+1]
    blocks: bytes  # ints[N]
    write_slot: bytes  # ints[T]


class Execute(NamedTuple):
    """One forward step over S sequences with T tokens, prefill and decode mixed.

    Sequence s has tokens[qo_indptr[s]:qo_indptr[s+1]] at consecutive `positions`; after its own
    tokens are stored it sees kv_len[s] positions. `logit_rows` are the token indexes whose logits
    the following Sample takes.
    """

    model: int
    step: int
    tokens: bytes  # ints[T], LAST_SAMPLE allowed
    positions: bytes  # ints[T]
    qo_indptr: bytes  # ints[S+1]
    kv_len: bytes  # ints[S]
    slots: bytes  # ints[S]
    generations: bytes  # ints[S]
    logit_rows: bytes  # ints[R]
    tables: tuple[BlockTable, ...]  # one per KV group


class Sample(NamedTuple):
    """Draw one id per logit row of the preceding Execute.

    A pure function of (logits, parameters, seed, position): the noise of an id is a hash of
    (seed, position, id). temperature 0 is greedy (first of equal maxima). top_k 0, top_p 1,
    min_p 0 are off. num_logprobs -1: none, 0: of the id, n up to MAX_LOGPROBS: also of the n best;
    they are of the model's distribution before temperature. `rows` are sequence indexes (for the
    slot state).

    `adjust` 1: the row's logits are first adjusted as the last Reset of its slot and generation
    says (SLOT_LOST without one, or if the ids counted since are not those before `position`), for
    greedy too; not for logprobs. Each id drawn is counted. No sequence may have two such rows.
    """

    rows: bytes  # ints[R]
    temperature: bytes  # reals[R]
    top_k: bytes  # ints[R]
    top_p: bytes  # reals[R]
    min_p: bytes  # reals[R]
    seed: bytes  # uint64[R]
    position: bytes  # ints[R], of the id to draw
    num_logprobs: bytes  # ints[R]
    adjust: bytes = b""  # ints[R], 0 or 1; empty: all 0


class Export(NamedTuple):
    """Write blocks (ints) in canonical order into the bulk window from byte `offset` on."""

    blocks: bytes
    offset: int
    group: int = 0


class Import(NamedTuple):
    """Read blocks (ints) in canonical order from the bulk window from byte `offset` on."""

    blocks: bytes
    offset: int
    group: int = 0


class Checksum(NamedTuple):
    """Digest each block (ints, at most MAX_CHECKSUMS) over its canonical bytes."""

    blocks: bytes
    group: int = 0


class Score(NamedTuple):
    """Log-probabilities of given ids after tokens of the preceding Execute; the answer is Scored.

    Row r: ids[r] after the token with index rows[r], with the num_logprobs[r] best (0: none). These
    rows come on top of the Execute's logit_rows; Loaded.max_logit_rows limits both together. One
    Score per Execute.
    """

    rows: bytes  # ints[R], token indexes, rising
    ids: bytes  # ints[R]
    num_logprobs: bytes  # ints[R]


Op = Reset | Copy | Scrub | Execute | Sample | Export | Import | Checksum | Score


class Submit(NamedTuple):
    """Ops to run in order on one queue; answered by one Complete or Fault with the same fence."""

    epoch: int
    queue: int
    value: int
    waits: tuple[Fence, ...]
    model: int
    ops: tuple[Any, ...]  # of Op


class Compile(NamedTuple):
    """Compile a grammar for a model; the answer is Compiled, whatever else is answered before.

    `number` > 0 names it from then on, for as long as the model is loaded, and is not in use.
    """

    model: int
    number: int
    kind: int  # GrammarKind
    text: bytes  # UTF-8, at most MAX_GRAMMAR


class Forget(NamedTuple):
    """Drop a grammar of a model; sequences that follow it are not continued without a Reset."""

    model: int
    number: int


class Stats(NamedTuple):
    """Ask for StatsReply."""


class Close(NamedTuple):
    """Finish what was submitted, then end the process."""


# --- driver to kernel -------------------------------------------------------------------------


class Ready(NamedTuple):
    """Answer to Hello: what the device is and can do; frozen for the epoch."""

    major: int
    minor: int
    schema: str
    epoch: int
    driver: str
    device: str
    host_pid: int
    description: str
    mem_total: int  # bytes
    mem_free: int
    dtypes: tuple[str, ...]
    features: tuple[str, ...]  # copy_d2d checksum sample logprobs penalties bias score ...
    energy_source: str  # nvml | rapl | estimate | none


class Progress(NamedTuple):
    """Of a Load."""

    model: int
    phase: str
    done: int
    total: int


class Estimate(NamedTuple):
    """Before a Load allocates: what it will take, in bytes, and how many blocks that gives."""

    model: int
    weights_bytes: int
    block_bytes: int
    num_blocks: int
    mem_free: int


class KvGroup(NamedTuple):
    """Layers that share one block table."""

    layers: int
    kind: str  # full | sliding | chunked | mla | recurrent
    window: int
    kv_heads: int
    head_dim: int
    dtype: str


class Loaded(NamedTuple):
    """Answer to Load. Limits are per Submit."""

    model: int
    arch: str
    num_layers: int
    vocab: int
    max_ctx: int
    weights_bytes: int
    eos_ids: tuple[int, ...]
    kv_groups: tuple[KvGroup, ...]
    block_size: int
    block_bytes: int
    num_blocks: int  # null block included
    dtype: str
    max_tokens: int  # T
    max_seqs: int  # S, and the number of slots
    max_block_refs: int  # N
    load_us: int
    num_host_blocks: int = 0
    max_logit_rows: int = 0  # of a Sample and a Score together; 0: max_seqs
    digest: str = ""  # of all that the KV of given ids depends on, hex; empty: unknown


class Sampled(NamedTuple):
    """Result of a Sample; the n best of all rows in row order, num_logprobs[r] of each."""

    ids: bytes  # ints[R]
    flags: bytes  # uint8[R]
    logprobs: bytes  # reals[R], 0 where not asked
    top_ids: bytes  # ints[sum of num_logprobs > 0]
    top_logprobs: bytes  # reals, likewise


class Scored(NamedTuple):
    """Result of a Score; the n best of all rows in row order, num_logprobs[r] of each."""

    flags: bytes  # uint8[R], as in Sampled
    logprobs: bytes  # reals[R]
    top_ids: bytes  # ints[sum of num_logprobs]
    top_logprobs: bytes  # reals, likewise


class Complete(NamedTuple):
    """All ops of a Submit are done.

    `results`, in the order of the ops: Sampled per Sample, Scored per Score, hex list per Checksum.
    """

    epoch: int
    queue: int
    value: int
    start_us: int  # of the driver's own clock
    end_us: int
    results: tuple[Any, ...]
    energy_uj: int = 0  # 0: not measured


class Fault(NamedTuple):
    """A Submit or Load failed. For a Submit the fence has passed; its writes are undefined."""

    epoch: int
    queue: int
    value: int  # 0: of no Submit
    kind: int
    message: str
    items: tuple[int, ...]
    model: int = 0  # of a Load


class Compiled(NamedTuple):
    """Answer to Compile: the grammar is there (kind 0), or why it is not."""

    model: int
    number: int
    kind: int = 0  # FaultKind: PLAN_INVALID it is no grammar, UNSUPPORTED the model has no text
    message: str = ""


class Heartbeat(NamedTuple):
    """The process lives; sent about once a second while an answer is owed."""

    epoch: int
    value: int


class StatsReply(NamedTuple):
    """Totals since the epoch began."""

    mem_bytes: int  # resident bytes of the process
    pool_bytes: int
    steps: int
    tokens: int
    busy_us: int
    energy_uj: int  # 0 with energy_source none


Message = (
    Hello | Load | Unload | Submit | Stats | Close
    | Ready | Progress | Estimate | Loaded | Complete | Fault | Heartbeat | StatsReply
    | Compile | Forget | Compiled
)  # fmt: skip


class DriverFault(Exception):
    """Raised inside a driver; the host sends it as a Fault."""

    def __init__(self, kind: FaultKind, message: str, items: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.items = tuple(items)


def lost(error: Exception) -> str:
    """Return what DEVICE_LOST says of an exception: not its text, which may quote users."""
    return f"{type(error).__name__} in the driver; the log of the kernel has more"


class Driver(Protocol):
    """One device. Methods are called from one thread; `emit` may be called from any.

    With the feature "load_beside", `load` is called from a thread of its own where a model is
    loaded already, beside all others, one load at a time.

    A synchronous driver emits the Complete of a Submit before `submit` returns; an asynchronous
    one returns at once and emits later. Errors are raised as DriverFault by `hello` and `load`,
    and emitted as Fault for a Submit.
    """

    def hello(self, hello: Hello) -> Ready: ...

    def load(self, load: Load) -> Loaded: ...

    def unload(self, unload: Unload) -> None: ...

    def submit(self, submit: Submit) -> None: ...

    def compile(self, compile: Compile) -> None: ...  # emits Compiled

    def forget(self, forget: Forget) -> None: ...

    def stats(self) -> StatsReply: ...

    def close(self) -> None: ...


Emit = Callable[[Any], None]
"""Sends a Progress, Estimate, Complete, Fault or Compiled towards the kernel."""


class DriverFactory(Protocol):
    """What a driver module offers as `open_driver`.

    `bulk` is the writable window of Export and Import, shared with the kernel's side. `host` is the
    file descriptor of the host memory, -1 where there is none; its size may grow until a Load.
    """

    def __call__(self, emit: Emit, bulk: memoryview, host: int) -> Driver: ...


# --- buffers ----------------------------------------------------------------------------------


def ints(values: Iterable[int]) -> bytes:
    """Return values as raw int32."""
    return array("i", values).tobytes()


def reals(values: Iterable[float]) -> bytes:
    """Return values as raw float32."""
    return array("f", values).tobytes()


def seeds(values: Iterable[int]) -> bytes:
    """Return values as raw uint64."""
    return array("Q", values).tobytes()


def read_ints(raw: bytes) -> "array[int]":
    """Return the int32 values of a buffer."""
    values = array("i")
    values.frombytes(raw)
    return values


def read_reals(raw: bytes) -> "array[float]":
    """Return the float32 values of a buffer."""
    values = array("f")
    values.frombytes(raw)
    return values


def read_seeds(raw: bytes) -> "array[int]":
    """Return the uint64 values of a buffer."""
    values = array("Q")
    values.frombytes(raw)
    return values
