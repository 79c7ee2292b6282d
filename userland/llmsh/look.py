"""How the blocks of an answer look: rich's Markdown, with headings that are plain lines."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Heading, Markdown
from rich.text import Text

from userland.llmsh.markdown import parser


class _Line(Heading):
    """A heading at the left, in bold; rich puts the first into a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text: Text = self.text
        text.justify = "left"
        text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield text


class Look(Markdown):
    """Markdown in 16 colours."""

    elements = {**Markdown.elements, "heading_open": _Line}  # noqa: RUF012  as rich declares it

    def __init__(self, source: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = parser().parse(source)
