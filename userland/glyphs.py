"""Which characters a screen may be drawn with."""

import os
from typing import TextIO


def unicode_to(out: TextIO) -> bool:
    """Whether `out` shows block characters: it takes UTF-8, and nobody asked for plain letters.

    LLMOS_A11Y=1 asks for them: a screen reader says nothing useful of a picture.
    """
    encoding = (getattr(out, "encoding", None) or "").lower().replace("-", "").replace("_", "")
    return encoding == "utf8" and not os.environ.get("LLMOS_A11Y")


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int) -> str:
    """Draw the last values as bars, the largest one full."""
    shown = values[-width:]
    most = max(shown, default=0.0)
    if most <= 0.0:
        return "▁" * len(shown)
    return "".join(_BARS[min(7, int(8 * value / most))] for value in shown)


def bar(parts: list[tuple[str, float]], width: int, rest: str) -> str:
    """Draw shares of a whole as a bar; what is there at all is seen."""
    drawn = ""
    for glyph, share in parts:
        cells = max(int(share * width), 1) if share > 0 else 0
        drawn += glyph * min(cells, width - len(drawn))
    return drawn + rest * (width - len(drawn))
