"""The kernel's loop. Its verbs are the architecture:

    wait      sleep until a client, a driver, a signal or a deadline has something
    receive   clients: decode, check, run each call; an infer stays pending as a Request, and
              what takes longer than a moment goes on in the next turns, a slice in each
    collect   drivers: a step is done; commit its ids to contexts, TOKEN events to sessions; the
              store: saves and loads go on
    expire    deadlines: drivers that hang, unused tickets, clients that do not read
    step      plan the next step of the device and submit it: blocks, tables, samples
    reply     one message per client with all that this turn had for it (more, if that is much)

So an infer goes: receive (its Request joins the scheduler) -> step (the policy gives it tokens of
a step, the pool gives it blocks, the device gets one Submit) -> ... the driver computes while the
kernel keeps serving calls ... -> collect (KV is filled, the sampled id becomes part of the
context) -> reply (TOKEN). A long prompt takes several rounds of step and collect first.

One thread, no locks. What the kernel knows is in System (`k`); the loop has nothing but its pace.
"""

import logging
from collections.abc import Callable
from contextlib import suppress

from kernel import books, quota, sys_attach, way_down, way_up
from kernel.hibernation import Phase
from kernel.ipc import Arrival, Transport
from kernel.loading import News, Outcome
from kernel.session import Session
from kernel.sys_infer import deliver, fail_request, finish_request
from kernel.sys_model import tell
from kernel.sys_port import expire_waiters
from kernel.sys_task import end_task, expire_tasks
from kernel.syscall import receive, run, run_queued
from kernel.system import System
from syscalls.abi import Finish
from syscalls.errors import EAGAIN, ECONNRESET, EPERM, KernelError

log = logging.getLogger(__name__)
mm_log = logging.getLogger("kernel.pager")

RECEIVE_S = 0.002
"""How long a turn takes calls in; more of them wait in the socket while the device is served."""
TICK_S = 1.0
"""How often expired tickets and zombies are looked for, while there are any."""
FEW_TASKS = 100
"""That can be looked at in every turn."""


