"""Walks that fail, in as few operations as possible."""

from kernel.panic import KernelPanic
from tests.helpers.ground import Ground
from tests.helpers.walker import Op, Walk, draw

FAILURES = AssertionError, KernelPanic, KeyError, IndexError, ValueError
"""What a planted bug ends a walk with; anything else would, too."""


def failure(ground: Ground, ops: list[Op]) -> tuple[int, Exception] | None:
    """Walk; return how many operations were done before something was wrong, and what it was."""
    walk = Walk(ground)
    try:
        walk.run(ops)
        walk.rest()
    except FAILURES as error:
        return walk.done, error
    return None


def shortest(ground: Ground, ops: list[Op], tries: int = 400) -> list[Op]:
    """Return a part of a list that fails as well, such that little of it can be left out."""
    part = max(1, len(ops) // 2)
    while tries > 0:
        start, shorter = 0, False
        while start < len(ops) and tries > 0:
            rest = ops[:start] + ops[start + part :]
            tries -= 1
            found = failure(ground, rest)
            if found is None:
                start += part
            else:
                ops, shorter = rest[: found[0] + 1], True
        if part == 1 and not shorter:
            break
        part = max(1, part // 2)
    return ops


def walk(seed: int, count: int, tries: int = 400) -> Walk:
    """Walk `count` operations of a seed; what is wrong is told as a short list of them."""
    ground, ops = Ground.of(seed), draw(seed, count)
    walk = Walk(ground)
    try:
        walk.run(ops)
        walk.rest()
    except FAILURES as error:
        found = shortest(ground, ops[: walk.done + 1], tries)
        _, why = failure(ground, found) or (0, error)
        story = ", ".join(f'("{op.name}", {op.seed})' for op in found)
        raise AssertionError(f"{why!r} on {ground} after [{story}]") from why
    return walk
