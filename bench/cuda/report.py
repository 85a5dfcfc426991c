# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["show"]

Row = dict[str, Any]


def show(console: Console, found: dict[str, Any]) -> None:
    """Prints everything of a run."""
    limits = found["ceilings"]
    console.print(
        f"{found['gpu']}, torch {found['torch']}, triton {found['triton']}: read {limits['read_gbs'] / 1e3:.2f} TB/s, "
        f"bf16 {limits['bf16_tflops']:.0f} TFLOP/s"
    )
    if any(row.get("run") for row in found["linear"]):
        console.print("* of a run before, on such a GPU")
    for shape in dict.fromkeys((row["n"], row["k"]) for row in found["linear"]):
        console.print(_linear([row for row in found["linear"] if (row["n"], row["k"]) == shape], shape))
    table = Table("operator", "us", "GB/s", "of read", title="Other operators")
    for row in found["operators"]:
        cells = (row["note"], "", "") if "note" in row else (
            f"{row['us']:.1f}", f"{row['gbs']:.0f}", f"{row['share']:.0%}")  # fmt: skip
        table.add_row(row["operator"], *cells)
    console.print(table)
    table = Table("bar", "where", "asked", "measured", "", title="Bars")
    for bar in found["bars"]:
        value = "–" if bar["value"] is None else f"{bar['value']:.3g}"
        met = {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}[bar["met"]]
        table.add_row(bar["bar"], bar["where"], f"{'≥' if bar['least'] else '≤'} {bar['limit']:.3g}", value, met)
    console.print(table)


def _linear(rows: list[Row], shape: tuple[int, int]) -> Table:
    tokens = sorted({row["m"] for row in rows} - {0})
    table = Table("source", "kernel", "error", title=f"{shape[0]} × {shape[1]}")
    for m in tokens:
        table.add_column(f"{m}: us ({'GB/s' if m < 64 else 'TFLOP/s'}, of ceiling)", justify="right")
    for key in dict.fromkeys((row["source"], row["name"]) for row in rows):
        mine = {row["m"]: row for row in rows if (row["source"], row["name"]) == key}
        errors = [row["error"] for row in mine.values() if row.get("error") is not None]
        cells = [_cell(mine.get(m)) for m in tokens]
        if 0 in mine:
            cells[:1] = [mine[0]["note"]]
        table.add_row(*key, f"{max(errors):.0e}" if errors else "", *cells, style="bold" if key[0] == "quanto" else "")
    return table


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "note" in row:
        return str(row["note"])[:40]
    rate = row["gbs"] if row["m"] < 64 else row["tflops"]
    mark = "*" if row.get("run") else ""
    return f"{row['us']:.1f}{mark} ({rate:.0f}, {row['share']:.0%})"
