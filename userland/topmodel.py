"""TopModel: what `top` shows, from samples of the kernel's counters. No terminal in here.

The kernel hands out counters that only rise; two samples make rates. What is drawn are lines that
fit a width, so the screen, `--batch` and the tests show the same.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from syscalls.abi import PoolRow, TaskRow
from userland import glyphs, view
from userland.bin.ps import branch, forest, kv_total, percent, user, waits_for
from userland.rates import Rates, Sample, TaskRates, rates_of
from userland.view import Column, count, size

HISTORY = 40
MAX_POOLS = 4
"""That have a line of their own."""
Order = Callable[["TopModel", TaskRow], tuple[float, ...]]
SORTS: dict[str, tuple[str, Order]] = {
    "P": ("tok/s", lambda m, t: (m.rates.of(t.pid) or 0.0, t.output_tokens)),
    "M": ("blocks", lambda m, t: (t.kv_bytes, t.tokens)),
    "T": ("age", lambda m, t: (t.age_s,)),
    "N": ("pid", lambda m, t: (-t.pid,)),
}
"""By key: a name, and what is larger comes first."""
_STATES = (("R", "decode"), ("P", "prefill"), ("Q", "queued"), ("D", "blocked"), ("S", "asleep"),
           ("T", "stopped"), ("Z", "zombie"))  # fmt: skip


class TopModel:
    """The last sample, the rates since the one before it, and what the person has chosen."""

    def __init__(self, processors: int) -> None:
        self.sort = "P"
        self.paused = False
        self.tree = False  # children behind their parents
        self.selected: int | None = None  # pid
        self.now: Sample | None = None
        self.rates_now: Rates | None = None
        self.rates: TaskRates = TaskRates()
        self._processors = processors
        self._decode: deque[float] = deque(maxlen=HISTORY)
        self._prefill: deque[float] = deque(maxlen=HISTORY)

    def feed(self, now: Sample) -> None:
        """Take a sample; the next one too, and there are rates."""
        before, self.now = self.now, now
        self.rates.feed(now.tasks)
        if before is None or before.kernel.pid != now.kernel.pid:
            return
        self.rates_now = rates_of(now, before)
        self._decode.append(self.rates_now.output_tok_s)
        self._prefill.append(self.rates_now.prefill_tok_s)

    # --- tasks --------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[TaskRow]:
        """The tasks in the order that was chosen."""
        return self._arranged()[0]

    def _arranged(self) -> tuple[list[TaskRow], dict[int, int]]:
        """Return the tasks in order, and how deep each is in the tree, if that is drawn."""
        assert self.now is not None
        _, key = SORTS[self.sort]
        rows = sorted(self.now.tasks, key=lambda task: key(self, task), reverse=True)
        return forest(rows) if self.tree else (rows, {})

    def select(self, step: int) -> None:
        """Move the selection; it stays with its task when the order changes."""
        pids = [task.pid for task in self.tasks]
        if self.selected not in pids:
            self.selected = pids[0] if pids else None
            return
        at = pids.index(self.selected) + step
        self.selected = pids[min(max(at, 0), len(pids) - 1)]

    def selected_task(self) -> TaskRow | None:
        """Return the selected task, if it is still there."""
        rows = self.now.tasks if self.now is not None else []
        return next((row for row in rows if row.pid == self.selected), None)

    def columns(self, depth: dict[int, int]) -> list[Column]:
        """Return the columns of the table."""
        total = self._kv_total

        def rate(task: TaskRow) -> str:
            found = self.rates.of(task.pid)
            return f"{found:.1f}" if found else "-"

        return [
            Column("pid", "PID", lambda t: str(t.pid)),
            Column("user", "USER", lambda t: user(t.uid), left=True, spare=True),
            Column("s", "S", lambda t: t.state, left=True),
            Column("model", "MODEL", lambda t: t.models or "-", left=True, spare=True),
            Column("ctx", "CTX", lambda t: count(t.contexts)),
            Column("tok", "TOK", lambda t: count(t.tokens)),
            Column("blocks", "BLOCKS", lambda t: f"{t.blocks:,.1f}"),
            Column("shr", "SHR", lambda t: count(t.shared), spare=True),
            Column("kv", "%KV", lambda t: percent(t.kv_bytes, total)),
            Column("rate", "TOK/S", rate),
            Column("swp", "SWP", lambda t: f"{t.swapped:,.1f}", spare=True),
            Column("wait", "WAIT", waits_for, left=True),
            Column("age", "AGE", lambda t: view.age(t.age_s)),
            Column("name", "NAME", lambda t: branch(depth.get(t.pid, 0)) + t.name, left=True),
        ]

    @property
    def _kv_total(self) -> float:
        assert self.now is not None
        return kv_total(self.now.pools)

    def table(self, width: int) -> list[str]:
        """Return the table, its header first."""
        rows, depth = self._arranged()
        return view.lines_of(self.columns(depth), rows, width)

    # --- the kernel ---------------------------------------------------------------------------

    def header(self, width: int, fancy: bool) -> list[str]:
        """Return what stands above the table."""
        assert self.now is not None
        lines = [self._title(), self._states()]
        pools = self.now.pools[:MAX_POOLS]
        lines += [self._pool(pool, width, fancy) for pool in pools]
        if len(self.now.pools) > MAX_POOLS:
            lines.append(f"and {len(self.now.pools) - MAX_POOLS} more pools; free lists them")
        lines += [
            f"{row.device} is {row.state}: {view.printable(row.note)}"
            for row in self.now.devices
            if row.state != "up"
        ]
        lines += self._speed(fancy)
        return [view.shorten(line, width) for line in lines]

    def _title(self) -> str:
        assert self.now is not None
        kernel, used = self.now.kernel, self.now.usage
        cpu = self.rates_now.cpu if self.rates_now else None
        parts = [f"llmos {kernel.version}  up {view.age(kernel.uptime_s)}  kernel {kernel.pid}"]
        if cpu is not None:
            parts.append(f"cpu {100 * cpu:.0f}% of {self._processors}")
        if used is not None:
            parts.append(f"rss {size(used.rss_bytes)}")
        return "   ".join(parts)

    def _states(self) -> str:
        assert self.now is not None
        states = Counter(task.state for task in self.now.tasks)
        named = [f"{states[letter]} {word}" for letter, word in _STATES if states[letter]]
        return f"tasks {len(self.now.tasks)}: {', '.join(named)}"

    def _pool(self, pool: PoolRow, width: int, fancy: bool) -> str:
        if pool.tier != "device":
            return self._lower(pool, width, fancy)
        usable = max(1, pool.total - pool.reserved)
        shared = f"   shared {percent(pool.shared, pool.used)}% saved {count(pool.saved)}"
        tail = (
            f" {count(pool.used)}/{count(usable)} blocks {percent(pool.used, usable)}%"
            f"{shared if pool.shared else ''}"
        )
        head = f"KV {pool.device} {pool.model} "
        private = pool.used - pool.shared
        parts = [
            ("▓" if fancy else "S", pool.shared / usable),
            ("█" if fancy else "P", private / usable),
            ("▒" if fancy else "c", pool.cached / usable),
            ("░" if fancy else "l", pool.limbo / usable),
        ]
        return _bar(head, parts, tail, width, fancy)

    def _lower(self, pool: PoolRow, width: int, fancy: bool) -> str:
        """Return the line of a tier below the device; copies are of all models together."""
        total = max(1, pool.total)
        parts = [
            ("█" if fancy else "P", pool.used / total),
            ("▒" if fancy else "c", pool.cached / total),
            ("░" if fancy else "l", pool.limbo / total),
        ]
        r = self.rates_now
        moves = ""
        if r is not None:
            into, out = (r.disk_in_s, r.disk_out_s) if pool.tier == "disk" else (r.in_s, r.out_s)
            moves = f"   in {into:,.0f}/s out {out:,.0f}/s"
        tail = (
            f" {count(pool.used)}/{count(pool.total)} blocks "
            f"{percent(pool.used, pool.total)}%{moves}"
        )
        return _bar(f"{pool.tier} {pool.model} ", parts, tail, width, fancy)

    def _speed(self, fancy: bool) -> list[str]:
        assert self.now is not None
        kernel, r = self.now.kernel, self.rates_now
        waiting = f"   waiting {kernel.waiting}"
        if kernel.waiting:
            waiting += f", the oldest {kernel.oldest_wait_s:.1f} s"
        if r is None:
            return ["tokens  - (rates come with the second look)", f"steps   -{waiting}"]
        hit = "-" if r.hit is None else f"{100 * r.hit:.0f}%"
        first = "-" if r.first_token_s is None else f"{r.first_token_s:.2f} s"
        decode = f" {glyphs.sparkline(list(self._decode), 8)}" if fancy else ""
        prefill = f" {glyphs.sparkline(list(self._prefill), 8)}" if fancy else ""
        lines = [
            f"decode{decode} {r.output_tok_s:,.1f} tok/s   prefill{prefill} "
            f"{r.prefill_tok_s:,.1f} tok/s   hit {hit}   first token {first}",
            f"step {r.step_ms:.1f} ms, {r.batch:.1f} seqs, prefill {r.step_prefill_tok:.0f} + "
            f"decode {r.step_decode_tok:.1f} tok{waiting}   evicted {r.evicted_s:.0f}/s",
        ]
        if r.lost_tok_s:
            lines.append(f"lost {r.lost_tok_s:,.1f} tok/s: KV that was dropped, as no tier took it")
        return lines

    # --- as data ------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """Return the frame for --json; rates are null in the first one."""
        assert self.now is not None
        now = self.now
        return {
            "at": now.at,
            "kernel": now.kernel._asdict(),
            "rates": self.rates_now._asdict() if self.rates_now else None,
            "rss_bytes": now.usage.rss_bytes if now.usage else None,
            "devices": [row._asdict() for row in now.devices],
            "pools": [row._asdict() for row in now.pools],
            "tasks": [row._asdict() | {"tok_s": self.rates.of(row.pid)} for row in self.tasks],
        }


def _bar(head: str, parts: list[tuple[str, float]], tail: str, width: int, fancy: bool) -> str:
    room = min(40, width - len(head) - len(tail) - 2)
    drawn = f"[{glyphs.bar(parts, room, '·' if fancy else '.')}]" if room >= 10 else ""
    return head + drawn + tail
