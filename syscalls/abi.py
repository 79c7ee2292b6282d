"""The system-call ABI: one table, from which dispatch, stubs, checks and docs/syscalls.md come.

A call is a row of `CALLS`: number, name, argument row, result row, the right it needs, whether
sending it twice is harmless (idempotent) and whether its effect outlives the kernel (durable).
Rows are NamedTuples and travel as arrays in field order. The table is append-only: a number, a
field and its place never change; new fields go last and have a default. Every number is reserved
from the first version on; a row without argument type answers ENOTSUP.

A request is `[VERSION, number, call id, flags, [arguments]]` and, where there are ids, a second
frame of raw little-endian int32. Arguments at the end that have their default are left out: so a
program that knows later ones than the kernel is understood as long as it does not use them, and
told ENOTSUP when it does. A reply is `[VERSION, [event, ...]]` and, where there are ids, a
second frame that the FIN events share in order. Each accepted call ends in exactly one FIN or ERR.
"""

import re
from enum import Enum, IntEnum, IntFlag
from typing import Annotated, Any, NamedTuple

VERSION = 1

# Limits of the wire, checked before anything is decoded.
MAX_FRAME = 64 * 1024
MAX_IDS = 256 * 1024
MAX_EVENTS = 4096  # in one reply
MAX_STOP_IDS = 64
MAX_BIAS = 300
MAX_LOGPROBS = 20
MAX_GRAMMAR = 48 * 1024
"""Bytes of a grammar: a frame holds it beside the other arguments."""
KEPT_RESULTS = 1024
MODEL_CHUNK = 256 * 1024
MAX_EXTRA = 2048
MAX_BODY = 60_000  # of a message between tasks
MAX_NOTE = 32 * 1024
MAX_HANDLES = 4096

INT32_MAX = 2**31 - 1


class Int(NamedTuple):
    """A whole number in [lo, hi]; True is not a number here."""

    lo: int
    hi: int


class Real(NamedTuple):
    """A finite number in [lo, hi]."""

    lo: float
    hi: float


class Text(NamedTuple):
    """Text of at most `max_bytes` in UTF-8, matching `pattern` whole."""

    max_bytes: int
    pattern: re.Pattern[str]


class Blob(NamedTuple):
    """At most `max_bytes` bytes."""

    max_bytes: int


class Ints(NamedTuple):
    """At most `max_len` whole numbers in [lo, hi]."""

    max_len: int
    lo: int
    hi: int


class Pairs(NamedTuple):
    """At most `max_len` arrays [whole number, number], each in its range."""

    max_len: int
    first: Int
    second: Real


U8 = Annotated[int, Int(0, 2**8 - 1)]
U32 = Annotated[int, Int(0, 2**32 - 1)]
U64 = Annotated[int, Int(0, 2**64 - 1)]
Pid = Annotated[int, Int(0, 2**53)]
Handle = Annotated[int, Int(0, 2**32 - 1)]
Length = Annotated[int, Int(0, INT32_MAX)]
Status = Annotated[int, Int(0, 255)]
Signal = Annotated[int, Int(1, 64)]
Nice = Annotated[int, Int(-20, 19)]
Name = Annotated[str, Text(64, re.compile(r"[A-Za-z0-9._-]{1,64}"))]
Title = Annotated[str, Text(256, re.compile(r"[^\x00-\x1f\x7f]*"))]
Path = Annotated[str, Text(4096, re.compile(r"[^\x00-\x1f\x7f]*"))]
ModelName = Annotated[str, Text(128, re.compile(r"[A-Za-z0-9._:/-]{1,128}"))]
SaveName = Annotated[str, Text(256, re.compile(r"[^\x00-\x1f\x7f]+"))]
Ticket = Annotated[bytes, Blob(32)]
Handles = Annotated[tuple[int, ...], Ints(MAX_HANDLES, 0, 2**32 - 1)]
GrantId = Annotated[bytes, Blob(16)]
StopIds = Annotated[tuple[int, ...], Ints(MAX_STOP_IDS, 0, INT32_MAX)]
Amount = Annotated[float, Real(0.0, 1e15)]
Penalty = Annotated[float, Real(-2.0, 2.0)]
Body = Annotated[bytes, Blob(MAX_FRAME)]
"""What a message says; more than MAX_BODY is E2BIG."""
Seconds = Annotated[float, Real(0.0, 31_536_000.0)]
Biases = Annotated[
    tuple[tuple[int, float], ...], Pairs(MAX_BIAS, Int(0, INT32_MAX), Real(-100.0, 100.0))
]


class Flag(IntFlag):
    """Header flags."""

    QUEUE = 1  # wait behind the context's unfinished infer instead of EBUSY
    CHAIN = 2  # run only if the session's call before this one has not failed, else ECANCELED


class Event(IntEnum):
    """First item of an event; the second is the call id (0: about the session)."""

    FIN = 1  # [FIN, call, result row, ids in frame 2]
    ERR = 2  # [ERR, call, errno, message, hint, details]
    TOKEN = 3  # [TOKEN, call, [ids], [logprobs] or nil, [[[id, logprob], ...], ...] or nil]
    PROGRESS = 4  # [PROGRESS, call, phase, done, total]
    SIGNAL = 5  # [SIGNAL, 0, signal]
    REWIND = 6  # [REWIND, call, length]
    EXIT = 7  # [EXIT, 0, pid, status, reason]


class Sig(IntEnum):
    """Signals of `kill`, with Linux' numbers.

    A program hears of INT, TERM, HUP and USR1 by SIGNAL events; one that is not there yet, when it
    comes.
    """

    HUP = 1  # the program is told, and does what it will
    INT = 2  # cancel what the task is waiting for; what its infers have generated stays
    KILL = 9  # end the task now
    USR1 = 10  # as HUP
    TERM = 15  # as INT, and end the task when its grace is over (hello); it has none: now
    CONT = 18  # go on with the same ids
    STOP = 19  # leave the batch until CONT; its KV is the first to leave the device
    XCPU = 24  # a soft limit is reached (set_limit): the kernel sends it, and nobody else


