"""Handler of shutdown."""

import logging

from kernel import way_down
from kernel.handler import Caller, Done, Pending
from kernel.system import System
from syscalls.abi import Shutdown, ShutdownResult
from syscalls.errors import EPERM

log = logging.getLogger(__name__)


def sys_shutdown(k: System, caller: Caller, args: Shutdown) -> Done | Pending:
    """Refuse new infers, let the running ones end for grace_s, then cancel them and stop.

    With `save` the kernel stops when all tasks and contexts are saved, and not before.
    """
    if caller.session.uid != k.uid:
        raise EPERM("only the uid that the kernel runs as may stop it")
    pid, grace_s = caller.session.host_pid, args.grace_s
    k.bursts.tell(log, logging.INFO, "shutdown", f"program {pid} asks for it, in {grace_s:g} s")
    if args.save:
        return way_down.begin(k, caller, args)
    k.stop_by = min(k.clock() + args.grace_s, k.stop_by or float("inf"))
    return Done(ShutdownResult())
