"""ports: where tasks take messages, who serves there and what waits."""

import click

from syscalls.abi import PortRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.view import Column, count
from userland.watch import repeat, watch_option


def _usual(row: PortRow) -> str:
    """Return how long a call usually takes."""
    if not row.usual_s:
        return "-"
    return f"{row.usual_s:.1f} s" if row.usual_s >= 1 else f"{1000 * row.usual_s:.1f} ms"


COLUMNS = [
    Column("kind", "KIND", lambda row: row.kind, left=True),
    Column("name", "NAME", lambda row: row.name, left=True),
    Column("pid", "PID", lambda row: str(row.pid)),
    Column("task", "TASK", lambda row: row.task, left=True),
    Column("waiting", "WAITING", lambda row: count(row.waiting)),
    Column("serving", "SERVING", lambda row: count(row.serving) if row.kind == "port" else "-"),
    Column("limit", "LIMIT", lambda row: count(row.limit)),
    Column("done", "DONE", lambda row: count(row.done)),
    Column("usual", "USUAL", _usual),
    Column("missing", "MISSING", lambda row: count(row.missing) if row.missing else "-",
           spare=True),
    Column("ctx", "CTX", lambda row: str(row.ctx) if row.kind == "feed" else "-", spare=True),
]  # fmt: skip


def _color(row: PortRow) -> str:
    """Mark what is full: whoever sends there is held back."""
    return "yellow" if row.waiting + row.serving >= row.limit else ""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--no-headers", is_flag=True, help="Rows only.")
@watch_option
@json_option
@pass_desk
def ports(desk: Desk, no_headers: bool, watch: float | None, as_json: bool) -> None:
    """List ports, subscriptions to topics and contexts that feed on one.

    \b
    Examples:
      ports
      ports -w 1

    \b
    KIND     port: TASK answers calls; topic: TASK has subscribed; feed: a context of TASK has
    WAITING  messages that nobody has taken; of a feed, ids that are not computed
    SERVING  messages that TASK has taken and not answered
    LIMIT    of WAITING, of a port together with SERVING; then senders are held back
    DONE     messages that were answered, or taken
    USUAL    how long a call takes, from the call to its reply
    MISSING  messages of a topic that were dropped, because the subscriber wants it so
    """

    def draw(desk: Desk) -> None:
        rows = desk.task.ports()
        if as_json:
            desk.say_json("ports", [row._asdict() for row in rows], stream=watch is not None)
        else:
            view.draw(desk, COLUMNS, rows, not no_headers, _color)
            if not rows:
                desk.note("no ports: in Python, Task.bind makes one")

    if watch is None:
        draw(desk)
    else:
        repeat(desk, watch, draw)
