"""vmstat: blocks, copies and tokens as lines of numbers, one for each interval."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.rates import Rates, Sample, rates_of, sample, since_boot
from userland.view import Column, count

RUNNING = ("R", "P")


class Line(NamedTuple):
    """The kernel at one moment, and what has happened until then since the line before."""

    now: Sample
    rates: Rates
    boot: bool  # since the kernel's start

    @property
    def states(self) -> "Counter[str]":
        """How many tasks there are of each letter."""
        return Counter(task.state for task in self.now.tasks)

    def blocks(self, key: str, lower: bool = False) -> int:
        """Return blocks of all models together, on the device or below it."""
        pools = [pool for pool in self.now.pools if (pool.tier != "device") is lower]
        return sum(getattr(pool, key) for pool in pools)


def _states(*letters: str) -> Callable[[Line], str]:
    return lambda line: count(sum(line.states[letter] for letter in letters))


def _rate(key: str) -> Callable[[Line], str]:
    return lambda line: count(getattr(line.rates, key))


def _ms(line: Line) -> str:
    ms = line.rates.step_ms
    return f"{ms:.1f}" if ms < 9.95 else count(ms)


def _hit(line: Line) -> str:
    return "-" if line.rates.hit is None else f"{100 * line.rates.hit:.0f}"


def _cpu(line: Line) -> str:
    return "-" if line.rates.cpu is None else f"{100 * line.rates.cpu:.0f}"


def _column(title: str, width: int, cell: Callable[[Line], str], spare: bool = False) -> Column:
    """Return a column that is as wide in every line, unless a number is wider."""
    return Column(title, title.rjust(width), lambda line: cell(line).rjust(width), spare=spare)


COLUMNS = [
    _column("r", 2, _states(*RUNNING)),
    _column("q", 2, _states("Q"), spare=True),
    _column("d", 2, _states("D")),
    _column("s", 2, _states("S"), spare=True),
    _column("t", 2, _states("T"), spare=True),
    _column("used", 5, lambda line: count(line.blocks("used"))),
    _column("free", 5, lambda line: count(line.blocks("free"))),
    _column("cached", 6, lambda line: count(line.blocks("cached")), spare=True),
    _column("swap", 5, lambda line: count(line.blocks("used", lower=True)), spare=True),
    _column("si", 4, _rate("in_s")),
    _column("so", 4, _rate("out_s")),
    _column("pre/s", 6, _rate("prefill_tok_s"), spare=True),
    _column("dec/s", 5, _rate("output_tok_s")),
    _column("lost", 4, _rate("lost_tok_s"), spare=True),
    _column("hit%", 4, _hit, spare=True),
    _column("ms", 3, _ms, spare=True),
    _column("seq", 3, lambda line: f"{line.rates.batch:.1f}", spare=True),
    _column("bi", 3, _rate("disk_in_s"), spare=True),
    _column("bo", 3, _rate("disk_out_s"), spare=True),
    _column("evict", 5, _rate("evicted_s"), spare=True),
    _column("cow", 3, _rate("copied_s"), spare=True),
    _column("cpu%", 4, _cpu, spare=True),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("delay", type=click.FloatRange(0.1, 86_400), required=False)
@click.argument("frames", metavar="[COUNT]", type=click.IntRange(1), required=False)
@json_option
@pass_desk
def vmstat(desk: Desk, delay: float | None, frames: int | None, as_json: bool) -> None:
    """Show blocks, copies and tokens, a line each DELAY seconds, COUNT times.

    \b
    Examples:
      vmstat
      vmstat 1
      vmstat 0.5 10
      vmstat --json 1 3

    The first line is since the kernel's start; the others are of the time since the line before.
    Without DELAY there is only the first, without COUNT there is no last.

    \b
    r q d s t  tasks: in this step, ready, waiting for blocks, for their program, stopped
    used free cached  blocks of the device, all models together; swap: in use in lower tiers
    si so      blocks copied to the device from the host tier, and down, per second
    pre dec    tokens of prompts computed, and tokens sampled, per second
    lost       tokens whose KV was dropped, per second; it is computed again if it is needed
    hit%       of the tokens of new prompts, those that had KV already
    ms seq     time of a step at the device, and sequences in it
    bi bo      blocks read from the swap file, and written, per second
    evict cow  cached blocks given up, blocks copied on write, per second
    cpu%       of one processor, the kernel and its drivers together
    A narrow terminal has fewer columns; | cat has all.
    """
    width = shutil.get_terminal_size().columns if desk.out.isatty() else 1 << 16
    height = shutil.get_terminal_size().lines if desk.out.isatty() else 1 << 31
    before: Sample | None = None
    printed = 0
    while True:
        now = sample(desk.task)
        line = Line(now, rates_of(now, before) if before else since_boot(now), before is None)
        if as_json:
            desk.say_json("vmstat", document(line), stream=delay is not None)
        else:
            head, row = view.lines_of(COLUMNS, [line], width)
            # At the top of each screenful, as far as that can be told.
            desk.say(row if printed % max(1, height - 2) else f"{head}\n{row}")
            desk.flush()
        printed, before = printed + 1, now
        if delay is None or printed == frames:
            return
        time.sleep(delay)


def document(line: Line) -> dict[str, Any]:
    """Return a line for --json."""
    return {
        "at": line.now.at,
        "since_boot": line.boot,
        "tasks": {letter: line.states[letter] for letter in "RPQDSTZ"},
        "blocks": {key: line.blocks(key) for key in ("total", "used", "free", "cached", "limbo")}
        | {"swap": line.blocks("used", lower=True)},
        "rates": line.rates._asdict(),
    }