class GrammarKind(IntEnum):
    """What the text of a grammar is written in."""

    JSON_SCHEMA = 1
    REGEX = 2  # for all of the text, in the syntax of Rust's regex crate
    LARK = 3  # the dialect of llguidance; the first rule is `start`


class Finish(IntEnum):
    """Why an infer or a score ended."""

    STOP = 1  # a stop id; the id itself is not part of the context
    LENGTH = 2  # max_tokens, or the context is full; of a score: all ids have been scored
    CANCELLED = 3


class LogLevel(IntEnum):
    """How grave a record of the kernel's log is, with syslog's numbers."""

    CRIT = 2
    ERR = 3
    WARN = 4
    INFO = 6
    DEBUG = 7


class Use(IntEnum):
    """What a block of a context is. ABSENT ones are nowhere, HOST and DISK ones in that tier only;
    all others are on the device."""

    ABSENT = 0  # ids only; their KV is computed when it is needed
    FILLING = 1  # some of its positions have no KV yet
    PRIVATE = 2  # full, in this context only
    SHARED = 3  # full, in other contexts, too
    HOST = 4
    DISK = 5


class Advice(Enum):
    """What a program may say of a context's future (advise_ctx)."""

    PREFETCH = "prefetch"  # it runs soon: bring its KV back to the device, if there is room
    DEMOTE = "demote"  # it runs late: its KV is the first to leave the device, and does so now
    PIN = "pin"  # its KV stays on the device
    UNPIN = "unpin"
    RETAIN = "retain"  # for ttl_s its KV leaves the device only after that of others


class Restore(Enum):
    """How far a kernel is with what the one before it has saved (shutdown with `save`)."""

    NONE = ""  # there is nothing
    READING = "reading"  # it is not known yet what there is: hello waits
    COMING = "coming"  # the tasks are there, their contexts come
    DONE = "done"  # what could come is back; the rest is among the saves
    WAITING = "waiting"  # it stays on the disk: the kernel was told so, or it has no room
    FAILED = "failed"  # it cannot be read; the log says why


class Access(IntFlag):
    """What a grant lets others do with a context. Of one that is not opened, its task may all."""

    READ = 1  # read the granted ids, and have them scored
    INFER = 2  # append, infer and score: go on after them
    FORK = 4  # make forks, and grants of it to others with no more than these rights
    COPY = 8  # with READ: save and export it; what comes of that is no grant's any more


class Full(Enum):
    """What becomes of a message for a subscription that is full (subscribe)."""

    REFUSE = "refuse"  # its publisher gets EAGAIN, and nobody the message
    DROP = "drop"  # the oldest one goes; the next that is taken says how many are missing


class Resource(Enum):
    """What set_limit can limit, of an account and all below it together."""

    INPUT_IDS = "input_ids"  # that programs hand in
    OUTPUT_IDS = "output_ids"  # that are generated
    DEVICE_S = "device_s"  # seconds: its part of the time of steps
    WALL_S = "wall_s"  # seconds since the account began
    REQUESTS_PER_MIN = "requests_per_min"  # infers and scores, in the last 60 seconds
    DEVICE_BLOCKS = "device_blocks"
    HOST_BLOCKS = "host_blocks"  # in the host tier only; what may not go there is dropped
    DISK_BLOCKS = "disk_blocks"  # likewise
    PINNED_BLOCKS = "pinned_blocks"  # of pinned contexts
    CHILDREN = "children"  # tasks below it that live
    DEPTH = "depth"  # of the tree of tasks below it
    CONTEXTS = "contexts"


class Right(Enum):
    """Who may make a call."""

    PEER = "any peer of the kernel's uid"
    TASK = "a session that has a task"
    OPERATOR = "the uid that the kernel runs as"


# --- tasks ------------------------------------------------------------------------------------


class Hello(NamedTuple):
    name: Name = "task"
    ticket: Ticket | None = None
    durable: bool = False
    on_behalf: Name | None = None
    grace_s: Annotated[float, Real(0.0, 60.0)] = 0.0  # after TERM, to end by itself


class HelloResult(NamedTuple):
    pid: int
    connection: int  # high 8 bits of the handles that this connection may choose
    kernel_pid: int
    version: str
    max_frame: int
    max_ids: int
    token: bytes = b""  # with which the task is attached to, should it outlive this kernel
    contexts: tuple[int, ...] = ()  # that it has already, by fork_task or attach; MAX_HANDLES
    note: bytes = b""  # of fork_task


class Attach(NamedTuple):
    """A task without a program is one that came back with a kernel (shutdown with `save`). What
    contexts it had are under their old handles; new ones have another connection number."""

    pid: Pid
    token: Ticket


class Spawn(NamedTuple):
    """The child stands below its parent: what it is charged, that is charged, too. `nice` is for
    its place among the other children."""

    name: Name
    detached: bool = False
    nice: Nice = 0
    group: Name | None = None  # as the call of that name


class SpawnResult(NamedTuple):
    pid: int
    ticket: bytes


class ForkTask(NamedTuple):
    """A spawn, together with forks of contexts: all of it, or nothing. The child has them under the
    handles that they have in the caller, with the same rights; no KV is copied. It has the caller's
    nice, and stands below it."""

    name: Name
    contexts: Handles = ()  # none: all that there are
    note: Annotated[bytes, Blob(MAX_NOTE)] = b""  # the program's own, for that of the child


class ForkTaskResult(NamedTuple):
    pid: int
    ticket: bytes
    contexts: list[int]  # handles of the forks, in the child


class Exit(NamedTuple):
    status: Status = 0


class Wait(NamedTuple):
    pid: Pid = 0  # 0: any child
    no_hang: bool = False


class WaitResult(NamedTuple):
    pid: int  # 0: no_hang and none has ended
    status: int
    reason: str


class Kill(NamedTuple):
    """STOP and CONT of many tasks are one moment: no step has some of them. A task that ends with
    its tree makes no more children."""

    pid: Pid  # 0: those of a group
    signal: Signal = int(Sig.TERM)
    tree: bool = False  # also all that it has made, and what these have
    group: Name | None = None  # of the caller's user: all tasks in it, and those below them


