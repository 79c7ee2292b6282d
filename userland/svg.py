"""Lines of a terminal as an SVG picture, which fetches nothing from elsewhere."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def picture_of(lines: "Sequence[Text]", width: int, title: str, name: str) -> str:
    """Draw lines in `width` columns; `name` is what the picture's own styles are called by."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console

    console = Console(record=True, width=width, file=StringIO(), color_system="truecolor")
    for line in lines:
        console.print(line, soft_wrap=True)
    # without fonts: whoever looks at a page of ours fetches nothing from elsewhere
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code, monospace", "monospace")
    return console.export_svg(title=title, code_format=form, unique_id=name)
