"""Walks: long lists of operations on kernels of every size, each moment compared with all that it
must be (tests/helpers/walker.py, tests/helpers/books.py). What is wrong is told as a short list.

`pytest tests/sim/test_walks.py --walk-ops 1000000` walks further; `make soak` does for hours.
"""

from collections import Counter

import pytest

from tests.helpers.ground import Ground
from tests.helpers.walker import Op
from tests.helpers.walks import failure, walk

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


def test_room_that_was_made_in_part_stays_with_whom_it_was_made_for() -> None:
    """Found by a walk: who had given way took it again, in every plan, and nobody went on."""
    ground = Ground(
        seed=308001150, num_blocks=9, host_blocks=3, block_size=2, prefill_chunk=32,
        beside=True, swaps=1.0, disk=False, overlap=0,
    )  # fmt: skip
    story = [
        ("signal", 4098221221),
        ("signal", 2064308121),
        ("signal", 1654128526),
        ("begin", 214913395),
        ("branch", 2663350471),
        ("signal", 63410039),
        ("begin", 1615236277),
        ("infer", 852242549),
        ("cancel", 678946249),
        ("branch", 2513066975),
        ("infer", 2989241020),
        ("begin", 1053486549),
        ("advise", 63892321),
        ("begin", 818023260),
        ("infer", 2718682945),
        ("begin", 2265792658),
    ]
    assert failure(ground, [Op(*each) for each in story]) is None
