"""ps: the process table, and the contexts of its tasks."""

import pwd
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import click

from syscalls.abi import CtxRow, PoolRow, TaskRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure
from userland.rates import TaskRates
from userland.view import Column, count
from userland.watch import repeat, watch_option

COLORS = {"R": "green", "P": "green", "Q": "yellow", "D": "yellow", "T": "blue", "Z": "dim"}


@cache
def user(uid: int) -> str:
    """Return a uid's name, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def percent(part: float, whole: float) -> str:
    """Return a share as people read it: 0 is nothing at all."""
    if part <= 0 or whole <= 0:
        return "0"
    return "<1" if part < whole / 200 else f"{100 * part / whole:.0f}"


def kv_total(pools: Iterable[PoolRow]) -> float:
    """Return the bytes of all KV blocks of the devices."""
    return sum(float(p.total * p.block_bytes) for p in pools if p.tier == "device")


def waits_for(task: TaskRow) -> str:
    """Say what a task waits for; for how many blocks, where the kernel tells."""
    if task.state == "D" and task.lacks:
        return "1 block" if task.lacks == 1 else f"{count(task.lacks)} blocks"
    return task.wait or "-"


def swapped(row: CtxRow) -> int:
    """Return how many blocks of a context are in a lower tier only."""
    return row.host_blocks + row.disk_blocks


class Facts:
    """What a cell needs besides its row: how fast a task is, how much KV there is at all."""

    def __init__(self) -> None:
        self.rates = TaskRates()
        self.kv_total = 0.0
        self.depth: dict[int, int] = {}  # of a task in the tree, if it is drawn

    def feed(self, rows: Iterable[TaskRow], pools: Iterable[PoolRow]) -> None:
        """Take what the kernel says now."""
        self.rates.feed(rows)
        self.kv_total = kv_total(pools)

    def rate(self, pid: int) -> str:
        rate = self.rates.of(pid)
        return "-" if not rate else f"{rate:.1f}"


def branch(depth: int) -> str:
    """Return what stands before the name of a task that is so deep in a tree."""
    return "  " * max(0, depth - 1) + ("\\_" if depth else "")


def task_columns(facts: Facts) -> list[Column]:
    """Return the columns of tasks."""

    def name(task: TaskRow) -> str:
        return branch(facts.depth.get(task.pid, 0)) + task.name

    return [
        Column("pid", "PID", lambda t: str(t.pid), sort=lambda t: t.pid),
        Column("ppid", "PPID", lambda t: str(t.parent), sort=lambda t: t.parent),
        Column("user", "USER", lambda t: user(t.uid), left=True),
        Column("ni", "NI", lambda t: str(t.nice), sort=lambda t: t.nice),
        Column("group", "GROUP", lambda t: t.group or "-", left=True, sort=lambda t: t.group),
        Column("s", "S", lambda t: t.state, left=True),
        Column("wait", "WAIT", waits_for, left=True),
        Column("model", "MODEL", lambda t: t.models or "-", left=True),
        Column("ctx", "CTX", lambda t: count(t.contexts), sort=lambda t: t.contexts),
        Column("tok", "TOK", lambda t: count(t.tokens), sort=lambda t: t.tokens),
        Column("blocks", "BLOCKS", lambda t: f"{t.blocks:,.1f}", sort=lambda t: t.blocks),
        Column("shr", "SHR", lambda t: count(t.shared), sort=lambda t: t.shared),
        Column("swp", "SWP", lambda t: f"{t.swapped:,.1f}", sort=lambda t: t.swapped),
        Column("kv", "KV", lambda t: view.size(t.kv_bytes), sort=lambda t: t.kv_bytes),
        Column("%kv", "%KV", lambda t: percent(t.kv_bytes, facts.kv_total),
               sort=lambda t: t.kv_bytes),
        Column("tok/s", "TOK/S", lambda t: facts.rate(t.pid),
               sort=lambda t: facts.rates.of(t.pid) or 0.0),
        Column("in", "IN", lambda t: count(t.prompt_tokens), sort=lambda t: t.prompt_tokens),
        Column("cached", "CACHED", lambda t: count(t.cached_tokens),
               sort=lambda t: t.cached_tokens),
        Column("out", "OUT", lambda t: count(t.output_tokens), sort=lambda t: t.output_tokens),
        Column("dev", "DEV_S", lambda t: f"{t.device_us / 1e6:,.2f}", sort=lambda t: t.device_us),
        Column("age", "AGE", lambda t: view.age(t.age_s), sort=lambda t: t.age_s),
        Column("hpid", "HPID", lambda t: str(t.host_pid or "-"), sort=lambda t: t.host_pid),
        Column("name", "NAME", name, left=True),
    ]  # fmt: skip


def context_columns(facts: Facts) -> list[Column]:
    """Return the columns of contexts."""
    return [
        Column("pid", "PID", lambda c: str(c.pid), sort=lambda c: c.pid),
        Column("ctx", "CTX", lambda c: str(c.ctx), sort=lambda c: c.ctx),
        Column("s", "S", lambda c: c.state or "-", left=True),
        Column("model", "MODEL", lambda c: c.model, left=True),
        Column("dev", "DEV", lambda c: c.device or "-", left=True),
        Column("tok", "TOK", lambda c: count(c.length), sort=lambda c: c.length),
        Column("computed", "COMPUTED", lambda c: count(c.computed), sort=lambda c: c.computed),
        Column("max", "MAX", lambda c: count(c.max_ctx), sort=lambda c: c.max_ctx),
        Column("blocks", "BLOCKS", lambda c: count(c.blocks), sort=lambda c: c.blocks),
        Column("shr", "SHR", lambda c: count(c.shared), sort=lambda c: c.shared),
        Column("swp", "SWP", lambda c: count(swapped(c)), sort=swapped),
        Column("lacks", "LACKS", lambda c: count(c.lacks), sort=lambda c: c.lacks),
        Column("pin", "PIN", lambda c: "yes" if c.pinned else "-", left=True),
        Column("share", "SHARE", lambda c: f"{c.share:,.1f}", sort=lambda c: c.share),
        Column("kv", "KV", lambda c: view.size(c.kv_bytes), sort=lambda c: c.kv_bytes),
        Column("%kv", "%KV", lambda c: percent(c.kv_bytes, facts.kv_total),
               sort=lambda c: c.kv_bytes),
        Column("name", "NAME", lambda c: view.printable(c.name) or "-", left=True),
    ]  # fmt: skip


DEFAULT = "pid,ppid,user,s,wait,ctx,tok,blocks,shr,swp,in,out,age,name"
WATCHED = "pid,user,s,wait,ctx,tok,blocks,swp,%kv,tok/s,in,out,age,name"
OF_CONTEXTS = "pid,ctx,s,model,tok,computed,blocks,shr,swp,pin,%kv,name"


def forest(rows: list[TaskRow]) -> tuple[list[TaskRow], dict[int, int]]:
    """Return tasks as a tree in order, children behind their parents, and how deep each is."""
    there = {row.pid for row in rows}
    children: dict[int, list[TaskRow]] = {}
    for row in rows:
        children.setdefault(row.parent if row.parent in there else 0, []).append(row)
    ordered: list[TaskRow] = []
    depth: dict[int, int] = {}
    waiting = [(row, 0) for row in reversed(children.get(0, []))]
    while waiting:
        row, level = waiting.pop()
        ordered.append(row)
        depth[row.pid] = level
        waiting += [(child, level + 1) for child in reversed(children.get(row.pid, []))]
    return ordered, depth


def _pids(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> frozenset[int]:
    pids = [word for item in words for word in item.split(",")]
    for pid in pids:
        if not (pid.isascii() and pid.isdecimal() and len(pid) < 16):
            raise click.BadParameter(f"{pid!r} is no pid")
    return frozenset(map(int, pids))


_many = {"multiple": True, "callback": _pids}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "keys", metavar="COLUMNS", help="Columns, comma-separated.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column; -COLUMN is descending.")
@click.option("-e", "everything", is_flag=True, help="Every task, which is what ps shows anyway.")
@click.option("-f", "--full", is_flag=True, help="Every column.")
@click.option("-p", "pids", metavar="PID,...", help="Only these tasks.", **_many)  # type: ignore[arg-type]
@click.option("--ppid", "parents", metavar="PID,...", help="Only children of these.", **_many)  # type: ignore[arg-type]
@click.option("-u", "--user", "uid", metavar="USER", help="Only tasks of a user.")
@click.option("-g", "--group", "group", metavar="NAME", help="Only tasks of this group.")
@click.option("-C", "name", metavar="NAME", help="Only tasks of this name.")
@click.option("--forest", "--tree", "tree", is_flag=True, help="As a tree.")
@click.option("--contexts", "contexts", is_flag=True, help="Contexts instead of tasks.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@watch_option
@json_option
@pass_desk
def ps(desk: Desk, /, watch: float | None, **options: Any) -> None:
    """List the tasks of the kernel.

    \b
    Examples:
      ps
      ps -o pid,name,blocks --sort -blocks
      ps --contexts -p 7
      ps -w --sort -tok/s

    \b
    S      R in this step's batch, P prefilling, Q ready, D waiting for blocks,
           S waiting for its program, T stopped, Z ended and not waited for
    BLOCKS KV blocks, one shared by n contexts counted as 1/n; SHR: shared ones
    SWP    blocks that are in a lower tier only, counted likewise
    %KV    what these are of all KV blocks of all models; -o kv: in bytes
    IN OUT tokens computed and sampled so far
    TOK/S  sampled in the time between two looks, so with -w only
    NI     nice: weight among those beside it; GROUP: in which, or below which, it stands
    Further columns for -o: ni, group, model, kv, %kv, tok/s, cached (of IN, tokens that were found
    computed), hpid (the program's pid on the host).
    --contexts has pid ctx s model dev tok computed max blocks shr swp lacks pin share kv %kv name;
    there BLOCKS and SWP count shared blocks whole, COMPUTED the tokens that have KV in any tier,
    LACKS the blocks that it waits for.
    """
    if options["as_json"] and (options["keys"] or options["full"] or options["tree"]):
        why = "-o, -f and --forest are for the table; --json has every field"
        raise Failure(why, "ps --json", USAGE)
    if options["contexts"] and options["tree"]:
        raise Failure("contexts are no tree", "ps --forest, or ps --contexts", USAGE)
    facts = Facts()
    show = _contexts if options["contexts"] else _tasks
    draw = show(facts, watch is not None, options)
    if watch is None:
        draw(desk)
    else:
        repeat(desk, watch, draw)


def _columns(all_of: list[Column], default: str, options: dict[str, Any]) -> list[Column]:
    if options["full"]:
        return all_of
    return view.choose(all_of, options["keys"] or default)


def _tasks(facts: Facts, watched: bool, options: dict[str, Any]) -> Callable[[Desk], None]:
    known = task_columns(facts)
    columns = _columns(known, WATCHED if watched else DEFAULT, options)
    order = options["sort"]
    if order:
        view.ordered(known, [], order)

    def draw(desk: Desk) -> None:
        all_rows = desk.task.ps()
        facts.feed(all_rows, desk.task.pools())
        rows = [row for row in all_rows if _wanted(row, options)]
        if order:
            rows = view.ordered(known, rows, order)
        if options["as_json"]:
            desk.say_json("ps", [row._asdict() for row in rows], stream=watched)
            return
        if options["tree"]:
            rows, facts.depth = forest(rows)
        view.draw(desk, columns, rows, not options["no_headers"], _color)

    return draw


def _wanted(row: TaskRow, options: dict[str, Any]) -> bool:
    return (
        (not options["pids"] or row.pid in options["pids"])
        and (not options["parents"] or row.parent in options["parents"])
        and (options["uid"] is None or options["uid"] in (user(row.uid), str(row.uid)))
        and (options["name"] is None or row.name == options["name"])
        and (options["group"] is None or row.group == options["group"])
    )


def _contexts(facts: Facts, watched: bool, options: dict[str, Any]) -> Callable[[Desk], None]:
    known = context_columns(facts)
    columns = _columns(known, OF_CONTEXTS, options)
    order = options["sort"]
    if order:
        view.ordered(known, [], order)

    def draw(desk: Desk) -> None:
        tasks = desk.task.ps()
        facts.feed(tasks, desk.task.pools())
        pids = {row.pid for row in tasks if _wanted(row, options)}
        rows: list[CtxRow] = [row for row in desk.task.contexts() if row.pid in pids]
        if order:
            rows = view.ordered(known, rows, order)
        if options["as_json"]:
            desk.say_json("contexts", [row._asdict() for row in rows], stream=watched)
            return
        view.draw(desk, columns, rows, not options["no_headers"], _color)

    return draw


def _color(row: TaskRow | CtxRow) -> str:
    return COLORS.get(row.state, "")
