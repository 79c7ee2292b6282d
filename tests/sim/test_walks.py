"""Walks: long lists of operations on kernels of every size, each moment compared with all that it
must be (tests/helpers/walker.py, tests/helpers/books.py). What is wrong is told as a short list.

`pytest tests/sim/test_walks.py --walk-ops 1000000` walks further; `make soak` does for hours.
"""

import pytest

from tests.helpers.walker import Walk, walk

LENGTH = 500
"""Operations of one walk: each is on other ground, and begins with nothing."""


def test_walks(request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--walk-ops")
    walks = [walk(seed, min(LENGTH, count - done)) for seed, done in enumerate(
        range(0, count, LENGTH))]  # fmt: skip
    assert sum(each.done for each in walks) == count
    if count >= 10_000:
        _have_been_everywhere(walks)


def _have_been_everywhere(walks: list[Walk]) -> None:
    """A walk that never swaps, shares or loses anything finds nothing."""
    totals = [w.totals for w in walks]
    for what in ("copied", "evicted", "hit_tokens", "lost_tokens", "out_blocks", "in_blocks"):
        assert sum(getattr(each, what) for each in totals) > len(walks), what
    assert sum(w.deaths for w in walks) > len(walks)
    assert sum(w.books.looked_at for w in walks) > 10 * sum(w.done for w in walks)
    assert sum(walker.checked for w in walks for walker in w.walkers) > 0
