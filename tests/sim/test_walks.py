"""Walks: long lists of operations on kernels of every size, each moment compared with all that it
must be (tests/helpers/walker.py, tests/helpers/books.py). What is wrong is told as a short list.

`pytest tests/sim/test_walks.py --walk-ops 1000000` walks further; `make soak` does for hours.
"""

from collections import Counter

import pytest

from tests.helpers.walks import walk

LENGTH = 500
"""Operations of one walk: each is on other ground, and begins with nothing."""
MANY = (
    "copied", "evicted", "hit_tokens", "lost_tokens", "out_blocks", "in_blocks", "deaths",
    "checked",
)  # fmt: skip
FEW = "disk_out_blocks", "disk_in_blocks"
"""What has to have happened: a walk that never shares, swaps or loses anything finds nothing."""


def test_walks(request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--walk-ops")
    seen: Counter[str] = Counter()
    for seed, done in enumerate(range(0, count, LENGTH)):
        walked = walk(seed, min(LENGTH, count - done))
        seen.update(walked.totals._asdict())
        checked = sum(walker.checked for walker in walked.walkers)
        seen.update(done=walked.done, deaths=walked.deaths, checked=checked)
        seen.update(looked_at=walked.books.looked_at)
    assert seen["done"] == count
    if count >= 10_000:
        assert not [what for what in MANY if seen[what] <= count // LENGTH]
        assert not [what for what in FEW if not seen[what]]
        assert seen["looked_at"] > 10 * count
