"""`make run`: everything from nothing to a prompt. Model, kernel, llmsh; then the way back.

A kernel that is running already is used and left running; one that was started here is stopped when
the shell ends, and stops by itself should this process be killed.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click

from userland import daemon, standard
from userland.bin.pull import fetch
from userland.bin.up import as_it_is, boot_of, boot_options, configured, start
from userland.exits import EXPECTED, INTERRUPTED, Failure, report
from userland.models import installed


def main() -> None:
    """Entry point: run, and turn what may go wrong into an exit code."""
    standard.fill()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    # As in an activated .venv: the hints of this program say llmos, and it should be there.
    here, path = Path(sys.executable).parent, os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{here}{os.pathsep}{path}"
    try:
        code = first_run.main(prog_name="make run", standalone_mode=False)
    except EXPECTED as error:
        code = report(error, sys.stderr)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\ninterrupted\n")
        code = INTERRUPTED
    sys.exit(code)


def _end(number: int, _: FrameType | None) -> None:
    """Leave through every `finally` on the way."""
    sys.exit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@boot_options
def first_run(**options: Any) -> int:
    """Fetch the model unless it is there, boot a kernel unless one runs, run the shell.

    \b
    Examples:
      make run
      make run ARGS="--dtype float32 --kv-mem 1G"
    """
    started = None
    config = configured(**options)
    there = daemon.running()
    if there is not None:
        sys.stderr.write(f"{as_it_is(there, None, config)}\n")
        sys.stderr.flush()
    else:
        boot = boot_of(config, _folder(config.value("model")), None)
        started = start(boot, sys.stderr, tied=True)
    try:
        code = _shell()
        # What a person's last command gave is no failure of this run, and make would call it one.
        return 0 if sys.stdin.isatty() else code
    finally:
        if started is not None:
            _stop(started)


def _folder(model: str) -> Path:
    """Return where the model is; pulled if it is one that can be."""
    try:
        return installed(model).folder
    except Failure as absent:
        if absent.code != "ENOENT":
            raise
    return fetch(model, sys.stderr).folder


def _shell() -> int:
    from userland.llmsh.main import main as llmsh

    try:
        result = llmsh.main([], "llmsh", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


def _stop(pid: int) -> None:
    """Stop the kernel that was started here, whatever it is doing, and wait for its end."""
    sys.stderr.write(f"stopping kernel {pid}\n")
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    # The first gives running infers time, the second ends that. Two of a kind could become one.
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    daemon.wait_for_end(pidfd, 30.0)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
