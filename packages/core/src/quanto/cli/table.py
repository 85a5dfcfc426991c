# SPDX-License-Identifier: Apache-2.0
"""`Table`: rows of words, as plain lines for a pipe or through rich for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes 35 ms to import, which a pipe does not need
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["Table", "show"]

_STYLES = {"ready": "green", "forced": "green", "loaded": "green", "blocked": "yellow", "no": "yellow", "failed": "red"}
_GAP = 2  # blanks between columns
_LEAST = 12  # columns of a terminal in which a wrapped column is still readable


@dataclass(frozen=True)
class Table:
    """Rows of words under a title.

    Attributes:
        title: printed above.
        columns: headings; all empty for a list of names and values.
        rows: as many words each, or a single one that heads the rows below it. In a terminal a known status is
            coloured, and the lines of a word after its first are dim.
        whole: indices of the columns that a terminal does not wrap if it has room for the others.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    whole: tuple[int, ...] = ()

    def plain(self) -> str:
        """Aligned columns without wrapping, cutting or colour."""
        lines = [self.columns, *self.rows] if any(self.columns) else [*self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [(" " * _GAP).join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *padded])

    def rich(self, width: int) -> RichTable:
        """For a terminal of that many columns, to which it is wrapped."""
        from rich import box
        from rich.table import Table as RichTable

        made = RichTable(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            show_header=any(self.columns),
            padding=(0, _GAP, 0, 0),
            header_style="dim",
        )
        whole = self.whole if self._room(width) else ()
        for index, heading in enumerate(self.columns):
            made.add_column(heading, no_wrap=index in whole, overflow="fold")
        for row in self.rows:
            made.add_row(*map(_cell, row), style="bold" if len(row) < len(self.columns) else None)
        return made

    def _room(self, width: int) -> bool:
        """Whether the columns that are not wrapped leave enough to the others."""
        lines = [(i, line) for row in self.rows for i, word in enumerate(row) for line in word.split("\n")]
        longest = (max((len(line) for i, line in lines if i == index), default=0) for index in self.whole)
        wrapped = len(self.columns) - len(self.whole)
        return sum(longest) + wrapped * _LEAST + len(self.columns) * (_GAP + 1) <= width


def _cell(word: str) -> Text:
    from rich.text import Text

    first, newline, rest = word.partition("\n")
    return Text.assemble((first, _STYLES.get(first, "")), newline, (rest, "dim"))


def show(tables: Callable[[int | None], list[Table]]) -> None:
    """Writes tables to standard output.

    Args:
        tables: makes them for a terminal of so many columns, or for None plain lines of any length.
    """
    if not sys.stdout.isatty():
        sys.stdout.write("\n\n".join(table.plain() for table in tables(None)) + "\n")
        return
    from rich.console import Console

    console = Console()
    for index, table in enumerate(tables(console.width)):
        if index:
            console.print()
        console.print(table.rich(console.width))
