"""Lines that nobody types: a file, stdin, or the argument of -c.

A script is run as it is read, so a pipe can feed it slowly. It ends with its last line, `exit`, a
line that cannot be parsed (2), under `set -e` a command that fails, Ctrl-C (130), a bug (70), or
when nobody reads its answers any more (141).
"""

from collections.abc import Callable, Iterable

from userland import bug
from userland.exits import INTERRUPTED, Failure
from userland.llmsh.ask import Interrupted
from userland.llmsh.builtins import Leave
from userland.llmsh.mistakes import Incomplete, ParseError, still_open
from userland.llmsh.nodes import Line
from userland.llmsh.parser import parse
from userland.llmsh.shell import Shell


def run_script(shell: Shell, lines: Iterable[str]) -> int:
    """Run a script to its end; return the exit status."""
    return _guarded(shell, lambda: run_lines(shell, lines))


def check_script(shell: Shell, lines: Iterable[str]) -> int:
    """Parse a script and run nothing; return 0, or 2 for the first line that cannot be parsed."""
    return _guarded(shell, lambda: _each(shell, lines, "", lambda _: None))


def run_lines(shell: Shell, lines: Iterable[str], where: str = "") -> None:
    """Run lines; `where` stands before the numbers of those that cannot be parsed."""
    _each(shell, lines, where, shell.run)


def _guarded(shell: Shell, run: Callable[[], None]) -> int:
    try:
        run()
    except Leave as leave:
        return leave.status
    except (Interrupted, KeyboardInterrupt):
        if shell.state.err.isatty():
            shell.state.err.write("\n")
        return INTERRUPTED
    except UnicodeDecodeError as error:
        return shell.state.report(Failure(f"the script is not text: {error.reason}"))
    except Exception:  # noqa: BLE001  said like any other error, with the status of a bug
        return bug.save("llmsh", shell.state.err)
    return shell.state.status


def _each(shell: Shell, lines: Iterable[str], where: str, run: Callable[[Line], None]) -> None:
    text, first, awaits = "", 1, ""
    for number, line in enumerate(lines, 1):
        text += line
        awaits = awaits and still_open(awaits, line)
        if awaits:  # a long text is not parsed again at each of its lines
            continue
        try:
            parsed = _parse(text)
        except Incomplete as error:
            awaits = error.awaits
            continue
        except ParseError as error:
            return _refuse(shell, error, where, first)
        run(parsed)
        if shell.state.out_gone:
            return
        text, first = "", number + 1
    if text:
        try:
            _parse(text)
        except ParseError as error:
            _refuse(shell, error, where, first)


def _parse(text: str) -> Line:
    """Parse lines without the newline at their end: it would end what goes on on the next one."""
    return parse(text.removesuffix("\n"))


def _refuse(shell: Shell, error: ParseError, where: str, first: int) -> None:
    shell.refuse(error, f"{where}line {first + error.line - 1}, ")