class Kernel:
    """One kernel: a System between a front (clients) and a device (its driver)."""

    def __init__(self, system: System, front: Transport) -> None:
        self.system = system
        self.front = front
        self.stopped = False
        self._tick = 0.0
        self._look = 0.0  # when to see again whether the time of any task comes
        self._timed = False
        self._asked = -TICK_S  # when all sessions were last asked for a connection
        self._more = False  # something happened that an earlier verb of the turn would take up
        self._evicted = 0  # blocks, as far as the log knows

    # --- the loop -----------------------------------------------------------------------------

    def run(self, wait: Callable[[float | None], None]) -> None:
        """Serve until stopped. `wait(timeout)` sleeps until there is something to do."""
        while not self.stopped:
            wait(self.timeout())
            self.turn()

    def turn(self) -> None:
        """Do all that can be done now, without sleeping."""
        self.system.counters.turns += 1
        self._more = False
        self.receive()
        self.collect()
        self.expire()
        self.step()
        self.reply()

    def timeout(self) -> float | None:
        """Return how long the loop may sleep; None: until something comes."""
        k = self.system
        if self._more or k.jobs or k.errands.paused or k.store.fallen or self.front.has_input():
            return 0.0
        if way_up.due(k) or k.tasks.accounts.hot:
            return 0.0
        now = k.clock()
        deadlines = [
            k.device.deadline(),
            k.store.deadline(),
            k.stop_by,
            k.bursts.deadline,
            quota.deadline(k),
            books.deadline(k),
            k.ports.deadline,
        ]
        if k.hibernation is not None and k.hibernation.phase is Phase.GRACE:
            deadlines.append(k.hibernation.by)
        if any(session.stalled_since is not None for session in k.speaking):
            deadlines.append(now + 0.1)
        deadlines.append(self._tick_due(now))
        due = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, min(due) - now) if due else None

    def _tick_due(self, now: float) -> float | None:
        """Return when tasks are to be looked at; to see whether, all are: so not in each turn."""
        tasks = self.system.tasks
        looks = now >= self._look or len(tasks) <= FEW_TASKS
        if looks:
            self._look, self._timed = now + TICK_S, any(task.timed for task in tasks)
        if self._timed:
            return self._tick + TICK_S
        return None if looks else self._look

    # --- receive ------------------------------------------------------------------------------

    def receive(self) -> None:
        """Run what clients have sent; drop the sessions of programs that have died."""
        until = self.system.clock() + RECEIVE_S
        for arrival in self.front.receive():
            session = self._session(arrival)
            if session is not None:
                receive(self.system, session, arrival.frames)
                run_queued(self.system)
            if self.system.clock() >= until:
                break
        self.system.jobs.go_on()
        for route in self.front.gone():
            self._close(self.system.sessions[route], "its program ended")

    def _session(self, arrival: Arrival) -> Session | None:
        """Return the connection's session; a new one for a new connection of our own uid."""
        k = self.system
        session = k.sessions.get(arrival.route)
        if session is not None:
            if (session.uid, session.host_pid) == (arrival.uid, arrival.pid):
                return session
            self._close(session, "its connection is gone, another program took its routing id")
        self._forget_closed(arrival.pid)
        session = Session(arrival.route, arrival.uid, arrival.pid, k.speaking)
        if arrival.uid not in (k.uid, 0):
            self._refuse(session, EPERM("this kernel serves the uid that it runs as"))
        elif len(k.sessions) >= k.config.max_sessions:
            error = EAGAIN(f"{len(k.sessions)} sessions are open, that is the limit")
            self._refuse(session, error)
        elif self._welcome(session):
            k.sessions[arrival.route] = session
            return session
        with suppress(LookupError):
            self._pass(session)
        return None

    def _forget_closed(self, pid: int) -> None:
        """Close sessions without a connection: of the program that connects; of all at the limit.

        The system tells when a program dies, nobody when it closes a connection and lives on: so
        they are looked for when a new one comes.
        """
        k = self.system
        full = len(k.sessions) >= k.config.max_sessions and k.clock() >= self._asked + TICK_S
        if full:
            self._asked = k.clock()
        for session in list(k.sessions.values()):
            if (full or session.host_pid == pid) and not self.front.alive(session.route):
                self._close(session, "its program closed the connection")

    def _welcome(self, session: Session) -> bool:
        """Watch the session's program, so that its death is seen; without that, no session."""
        try:
            return self.front.welcome(session.route, session.host_pid)
        except OSError as error:
            why = EAGAIN(f"cannot watch pid {session.host_pid}: {error.strerror}")
            self._refuse(session, why)
            return False

    def _refuse(self, session: Session, why: KernelError) -> None:
        """Tell a program that it gets no session."""
        detail = f"program {session.host_pid} of uid {session.uid}: {why.message}"
        self.system.bursts.tell(log, logging.WARNING, "session refused", detail)
        session.refuse(0, why)

    def _close(self, session: Session, why: str, told: KernelError | None = None) -> None:
        """End a session and its task; `told` goes to a program that lives, after all else."""
        k = self.system
        if session.task is not None:
            end_task(k, session.task, 128 + 1, why)
        run_queued(k)
        self._more = True  # a parent may have news, a device blocks to scrub
        k.sessions.pop(session.route, None)
        if told is not None:
            session.refuse(0, told)
            with suppress(LookupError):
                self._pass(session)
        self.front.forget(session.route)

    def _drop(self, session: Session, why: str) -> None:
        self._note_drop(session, why)
        self._close(session, why, ECONNRESET(f"the session was closed: {why}"))

    def _note_drop(self, session: Session, why: str) -> None:
        who = f"program {session.host_pid}"
        if session.task is not None:
            who += f" (task {session.task.pid}, {session.task.name})"
        self.system.bursts.tell(log, logging.WARNING, "session closed", f"{who}: {why}")

    # --- collect, expire, step ----------------------------------------------------------------

    def collect(self) -> None:
        """Take the results of the step that the driver has finished."""
        for outcome in self.system.device.collect():
            self._deliver(outcome)
        k = self.system
        k.errands.go_on()
        k.store.collect()
        way_up.go_on(k)
        books.go_on(k)
        for session, request in sys_attach.released(k):
            run(k, session, request)
        run_queued(k)

    def expire(self) -> None:
        """Act on deadlines that have passed."""
        k, now = self.system, self.system.clock()
        for outcome in k.device.expire(now):
            self._deliver(outcome)
        k.store.expire(now)
        expire_waiters(k, now)
        if now >= self._tick + TICK_S:
            self._tick = now
            expire_tasks(k, now)
            sys_attach.expire_leases(k, now)
        for session in list(k.speaking):
            since = session.stalled_since
            if since is not None and now >= since + k.config.stalled_s:
                self._drop(session, f"its program read nothing for {k.config.stalled_s:g} s")
        k.bursts.expire(now)
        quota.expire(k, now)
        way_down.go_on(k, now)
        if k.hibernation is not None and k.hibernation.phase is Phase.SAVED:
            way_down.say_goodbye(k)
            self.stopped = True
            return
        if k.stop_by is not None:
            self._shut_down(now)

    def step(self) -> None:
        """Give the device its next step, if it has none; what it cannot take has failed now."""
        for request, error in quota.enforce(self.system):
            fail_request(self.system, request, error)
            self._more = True
        for outcome in self.system.device.step():
            self._deliver(outcome)
            self._more = True  # what has ended was in the way of others
        self._more |= self.system.device.again
        run_queued(self.system)
        self._note_evictions()

    def _note_evictions(self) -> None:
        k = self.system
        evicted = k.device.models.evicted - self._evicted
        if evicted:
            self._evicted += evicted
            kind = "KV blocks dropped to make room"
            k.bursts.tell(mm_log, logging.INFO, kind, f"{evicted}", evicted, whole=1)

    def _deliver(self, outcome: Outcome | News) -> None:
        if isinstance(outcome, News):
            tell(self.system, outcome)
        else:
            deliver(self.system, outcome)

    def _shut_down(self, now: float) -> None:
        k = self.system
        assert k.stop_by is not None
        infers = [request for request in k.device.requests if not request.background]
        if (infers or k.errands.busy) and now < k.stop_by:
            return
        for request in infers:
            finish_request(k, request, Finish.CANCELLED)
        run_queued(k)
        for session in list(k.sessions.values()):
            if session.task is not None:
                end_task(k, session.task, 0, "the kernel was stopped")
        self.stopped = books.closed(k)

    # --- reply --------------------------------------------------------------------------------

    def reply(self) -> None:
        """Send each client what this turn had for it, in one message or a few."""
        k = self.system
        for session in list(k.speaking):
            session.seal()
            if k.sessions.get(session.route) is session and session.outbox:
                self._send(session)
            if not session.unread or k.sessions.get(session.route) is not session:
                k.speaking.pop(session, None)
        while k.closing:
            session, error = k.closing.popleft()
            if k.sessions.get(session.route) is session:  # not closed since, its route not taken
                self._note_drop(session, "it broke the protocol")
                self._close(session, "it broke the protocol", error)

    def _send(self, session: Session) -> None:
        try:
            self._pass(session)
        except LookupError:
            self._close(session, "its program closed the connection")
            return
        self._note_stall(session)
        if session.over and not session.open and not session.outbox:
            self._close(session, "it has said exit")

    def _pass(self, session: Session) -> None:
        """Give the transport as much as it takes."""
        session.seal()
        while session.outbox and self.front.send(session.route, session.outbox[0]):
            session.sent()
            session.stalled_since = None

    def _note_stall(self, session: Session) -> None:
        """Hold the requests of a client that does not read, until it does."""
        k = self.system
        if session.outbox and session.stalled_since is None:
            session.stalled_since = k.clock()
        if session.unread > 2 * k.config.unread_bytes:
            self._drop(session, f"its program left {session.unread} bytes unread")
        elif len(session.outbox) > k.config.stalled_messages:
            session.held = True
            _hold(session, "", "client")
        elif session.held and not session.outbox:
            session.held = False
            _hold(session, "client", "")
            self._more = True  # they can run in a step of the next turn


def _hold(session: Session, old: str, new: str) -> None:
    for request in session.infers.values():
        if request.held == old:
            request.held = new