class KillResult(NamedTuple):
    tasks: int = 1  # that got it


class Renice(NamedTuple):
    """A nice of n is a weight of 1.25 ** -n among the children of one parent, the tasks of one
    group, and so on; all below a task or a group share what it gets. So to renice a task or a group
    is to renice its tree."""

    pid: Pid  # 0: the caller, or a group
    nice: Nice
    group: Name | None = None  # of the caller's user


class ReniceResult(NamedTuple):
    before: int


class Group(NamedTuple):
    """`name` is of a group of the task's user. One that is not there yet is made where the task
    stands, one that is there is gone to. All that is below the task goes along.

    A task that stands below another, or in a group, leaves that only by a task that does not: who
    is held by a limit does not leave it. A group ends with its last task.
    """

    pid: Pid = 0  # 0: the caller
    name: Name | None = None  # nil: out of the group that it is in


class GroupResult(NamedTuple):
    group: str  # as in TaskRow


class SetLimit(NamedTuple):
    """A limit is of a task, a group or the caller's user, and of all below together. Neither `soft`
    nor `hard`: the limit is removed.

    At `soft` the programs of all tasks below get the signal XCPU, once. Beyond `hard` a new call
    ends with EDQUOT; what runs ends so, too, when ids, device time or wall clock are used up. What
    was used counts from the begin of the account, and is not given back by a trim, a cancel or a
    limit that is set anew.
    """

    resource: Name  # Resource
    soft: Amount | None = None
    hard: Amount | None = None
    pid: Pid = 0  # 0, and no other is named: the caller
    group: Name | None = None
    owner: bool = False  # of the caller's user


class StatTask(NamedTuple):
    pid: Pid = 0  # 0: the caller


class TaskRow(NamedTuple):
    """One task as ps shows it. `blocks` counts a block shared by n contexts as 1/n."""

    pid: int
    parent: int
    uid: int
    name: str
    state: str
    wait: str
    nice: int
    contexts: int
    tokens: int
    blocks: float
    shared: int
    prompt_tokens: int
    output_tokens: int
    age_s: float
    host_pid: int
    kv_bytes: float = 0.0  # of its blocks, counted likewise
    models: str = ""  # of its contexts, comma-separated
    swapped: float = 0.0  # blocks that are in a lower tier only, counted likewise
    lacks: int = 0  # blocks that it waits for (state D)
    cached_tokens: int = 0  # of prompt_tokens, found computed
    device_us: int = 0  # its part of the time of steps, and that of the tasks below it
    group: str = ""  # in which it stands, or what it stands below; empty: none


# --- contexts ---------------------------------------------------------------------------------


class AllocCtx(NamedTuple):
    ctx: Handle
    model: ModelName | None = None
    name: Title | None = None
    durable: bool = False


class AllocCtxResult(NamedTuple):
    model: str
    max_ctx: int
    block_size: int
    load: int = 0  # number of the model's loading: another one may be behind the name one day


class ForkCtx(NamedTuple):
    ctx: Handle
    child: Handle
    name: Title | None = None


class ForkCtxResult(NamedTuple):
    length: int
    shared_blocks: int


class Append(NamedTuple):
    ctx: Handle


class LengthResult(NamedTuple):
    length: int


class TrimCtx(NamedTuple):
    ctx: Handle
    length: Length


class FreeCtx(NamedTuple):
    ctx: Handle


class ReadCtx(NamedTuple):
    ctx: Handle
    start: Length = 0
    max_ids: Length | None = None


class ReadCtxResult(NamedTuple):
    start: int
    length: int  # of the whole context


class StatCtx(NamedTuple):
    ctx: Handle


class AdviseCtx(NamedTuple):
    ctx: Handle
    advice: Name  # Advice
    ttl_s: Annotated[float, Real(0.0, 86_400.0)] = 0.0  # of retain


class AdviseCtxResult(NamedTuple):
    blocks: int  # that this concerns: pinned, on their way, ...


class GrantCtx(NamedTuple):
    """Whoever shows the id of the grant may open the context, as it is then: open_ctx.

    A context that was opened itself can be granted with the rights that it has, FORK among them.
    """

    ctx: Handle
    access: Annotated[int, Int(1, 15)]  # Access
    length: Length | None = None  # the most ids to be opened, from the start; nil: all
    uid: U32 | None = None  # who may open it; nil: anyone
    pid: Pid = 0  # which task may; 0: any
    ttl_s: Annotated[float, Real(0.0, 31_536_000.0)] = 0.0  # how long it may be opened; 0: no limit
    opens: U32 = 0  # how often; 0: no limit


class GrantCtxResult(NamedTuple):
    grant: bytes  # 16 bytes that nobody can guess; the kernel does not tell them again


class OpenCtx(NamedTuple):
    """`ctx` is the new handle. The context shares all blocks with the one that was granted."""

    grant: GrantId
    ctx: Handle
    name: Title | None = None


class OpenCtxResult(NamedTuple):
    length: int
    access: int  # Access
    pid: int  # the task that granted it
    model: str
    max_ctx: int
    block_size: int
    load: int  # number of the model's loading


class Revoke(NamedTuple):
    grant: GrantId


class RevokeResult(NamedTuple):
    contexts: int  # that have lost their ids, forks and those of further grants included


class DropCache(NamedTuple):
    pass


class DropCacheResult(NamedTuple):
    blocks: int  # that were given back


class SaveCtx(NamedTuple):
    """Keeps the ids and the KV of all full blocks that is there; what is at its end is computed
    again after a load. Replaces the caller's save of that name, whole or not at all.

    `extra` is the program's own, and comes back with the load.
    """

    ctx: Handle
    name: SaveName
    extra: Annotated[bytes, Blob(MAX_EXTRA)] = b""


