"""System: all that the kernel knows, in one place, without any input or output.

Handlers of system calls and the loop work on it. Clock and randomness are handed in, so the same
kernel runs in real time and in the simulator.
"""

import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from random import Random

from kernel.account import Account
from kernel.answer import ModelSpec
from kernel.burst import Bursts
from kernel.chosen import Chosen
from kernel.config import Config
from kernel.context import Context
from kernel.device import Device, DeviceState, Limits
from kernel.diskswap import SwapFile
from kernel.errand import Errands
from kernel.grant import GrantTable, check_revoked
from kernel.hibernation import Books, Comeback, Hibernation
from kernel.job import Jobs
from kernel.link import Link
from kernel.logring import LogRing
from kernel.model import Model
from kernel.port import PortTable
from kernel.session import Session
from kernel.stats import Counters
from kernel.store import Store
from kernel.storehost import Disk, StoreHost
from kernel.task import Task, TaskTable
from kernel.topic import TopicTable
from kernel.watch import Patience
from syscalls.errors import EBADCTX, ENOENT, KernelError


def host_part(host_bytes: int) -> int:
    """Return the whole pages of a budget: what a model's part of the host memory has."""
    return host_bytes - host_bytes % mmap.PAGESIZE


class System:
    """Tasks, contexts, devices and sessions of one kernel."""

    def __init__(
        self,
        config: Config,
        link: Link,
        policy: Chosen,
        clock: Callable[[], float],
        random: Random,
        uid: int,
        kernel_pid: int,
        log: LogRing,
        store: Store | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.random = random
        self.uid = uid
        self.kernel_pid = kernel_pid
        self.born = clock()
        self.log = log
        self.bursts = Bursts(clock)  # on their way into the log
        self.counters = Counters()
        self.tasks = TaskTable(config.max_tasks, uid, self.born, clock)
        self.num_contexts = 0
        self.grants = GrantTable(random, config.max_grants)
        self.ports = PortTable()
        self.topics = TopicTable(self.ports)
        self.sessions: dict[bytes, Session] = {}
        self.speaking: dict[Session, None] = {}  # those with something that is not sent yet
        self.arrivals = count(1)
        self.again: deque[Context] = deque()  # free now: the calls queued on them may run
        self.closing: deque[tuple[Session, KernelError]] = deque()  # at the end of the turn
        self.jobs = Jobs()
        self.graves: deque[Context] = deque()  # of tasks that have ended; their blocks go in slices
        self.books = Books()
        self.stop_by: float | None = None  # shutting down: when the grace ends
        self.floating: list[Context] = []  # being saved or loaded: in no task
        patience = Patience(
            config.hang_s, config.step_s, config.load_s,
            config.max_restarts, config.restart_window_s,
        )  # fmt: skip
        self.store = StoreHost(
            store, Disk(config.state_dir, config.keys_dir, config.swap_bytes), patience, clock
        )
        swap_part = host_part(config.bulk_bytes // 2) if config.swap_bytes else 0
        self.save_part = config.bulk_bytes - swap_part  # of the bulk window; swap has the rest
        wipe = link.zero_bulk
        self.errands = Errands(self.store, partial(wipe, 0))
        swap = config.swap_bytes, self.save_part, swap_part, wipe
        self.swap_file = SwapFile(self.store, *swap)
        kept = store is not None and bool(config.state_dir and config.keys_dir)
        self.comeback = Comeback(kept, config.attach_s)
        self.hibernation: Hibernation | None = None  # going down with everything saved
        step = config.prefill_chunk, config.target_us, config.max_seqs
        limits = Limits(step, patience, config.overlap)
        secret = random.randbytes(32)  # of prefix keys: they are worth nothing after this boot
        self._attach_key = hashlib.blake2b(b"attach", key=secret, digest_size=32).digest()
        self.policy = policy
        self.device = Device(link, limits, policy, clock, secret, self._burying, self.swap_file)
        self.tasks.accounts.pinned = self._pinned
        self.tasks.accounts.coming = self._coming
        if config.model:
            self.device.models.add(self.spec(config.model, config.model_dir))

    def attach_token(self, pid: int) -> bytes:
        """Return what proves that a program was the task of this pid in this boot."""
        name = str(pid).encode()
        return hashlib.blake2b(name, key=self._attach_key, digest_size=32).digest()

    def _pinned(self, account: Account) -> int:
        """Return the blocks of pinned contexts of an account; each context counts its own."""
        pins = [ctx for m in self.device.models if m.loaded for ctx in m.sched.pager.idle.pins]
        mine = [ctx for ctx in pins if ctx.account is not None and ctx.account.is_below(account)]
        return sum(len(ctx.blocks) for ctx in mine)

    def _coming(self, account: Account) -> int:
        """Return the contexts of an account that are being loaded."""
        if not self.errands.busy:
            return 0  # quick where no task loads anything: each new context asks
        return sum(len(task.loading) for task in self.tasks.below(account))

    @property
    def stopping(self) -> bool:
        """Whether no request is taken any more."""
        return self.stop_by is not None or self.hibernation is not None

    def _burying(self) -> bool:
        return bool(self.graves)

    def spec(self, name: str, path: str) -> ModelSpec:
        """Return how a model is loaded unless it is asked for otherwise."""
        config = self.config
        return ModelSpec(
            name, path, config.dtype, config.block_size, config.num_blocks, config.kv_bytes,
            config.max_ctx, config.deterministic, config.threads,
            host_part(config.host_bytes), config.kv_dtype, config.overcommit,
        )  # fmt: skip

    def contexts(self) -> Iterator[Context]:
        """Return every context of every task."""
        for task in self.tasks:
            yield from task.contexts.values()

    def context(self, task: Task, handle: int, revoked: bool = False) -> Context:
        """Return a context of the task; EBADCTX if there is none.

        EREVOKED if what it was opened with was taken back, unless a `revoked` one will do.
        """
        ctx = task.contexts.get(handle)
        if ctx is None:
            raise EBADCTX(f"there is no context {handle} in task {task.pid}")
        if not revoked:
            check_revoked(ctx)
        return ctx

    def model(self, name: str | None) -> Model:
        """Return a model that serves, the oldest one if none is named; ENOENT, ENODEV, EAGAIN."""
        models = self.device.models
        model = models.first() if name is None else models.find(name)
        if model is None and self.device.state is DeviceState.FAILED:
            raise self.device.unavailable()
        if model is None:
            what = "no model is loaded" if name is None else f"model {name} is not loaded"
            raise ENOENT(f"{what}; loaded are: {models}", f"llmos load {name or 'NAME'}")
        model.require()
        return model
