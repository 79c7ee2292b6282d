"""Handler of set_policy: which of the loaded policies decides."""

import logging

from kernel.chosen import Unknown
from kernel.handler import Caller, Done
from kernel.system import System
from syscalls.abi import SetPolicy, SetPolicyResult
from syscalls.errors import ENOENT, EPERM

log = logging.getLogger("kernel.policy")


def sys_set_policy(k: System, caller: Caller, args: SetPolicy) -> Done:
    """Let another policy decide from the next step on, or tell which one does."""
    if args.name is not None and args.name != k.policy.name:
        if caller.session.uid != k.uid:
            raise EPERM("only the uid that the kernel runs as chooses its policy")
        before = k.policy.name
        try:
            k.policy.choose(args.name)
        except Unknown as unknown:
            raise ENOENT(str(unknown), "llmos policy lists them") from None
        log.info("policy %s decides, no longer %s: task %d", args.name, before, caller.task.pid)
    return Done(SetPolicyResult(k.policy.name, k.policy.names))
