"""Trial: grammars are compiled first where they can do no harm.

    driver host, a thread of it            python -m drivers.trial
    Trials.check(vocabulary, kind, text) -> reads, forks -> a child: limits, compile, match a little
                                          <- verdict ------ (exit, or killed)

A grammar is a user's, and its compiler is not ours: there may be texts that take it minutes, all
memory, or its stack. The process in the middle is started with the first grammar and has one
thread, so it can fork: a child has the vocabulary already, and lives for one grammar. It may take
CPU_S seconds, MEMORY bytes of address space, and a stack of STACK bytes, which is a fraction of
what a thread of the driver has; what it does not survive is refused. It knows no user's text but
that of its one grammar.

Messages are msgpack behind their length: [key, tokens, end_ids] for a vocabulary, [key, kind, text]
for a trial, whose answer is [source, message]; source is empty if the grammar is refused.
"""

import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import msgpack
from setproctitle import setproctitle

from drivers import process
from drivers.base import RowFlag
from drivers.grammar import GrammarError, Match, NoMatch, Vocabulary, compile_source, source_of

CPU_S = 2
WALL_S = 20.0
"""Seconds that a trial may take where others have the CPU."""
MEMORY = 256 << 20
STACK = 1 << 20
ATTEMPTS = 3
MAX_STORY = 600
"""Characters kept of what the compiler says."""
_LENGTH = struct.Struct("<I")
_STEPS = 8
"""Ids that are matched in a trial, so that what a first step makes is paid for there."""


class Trials:
    """The process in which grammars are tried, of one driver; used from one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[int] = set()
        self._stopped = False

    def check(self, key: int, vocabulary: Vocabulary, kind: int, text: bytes) -> str:
        """Return the source of a grammar that can be compiled; GrammarError if it cannot be."""
        for _ in range(ATTEMPTS):
            if self._stopped:
                break
            try:
                if self._process is None:
                    self._start()
                source, message = self._ask(key, vocabulary, kind, text)
            except (OSError, EOFError):
                self.close()  # somebody has ended it; the grammar did not, a child had that
                continue
            if not source:
                raise GrammarError(message)
            return str(source)
        raise GrammarError("it could not be tried: the process for that was ended")

    def _ask(self, key: int, vocabulary: Vocabulary, kind: int, text: bytes) -> Any:
        """Let the process try a grammar; return its answer."""
        if key not in self._known:
            self._write([key, vocabulary.tokens, vocabulary.end_ids])
            self._known.add(key)
        self._write([key, kind, text])
        assert self._process is not None and self._process.stdout is not None
        return _read(self._process.stdout)

    def forget(self, key: int) -> None:
        """Note that a vocabulary has gone; its key may be another one's. Who has it, goes."""
        if key in self._known:
            self.close()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drivers.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _write(self, message: list[Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        _write(self._process.stdin, message)

    def stop(self) -> None:
        """End what is being tried, and try no more; may be called from any thread."""
        self._stopped = True
        running = self._process
        if running is not None:
            running.kill()

    def close(self) -> None:
        """End the process, if it runs, and reap it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._known.clear()


def _write(file: IO[bytes], message: list[Any]) -> None:
    raw = msgpack.packb(message)
    file.write(_LENGTH.pack(len(raw)) + raw)
    file.flush()


def _read(file: IO[bytes]) -> Any:
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    return msgpack.unpackb(file.read(size))


# --- the process ------------------------------------------------------------------------------


def main() -> None:
    """Entry point: try what comes until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.tie_to_parent()
    process.no_dumps(debuggers=True)
    setproctitle("llmos-grammar")
    vocabularies: dict[int, Vocabulary] = {}
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            key, what, more = _read(sys.stdin.buffer)
        except EOFError:
            return
        if isinstance(what, list):
            vocabularies[key] = Vocabulary(what, more)
            vocabularies[key].tokenizer  # noqa: B018 - made once, for all children
        else:
            _write(answers, _judged(partial(_tried, vocabularies[key], what, more)))


def _judged(work: Callable[[], list[str]]) -> list[str]:
    """Return what a child says that does the work, or what its end says."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _confined(work, theirs)
    os.close(theirs)
    raw, in_time = _heard(ours)
    os.close(ours)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if raw and in_time and status == 0:
        verdict: list[str] = msgpack.unpackb(raw)
        return verdict
    return ["", _end(status, in_time)]


def _heard(pipe: int) -> tuple[bytes, bool]:
    """Return all that comes through a pipe, and whether it has ended in time."""
    raw, until = b"", time.monotonic() + WALL_S
    while (left := until - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            part = os.read(pipe, 1 << 16)
            if not part:
                return raw, True
            raw += part
    return raw, False


def _end(status: int, in_time: bool) -> str:
    if not in_time:
        return f"it is not compiled within {WALL_S:g} s; make it simpler"
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"to compile it takes more than {CPU_S} s; make it simpler"
    if number == signal.SIGABRT:
        return f"to compile it takes more than {MEMORY >> 20} MiB; make it simpler"
    if number in (signal.SIGSEGV, signal.SIGBUS):
        return f"to compile it takes a stack of more than {STACK >> 20} MiB; nest it less"
    return f"the compiler has failed with it (status {status})"


def _confined(work: Callable[[], list[str]], pipe: int) -> None:
    """Do the work in this child within its limits, tell what it gives, and end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)  # what a library says of its failure may quote the grammar
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    most = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    threading.stack_size(STACK)
    verdict = [["", f"to compile it takes more than {MEMORY >> 20} MiB; make it simpler"]]

    def run() -> None:
        try:
            verdict[0] = work()
        except GrammarError as error:
            verdict[0] = ["", str(error)[:MAX_STORY]]
        except MemoryError:
            pass
        except BaseException as error:  # noqa: BLE001 - a panic of the library is none of Exception
            verdict[0] = ["", f"the compiler has failed with it ({type(error).__name__})"]

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with os.fdopen(pipe, "wb") as file:
        file.write(msgpack.packb(verdict[0]))
    os._exit(0)


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")


def _tried(vocabulary: Vocabulary, kind: int, text: bytes) -> list[str]:
    """Compile, and match the first ids of something; return [source, ""]."""
    source = source_of(kind, text)
    match = Match(compile_source(source, vocabulary), 0)
    position = 0
    try:
        while position <= _STEPS:
            mask = match.mask()
            match.add([int.from_bytes(mask, "little").bit_length() - 1], position)
            position += 1
    except NoMatch as none:
        if none.flag == RowFlag.GRAMMAR_LIMIT:
            what = "its first ids take more time or memory than one may; make it simpler"
            raise GrammarError(what) from None
        if position == 0:
            raise GrammarError("it allows nothing that this model can write") from None
    return [source, ""]


if __name__ == "__main__":
    main()
