"""Whether counts may be draws from a distribution: Pearson's test, without tables.

The limit is that of Wilson and Hilferty (1931): a chi-square variable with d degrees of freedom is
about d * (1 - 2/9d + z * sqrt(2/9d))**3 for a normal z. With z = 3.7 one in 10,000 fails by chance;
the tests draw with fixed seeds, so each either passes always or never.
"""

from collections.abc import Mapping
from math import sqrt

LEAST_EXPECTED = 5.0
"""Ids that are expected more seldom are counted together."""
Z = 3.7


def fits(counts: Mapping[int, int], shares: Mapping[int, float]) -> bool:
    """Return whether `counts` of ids may come from a distribution with these shares."""
    draws = sum(counts.values())
    if any(count and not shares.get(token) for token, count in counts.items()):
        return False  # an id that cannot be drawn
    rare = [token for token, share in shares.items() if share * draws < LEAST_EXPECTED]
    cells = [(counts.get(t, 0), s * draws) for t, s in shares.items() if t not in set(rare)]
    rest = sum(shares[token] for token in rare) * draws
    if rest > 1e-9:
        cells.append((sum(counts.get(token, 0) for token in rare), max(rest, 1.0)))
    assert len(cells) > 1, "nothing to compare"
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    ninth = 2 / (9 * (len(cells) - 1))
    return statistic < (len(cells) - 1) * (1 - ninth + Z * sqrt(ninth)) ** 3
