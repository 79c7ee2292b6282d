"""llmosd: boot. One line per subsystem, in order of dependence; then the loop, then the way down.

Exit codes: 0 stopped, 2 usage, 70 kernel bug (panic), 75 another kernel runs here, 78 bad set-up.
"""

import argparse
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import fields
from pathlib import Path
from random import SystemRandom
from types import FrameType
from typing import NoReturn

from setproctitle import setproctitle

from kernel.chosen import Chosen, Unknown
from kernel.config import Config, default_kv_bytes, table
from kernel.ipc import Busy, Ipc, RunDir, Unsafe
from kernel.link import HostLink
from kernel.logring import LogRing, RingHandler
from kernel.loop import Kernel
from kernel.sleeper import Sleeper
from kernel.store import StoreLink
from kernel.system import System, host_part

log = logging.getLogger("kernel")


def boot(config: Config, run_dir: RunDir, policy: Chosen) -> None:
    """Bring a kernel up, run it, take it down."""
    ring = LogRing(time.monotonic)  # the log, as clients read it
    logging.getLogger("kernel").addHandler(RingHandler(ring))
    front = Ipc(run_dir)  # clients: socket, credentials
    host_bytes = host_part(config.host_bytes) * config.max_models
    link = HostLink(config.device, config.bulk_bytes, host_bytes)  # the driver's process
    store = StoreLink([fd for fd in (link.bulk_fd, link.host_fd) if fd >= 0])  # disk and keys
    system = System(  # tasks, contexts, blocks
        config, link, policy, time.monotonic, SystemRandom(), os.getuid(), os.getpid(), ring, store
    )
    kernel = Kernel(system, front)  # the loop
    sleeper = Sleeper(system.device, system.store, front.fileno(), _wake_on_signals(system))
    log.info("kernel %d up, listening on %s", os.getpid(), run_dir.socket)
    try:
        system.store.start()  # first epochs of the store and of the driver
        system.device.start()
        kernel.run(sleeper)
        kernel.reply()  # what the shutdown itself had for its clients
    finally:
        system.bursts.close()
        store.kill()
        link.close()
        front.close()
        run_dir.close()
    log.info("kernel %d stopped after %d turns", os.getpid(), system.counters.turns)


def _wake_on_signals(system: System) -> int:
    """Let SIGTERM and SIGINT stop the kernel: the first with grace, the second at once."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())

    def stop(number: int, frame: FrameType | None) -> None:
        now = system.clock()
        system.stop_by = now if system.stop_by is not None else now + 10.0

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return reader.detach()


def parse(arguments: list[str]) -> Config:
    """Return the configuration of a command line: one option per key."""
    parser = argparse.ArgumentParser(prog="llmosd", description="The llmos kernel.")
    parser.add_argument(
        "--show-config", action=_ShowConfig, nargs=0, default=argparse.SUPPRESS,
        help="write the keys and defaults as JSON",
    )  # fmt: skip
    for field in fields(Config):
        option = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(option, action="store_true")
        else:
            required = field.name == "run_dir"
            parser.add_argument(option, type=field.type, required=required, default=field.default)
    values = vars(parser.parse_args(arguments))
    values["kv_bytes"] = values["kv_bytes"] or default_kv_bytes()
    try:
        return Config(**values)
    except ValueError as error:
        parser.error(str(error))


class _ShowConfig(argparse.Action):
    """Write the table of keys and end: how userland, which imports no kernel, knows them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        sys.stdout.write(json.dumps({"schema": "llmosd.config/1", "data": table()}) + "\n")
        parser.exit()


def _die(code: int, why: str) -> NoReturn:
    sys.stderr.write(f"llmosd: {why}\n")
    sys.exit(code)


def main() -> None:
    """Entry point of llmosd."""
    config = parse(sys.argv[1:])
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    setproctitle("llmosd")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        _die(78, "needs Linux 5.10 or newer (pidfd, memfd)")
    try:
        policy = Chosen(config.policy)  # who goes first
        run_dir = RunDir(Path(config.run_dir))
    except Busy as busy:
        _die(75, str(busy))
    except (Unsafe, Unknown) as wrong:
        _die(78, str(wrong))
    try:
        boot(config, run_dir, policy)
    except Exception:
        log.exception("kernel panic")
        sys.exit(70)


if __name__ == "__main__":
    main()
