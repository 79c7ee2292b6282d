"""Handler of shutdown."""

from kernel.handler import Caller, Done
from kernel.system import System
from syscalls.abi import Nothing, Shutdown
from syscalls.errors import EPERM


def sys_shutdown(k: System, caller: Caller, args: Shutdown) -> Done:
    """Refuse new infers, let the running ones end for grace_s, then cancel them and stop."""
    if caller.session.uid != k.uid:
        raise EPERM("only the uid that the kernel runs as may stop it")
    k.stop_by = min(k.clock() + args.grace_s, k.stop_by or float("inf"))
    return Done(Nothing())
