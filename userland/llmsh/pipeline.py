"""Running one pipeline.

First every file is opened, so that a mistake starts nothing. Then the host commands start, all at
once, and the shell runs its own stages (model calls, builtins, compounds), which belong to its one
thread, from left to right. Each of these that reads a pipe has an Intake on it from the beginning,
unless nothing of the shell's own stands before it.

    git log | "what happened?" | tee note | "in French"
    process   shell             process   shell

The status is that of the last stage that failed. In interactive use a reader that has had enough
(`... | head`) makes no failure of the stages before it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TextIO

from syscalls.shield import Shield
from userland.exits import EXPECTED, INTERRUPTED, PIPE_CLOSED, Failure, PipeClosed
from userland.llmsh.ask import Ask, Interrupted
from userland.llmsh.host import Group, Program
from userland.llmsh.redirects import document
from userland.llmsh.stage import Block, Inner, Model, Stage
from userland.llmsh.state import State

STDOUT = 1


def run(state: State, stages: Sequence[Stage]) -> int:
    """Run stages that are resolved; return the status, or raise Interrupted after Ctrl-C."""
    alone = all(isinstance(stage.what, Program) for stage in stages) and not state.nested
    group = Group(state.terminal, alone, state.note)
    try:
        with Shield():
            _connect(state, stages)
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
        _wait(stages, group)
    if group.interrupted:
        raise Interrupted
    return _status(state, stages)


def _connect(state: State, stages: Sequence[Stage]) -> None:
    for stage, following in pairwise(stages):
        stage.join(following)
    if not isinstance(stages[0].what, Model):  # it reads what it is fed, and nothing by itself
        stages[0].inherit(0, state.stdin)
    stages[-1].inherit(1, state.stdout)
    for stage in stages:
        stage.inherit(2, state.stderr)


def _start(state: State, stages: Sequence[Stage], group: Group) -> None:
    own_before = False
    for stage in stages:
        if isinstance(stage.what, Program):
            _start_host(state, stage, stage.what, group)
            continue
        if isinstance(stage.what, Model) or own_before:
            stage.start_intake()
        own_before = True


def _start_host(state: State, stage: Stage, program: Program, group: Group) -> None:
    stdin = stage.fds.get(0, state.host_stdin)
    try:
        stage.child = group.start(program, stdin, stage.fds.get(1), stage.fds.get(2))
    except Failure as failure:
        stage.status = state.report(failure)
    stage.close()


def _wait(stages: Sequence[Stage], group: Group) -> None:
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
        if isinstance(stage.what, Program):
            continue
        alone = 1 not in stage.fds
        with state.streams(stage.fds.get(0), stage.fds.get(1), stage.fds.get(2)):
            try:
                stage.status = _run_one(state, stage, _keys_are_free(stages, stage))
            except EXPECTED as error:
                stage.status = state.report(error)
            except PipeClosed:
                stage.status = PIPE_CLOSED
        state.out_gone |= stage.status == PIPE_CLOSED and alone
        stage.close()
        if stage.status == INTERRUPTED:
            raise Interrupted
        if stage.status not in (0, PIPE_CLOSED):
            return


def _keys_are_free(stages: Sequence[Stage], stage: Stage) -> bool:
    """Tell whether no program of the pipeline reads what is typed: a pager that comes later may.

    One that comes before has ended, or closed what it writes, when the answer begins.
    """
    later = stages[list(stages).index(stage) + 1 :]
    return not any(isinstance(other.what, Program) for other in later)


def _run_one(state: State, stage: Stage, free: bool) -> int:
    if isinstance(stage.what, Model):
        return _ask(state, stage, stage.what, free)
    if isinstance(stage.what, Block):
        return _run_block(state, stage, stage.what)
    assert isinstance(stage.what, Inner)
    if 1 not in stage.fds:
        return _write(stage.what, state.out)
    fd = stage.fds.pop(1)
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


def _run_block(state: State, stage: Stage, block: Block) -> int:
    """Run a compound on streams of its own; what an earlier stage has written waits in a file."""
    if stage.intake is None:
        return block.run()
    with document(stage.intake.output()) as file, state.streams(file.fileno(), None, None):
        return block.run()


def _ask(state: State, stage: Stage, model: Model, free: bool) -> int:
    question = replace(model.question, verbose=model.question.verbose or state.options.verbose)
    state.asked_alone |= stage.intake is None
    sink = state.sink(stage.fds.get(1, STDOUT), question)
    terminal = state.terminal if free and not state.nested else None
    call = Ask(question, stage.intake, sink, state.note, terminal)
    answer = call.run(state.contexts, state.sampling)
    state.remember(answer)
    return answer.status


def _status(state: State, stages: Sequence[Stage]) -> int:
    """Return the status of the last stage that failed, or without pipefail that of the last."""
    failed = [stage.status for stage in stages if stage.status]
    if not state.options.pipefail:
        return stages[-1].status
    if state.interactive and stages[-1].status == 0:
        failed = [status for status in failed if status != PIPE_CLOSED]
    return failed[-1] if failed else 0
