"""ps: the process table."""

import pwd
from functools import cache

import click

from syscalls.abi import TaskRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure
from userland.view import Column, count

COLORS = {"R": "green", "P": "green", "Q": "yellow", "D": "yellow", "T": "blue", "Z": "dim"}


@cache
def user(uid: int) -> str:
    """Return a uid's name, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


COLUMNS = [
    Column("pid", "PID", lambda t: str(t.pid), sort=lambda t: t.pid),
    Column("ppid", "PPID", lambda t: str(t.parent), sort=lambda t: t.parent),
    Column("user", "USER", lambda t: user(t.uid), left=True),
    Column("ni", "NI", lambda t: str(t.nice), sort=lambda t: t.nice),
    Column("s", "S", lambda t: t.state, left=True),
    Column("wait", "WAIT", lambda t: t.wait or "-", left=True),
    Column("ctx", "CTX", lambda t: count(t.contexts), sort=lambda t: t.contexts),
    Column("tok", "TOK", lambda t: count(t.tokens), sort=lambda t: t.tokens),
    Column("blocks", "BLOCKS", lambda t: f"{t.blocks:,.1f}", sort=lambda t: t.blocks),
    Column("shr", "SHR", lambda t: count(t.shared), sort=lambda t: t.shared),
    Column("in", "IN", lambda t: count(t.prompt_tokens), sort=lambda t: t.prompt_tokens),
    Column("out", "OUT", lambda t: count(t.output_tokens), sort=lambda t: t.output_tokens),
    Column("age", "AGE", lambda t: view.age(t.age_s), sort=lambda t: t.age_s),
    Column("hpid", "HPID", lambda t: str(t.host_pid or "-"), sort=lambda t: t.host_pid),
    Column("name", "NAME", lambda t: t.name, left=True),
]
DEFAULT = "pid,ppid,user,s,wait,ctx,tok,blocks,shr,in,out,age,name"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "keys", metavar="COLUMNS", help="Columns, comma-separated.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN is descending.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@json_option
@pass_desk
def ps(desk: Desk, keys: str | None, sort: str | None, no_headers: bool, as_json: bool) -> None:
    """List the tasks of the kernel.

    \b
    Examples:
      ps
      ps -o pid,name,blocks --sort -blocks

    \b
    S      R in this step's batch, P prefilling, Q ready, D waiting for blocks,
           S waiting for its program, T stopped, Z ended and not waited for
    BLOCKS KV blocks, one shared by n contexts counted as 1/n; SHR: shared ones
    IN OUT tokens computed and sampled so far
    Further columns for -o: ni, hpid (the program's pid on the host).
    """
    if as_json and keys:
        raise Failure("-o is for the table; --json has every field", "ps --json", USAGE)
    columns = view.choose(COLUMNS, keys or DEFAULT)
    rows: list[TaskRow] = desk.task.ps()
    if sort:
        rows = view.ordered(COLUMNS, rows, sort)
    if as_json:
        desk.say_json("ps", [row._asdict() for row in rows])
        return
    view.draw(desk, columns, rows, not no_headers, lambda t: COLORS.get(t.state, ""))
