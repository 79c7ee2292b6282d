"""up and down: start a kernel and stop it."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

import syscalls
from drivers.sizes import KV_DTYPES
from syscalls import Progress
from syscalls.abi import KernelRow, PoolRow, Restore, StoreRow
from syscalls.address import runtime_dir, socket_path
from userland import complete, daemon
from userland.config import Config, Setting, read, take_options
from userland.daemon import Boot, Tell
from userland.desk import Desk, pass_desk
from userland.exits import USAGE, Failure
from userland.keys import DTYPES, FOLDERS, option_of
from userland.running import differing, running, store_of
from userland.view import count, size

F = TypeVar("F", bound=Callable[..., Any])


def boot_options(command: F) -> F:
    """Add the options of `configured` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option("-m", "--model", shell_complete=complete.models,
                 help="Model to load.  [default: smollm2]"),
    click.option("--device", help="Where to load it.  [default: cpu0]"),
    click.option("--dtype", type=click.Choice(DTYPES),
                 help="Of weights and KV.  [default: bfloat16]"),
    click.option("--kv-dtype", type=click.Choice((*DTYPES, *KV_DTYPES)),
                 help="Of KV, if another one: int8 takes half of bfloat16's memory."),
    click.option("--deterministic", is_flag=True, default=None,
                 help="Same ids whatever else is in the batch."),
    click.option("--kv-mem", metavar="SIZE",
                 help="Memory for KV, as 720M or 2GiB.  [default: 25 % of memory, at most 4 GiB]"),
    click.option("--host-mem", metavar="SIZE",
                 help="Host memory for KV that has to leave the device.  [default: none of it]"),
    click.option("--swap-mem", metavar="SIZE",
                 help="Disk for KV that finds no room in memory.  [default: none of it]"),
    click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE",
                 help="Any other key of the kernel, as block_size=32. May be repeated."),
)  # fmt: skip


def configured(*, pairs: tuple[str, ...], **options: Any) -> Config:
    """Return the configuration with these options laid over it."""
    config = read(of_kernel=True)
    take_options(config, options, pairs)
    return config


def boot_of(config: Config, model_dir: Path, address: str | None) -> Boot:
    """Return what a configuration starts. What nobody has set is left to the kernel."""
    options: list[str] = []
    for setting in config:
        told = setting.explicit or setting.key.name in FOLDERS
        if setting.key.of_kernel and told and setting.key.name != "device":
            flag = setting.key.kind == "bool"
            if not flag or setting.value:
                options += [option_of(setting.key), *([] if flag else [str(setting.value)])]
    run_dir = socket_path(address).parent if address else runtime_dir(os.environ)
    device = config.value("kernel.device")
    return Boot(config.value("model"), model_dir, device, tuple(options), run_dir)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@boot_options
@click.option("-f", "--foreground", is_flag=True, help="Stay; log to stderr; Ctrl-C stops it.")
@click.option(
    "--fresh", is_flag=True, default=None, help="Leave on the disk what llmos down --save has kept."
)
@pass_desk
def up(desk: Desk, /, foreground: bool, **options: Any) -> None:
    """Start a kernel and wait until its model is loaded.

    \b
    Examples:
      llmos up
      llmos up --dtype float32 --kv-mem 2GiB --host-mem 8GiB
      llmos up --set prefill_chunk=256 --set threads=2

    What no option says is taken from LLMOS_MODEL, LLMOS_KV_MEM and so on, then from the
    configuration's files: llmos config show --origin.
    """
    from userland.models import installed

    config = configured(**options)
    for line in config.notes:
        desk.note(line)
    boot = boot_of(config, installed(config.value("model")).folder, desk.address)
    if foreground:
        os.execv(sys.executable, boot.command)
    there = daemon.running(boot.address)
    if there is not None:
        desk.note(as_it_is(there, boot.address, config))
        return
    pid = start(boot, desk.err)
    desk.note(f"its socket is {boot.address}")
    desk.note(f"its log is {daemon.kernel_log()}, llmos down stops kernel {pid}")


def as_it_is(kernel: KernelRow, address: str | None, config: Config) -> str:
    """Say of a kernel that is up already what it does not get; Failure if its model is another."""
    with syscalls.connect("llmos", address=address) as task:
        where, loaded = task.address, [row.name for row in task.models()]
        others = differing(config, running(task) or {})
    model = config.settings["model"]
    if model.explicit and loaded and model.value not in loaded:
        raise Failure(
            f"kernel {kernel.pid} is up already, with {', '.join(loaded)} and not {model.value}",
            f"llmos load {model} adds it; or llmos down, and then again",
            code="EBUSY",
        )
    said = f"kernel {kernel.pid} is up already, at {where}"
    ignored = ", ".join(sorted(map(_named, others)))
    return f"{said}; {ignored} not applied (llmos down stops it)" if ignored else said


