# SPDX-License-Identifier: Apache-2.0
"""Tables lose nothing: neither in a pipe nor in a narrow terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from quanto.cli.table import Table, show

TABLE = Table(
    "things",
    ("name", "size", "why"),
    (("group",), ("  acme.linear_int4\n  from acme", "12", "ready"), ("  other", "7", "needs a sentence of words")),
    whole=(0, 1),
)


def drawn(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(width=width, file=out, force_terminal=True, color_system=None).print(table.rich(width))
    return out.getvalue()


def test_plain_lines_are_aligned_and_whole() -> None:
    rows = (("a", "1", "x" * 300), ("longer", "20", ""))
    assert Table("things", ("name", "size", "why"), rows).plain().split("\n") == [
        "things",
        "name    size  why",
        "a       1     " + "x" * 300,
        "longer  20",
    ]


def test_a_list_has_no_headings() -> None:
    assert Table("things", ("", ""), (("a", "1"), ("bc", "2"))).plain() == "things\na   1\nbc  2"


def test_a_terminal_wraps_the_columns_that_may_be() -> None:
    lines = [line.rstrip() for line in drawn(TABLE, 50).splitlines()]
    assert lines[0] == "things"
    assert lines[1].split() == ["name", "size", "why"]
    assert lines[3] == "group"
    assert lines[4].split() == ["acme.linear_int4", "12", "ready"]
    assert lines[5] == "  from acme"
    assert max(map(len, lines)) <= 50
    assert "needs a sentence" in lines[6]


@pytest.mark.parametrize("width", [20, 30, 40, 80, 120])
def test_no_width_loses_a_character(width: int) -> None:
    found = drawn(TABLE, width)
    assert max(map(len, found.splitlines())) <= width
    for row in TABLE.rows:
        for letter in set("".join(row)) - set("".join(TABLE.columns) + TABLE.title + " \n"):
            assert found.count(letter) == str(TABLE.rows).replace("\\n", "").count(letter)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "width"), [(io.StringIO, None), (Terminal, 70)])
def test_show_asks_for_the_width(monkeypatch: pytest.MonkeyPatch, stream: Any, width: int | None) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take a pipe for a terminal
    monkeypatch.setattr(sys, "stdout", stream())
    asked = []

    def tables(found: int | None) -> list[Table]:
        asked.append(found)
        return [TABLE, TABLE] if found else [Table("a", ("",), (("x",),)), Table("b", ("",), (("y",),))]

    show(tables)
    assert asked == [width]
    if width is None:
        assert sys.stdout.getvalue() == "a\nx\n\nb\ny\n"  # type: ignore[attr-defined]
