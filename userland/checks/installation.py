"""The installation: packages, configuration, models, log."""

import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from userland import daemon
from userland.checks.finding import FAIL, OK, WARN, Finding
from userland.config import gather
from userland.exits import Failure
from userland.view import size

PACKAGE = "llmos-kernel"
LEAST_DISK = 1 << 30
LARGE_LOG = 100 << 20


def packages() -> Iterator[Finding]:
    """Are the packages there that pyproject.toml asks for, in its versions?"""
    try:
        wanted = [line for line in requires(PACKAGE) or () if "extra ==" not in line]
    except PackageNotFoundError:
        yield Finding("packages", FAIL, f"{PACKAGE} is not installed here", "make install")
        return
    wrong = 0
    for line in wanted:
        name = re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0]
        try:
            if not fits(version(name), line[len(name) :]):
                wrong += 1
                yield Finding("packages", FAIL, f"{name} is {version(name)}, needed is {line}",
                              "make install")  # fmt: skip
        except PackageNotFoundError:
            wrong += 1
            yield Finding("packages", FAIL, f"{name} is not installed", "make install")
    if not wrong:
        yield Finding("packages", OK, f"{len(wanted)} packages in the versions that are needed")


def fits(found: str, wanted: str) -> bool:
    """Return whether a version is in a list of bounds like >=2.1,<3."""
    bounds = re.findall(r"(>=|<=|==|<|>)\s*([\d.]+)", wanted)
    have = _numbers(found)
    compare: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda bound: have >= bound,
        "<=": lambda bound: have <= bound,
        "==": lambda bound: have[: len(bound)] == bound,
        "<": lambda bound: have < bound,
        ">": lambda bound: have > bound,
    }
    return all(compare[sign](_numbers(bound)) for sign, bound in bounds)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def configuration() -> Iterator[Finding]:
    """Is anything wrong in the files and variables?"""
    config = gather(of_kernel=True)
    for problem in config.problems:
        yield Finding("config", FAIL, problem, "llmos config check")
    for note in config.notes:
        yield Finding("config", WARN, note)
    if not config.problems:
        keys = sum(setting.explicit for setting in config)
        yield Finding("config", OK, f"nothing is wrong, keys set: {keys}")


def models() -> Iterator[Finding]:
    """Are the models sound, as far as a look tells, and is there room for more?"""
    from userland.models import as_failure, installed, store  # brings numpy

    root = store().root
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    low = free < LEAST_DISK
    todo = "free some space, or set LLMOS_HOME" if low else ""
    yield Finding("models", WARN if low else OK, f"{size(free)} free at {root}", todo)
    names = [f"{path.parent.parent.name}:{path.parent.name}"
             for path in sorted(root.glob("[!.]*/*/manifest.json"))]  # fmt: skip
    if not names:
        yield Finding("models", WARN, "none is installed", "llmos pull smollm2")
    for name in names:
        try:
            model = installed(name)
            with as_failure():
                model.check()
        except Failure as failure:
            yield Finding("models", FAIL, f"{name}: {failure.message}", failure.hint)
            continue
        yield Finding("models", OK, f"{name}, {size(model.manifest.bytes)}")


def log() -> Iterator[Finding]:
    """Is there a log, and is it large?"""
    path = daemon.kernel_log()
    try:
        bytes_there = path.stat().st_size
    except FileNotFoundError:
        yield Finding("log", OK, f"{path} is made by the first llmos up")
        return
    except OSError as error:
        yield Finding("log", FAIL, f"{path}: {error.strerror}", "set LLMOS_HOME to your own")
        return
    large = bytes_there > LARGE_LOG
    yield Finding("log", WARN if large else OK, f"{path} has {size(bytes_there)}",
                  f"llmos down && rm {path}" if large else "")  # fmt: skip