def _named(setting: Setting) -> str:
    """Return what a setting is called by whoever made it."""
    own = setting.origin.startswith("-") or setting.origin == setting.key.variable
    return setting.origin if own else f"{setting.key.name} ({setting.origin})"


def start(boot: Boot, err: TextIO, tied: bool = False) -> int:
    """Start a kernel, show how far it is, return its pid once it is up."""
    before = time.monotonic()
    with telling(err) as tell:
        pid = daemon.start(boot, tell, tied)
    taken = time.monotonic() - before
    with syscalls.connect("llmos", address=boot.address) as task:
        pools, store = task.pools(), store_of(task)
        back = came_back(task.kernel(), sum(row.wait == "attach" for row in task.ps()))
    memory = _memory_of(pools, "device")
    err.write(
        f"kernel {pid} is up after {taken:.1f} s: {boot.model} on {boot.device}\n"
        f"its KV pool takes {size(memory)} (--kv-mem changes it)\n"
    )
    if lower := _memory_of(pools, "host"):
        err.write(f"what has to leave it goes to {size(lower)} of host memory (--host-mem)\n")
    if store is not None:
        _tell_store(store, err)
    err.write(back)
    err.flush()
    return pid


def came_back(kernel: KernelRow, tasks: int) -> str:
    """Say what a kernel has of the one before it, in lines; none if there is nothing to say."""
    lines = []
    if kernel.restored:
        lines.append(f"{count(kernel.restored)} contexts are back; {tasks} tasks wait for programs")
    if kernel.unrestored:
        left = f"{count(kernel.unrestored)} contexts of the kernel before are not back"
        waiting = kernel.restore == Restore.WAITING.value
        lines.append(f"{left}: llmos {'down and llmos up, or llmos ' if waiting else ''}dmesg")
    return "".join(f"{line}\n" for line in lines)


def _tell_store(store: StoreRow, err: TextIO) -> None:
    """Say what a person may have to do about what is kept."""
    if store.state == "failed":
        err.write(f"nothing can be saved or loaded: {store.note}\n")
    elif store.note or store.damaged:
        damaged = f"{store.damaged} saves cannot be opened (llmos ctx saves); "
        err.write(f"{damaged if store.damaged else ''}{store.note}\n")
    if store.hint:
        err.write(f"  try   {store.hint}\n")


def _memory_of(pools: list[PoolRow], tier: str) -> int:
    return sum(pool.total * pool.block_bytes for pool in pools if pool.tier == tier)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--grace",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="How long running infers may go on.",
)
@click.option("--save", is_flag=True, help="Keep all tasks and contexts for the next llmos up.")
@click.option(
    "--replace",
    is_flag=True,
    help="With --save: what was saved before, and waits, need not come back.",
)
@pass_desk
def down(desk: Desk, grace: float, save: bool, replace: bool) -> None:  # fmt: skip
    """Stop the kernel and wait until it has gone.

    \b
    Examples:
      llmos down
      llmos down --grace 0
      llmos down --save

    With --save the next kernel has every task and every context again, and programs that went on
    running come back to theirs. If something cannot be saved, the kernel does not stop.
    """
    if replace and not save:
        raise Failure("--replace is of --save", "llmos down --save --replace", USAGE)
    if daemon.running(desk.address) is None:
        desk.note("no kernel is running")
        return
    with telling(desk.err) as tell:
        try:
            pid, saved = daemon.stop(desk.address, grace, save, replace, saving(tell))
        except syscalls.KernelError as error:
            if not save:
                raise
            why = f"the kernel was not stopped: {error.message}"
            raise type(error)(why, error.hint, error.details) from None
    desk.note(f"kernel {pid} has stopped")
    if save:
        desk.note(
            f"saved: {count(saved.contexts)} contexts of {count(saved.tasks)} tasks, "
            f"{count(saved.tokens)} tokens, {size(saved.file_bytes)}; llmos up brings them back"
        )
        if saved.left:
            desk.note(f"not saved: {count(saved.left)} whose grants do not allow a copy")


def saving(tell: Tell) -> Callable[[Progress], None]:
    """Return what shows how far a kernel is with saving everything."""
    done = {"contexts": (0, 0), "bytes": (0, 0)}

    def told(news: Progress) -> None:
        done[news.phase] = news.done, news.total
        contexts, total = done["contexts"]
        tell(f"saving contexts: {count(contexts)} of {count(total)}, {size(done['bytes'][0])}")

    return told


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
