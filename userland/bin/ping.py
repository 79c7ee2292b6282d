"""ping: is there a kernel, and how far away."""

import time

import click

from userland.desk import Desk, json_option, pass_desk


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--count", default=1, type=click.IntRange(1, 100_000), help="Calls to make.")
@json_option
@pass_desk
def ping(desk: Desk, count: int, as_json: bool) -> None:
    """Make the cheapest system call and say how long it took.

    \b
    Examples:
      llmos ping
      llmos ping -c 1000 --json
    """
    task = desk.task
    taken = []
    for _ in range(count):
        before = time.perf_counter()
        row = task.kernel()
        taken.append((time.perf_counter() - before) * 1e6)
    best, mean = min(taken), sum(taken) / count
    if as_json:
        facts = {"kernel_pid": row.pid, "count": count, "best_us": best, "mean_us": mean}
        desk.say_json("ping", facts)
        return
    desk.say(
        f"kernel {row.pid} answered {count} of {count}: best {best:.0f} us, mean {mean:.0f} us"
    )