class SaveCtxResult(NamedTuple):
    length: int  # of the save: that of the context when the call was accepted
    kv_tokens: int  # positions of it whose KV is in the save
    file_bytes: int
    generation: int  # rises with each save of the name


class LoadCtx(NamedTuple):
    """`ctx` is a new handle; the context exists when the call ends, not before."""

    ctx: Handle
    name: SaveName
    model: ModelName | None = None  # nil: the one that it was saved from, or one with its weights
    title: Title | None = None  # of the context


class LoadCtxResult(NamedTuple):
    model: str
    max_ctx: int
    block_size: int
    load: int
    length: int
    kv_tokens: int  # positions whose KV need not be computed
    generation: int
    saved_wall_s: float  # since 1970
    note: str  # why KV of the save was not used, if some was not
    extra: bytes


class ListSaves(NamedTuple):
    after: Title = ""  # names come in order, a page at a time


class SaveRow(NamedTuple):
    """Of a damaged save only name and generation are known."""

    name: str
    generation: int
    state: str  # current | stale | damaged
    model: str
    length: int
    kv_blocks: int  # full ones whose KV is in the save
    file_bytes: int
    saved_wall_s: float  # since 1970


class ListSavesResult(NamedTuple):
    rows: list[Any]
    more: bool


class DropSave(NamedTuple):
    name: SaveName


class CtxRow(NamedTuple):
    ctx: int
    pid: int
    name: str
    model: str
    length: int
    computed: int
    max_ctx: int
    blocks: int
    shared: int
    share: float
    busy: bool
    device: str = ""
    state: str = ""  # of what runs on it, a letter as in TaskRow; empty: nothing does
    kv_bytes: float = 0.0  # of its share
    host_blocks: int = 0  # that are in the host tier only
    disk_blocks: int = 0
    pinned: bool = False
    lacks: int = 0  # blocks that it waits for (state D)
    opened_from: int = 0  # pid of the task that granted it; 0: it was not opened
    revoked: bool = False  # that grant was taken back: it has no ids any more
    access: int = 15  # Access: what its task may do with it
    block_size: int = 0
    load: int = 0  # number of the model's loading


# --- inference --------------------------------------------------------------------------------


class Infer(NamedTuple):
    """A second frame of ids is appended to the context first, in the same call.

    What is done to the logits before an id is drawn, in this order, each step on what the one
    before gave: `logit_bias` is added; `repetition_penalty` p divides a logit above 0 by p, and
    multiplies another with p, for each id that is in the context, prompt and output alike;
    `presence_penalty` + n * `frequency_penalty` is taken from the logit of an id that is n > 0
    times among the generated ones; then temperature, top_k, top_p, min_p. Greedy (temperature 0)
    takes the best of the adjusted logits. Logprobs are those of the model, before all of this.

    Generated ids are those from position `penalize_from` on: by default the length of the context
    when the call is accepted. Whoever goes on after a cancel gives the position at which the output
    has begun, and gets the stream that would have come without it (with the same seed).

    A bias of -100 makes an id exp(100 / temperature) times less likely; that is no ban.

    With a grammar, UTF-8 text of `grammar_kind`, only ids are drawn with which the generated text
    is, or can become, one that the grammar describes: of the adjusted logits others have no part.
    Special ids are no text; those that end one come where the grammar may end. The infer ends with
    STOP when the text is complete, with LENGTH where max_tokens cut it. The text begins at position
    `grammar_from`, by default at the length of the context when the call is accepted: whoever goes
    on after a cancel, or in a fork, gives the position at which the output has begun.

    EINVAL: the text is no grammar, takes too much to compile or to follow, or does not describe
    what is there from grammar_from on. ENOTSUP: the device or the model knows no grammars.
    """

    ctx: Handle
    max_tokens: Annotated[int, Int(1, INT32_MAX)] = 512
    temperature: Annotated[float, Real(0.0, 100.0)] = 1.0  # 0: greedy
    top_k: Annotated[int, Int(0, INT32_MAX)] = 0  # 0: off
    top_p: Annotated[float, Real(0.0, 1.0)] = 1.0
    min_p: Annotated[float, Real(0.0, 1.0)] = 0.0
    seed: U64 | None = None
    stop_ids: StopIds = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Int(0, MAX_LOGPROBS)] | None = None  # n: also the n best; nil: none
    repetition_penalty: Annotated[float, Real(0.01, 100.0)] = 1.0  # 1: off
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Biases = ()  # [id, bias], no id twice
    penalize_from: Length | None = None
    grammar_kind: Annotated[int, Int(0, 255)] = 0  # of GrammarKind; 0: none
    grammar: Annotated[bytes, Blob(MAX_GRAMMAR)] = b""
    grammar_from: Length | None = None


class InferResult(NamedTuple):
    finish: int
    length: int  # of the context
    prompt: int  # ids in the context when the call was accepted
    cached: int  # of these, found: neither this call nor an append before it computed them
    output: int
    overrun: int  # sampled and thrown away
    seed: int
    device_us: int = 0  # its part of the time of the steps that it was in


class Cancel(NamedTuple):
    call: U64
    keep: Length | None = None  # output ids to keep; nil: all


class Score(NamedTuple):
    """A second frame of ids is appended to the context first, in the same call.

    TOKEN events carry the ids from position `start` on, some per event, each with its logprob given
    all ids before it, and with the `top` best ids if any are asked for. Nothing is generated.
    """

    ctx: Handle
    start: Annotated[int, Int(1, INT32_MAX)]
    top: Annotated[int, Int(0, MAX_LOGPROBS)] = 0


class ScoreResult(NamedTuple):
    finish: int
    length: int  # of the context
    start: int
    scored: int
    cached: int  # positions below start - 1 that were found, as of an infer


# --- messages ---------------------------------------------------------------------------------


class Bind(NamedTuple):
    """A port is known by its name to all tasks of the caller's user, and ends with its task.

    `depth` messages may be unanswered: one more is EAGAIN to whoever calls. 0 gives the port up.
    """

    port: Name
    depth: Annotated[int, Int(0, 1024)] = 64


