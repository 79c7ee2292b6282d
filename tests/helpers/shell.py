"""llmsh from outside: as a script, and on a terminal with a person's fingers and eyes.

`talking` is a kernel on the null driver that can do text: its model answers with words like
` w1234`, the same ones for the same history, and hardly ever ends by itself.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pexpect
import psutil
import pyte

from tests.helpers.byte_tokenizer import byte_tokenizer
from tests.helpers.daemon import NULL, ROOT, Daemon, daemon, eventually, keeping

LLMSH = (sys.executable, "-m", "userland.llmsh.main")
PATIENCE_S = float(os.environ.get("PATIENCE", 60))
WORDS = 4000
END = 256 + WORDS + 1
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextmanager
def talking(
    home: Path, step_us: int = 0, template: str | None = TEMPLATE, keeps: bool = False
) -> Iterator[Daemon]:
    """Run a kernel whose null model has a tokenizer, and turns if there is a template.

    With `keeps` it has a store, where `llmos up` would put it.

    The kernel reads the text files of a model below its path. The path of a builtin is its options,
    relative to where the kernel runs: a folder of that name is all it takes.
    """
    builtin = f"null:vocab={END + 1},eos={END},max_ctx=8192,step_us={step_us}"
    folder = home / builtin
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(byte_tokenizer(WORDS))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "config.json").write_text("{}")
    store = keeping(home) if keeps else ()
    with daemon(home, *NULL, builtin, *store, cwd=home) as running:
        yield running


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLM")}
    return kept | {
        "LLMOS_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody would answer where the cursor is
        "TERM": "xterm",
    }


def llmsh(
    home: Path, script: str, *options: str, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script from stdin."""
    return subprocess.run(
        [*LLMSH, *options],
        input=script, env=environment(home), cwd=cwd, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def check_no_tasks(kernel: Daemon) -> None:
    """No shell has left a task, a context or a block behind."""
    with kernel.connect("checker") as task:
        eventually(lambda: [row.name for row in task.ps()] == ["init", "checker"], "tasks gone")
        eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")
        assert task.contexts() == []


class Typist:
    """Somebody at a terminal of 100 by 40 characters, on which llmsh runs."""

    def __init__(
        self,
        home: Path,
        *options: str,
        cwd: Path | None = None,
        command: Sequence[str] = LLMSH,
        **env: str,
    ) -> None:
        self._screen = pyte.Screen(100, 40)
        self._stream = pyte.ByteStream(self._screen)
        self._child = pexpect.spawn(
            command[0], [*command[1:], *options], env=environment(home) | env,  # type: ignore[arg-type]
            cwd=str(cwd or home), dimensions=(40, 100), timeout=60,
        )  # fmt: skip

    def __enter__(self) -> "Typist":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return int(self._child.pid)

    def type(self, text: str) -> None:
        """Type; \\r is Enter."""
        self._child.send(text)

    def paste(self, text: str) -> None:
        """Paste, marked as such if the terminal has been asked to."""
        marked = 2004 << 5 in self._screen.mode  # as pyte keeps private modes
        self.type(f"\x1b[200~{text}\x1b[201~" if marked else text)

    def ctrl(self, key: str) -> None:
        self._child.sendcontrol(key)

    def screen(self) -> str:
        """What can be seen, without trailing blanks."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def see(self, what: str | re.Pattern[str]) -> str:
        """Wait until it can be seen; return the screen."""
        pattern = re.compile(re.escape(what)) if isinstance(what, str) else what
        return self.watch(lambda: pattern.search(self.screen()) is not None, pattern.pattern)

    def watch(self, condition: Callable[[], bool], what: str) -> str:
        """Look at the screen until the condition holds; return it."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"did not see {what} on\n{self.screen()}"
            try:
                self._stream.feed(self._child.read_nonblocking(4096, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert condition(), f"ended before {what} was on\n{self.screen()}"
        return self.screen()

    def prompt(self, status: int = 0) -> str:
        """Wait for a prompt that waits for a line, with this status of the last command."""
        shown = f"✗{status} \\$" if status else r"^(no kernel|\w+ [\w.-]+·\S+) \$"
        pattern = re.compile(shown + "$", re.MULTILINE)
        return self.watch(
            lambda: pattern.search(self._last_line()) is not None, f"prompt, status {status}"
        )

    def _last_line(self) -> str:
        return self.screen().rsplit("\n", 1)[-1]

    def runs(self, program: str) -> psutil.Process:
        """Wait until a program runs here and hears of the keys; return it."""

        def found() -> psutil.Process | None:
            below = psutil.Process(self.pid).children(recursive=True)
            group = os.tcgetpgrp(self._child.fileno())
            named = (child for child in below if child.name() == program)
            return next((child for child in named if os.getpgid(child.pid) == group), None)

        process: psutil.Process = eventually(found, f"{program} started")
        return process

    def leave(self) -> int:
        """Wait for the end; return the exit status."""
        self._child.expect(pexpect.EOF)
        self._child.close()
        assert self._child.exitstatus is not None, self._child.signalstatus
        return int(self._child.exitstatus)

    def close(self) -> None:
        """End it in any case."""
        if self._child.isalive():
            self._child.kill(signal.SIGKILL)
        self._child.close()


@contextmanager
def typing(home: Path, *options: str, cwd: Path | None = None, **env: str) -> Iterator[Typist]:
    """Sit down at a shell; afterwards it has ended."""
    typist = Typist(home, *options, cwd=cwd, **env)
    try:
        yield typist
    finally:
        typist.close()
