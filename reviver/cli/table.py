"""The one kind of table that commands draw. It is imported only when something is drawn, because rich is slow to import."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from reviver.text import printable

_GAP = "  "


class PlainTable(Table):
    """A table without a frame, with a bold header.

    A table that fits is written line by line; rich's own layout, which takes a millisecond a row, is left to tables that
    must be folded into a narrow terminal and to cells with styles or line breaks.
    """

    def __init__(self, headers: tuple[str, ...], right: tuple[str, ...]) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
        for header in headers:
            self.add_column(header, justify="right" if header in right else "left", overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, or rich's layout of them."""
        columns = [[_one_line(cell) for cell in (column.header, *column.cells)] for column in self.columns]
        cells = [[cell for cell in column if cell is not None] for column in columns]
        widths = [max((cell_len(text) for text, _ in column), default=0) for column in cells]
        width = sum(widths) + len(_GAP) * (len(widths) - 1)
        if width > options.max_width or any(None in column for column in columns):
            yield from super().__rich_console__(console, options)
            return
        for number, row in enumerate(zip(*cells, strict=True)):
            last = max((place for place, (text, _) in enumerate(row) if text), default=0)
            for place, (text, style) in enumerate(row[: last + 1]):
                space = " " * (widths[place] - cell_len(text))
                shown = space + text if self.columns[place].justify == "right" else text + space
                yield Segment(
                    shown.rstrip() if place == last else shown, console.get_style("bold" if number == 0 else style)
                )
                yield Segment(_GAP if place < last else "\n")


def _one_line(cell: RenderableType) -> tuple[str, StyleType] | None:
    """Return a cell's text and style, or None if it is not one line in one style."""
    if isinstance(cell, Text) and not cell.spans and "\n" not in cell.plain:
        return printable(cell.plain), cell.style
    if isinstance(cell, str) and "\n" not in cell:
        return printable(cell), ""
    return None