class CallPort(NamedTuple):
    """What the server does between recv and reply is charged to the caller, and done in the
    caller's place in the order, or in that of a better one that waits for the same server. While a
    server has taken several messages, that is the caller of the one it took last."""

    port: Name
    body: Body = b""
    timeout_s: Seconds | None = None  # nil: no limit; then ETIMEDOUT


class CallPortResult(NamedTuple):
    body: bytes
    pid: int  # of the server


class Recv(NamedTuple):
    """Takes from a port that the caller has bound, or a topic to which it has subscribed."""

    port: Name | None = None
    topic: Name | None = None  # instead of a port
    timeout_s: Seconds | None = None  # nil: no limit; then ETIMEDOUT. 0: what is there


class RecvResult(NamedTuple):
    """With ids in frame 2, where a topic's message has some."""

    message: int  # what `reply` names; 0: of a topic, there is no reply
    pid: int  # of the task that sent it
    sender: str  # its name
    body: bytes
    waiting: int  # more that could be taken now
    missing: int = 0  # of a topic: messages before it that were dropped


class Reply(NamedTuple):
    message: U64
    body: Body = b""


class Publish(NamedTuple):
    """To all subscriptions of the caller's user, or to none of them: EAGAIN if one is full.

    The ids of frame 2 go with the body to tasks; to contexts that feed on the topic go ids alone.
    """

    topic: Name
    body: Body = b""


class PublishResult(NamedTuple):
    subscriptions: int  # that have got it


class Subscribe(NamedTuple):
    """Without `ctx` messages wait for `recv`. With it the topic feeds the context: ids are added to
    it as they arrive, and computed ahead; while something else runs on it they wait in order.

    `depth` messages may wait, 1,024 at most; of a feed, `depth` ids that are not computed yet. 0
    ends the subscription.
    """

    topic: Name
    depth: Annotated[int, Int(0, MAX_IDS)] = 64
    full: Name = Full.REFUSE.value  # Full; a feed takes REFUSE only
    ctx: Handle | None = None


class PortRow(NamedTuple):
    """A port, a subscription to a topic, or a feed, with the task that takes from it."""

    kind: str  # port | topic | feed
    name: str
    uid: int
    pid: int
    task: str
    waiting: int  # messages; of a feed, ids that are not computed
    limit: int  # of what may wait, of a port together with `serving`
    serving: int  # messages taken and not answered
    done: int  # answered, or taken
    usual_s: float  # from a call to its reply, a moving average; 0: there was none yet
    missing: int = 0  # dropped so far
    ctx: int = 0  # of a feed


# --- models and devices -----------------------------------------------------------------------


class LoadModel(NamedTuple):
    """`path` is the folder of an installed model, or a builtin of the driver."""

    name: ModelName
    path: Path
    device: Name | None = None
    dtype: Name | None = None  # nil here and below, 0 too: as the kernel was started
    kv_bytes: U64 = 0  # budget of the KV pool
    num_blocks: Annotated[int, Int(0, INT32_MAX)] = 0  # instead of kv_bytes
    max_ctx: Length = 0
    deterministic: bool | None = None
    kv_dtype: Name | None = None  # of the KV: int8, where the device has it; nil: as started


class UnloadModel(NamedTuple):
    name: ModelName
    force: bool = False  # also if contexts use it: they keep their ids, their infers end


class UnloadModelResult(NamedTuple):
    contexts: int  # that have lost their model


class ListModels(NamedTuple):
    pass


class ModelRow(NamedTuple):
    name: str
    arch: str
    device: str
    dtype: str
    max_ctx: int
    vocab: int
    weights_bytes: int
    block_bytes: int
    eos_ids: list[int]
    state: str = "up"  # waiting | loading | up | failed; the numbers are 0 before the first up
    note: str = ""
    path: str = ""
    num_blocks: int = 0  # of its pool
    contexts: int = 0
    kv_dtype: str = ""


class Rows(NamedTuple):
    rows: list[Any]


class ReadModel(NamedTuple):
    model: ModelName | None = None
    part: Name = "tokenizer.json"
    offset: U64 = 0


class ReadModelResult(NamedTuple):
    data: bytes  # at most MODEL_CHUNK
    total: int
    load: int = 0  # number of the model's loading


class ListDevices(NamedTuple):
    pass


class DeviceRow(NamedTuple):
    device: str
    driver: str
    state: str
    epoch: int
    host_pid: int
    mem_total: int
    mem_free: int
    note: str


# --- inspection and administration ------------------------------------------------------------


class Snapshot(NamedTuple):
    what: Name  # tasks | contexts | pools | kernel | config | store | ports | usage | limits
    cursor: U64 = 0


class SnapshotResult(NamedTuple):
    version: int  # the kernel's turn in which the rows were read
    rows: list[Any]
    cursor: int  # 0: no more rows


class PoolRow(NamedTuple):
    device: str
    model: str
    tier: str
    block_size: int
    block_bytes: int
    total: int
    free: int
    cached: int
    used: int
    limbo: int
    reserved: int
    shared: int  # used by more than one context
    saved: int  # blocks that sharing saves
    waste_tokens: int  # empty positions in blocks in use
    promised: int = 0  # blocks that contexts name, wherever their KV is; of the device tier only
    promise_limit: int = 0  # 0: none
    pinned: int = 0


class UsageRow(NamedTuple):
    """What an account has used: a task with all below it, a group, a user, the kernel itself
    (`system`: what it had to compute again), all together (`root`).

    A row includes those below it, and those that have ended. Times are microseconds; a block that
    several contexts share is charged once, to the task that made it.
    """

    kind: str  # root | system | owner | group | task
    path: str  # uid/group/pid/pid
    name: str
    uid: int
    pid: int  # of a task
    tasks: int  # that live
    contexts: int
    device_blocks: int  # now; in a lower tier those that are in no higher one
    host_blocks: int
    disk_blocks: int
    input_ids: int  # that programs have handed in
    prompt_ids: int  # in the contexts of requests when they were accepted
    cached_ids: int  # of these, found computed
    output_ids: int
    prefill_ids: int  # computed in steps
    decode_ids: int
    recomputed_ids: int  # whose KV the kernel had let go; charged to `system`
    entries: int  # steps that it was in, each context of it counted
    device_us: int  # its part of the time of these steps, by its part of their tokens
    device_block_us: int
    host_block_us: int
    disk_block_us: int
    out_blocks: int  # copied to a lower tier
    in_blocks: int
    requests: int
    born: int  # tasks
    energy_uj: int | None = None  # nil: not measured


