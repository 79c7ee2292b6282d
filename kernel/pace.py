"""Pace: how many positions of prefill a step has room for, beside those that decode.

A step ends when the last of its entries does, so a long prefill makes everybody wait who decodes.
Prefills get what is left of the target time after the decodes; but never less than LEAST times what
the decodes take: else a full batch would let nobody in. Steps without decodes delay nobody but
other prefills, and may take PATIENCE targets.

What decodes take is measured in steps that do nothing else, for every size of batch (in powers of
two: the first sequence costs more than the next ones), and of prefills what they have added to a
step. Nothing is known before the first steps; then a chunk is the room.
"""

from kernel.step import StepLimits

PATIENCE = 8
"""Target times of a step that only prefills: others may wait for their first id that long."""
LEAST = 2
"""Times of the decodes: a prompt of 128 ids beside 32 streams on two cores is the work of one step,
not of two.
"""
SURE = 64
"""Positions of prefill whose time says what one takes; that of fewer says what a prefill takes."""
KEEP = 0.8
"""Of what was measured before."""


class Pace:
    """The pace of one model."""

    def __init__(self, limits: StepLimits, block_size: int) -> None:
        self.us_per_token = 0.0  # of prefill
        self._decode_us: dict[int, float] = {}  # of a step, by bits of how many decode in it
        self._limits = limits
        self._block_size = block_size

    def room(self, decodes: int) -> int:
        """Return the positions that prefills may take of a step, all together."""
        limits = self._limits
        if not (limits.target_us and self.us_per_token):
            return limits.prefill_chunk
        if not decodes:
            room = int(PATIENCE * limits.target_us / self.us_per_token)
            return max(limits.prefill_chunk, room)
        taken = self.taken(decodes)
        room = int(max(limits.target_us - taken, LEAST * taken) / self.us_per_token)
        return max(self._block_size, room)

    def measure(self, prefilled: int, decodes: int, took_us: int) -> None:
        """Note what a step took."""
        if not prefilled:
            size = decodes.bit_length()
            self._decode_us[size] = _mean(self._decode_us.get(size, 0.0), took_us)
        elif prefilled >= min(SURE, self._limits.prefill_chunk):
            even = took_us * prefilled / (prefilled + decodes)
            added = max(took_us - self.taken(decodes), even / 2)  # decodes may take less today
            self.us_per_token = _mean(self.us_per_token, added / prefilled)

    def taken(self, decodes: int) -> float:
        """Return the microseconds of a step of decodes alone, as far as is known."""
        known = [size for size in self._decode_us if size <= decodes.bit_length()]
        return self._decode_us[max(known)] if known else 0.0


def _mean(old: float, new: float) -> float:
    return KEEP * old + (1 - KEEP) * new if old else new
