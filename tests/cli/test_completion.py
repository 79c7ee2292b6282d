"""Tab: what is offered, from whom, and that it never takes long or fails."""

import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
from click.shell_completion import ShellComplete

import syscalls
from drivers.models.store import default_root
from tests.helpers.daemon import Daemon
from tests.helpers.shell import environment
from userland import cli, complete
from userland.bin.kill import kill
from userland.desk import Desk


def offers(home: Path, *args: str, incomplete: str = "") -> dict[str, str | None]:
    desk = Desk(StringIO(), StringIO())
    completing = ShellComplete(cli.llmos, {"obj": desk}, "llmos", "_LLMOS_COMPLETE")
    with patch.dict(os.environ, environment(home), clear=True):
        return {
            item.value: item.help for item in completing.get_completions(list(args), incomplete)
        }


def test_commands_with_their_purpose(tmp_path: Path) -> None:
    found = offers(tmp_path, incomplete="p")
    assert {"ps", "ping", "pull"} <= found.keys()
    assert found["ps"] == "List the tasks of the kernel."
    offers(tmp_path, "nosuch")  # no error in the middle of a line
    assert offers(tmp_path, "config").keys() == {"show", "check", "path"}


def test_tasks_and_models_of_the_kernel(kernel: Daemon) -> None:
    home = kernel.run_dir.parent
    with kernel.connect("somebody") as task, task.alloc_ctx(name="notes"):
        assert offers(home, "kill")[str(task.pid)] == "somebody, 1 contexts"
        assert "-STOP" in offers(home, "kill")
        assert list(offers(home, "ask", "-m")) == ["null"]
        context = cli.llmos.make_context("llmos", ["ps"], obj=Desk(StringIO(), StringIO()))
        with patch.dict(os.environ, environment(home), clear=True):
            named = complete.contexts(context, kill.params[0], "@no")
            device = complete.devices(context, kill.params[0], "")
        assert [(item.value, item.help) for item in named] == [
            ("@notes", f"0 tokens, pid {task.pid}")
        ]
        assert [item.value for item in device] == ["null0"]


def test_a_shells_own_task_is_asked_and_lives_on(kernel: Daemon) -> None:
    with kernel.connect("llmsh") as task:
        desk = Desk(StringIO(), StringIO(), task, name="llmsh")
        completing = ShellComplete(kill, {"obj": desk}, "kill", "")
        found = {item.value for item in completing.get_completions([], "")}
        assert str(task.pid) in found
        names = [row.name for row in task.ps()]
        assert names == ["init", "llmsh"], "no other task was made for it"


def test_an_address_that_was_typed_is_asked(kernel: Daemon, tmp_path: Path) -> None:
    assert "1" in offers(tmp_path, "-H", kernel.address, "kill")
    assert "1" not in offers(tmp_path, "kill")


def test_models_that_are_installed_and_that_can_be(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(default_root())
    assert "smollm2" in offers(tmp_path, "up", "-m")
    assert "smollm2" in offers(tmp_path, "pull")
    assert offers(tmp_path / "x", "up", "-m") == {}


def test_codes_that_can_be_explained(tmp_path: Path) -> None:
    assert offers(tmp_path, "explain", incomplete="eno").keys() >= {"ENOMEM", "ENOENT"}


def test_a_kernel_that_hangs_is_asked_with_a_limit_and_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as door, patch.object(complete, "LIMIT_S", 0.03):
        door.bind(str(tmp_path / "run" / "kernel.sock"))
        door.listen()
        with patch("syscalls.connect", wraps=syscalls.connect) as connect:
            assert offers(tmp_path, "kill", incomplete="1") == {}
    assert [call.kwargs["timeout"] for call in connect.call_args_list] == [0.03]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_the_shells(shell: str) -> None:
    out = StringIO()
    assert cli.run(Desk(out, StringIO()), ["completion", shell]) == 0
    assert "_LLMOS_COMPLETE" in out.getvalue()


def test_bash_gets_its_words_from_the_program(tmp_path: Path) -> None:
    """What bash does at Tab: the script that it has read, with a completion that it has begun."""
    out = StringIO()
    assert cli.run(Desk(out, StringIO()), ["completion", "bash"]) == 0
    script = (
        f"{out.getvalue()}\nCOMP_WORDS=(llmos explain EBAD); COMP_CWORD=2\n"
        '_llmos_completion "$PROGRAM"; echo "${COMPREPLY[@]}"\n'
    )
    program = tmp_path / "llmos"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m userland.cli "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script], env=environment(tmp_path) | {"PROGRAM": str(program)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "EBADCTX\n", done.stderr
