"""What each sampling parameter does to the distribution: many draws, compared with exact shares.

The shares are computed from the log-probabilities that the driver gives of the best ids; top_k cuts
what is drawn down to those.
"""

from collections import Counter
from collections.abc import Sequence

import pytest

from drivers import base
from tests.helpers.chi_square import fits
from tests.helpers.device import Device
from tests.helpers.oracle import Knobs, distribution
from tests.helpers.plans import Part, reset, step_ops

LENGTH = 20
BEST = 12
KNOWN = 60
"""Best ids whose logits are asked for: which of them are the BEST may change."""
DRAWS = 600
AT_ONCE = 200


class Drawing:
    """A filled sequence, its best ids, and many draws of what follows."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ids = device.prompt(LENGTH, seed=3)
        self.blocks = device.blocks_for(LENGTH)
        device.prefill(self.ids, self.blocks)
        best = device.step(self.part(num_logprobs=KNOWN))[0].top
        self.tokens = [token for token, _ in best]
        self.logits = [logit for _, logit in best]

    def part(self, **how: object) -> Part:
        last = Part(self.ids[-1:], LENGTH - 1, self.blocks, null_write=True)
        return last._replace(**how)  # type: ignore[arg-type]

    def counts(self, resets: Sequence[base.Reset] = (), **how: object) -> Counter[int]:
        """Draw with as many seeds."""
        counts: Counter[int] = Counter()
        for first in range(0, DRAWS, AT_ONCE):
            parts = [
                self.part(seed=first + n, adjust=bool(resets), slot=n, **how)
                for n in range(AT_ONCE)
            ]
            own = [op._replace(slot=n) for n in range(AT_ONCE) for op in resets]
            sampled = self.device.submit(*own, *step_ops(parts, self.device.block_size)).results[0]
            counts.update(base.read_ints(sampled.ids))
        return counts

    def shares(self, knobs: Knobs, logits: Sequence[float] | None = None) -> dict[int, float]:
        row = list(self.logits if logits is None else logits)
        return dict(zip(self.tokens, distribution(row, knobs), strict=True))


@pytest.fixture
def drawing(device: Device) -> Drawing:
    return Drawing(device)


CASES = {
    "temperature": (Knobs(1.5, top_k=BEST), Knobs(4.0, top_k=BEST)),
    "cold": (Knobs(0.5, top_k=BEST), Knobs(1.0, top_k=BEST)),
    "top_k": (Knobs(3.0, top_k=5), Knobs(3.0, top_k=6)),
    "top_p": (Knobs(2.5, top_k=BEST, top_p=0.75), Knobs(2.5, top_k=BEST, top_p=0.9)),
    "min_p": (Knobs(2.5, top_k=BEST, min_p=0.55), Knobs(2.5, top_k=BEST, min_p=0.05)),
    "all": (Knobs(3.0, top_k=9, top_p=0.9, min_p=0.1), Knobs(1.0, top_k=9, top_p=0.9, min_p=0.1)),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_shares_of_their_parameters(drawing: Drawing, case: str) -> None:
    """And not those of other parameters, or the test could not fail."""
    knobs, other = CASES[case]
    counts = drawing.counts(
        temperature=knobs.temperature, top_k=knobs.top_k, top_p=knobs.top_p, min_p=knobs.min_p
    )
    assert fits(counts, drawing.shares(knobs))
    assert not fits(counts, drawing.shares(other))


def test_bias_comes_before_top_k(drawing: Drawing) -> None:
    """Ids that were not among the best are, and the others are not any more."""
    low = drawing.tokens[6:9]
    lift = drawing.logits[0] - drawing.logits[6] + 1
    op = reset(0, drawing.ids[-1:], bias=dict.fromkeys(low, lift))
    counts = drawing.counts([op], temperature=2.0, top_k=3)
    bias = [float(lift) if token in low else 0.0 for token in drawing.tokens]
    biased = [logit + add for logit, add in zip(drawing.logits, bias, strict=True)]
    assert fits(counts, drawing.shares(Knobs(2.0, top_k=3), biased))
    assert not fits(counts, drawing.shares(Knobs(2.0, top_k=3)))


def test_presence_and_frequency_are_of_the_output_and_come_before_temperature(
    drawing: Drawing,
) -> None:
    """The prompt has the best id, the output the second once and the third three times."""
    first, second, third, *_ = drawing.tokens
    ids = [first] * 5 + [7] * 7
    output = [third, second, third, third, *[9] * 4]
    op = reset(0, [*ids, *output], num_prompt=len(ids), presence=0.5, frequency=0.25)
    counts = drawing.counts([op], temperature=2.0, top_k=BEST)
    taken = {second: 0.5 + 0.25, third: 0.5 + 3 * 0.25, 9: 0.5 + 4 * 0.25}
    less = [
        logit - taken.get(token, 0)
        for token, logit in zip(drawing.tokens, drawing.logits, strict=True)
    ]
    assert fits(counts, drawing.shares(Knobs(2.0, top_k=BEST), less))
    assert not fits(counts, drawing.shares(Knobs(2.0, top_k=BEST)))
