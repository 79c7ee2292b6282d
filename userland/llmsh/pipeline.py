"""Running one pipeline.

First every file is opened, so that a mistake starts nothing. Then the host commands start, all at
once, and the shell runs its own stages (model calls, builtins), which belong to its one thread,
from left to right. Each model call that reads a pipe has an Intake on it from the beginning.

    git log | "what happened?" | tee note | "in French"
    process   shell             process   shell

The status is that of the last stage that failed. In interactive use a reader that has had enough
(`... | head`) makes no failure of the stages before it.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TextIO

from syscalls.shield import Shield
from userland.exits import EXPECTED, INTERRUPTED, PIPE_CLOSED, Failure, PipeClosed
from userland.llmsh.ask import Ask, Interrupted
from userland.llmsh.host import Group
from userland.llmsh.stage import Host, Inner, Model, Stage
from userland.llmsh.state import State
from userland.llmsh.streams import Intake, Sink

STDOUT = 1


def run(state: State, stages: Sequence[Stage]) -> int:
    """Run stages that are resolved; return the status, or raise Interrupted after Ctrl-C."""
    alone = all(isinstance(stage.what, Host) for stage in stages)
    group = Group(state.terminal, alone, state.note)
    try:
        for stage in stages:
            stage.open()  # a FIFO may keep it waiting, so Ctrl-C has to reach it
        with Shield():
            _start(state, stages, group)
        _run_own(state, stages)
    except (KeyboardInterrupt, Interrupted):
        group.interrupt()
    finally:
        with Shield():
            for stage in stages:
                stage.close()
        _wait(state, stages, group)
    if group.interrupted:
        raise Interrupted
    return _status(state, stages)


def _start(state: State, stages: Sequence[Stage], group: Group) -> None:
    for stage, following in pairwise(stages):
        stage.join(following)
    for stage in stages:
        if isinstance(stage.what, Host):
            _start_host(state, stage, stage.what, group)
        elif isinstance(stage.what, Model):
            _start_intake(stage)


def _start_host(state: State, stage: Stage, host: Host, group: Group) -> None:
    stdin = state.host_stdin if stage.stdin is None else stage.stdin
    try:
        stage.child = group.start(host.words, host.path, stdin, stage.stdout)
    except Failure as failure:
        stage.status = state.report(failure)
    stage.close()


def _start_intake(stage: Stage) -> None:
    if stage.stdin is not None:
        stage.intake = Intake(stage.stdin)
        stage.stdin = None


def _wait(state: State, stages: Sequence[Stage], group: Group) -> None:
    try:
        for stage in stages:
            if stage.child is not None:
                stage.status = group.wait(stage.child)
    finally:
        group.close()


# --- the shell's own stages -----------------------------------------------------------------------


def _run_own(state: State, stages: Sequence[Stage]) -> None:
    """Run them in order; after one that has failed the rest have nothing to work on."""
    for stage in stages:
        if isinstance(stage.what, Host):
            continue
        try:
            stage.status = _run_one(state, stage)
        except EXPECTED as error:
            stage.status = state.report(error)
        except PipeClosed:
            stage.status = PIPE_CLOSED
        state.out_gone |= stage.status == PIPE_CLOSED and stage.stdout is None
        stage.close()
        if stage.status == INTERRUPTED:
            raise Interrupted
        if stage.status not in (0, PIPE_CLOSED):
            return


def _run_one(state: State, stage: Stage) -> int:
    if isinstance(stage.what, Model):
        return _ask(state, stage, stage.what)
    assert isinstance(stage.what, Inner)
    if stage.stdout is None:
        return _write(stage.what, state.out)
    fd, stage.stdout = stage.stdout, None
    out = open(fd, "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115  see below
    try:
        return _write(stage.what, out)
    finally:
        with suppress(OSError):  # the close tries again to write what has been reported
            out.close()


def _write(inner: Inner, out: TextIO) -> int:
    try:
        status = inner.builtin(inner.words[1:], out)
        out.flush()
    except BrokenPipeError:
        raise PipeClosed from None
    except OSError as error:
        raise Failure(f"{inner.words[0]}: {error.strerror}", code="EIO") from None
    return status


def _ask(state: State, stage: Stage, model: Model) -> int:
    sink = Sink(STDOUT if stage.stdout is None else stage.stdout)
    call = Ask(model.prompt, model.context, stage.intake, sink, state.note)
    state.asked_alone |= stage.intake is None
    answer = call.run(state.contexts, state.sampling)
    state.answer = answer.text.strip()
    return answer.status


def _status(state: State, stages: Sequence[Stage]) -> int:
    """Return the status of the last stage that failed."""
    failed = [stage.status for stage in stages if stage.status]
    if state.interactive and stages[-1].status == 0:
        failed = [status for status in failed if status != PIPE_CLOSED]
    return failed[-1] if failed else 0
