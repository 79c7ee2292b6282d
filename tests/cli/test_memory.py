"""What is told of KV and its tiers: the library's advice, free, vmstat, ctx, pmap and explain.

The kernel has 64 blocks on the device and a host tier; a step takes long, so that the kernel finds
copying quicker than computing again.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import syscalls
from syscalls import Context, Task, aio
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.json_schema import check_document
from tests.helpers.shell import check_no_tasks, environment, llmsh, talking

LLMOS = (sys.executable, "-m", "userland.cli")
BLOCKS, HOST = 64, 256
BUILTIN = "null:vocab=251,step_us=10000"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    with daemon(
        home, "--device", "null0", "--model", "null", "--num-blocks", str(BLOCKS + 1),
        "--host-bytes", str(HOST * 128), "--model-dir", BUILTIN,
    ) as running:  # fmt: skip
        with running.connect("look") as task:
            pools = {pool.tier: pool for pool in task.pools()}
        assert (pools["device"].total, pools["host"].total) == (BLOCKS + 1, HOST)
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect("holder") as holder:
        yield holder
        holder.drop_cache()
    check_no_tasks(kernel)


def llmos(home: Path, *words: str) -> str:
    done = subprocess.run(
        [*LLMOS, *words], env=environment(home), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def data(home: Path, *words: str) -> Any:
    """Return what a command writes as JSON, checked against its schema."""
    document = json.loads(llmos(home, *words, "--json"))
    check_document(document)
    return document["data"]


def ids(seed: int, count: int) -> list[int]:
    """Return ids that no other seed has, so that nothing is shared by chance."""
    return [(seed * 37 + at * at * (seed + 3)) % 250 for at in range(count)]


def filled(task: Task, name: str, count: int, seed: int) -> Context:
    """Make a context of `count` ids with KV, all but the last."""
    ctx = task.alloc_ctx(name=name)
    ctx.append(ids(seed, count - 1))
    list(ctx.infer(max_tokens=1, temperature=0, ignore_eos=True, text=False))
    return ctx


def whole(ctx: Context, blocks: int, tier: str) -> None:
    """Wait until that many blocks of a context are in a tier: copies take a moment."""
    field = {"device": "blocks", "host": "host_blocks"}[tier]
    eventually(lambda: getattr(ctx.stat(), field) == blocks, f"{blocks} blocks: {ctx.stat()}")


# --- the library --------------------------------------------------------------------------------


def test_advice_moves_kv_and_the_stream_stays_as_it_was(task: Task) -> None:
    ctx = filled(task, "main", 160, 1)
    twin = task.alloc_ctx(name="twin")
    twin.append(ctx.read())
    plain = [p.id for p in twin.infer(max_tokens=20, temperature=0, ignore_eos=True, text=False)]
    twin.free()
    task.drop_cache()
    assert ctx.demote() == 10
    whole(ctx, 10, "host")
    facts = ctx.explain()
    assert (facts.on_device, facts.on_host) == (0, 159)
    assert [(loss.what, loss.tokens, loss.by_pid) for loss in facts.losses] == [
        ("swapped", 159, task.pid)
    ]
    assert ctx.prefetch() == 10
    whole(ctx, 10, "device")
    assert (ctx.stat().host_blocks, ctx.explain().on_device) == (0, 159)
    again = ctx.infer(max_tokens=20, temperature=0, ignore_eos=True, text=False)
    assert [piece.id for piece in again] == plain
    assert again.usage is not None and again.usage.cached == 159, "nothing was computed again"


def test_a_pinned_context_stays_when_others_need_the_room(task: Task) -> None:
    pinned, idle = filled(task, "pinned", 160, 2), filled(task, "idle", 160, 3)
    assert pinned.pin() == 10
    assert pinned.stat().pinned and not idle.stat().pinned
    with pytest.raises(syscalls.EINVAL, match="pinned"):
        pinned.demote()
    filled(task, "large", 800, 4)
    assert (pinned.stat().blocks, idle.stat().blocks) == (10, 4)
    losses = idle.explain().losses
    assert losses and {loss.by_pid for loss in losses} == {task.pid}
    assert not pinned.explain().losses
    assert (pinned.unpin(), pinned.unpin()) == (10, 0)
    assert not pinned.stat().pinned


def test_half_of_the_pool_may_be_pinned(task: Task) -> None:
    one, other = filled(task, "one", 320, 5), filled(task, "other", 320, 6)
    assert one.pin() == 20
    with pytest.raises(syscalls.EDQUOT) as refused:
        other.pin()
    assert refused.value.details == {"needed": 40, "limit": BLOCKS // 2}
    one.free()
    assert other.pin() == 20


def test_what_is_retained_leaves_last(task: Task) -> None:
    kept, other = filled(task, "kept", 160, 7), filled(task, "other", 160, 8)
    assert kept.retain(3600) == 10
    list(other.infer(max_tokens=1, temperature=0, text=False))  # used later, and yet it goes first
    filled(task, "large", 800, 9)
    assert (kept.stat().blocks, other.stat().blocks < 10) == (10, True)
    for seconds in (0.0, -1.0, 1e9):
        with pytest.raises(syscalls.EINVAL):
            kept.retain(seconds)


def test_usage_tells_how_much_of_a_prompt_was_cached(task: Task) -> None:
    prompt = ids(10, 100)

    def cached() -> int:
        with task.alloc_ctx() as ctx:
            stream = ctx.flow.caller.call("infer", ctx.handle, 1, 0.0, ids=prompt)
            return int(task.run(syscalls.flow.finish(stream)).cached)

    assert cached() == 0
    assert cached() == 96, "its full blocks"
    assert task.drop_cache() >= 6
    assert cached() == 0


def test_the_asyncio_twin_has_all_of_it(kernel: Daemon) -> None:
    asyncio.run(_advise(kernel))
    check_no_tasks(kernel)


async def _advise(kernel: Daemon) -> None:
    async with await aio.connect("twin", address=kernel.address) as task:
        ctx = await task.alloc_ctx()
        await ctx.append(ids(11, 32))
        async for _ in await ctx.infer(max_tokens=1, temperature=0, text=False):
            pass
        assert (await ctx.pin(), await ctx.unpin(), await ctx.retain(1)) == (3, 3, 3)
        assert await ctx.demote() > 0
        await ctx.prefetch()
        mine = await ctx.explain()
        other = await task.explain(ctx.handle, task.pid)
        assert [loss.what for loss in mine.losses] == [loss.what for loss in other.losses]
        await ctx.free()
        await task.drop_cache()


# --- commands -----------------------------------------------------------------------------------


def test_what_the_commands_say_agrees(task: Task, home: Path) -> None:
    main = filled(task, "main", 160, 12)
    fork = main.fork(name="fork")
    list(fork.infer(max_tokens=20, temperature=0, ignore_eos=True, text=False))
    away = filled(task, "away", 320, 13)
    away.demote()
    whole(away, 20, "host")
    main.pin()

    pools = {row["tier"]: row for row in data(home, "free")}
    rows = {row["name"]: row for row in data(home, "ctx", "ls", str(task.pid))}
    maps = {found["name"]: found for found in data(home, "pmap", str(task.pid))}
    holder = next(row for row in data(home, "ps") if row["pid"] == task.pid)
    line = data(home, "vmstat")
    runs = {name: found["runs"] for name, found in maps.items()}

    def blocks(name: str, *uses: str) -> int:
        return sum(run["blocks"] for run in runs[name] if run["use"] in uses)

    assert blocks("away", "host") == rows["away"]["host_blocks"] == holder["swapped"] == 20
    assert line["blocks"]["swap"] == pools["host"]["used"] >= 20
    assert line["blocks"]["used"] == pools["device"]["used"] == pytest.approx(holder["blocks"])
    assert pools["device"]["pinned"] == main.stat().blocks and pools["host"]["pinned"] == 0
    assert [name for name, found in maps.items() if found["pinned"]] == ["main"]
    assert pools["device"]["saved"] == blocks("main", "shared") > 0
    assert line["since_boot"] and line["rates"]["out_s"] > 0
    tree = {row["name"]: row for row in data(home, "ctx", "tree", str(task.pid))}
    above = [tree["fork"][key] for key in ("common_pid", "common_ctx", "common_blocks")]
    assert above == [task.pid, main.handle, blocks("main", "shared")]
    assert tree["away"]["common_pid"] is None
    told = {row["name"]: row for row in data(home, "explain", "-p", str(task.pid))}
    assert (told["away"]["on_host"], told["main"]["losses"]) == (319, [])
    text = llmos(home, "explain", "@away")
    assert re.search(rf"319 tokens from 0 on, .*\n +swapped: .* task {task.pid} \(holder\)", text)
    away.prefetch()
    whole(away, 20, "device")
    assert data(home, "ctx", "ls", "@away")[0]["host_blocks"] == 0


def test_vmstat_counts_what_happens_between_its_lines(task: Task, home: Path) -> None:
    ctx = filled(task, "main", 160, 14)
    watch = subprocess.Popen(
        [*LLMOS, "vmstat", "--json", "0.1"], env=environment(home), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    lines = [json.loads(watch.stdout.readline())]
    ctx.demote()
    whole(ctx, 10, "host")
    ctx.prefetch()
    whole(ctx, 10, "device")
    while sum(line["data"]["rates"]["in_s"] for line in lines[1:]) == 0:
        lines.append(json.loads(watch.stdout.readline()))
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 130
    watch.communicate()
    for line in lines:
        check_document(line)
    assert [line["data"]["since_boot"] for line in lines] == [True] + [False] * (len(lines) - 1)
    moved = [
        sum(
            rates[key] * rates["seconds"] for rates in (line["data"]["rates"] for line in lines[1:])
        )
        for key in ("out_s", "in_s")
    ]
    assert moved == [pytest.approx(10), pytest.approx(10)]


def test_vmstat_ends_where_it_is_told_to_and_where_nobody_reads(home: Path, task: Task) -> None:
    header, *rows = llmos(home, "vmstat", "0.1", "3").splitlines()
    assert header.split()[:6] == ["r", "q", "d", "s", "t", "used"] and len(rows) == 3
    assert len({len(line) for line in (header, *rows)}) == 1
    words = " ".join([*LLMOS, "vmstat", "0.1"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -n 2"],
        env=environment(home), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (141, "", 2)
    for wrong in (["0"], ["x"], ["1", "0"], ["1", "2", "3"]):
        bad = subprocess.run([*LLMOS, "vmstat", *wrong], env=environment(home), capture_output=True)
        assert bad.returncode == 2


def test_a_picture_in_a_file(task: Task, home: Path, tmp_path: Path) -> None:
    filled(task, "main", 160, 15).demote()
    path = tmp_path / "main.svg"
    done = subprocess.run(
        [*LLMOS, "pmap", "@main", "--svg", str(path)],
        env=environment(home), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "") and str(path) in done.stderr
    text = path.read_text()
    assert text.startswith("<svg") and "▒▒▒▒" in text and "main" in text
    named = {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= named, "it fetches nothing"
    for words in (["--json"], ["-x"]):
        bad = subprocess.run(
            [*LLMOS, "pmap", "--svg", str(path), *words], env=environment(home), capture_output=True
        )
        assert bad.returncode == 2
    absent = tmp_path / "none" / "a.svg"
    bad = subprocess.run([*LLMOS, "pmap", "--svg", str(absent)], env=environment(home),
                         capture_output=True, text=True)  # fmt: skip
    assert bad.returncode == 74 and f"cannot write {absent}: No such file" in bad.stderr


# --- in llmsh -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with talking(tmp_path_factory.mktemp("talking")) as running:
        yield running


def test_the_shell_says_where_the_kv_of_its_contexts_is_to_be(talker: Daemon) -> None:
    question = "why " * 40
    done = llmsh(
        talker.run_dir.parent,
        f'set max=4\n"{question}" > /dev/null\nfork a\nctx pin\nctx pin a\nctx ls\nctx tree\n'
        "ctx unpin @a\nctx demote a\nctx prefetch a\nctx retain 5\nctx unpin\nctx demote\n"
        "vmstat\nexplain @a\n",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "TOK", "TURNS", "BLOCKS", "SHARED", "SWP", "PIN"]
    assert lines[1].startswith("* main") and lines[1].endswith("yes")
    assert [line.split()[:2] for line in lines[5:7]] == [["\\_", "main"], ["\\_", "a"]]
    assert lines[6].startswith("  \\_ a"), "below main"
    assert any(line.startswith(" r  q  d") for line in lines)
    assert re.search(r"ctx \d+ @a: \d+ tokens of null\n", done.stdout)
    said = done.stderr
    assert re.search(r"@main: 1\d blocks stay on the device", said)
    assert "@a: 0 blocks leave the device" in said, "main has them, too"
    assert re.search(r"@main: 1\d blocks may leave the device again", said)
    assert "for 5 s" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("ctx retain", 2, "takes seconds"),
        ("ctx retain 0", 2, "takes seconds"),
        ("ctx retain x a", 2, "takes seconds"),
        ("ctx pin nope", 3, "there is no context 'nope'"),
        ("ctx pin a b", 2, "takes one name"),
        ("ctx tree x", 2, "takes no arguments"),
        ("ctx pin; ctx demote", 1, "pinned (EINVAL)"),
    ],
)
def test_what_is_wrong_in_the_shell_is_said(
    talker: Daemon, words: str, code: int, said: str
) -> None:
    done = llmsh(talker.run_dir.parent, f"{words}\n")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_the_footer_tells_what_was_found_computed(talker: Daemon) -> None:
    question = "what " * 60
    reused = []
    for _ in range(2):
        done = subprocess.run(
            [*LLMOS, "ask", "-v", "-n", "2", "-t", "0", question],
            env=environment(talker.run_dir.parent), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        found = re.search(r"prefill ([\d,]+) \(([\d,]+) reused\)", done.stderr)
        assert found is not None, done.stderr
        reused.append(int(found[2]))
    assert reused[1] >= 300 // 16 * 16 > 0