class LimitRow(NamedTuple):
    """A limit, and what is used of it."""

    kind: str  # owner | group | task
    path: str
    name: str
    uid: int
    pid: int
    resource: str  # Resource
    soft: float | None
    hard: float | None
    used: float


class KernelRow(NamedTuple):
    pid: int
    version: str
    uptime_s: float
    turns: int
    calls: int
    protocol_errors: int
    steps: int
    wasted_entries: int
    copied_blocks: int
    evicted_blocks: int
    admitted: int
    finished: int
    failed: int
    running: int
    waiting: int
    prefill_tokens: int = 0  # computed in steps, those of prompts
    decode_tokens: int = 0  # and those that followed a sample
    step_seqs: int = 0  # sequences of all steps
    step_us: int = 0  # that drivers were at work on steps
    prompt_tokens: int = 0  # of all infers accepted
    cached_tokens: int = 0  # of these, computed before
    output_tokens: int = 0  # sampled and part of a context
    first_tokens: int = 0  # infers that got their first
    first_token_s: float = 0.0  # how long they waited for it, together
    oldest_wait_s: float = 0.0  # of those that wait now and are not held: since when
    log_records: int = 0  # written so far
    sessions: int = 0  # open now
    out_blocks: int = 0  # copied from the device to the host tier
    in_blocks: int = 0  # and back
    out_bytes: int = 0
    in_bytes: int = 0
    copy_us: int = 0  # that drivers were at work on these copies
    hit_tokens: int = 0  # taken over from other contexts of the same owner, without a fork
    lost_tokens: int = 0  # positions whose KV was dropped, and no tier had it
    disk_out_blocks: int = 0  # written to the swap file
    disk_in_blocks: int = 0  # and read back
    restore: str = ""  # Restore: how far the way back from a save of everything is
    restored: int = 0  # contexts that are back
    unrestored: int = 0  # contexts that are not, or not yet


class Pmap(NamedTuple):
    """`pid` 0: the caller's own context."""

    ctx: Handle
    pid: Pid = 0
    cursor: U64 = 0  # the block to begin with


class BlockRun(NamedTuple):
    """Blocks in a row that are alike; on the device they are `block`, `block` + 1, ..."""

    start: int  # position of the first
    blocks: int
    use: int  # Use
    refs: int  # contexts that have each of them
    block: int  # device block of the first; 0: ABSENT
    ids: int  # positions with an id
    filled: int  # positions with KV


class SharerRow(NamedTuple):
    """A context that has the first `blocks` blocks of another one."""

    pid: int
    ctx: int
    name: str
    blocks: int


class PmapResult(NamedTuple):
    pid: int
    ctx: int
    name: str
    model: str
    device: str
    length: int
    computed: int
    block_size: int
    block_bytes: int
    blocks: int  # of the context's table
    runs: list[Any]
    sharers: list[Any]  # those that share most, with the first page only
    num_sharers: int
    cursor: int  # 0: no more runs


class Explain(NamedTuple):
    ctx: Handle
    pid: Pid = 0  # 0: the caller's own context


class LossRow(NamedTuple):
    """KV that a context has lost, or a prefix that it would have found."""

    ago_s: float
    what: str  # swapped | dropped | evicted (a cached prefix) | died (with the driver)
    why: str
    start: int  # position of the first
    tokens: int
    by_pid: int  # whose request needed the room; 0: nobody's, or not the caller's to know
    cost_us: int  # that it took to have it again, so far


class ExplainResult(NamedTuple):
    pid: int
    ctx: int
    state: str
    waits_for: str  # in words; empty: for nothing
    needed: int  # blocks, if it waits for some
    available: int
    computed: int
    on_device: int  # positions
    on_host: int
    on_disk: int
    losses: list[Any]  # LossRow, the newest first


class Log(NamedTuple):
    cursor: U64 = 0  # number of the first record wanted


class LogRow(NamedTuple):
    number: int  # rises by 1; records before the first one kept are gone
    uptime_s: float
    wall_s: float  # since 1970
    level: int  # LogLevel
    facility: str  # mm | sched | drv | ctx | ipc | model | kern
    text: str


class LogResult(NamedTuple):
    rows: list[Any]
    cursor: int  # for the next call
    end: int  # number of the record to come; `cursor` < `end`: there are more


class ConfigRow(NamedTuple):
    """A key of the kernel's configuration and what it runs with."""

    key: str
    value: Any  # text, a number, true or false


class StoreRow(NamedTuple):
    """Disk and keys, as the kernel has them. Numbers of saves are those of all users."""

    state: str  # off | opening | up | failed
    host_pid: int
    note: str  # why it failed, or died the last time; what it found, in other cases
    hint: str  # what to do about it
    saves: int
    damaged: int  # that cannot be opened, when the store was started
    saves_bytes: int  # on the disk
    swap_bytes: int  # of the swap file
    epoch: int  # how often the store host was started


class Shutdown(NamedTuple):
    """With `save` every task and every context is kept for the next kernel, which has them again
    under the same pids and handles. If anything cannot be saved, the kernel does not stop: the call
    fails and all goes on, only that infers which were longer than `grace_s` have been cancelled.
    """

    grace_s: Annotated[float, Real(0.0, 3600.0)] = 10.0
    save: bool = False
    replace: bool = False  # what was saved before, and waits; its contexts stay as saves


class ShutdownResult(NamedTuple):
    """What was saved."""

    tasks: int = 0
    contexts: int = 0
    tokens: int = 0
    kv_tokens: int = 0  # positions whose KV is in the saves
    file_bytes: int = 0
    left: int = 0  # contexts that were opened through grants which do not allow a copy


