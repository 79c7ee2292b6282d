"""Random programs at ports and topics: whatever they do and however they go, nothing is left."""

from collections import Counter

import pytest

from tests.helpers.postal import Post


@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int) -> None:
    Post(seed).run(150)


def test_the_storm_comes_to_every_end() -> None:
    """What the property test would not reach, it would not test."""
    ends: Counter[str] = Counter()
    for seed in range(100, 112):
        post = Post(seed)
        post.run(200)
        ends.update(post.ends)
    wanted = {
        "call ok", "call ENOENT", "call EAGAIN", "call EDEADLK", "call ETIMEDOUT", "call EPIPE",
        "call ECANCELED", "recv ok", "recv ETIMEDOUT", "recv EPIPE", "recv ECANCELED", "reply ok",
        "reply ESRCH", "publish ok", "publish EAGAIN", "bind EEXIST",
    }  # fmt: skip
    assert not {end for end in wanted if not ends[end]}, ends
