"""Lines that nobody types: a file, stdin, or the argument of -c.

A script is run as it is read, so a pipe can feed it slowly. It ends with its last line, `exit`, a
line that cannot be parsed (2), Ctrl-C (130), a bug (70), or when nobody reads its answers any more
(141).
"""

from collections.abc import Iterable

from userland import bug
from userland.exits import INTERRUPTED, Failure
from userland.llmsh.ask import Interrupted
from userland.llmsh.builtins import Leave
from userland.llmsh.mistakes import Incomplete, ParseError, open_quote
from userland.llmsh.nodes import Line
from userland.llmsh.parser import parse
from userland.llmsh.shell import Shell


def run_script(shell: Shell, lines: Iterable[str]) -> int:
    """Run a script to its end; return the exit status."""
    try:
        _run(shell, lines)
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


def _run(shell: Shell, lines: Iterable[str]) -> None:
    text, first, quote = "", 1, ""
    for number, line in enumerate(lines, 1):
        text += line
        quote = quote and open_quote(quote, line)
        if quote:  # a long text is not parsed again at each of its lines
            continue
        try:
            parsed = _parse(text)
        except Incomplete as error:
            quote = error.quote
            continue
        except ParseError as error:
            return _refuse(shell, error, first)
        shell.run(parsed)
        if shell.state.out_gone:
            return
        text, first = "", number + 1
    if text:
        try:
            _parse(text)
        except ParseError as error:
            _refuse(shell, error, first)


def _parse(text: str) -> Line:
    """Parse lines without the newline at their end: it would end what goes on on the next one."""
    return parse(text.removesuffix("\n"))


def _refuse(shell: Shell, error: ParseError, first: int) -> None:
    shell.refuse(error, f"line {first + error.line - 1}, ")