class SetPolicy(NamedTuple):
    name: Name | None = None  # nil: nothing changes


class SetPolicyResult(NamedTuple):
    policy: str  # that decides
    policies: list[Any]  # that can be chosen


class Nothing(NamedTuple):
    pass


class Call(NamedTuple):
    """One row of the table."""

    number: int
    name: str
    args: Any  # NamedTuple class; None: reserved, answers ENOTSUP
    result: Any
    right: Right
    idempotent: bool
    durable: bool
    meaning: str
    errnos: str = ""
    ids: bool = False  # takes a second frame of ids


_P, _T, _O = Right.PEER, Right.TASK, Right.OPERATOR


def _reserved(
    number: int,
    name: str,
    right: Right,
    meaning: str,
    durable: bool = False,
    idempotent: bool = False,
    ids: bool = False,
) -> Call:
    return Call(number, name, None, None, right, idempotent, durable, meaning, "ENOTSUP", ids)


CALLS: tuple[Call, ...] = (
    # tasks
    Call(1, "hello", Hello, HelloResult, _P, False, False,
         "Open the session: become a new task, or the program of a spawned one.",
         "EPERM ESTALE EBUSY EAGAIN ENOTSUP EDQUOT"),
    Call(2, "attach", Attach, HelloResult, _P, False, False,
         "Become the program of a task that came back with this kernel.", "ESRCH EBUSY"),
    Call(3, "spawn", Spawn, SpawnResult, _T, False, False,
         "Make a child task and a one-use ticket for its program.",
         "EPERM EINVAL EAGAIN EDQUOT ECANCELED"),
    Call(4, "fork_task", ForkTask, ForkTaskResult, _T, False, False,
         "Make a child task with forks of contexts, and a one-use ticket for its program.",
         "EBADCTX EREVOKED EPERM EINVAL E2BIG EAGAIN EDQUOT ECANCELED"),
    Call(5, "exit", Exit, Nothing, _T, False, False, "End the calling task."),
    Call(6, "wait", Wait, WaitResult, _T, False, False,
         "Wait for a child to end and take its status.", "ESRCH ECANCELED"),
    Call(7, "kill", Kill, KillResult, _T, True, False,
         "Send a signal to a task, to a tree of tasks, or to a group.", "ESRCH EINVAL EPERM"),
    Call(8, "renice", Renice, ReniceResult, _T, True, True,
         "Change the weight of a task or of a group.", "ESRCH EINVAL EPERM"),
    Call(9, "set_limit", SetLimit, Nothing, _T, True, True,
         "Limit what a task, a group or a user may use.", "ESRCH EINVAL EPERM"),
    Call(10, "group", Group, GroupResult, _T, False, False,
         "Put a task into a group, or take it out of one.", "ESRCH EINVAL EPERM EDQUOT"),
    Call(11, "stat_task", StatTask, TaskRow, _T, True, False, "Describe a task.", "ESRCH"),
    # contexts
    Call(32, "alloc_ctx", AllocCtx, AllocCtxResult, _T, False, False,
         "Make an empty context under a handle that the caller chooses.",
         "EINVAL EEXIST ENOENT ENODEV EAGAIN ENOTSUP EDQUOT"),
    Call(33, "fork_ctx", ForkCtx, ForkCtxResult, _T, False, False,
         "Make a context that shares every block of another.",
         "EBADCTX EREVOKED EPERM EINVAL EEXIST EAGAIN EDQUOT"),
    Call(34, "append", Append, LengthResult, _T, False, False,
         "Add the ids of frame 2 to a context; prefill follows.",
         "EBADCTX EREVOKED EPERM EBUSY E2BIG ENOMEM EINVAL ENODEV EAGAIN EDQUOT", ids=True),
    Call(35, "trim_ctx", TrimCtx, LengthResult, _T, True, False,
         "Drop ids from the end.", "EBADCTX EREVOKED EPERM EBUSY EINVAL"),
    Call(36, "free_ctx", FreeCtx, Nothing, _T, False, False,
         "Give a context back; cancels its infer.", "EBADCTX"),
    Call(37, "read_ctx", ReadCtx, ReadCtxResult, _T, True, False,
         "Return committed ids in frame 2.", "EBADCTX EREVOKED EPERM EINVAL E2BIG"),
    Call(38, "stat_ctx", StatCtx, CtxRow, _T, True, False, "Describe a context.", "EBADCTX"),
    Call(39, "advise_ctx", AdviseCtx, AdviseCtxResult, _T, True, False,
         "Say what a context's KV is needed for: prefetch, demote, pin, unpin, retain.",
         "EBADCTX EREVOKED EINVAL EDQUOT EAGAIN"),
    _reserved(40, "label_ctx", _T, "Name a context.", idempotent=True),
    Call(41, "save_ctx", SaveCtx, SaveCtxResult, _T, True, True,
         "Keep a context under a name; ends when it is on the disk.",
         "EBADCTX EREVOKED EPERM EINVAL ENOSPC EIO ENOTSUP EAGAIN ECORRUPT"),
    Call(42, "load_ctx", LoadCtx, LoadCtxResult, _T, False, False,
         "Make a context from a save of the caller's user.",
         "EINVAL EEXIST ENOENT ENODEV EAGAIN E2BIG ENOMEM EIO ECORRUPT ENOTSUP ECANCELED EDQUOT"),
    Call(43, "list_saves", ListSaves, ListSavesResult, _T, True, False,
         "List the saves of the caller's user, a page at a time.", "EIO ENOTSUP EAGAIN"),
    Call(44, "drop_save", DropSave, Nothing, _T, True, True,
         "Delete a save of the caller's user for good.", "ENOENT EIO ENOTSUP EAGAIN"),
    _reserved(45, "export_ctx", _T, "Write a context to a file."),
    _reserved(46, "import_ctx", _T, "Make a context from an exported file."),
    Call(47, "grant_ctx", GrantCtx, GrantCtxResult, _T, False, False,
         "Let other tasks open a context, and return the id that they need for it.",
         "EBADCTX EREVOKED EPERM EINVAL EDQUOT"),
    Call(48, "open_ctx", OpenCtx, OpenCtxResult, _T, False, False,
         "Make a context from a granted one, with the rights of the grant.",
         "EBADCTX EINVAL EEXIST EAGAIN EDQUOT"),
    Call(49, "revoke", Revoke, RevokeResult, _T, False, False,
         "Take a grant back: what was opened through it, however often passed on, loses its ids.",
         "EBADCTX"),
    Call(50, "drop_cache", DropCache, DropCacheResult, _T, True, False,
         "Free the cached blocks that the caller's user has computed."),
    # inference
    Call(64, "infer", Infer, InferResult, _T, False, False,
         "Generate: TOKEN events, then FIN.",
         "EBADCTX EREVOKED EPERM EBUSY E2BIG ENOMEM EINVAL ENODEV EAGAIN EIO ECANCELED ENOTSUP "
         "EDQUOT",
         ids=True),
    Call(65, "cancel", Cancel, LengthResult, _T, True, False,
         "End an infer, a score, a call or a recv of this session; keep some of an infer's output.",
         "ESRCH EINVAL"),
    Call(66, "score", Score, ScoreResult, _T, False, False,
         "Return the log-probabilities of ids of a context: TOKEN events, then FIN.",
         "EBADCTX EREVOKED EPERM EBUSY E2BIG ENOMEM EINVAL ENODEV EAGAIN EIO ECANCELED ENOTSUP "
         "EDQUOT",
         ids=True),
    _reserved(67, "embed", _T, "Return a vector for given ids.", idempotent=True, ids=True),
    # messages
    Call(80, "bind", Bind, Nothing, _T, False, False,
         "Become the server of a named port, or give it up.", "EEXIST EAGAIN ENOENT"),
    Call(81, "call", CallPort, CallPortResult, _T, False, False,
         "Send a message to a port and wait for the reply.",
         "ENOENT EAGAIN E2BIG EDEADLK EINVAL ETIMEDOUT EPIPE ECANCELED"),
    Call(82, "recv", Recv, RecvResult, _T, False, False,
         "Take the next message of a port or a topic; wait for it if there is none.",
         "ENOENT EINVAL EAGAIN ETIMEDOUT EPIPE ECANCELED"),
    Call(83, "reply", Reply, Nothing, _T, False, False,
         "Answer a message; ESRCH if nobody waits for that any more.", "ESRCH E2BIG"),
    Call(84, "publish", Publish, PublishResult, _T, False, False,
         "Send a message to a topic.",
         "EAGAIN E2BIG EINVAL ENOMEM ENODEV EDQUOT ECANCELED", ids=True),
    Call(85, "subscribe", Subscribe, Nothing, _T, False, False,
         "Let the messages of a topic wait for the caller, or feed a context of its.",
         "EEXIST EAGAIN ENOENT EINVAL EBADCTX EREVOKED EPERM ENODEV"),
    # models and devices
    Call(96, "load_model", LoadModel, ModelRow, _O, False, False,
         "Load a model onto a device: PROGRESS events, then FIN.",
         "EPERM EEXIST ENOENT ENODEV ENOMEM ENOTSUP EAGAIN EINVAL EIO"),
    Call(97, "unload_model", UnloadModel, UnloadModelResult, _O, False, False,
         "Unload a model.", "EPERM ENOENT EBUSY"),
    Call(98, "list_models", ListModels, Rows, _T, True, False,
         "List models that are loaded or on their way."),
    Call(99, "read_model", ReadModel, ReadModelResult, _T, True, False,
         "Read a part of a model: tokenizer.json, chat_template.jinja, config.json.",
         "ENOENT EINVAL EIO"),
    _reserved(100, "load_adapter", _O, "Load an adapter."),
    _reserved(101, "unload_adapter", _O, "Unload an adapter."),
    Call(102, "list_devices", ListDevices, Rows, _T, True, False, "List devices."),
    _reserved(103, "list_drivers", _T, "List drivers.", idempotent=True),
    _reserved(104, "load_driver", _O, "Start a driver host."),
    _reserved(105, "unload_driver", _O, "Stop a driver host."),
    # inspection
    Call(112, "snapshot", Snapshot, SnapshotResult, _T, True, False,
         "Read counters: tasks, contexts, pools, kernel, config or store, a page at a time.",
         "EINVAL"),
    Call(113, "pmap", Pmap, PmapResult, _T, True, False,
         "Describe a context block by block, a page at a time.", "EBADCTX EREVOKED ESRCH EINVAL"),
    _reserved(114, "trace", _O, "Stream calls or steps."),
    Call(115, "log", Log, LogResult, _O, True, False,
         "Read the kernel's log, a page at a time.", "EPERM EINVAL"),
    Call(116, "explain", Explain, ExplainResult, _T, True, False,
         "Say what a context waits for, and why its KV had to be computed again.",
         "EBADCTX EREVOKED ESRCH EINVAL"),
    # administration
    Call(128, "set_policy", SetPolicy, SetPolicyResult, _T, True, False,
         "Choose who goes first: one of the policies that the kernel was started with.",
         "EPERM ENOENT"),
    _reserved(129, "save_all", _O, "Save every durable context.", durable=True),
    _reserved(130, "subject", _O, "Export or erase what belongs to one person.", durable=True),
    _reserved(131, "audit", _O, "Read the audit chain.", idempotent=True),
    Call(132, "shutdown", Shutdown, ShutdownResult, _O, True, False,
         "Stop the kernel: refuse new work, let requests end for grace_s, then cancel them; with "
         "save, keep tasks and contexts for the next one.",
         "EPERM EBUSY EAGAIN ENOSPC EIO ENOTSUP ECORRUPT"),
)  # fmt: skip

BY_NUMBER: dict[int, Call] = {call.number: call for call in CALLS}
BY_NAME: dict[str, Call] = {call.name: call for call in CALLS}
