"""Handler of kill: signals to a task, to a tree of tasks, to a group.

What a signal does to all of them is one moment to the scheduler: no step is planned in between. To
end many takes more than a turn, so they leave the batch first, and can make no more children.
"""

import logging

from kernel.handler import PENDING, Caller, Done, Pending
from kernel.job import Work
from kernel.sys_task import continue_task, end_task, interrupt_task, stop_task
from kernel.system import System
from kernel.task import INIT, Task, tell_signal
from kernel.tree import below
from syscalls.abi import Kill, KillResult, Sig
from syscalls.errors import EINVAL, EPERM, ESRCH

log = logging.getLogger(__name__)

END_COST = 100
"""What it takes to end a task, beside its contexts (kernel/job.py)."""


def sys_kill(k: System, caller: Caller, args: Kill) -> Done | Pending:
    """Send a signal; every task of the same uid may."""
    if args.signal not in list(Sig) or args.signal == Sig.XCPU:
        known = ", ".join(f"{sig.name} {int(sig)}" for sig in Sig if sig is not Sig.XCPU)
        raise EINVAL(f"signal {args.signal} is none of {known}")
    tasks, signal = _targets(k, caller, args), Sig(args.signal)
    many = args.tree or args.group is not None
    if signal in (Sig.KILL, Sig.TERM):
        return _end(k, caller, tasks, signal, many)
    for task in tasks:
        _signal(k, task, signal)
    return Done(KillResult(len(tasks)))


def _targets(k: System, caller: Caller, args: Kill) -> list[Task]:
    if args.group is not None:
        if args.pid:
            raise EINVAL("a signal is for a pid or for a group", "pid 0 with a group")
        group = k.tasks.accounts.find_group(caller.task.uid, args.group)
        if group is None:
            raise ESRCH(f"there is no group {args.group}", "llmos ps -o pid,group,name")
        return below(k, group)
    task = k.tasks.find(args.pid)
    if task.uid != caller.task.uid or task.ended_already:
        raise ESRCH(f"there is no task {args.pid}", "llmos ps lists them")
    if task.pid == INIT:
        raise EPERM("pid 1 does not take signals", "llmos down stops the kernel")
    return below(k, task.account) if args.tree else [task]


def _signal(k: System, task: Task, signal: Sig) -> None:
    if signal is Sig.STOP:
        stop_task(k, task)
    elif signal is Sig.CONT:
        continue_task(k, task)
    elif signal is Sig.INT:
        interrupt_task(k, task, Sig.INT)
    else:
        tell_signal(task, signal)


# --- the end ----------------------------------------------------------------------------------


def _end(k: System, caller: Caller, tasks: list[Task], signal: Sig, many: bool) -> Pending:
    """End tasks, at once or when the grace is over that their programs have asked for."""
    count, now, due = len(tasks), k.clock(), []
    for task in tasks:
        task.doomed |= many
        if signal is Sig.TERM and task.grace_s and task.session is not None:
            task.ends_by = min(task.ends_by, now + task.grace_s)
            interrupt_task(k, task, Sig.TERM)
        else:
            if many:
                stop_task(k, task)
            task.ending, task.ticket = True, b""
            due.append(task)
    if due:
        first, more = due[0], f" and {len(due) - 1} more" if len(due) > 1 else ""
        who = f"task {first.pid} ({first.name}){more}"
        by = f"by task {caller.task.pid} ({caller.task.name})"
        k.bursts.tell(log, logging.INFO, f"killed by {signal.name}", f"{who} {by}", len(due))
    k.jobs.start(_end_each(k, caller, due, signal, count))
    return PENDING


def _end_each(k: System, caller: Caller, tasks: list[Task], signal: Sig, count: int) -> Work:
    for task in tasks:
        but = caller.call if task is caller.task else 0
        end_task(k, task, 128 + signal, signal.name, but)
        yield END_COST
    if caller.call in caller.session.open:
        caller.session.finish(caller.call, KillResult(count))
    return None
