# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .bars import Bar

__all__ = ["print_bars", "print_linear", "print_operators"]


def print_linear(console: Console, found: dict[str, Any]) -> None:
    """One table for each shape and number of threads: a line for each candidate, a column for each number of tokens."""
    rows = found["linear"]
    places = sorted({(row["n"], row["k"], row["threads"]) for row in rows})
    for place in places:
        here = [row for row in rows if (row["n"], row["k"], row["threads"]) == place]
        tokens = sorted({row["tokens"] for row in here})
        read = max(row.get("read_gbs", 0) for row in here)
        title = (
            f"{found['profile']} ({found['isa']}), {place[0]} × {place[1]}, {place[2]} threads, read {read:.1f} GB/s"
        )
        table = Table("library", "kernel", "weights", "x", "error rms", "worst", title=title)
        for count in tokens:
            table.add_column(f"{count}: µs" + (" (GB/s, of read)" if count == 1 else " (GFLOP/s)"), justify="right")
        for key in dict.fromkeys((r["source"], r["name"], r["weights"], r["activations"], r["compute"]) for r in here):
            mine = [r for r in here if (r["source"], r["name"], r["weights"], r["activations"], r["compute"]) == key]
            error = [f"{mine[0][e]:.0e}" if mine[0][e] is not None else "–" for e in ("error_rms", "error_max")]
            cells = [_cell(min((r for r in mine if r["tokens"] == count), key=_time, default=None)) for count in tokens]
            style = "bold" if key[0] == "quanto" else None
            table.add_row(key[0], f"{key[1]} ({key[4]})", key[2], key[3], *error, *cells, style=style)
        console.print(table)


def _time(row: dict[str, Any]) -> float:
    return float(row["us"] or "inf")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["us"] is None:
        return str(row["note"])[:30]
    if row["tokens"] == 1:
        return f"{row['us']:.0f} ({row['gbs']:.1f}, {row['gbs'] / row['read_gbs']:.0%})"
    return f"{row['us']:.0f} ({row['gflops']:.0f})"


def print_operators(console: Console, found: dict[str, Any]) -> None:
    """Milliseconds of the other operators, and the cost of a call."""
    rows = found["operators"]
    table = Table("operator", "weights", title=f"{found['profile']}: other operators, 4096 × 4096 where not said")
    threads = sorted({row["threads"] for row in rows})
    for count in threads:
        table.add_column(f"{count} threads: ms (GB/s)", justify="right")
    table.add_column("core's reference, 1 thread: ms", justify="right")
    for key in dict.fromkeys((row["operator"], row["weights"]) for row in rows):
        mine = [row for row in rows if (row["operator"], row["weights"]) == key]
        cells = [f"{row['ms']:.2f} ({row['gbs']:.1f})" for row in mine]
        slow = mine[0]["reference_ms"]
        table.add_row(*key, *cells, "" if slow is None else f"{slow:.1f}")
    console.print(table)
    for name, value in found["overhead_us"].items():
        console.print(f"64 × 64, one token, {name}: {value:.1f} µs")
    for ceiling in found["ceilings"]:
        console.print(
            f"{ceiling['threads']} threads: read {ceiling['read_gbs']:.1f} GB/s, int8 {ceiling['int8_gops']:.0f} GOP/s"
        )
    for name, why in found["missing"].items():
        console.print(f"[yellow]missing[/]: {name}: {why}", highlight=False)


def print_bars(console: Console, found: dict[str, Any], bars: list[Bar]) -> None:
    """Each bar with its figures."""
    table = Table(
        "bar",
        "asked",
        "measured",
        "met",
        title=f"Bars, {found['profile']}: {found['processor']} ({found['isa']})",
        show_lines=True,
    )
    for bar in bars:
        verdicts = [bar.met(figure) for figure in bar.figures]
        lines = []
        for figure, met in zip(bar.figures, verdicts, strict=True):
            color = "dim" if met is None else "green" if met else "red"
            value = "–" if figure.value is None else f"{figure.value:.2f}"
            against = f"  [dim]{figure.against}[/]" if figure.against else ""
            lines.append(f"[{color}]{value}[/]  {figure.where}{against}")
        known = [met for met in verdicts if met is not None]
        limit = f"{'≤' if bar.most else '≥'} {bar.limit:g}"
        table.add_row(bar.name, limit, "\n".join(lines) or "–", f"{sum(known)}/{len(known)}" if known else "–")
    console.print(table)
