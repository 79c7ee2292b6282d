"""up and down: start a kernel and stop it."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click
from click.core import ParameterSource

import syscalls
from syscalls.abi import KernelRow
from syscalls.address import runtime_dir, socket_path
from userland import complete, daemon
from userland.daemon import Boot, Tell
from userland.desk import Desk, pass_desk
from userland.exits import Failure
from userland.view import size

DEFAULT_MODEL = "smollm2"


F = TypeVar("F", bound=Callable[..., Any])


def boot_options(command: F) -> F:
    """Add the options of `boot_of` to a command."""
    for option in reversed(
        [
            click.option(
                "-m",
                "--model",
                default=DEFAULT_MODEL,
                show_default=True,
                shell_complete=complete.models,
                help="Model to load.",
            ),
            click.option("--device", default="cpu0", show_default=True, help="Where to load it."),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16"]),
                default="bfloat16",
                show_default=True,
                help="Of weights and KV.",
            ),
            click.option(
                "--deterministic", is_flag=True, help="Same ids whatever else is in the batch."
            ),
            click.option(
                "--kv-mem",
                metavar="SIZE",
                help="Memory for KV, as 720M or 2GiB.  [default: 25 % of memory, at most 4 GiB]",
            ),
        ]
    ):
        command = option(command)
    return command


def boot_of(
    model_dir: Path,
    address: str | None,
    *,
    model: str,
    device: str,
    dtype: str,
    deterministic: bool,
    kv_mem: str | None,
) -> Boot:
    """Return what these options start."""
    options = ["--dtype", dtype]
    if deterministic:
        options += ["--deterministic"]
    if kv_mem:
        options += ["--kv-bytes", str(parse_size(kv_mem))]
    run_dir = socket_path(address).parent if address else runtime_dir(os.environ)
    return Boot(model, model_dir, device, tuple(options), run_dir)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@boot_options
@click.option("-f", "--foreground", is_flag=True, help="Stay; log to stderr; Ctrl-C stops it.")
@pass_desk
def up(desk: Desk, /, model: str, foreground: bool, **options: Any) -> None:
    """Start a kernel and wait until its model is loaded.

    \b
    Examples:
      llmos up
      llmos up --dtype float32 --kv-mem 2GiB
    """
    from userland.models import installed

    boot = boot_of(installed(model).folder, desk.address, model=model, **options)
    if foreground:
        os.execv(sys.executable, boot.command)
    there = daemon.running(boot.address)
    if there is not None:
        desk.note(as_it_is(there, boot.address, model))
        return
    pid = start(boot, desk.err)
    desk.note(f"its socket is {boot.address}")
    desk.note(f"its log is {daemon.kernel_log()}, llmos down stops kernel {pid}")


def as_it_is(kernel: KernelRow, address: str | None, model: str) -> str:
    """Say of a kernel that is up already what was not applied; Failure if its model is another."""
    context = click.get_current_context()
    written = {
        option.opts[-1]
        for option in context.command.params
        if context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    }
    with syscalls.connect("llmos", address=address) as task:
        where, loaded = task.address, [row.name for row in task.models()]
    if "--model" in written and loaded and model not in loaded:
        raise Failure(
            f"kernel {kernel.pid} is up already, with {', '.join(loaded)} and not {model}",
            "llmos down, and then again",
            code="EBUSY",
        )
    said = f"kernel {kernel.pid} is up already, at {where}"
    ignored = ", ".join(sorted(written - {"--model"}))
    return f"{said}; {ignored} not applied (llmos down stops it)" if ignored else said


def start(boot: Boot, err: TextIO, tied: bool = False) -> int:
    """Start a kernel, show how far it is, return its pid once it is up."""
    before = time.monotonic()
    with telling(err) as tell:
        pid = daemon.start(boot, tell, tied)
    taken = time.monotonic() - before
    with syscalls.connect("llmos", address=boot.address) as task:
        memory = size(sum(pool.total * pool.block_bytes for pool in task.pools()))
    err.write(
        f"kernel {pid} is up after {taken:.1f} s: {boot.model} on {boot.device}\n"
        f"its KV pool takes {memory} (--kv-mem changes it)\n"
    )
    err.flush()
    return pid


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--grace",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="How long running infers may go on.",
)
@pass_desk
def down(desk: Desk, grace: float) -> None:
    """Stop the kernel and wait until it has gone.

    \b
    Examples:
      llmos down
      llmos down --grace 0
    """
    if daemon.running(desk.address) is None:
        desk.note("no kernel is running")
        return
    desk.note(f"kernel {daemon.stop(desk.address, grace)} has stopped")


def parse_size(word: str) -> int:
    """Return the bytes of 64M, 1.5GiB or 1000000."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = word.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in units else ""
    try:
        found = int(float(number.removesuffix(unit)) * units[unit])
    except (ValueError, OverflowError):
        found = 0
    if not 0 < found < 1 << 60:
        raise Failure(f"{word!r} is not a size", "sizes are like 720M, 1.5GiB or 1000000", 2)
    return found


@contextmanager
def telling(err: TextIO) -> Iterator[Tell]:
    """Show what a kernel that comes up is doing: in place on a terminal, else each step once."""
    begin, last = time.monotonic(), ""
    on_terminal = err.isatty()

    def tell(what: str) -> None:
        nonlocal last
        seconds = time.monotonic() - begin
        if on_terminal and seconds > 0.1:
            err.write(f"\r\x1b[K  {what} · {seconds:.1f} s")
            err.flush()
        elif not on_terminal and what != last:
            err.write(f"  {what}\n")
            err.flush()
        last = what

    try:
        yield tell
    finally:
        if on_terminal:
            err.write("\r\x1b[K")
            err.flush()
