# SPDX-License-Identifier: Apache-2.0
"""The table, the notes that belong beside it, and the same figures as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from .measure import Row

__all__ = ["notes", "table", "write_json"]

COLUMNS = (
    "scheme",
    "group",
    "bits/\nweight",
    "file\nMB",
    "perplexity",
    "change",
    "tokens\n/s",
    "quant-\nize s",
    "save\ns",
    "load\ns",
)


def table(rows: list[Row], title: str) -> Table:
    """Builds the table; the first row is the float model, to which the others are compared."""
    # Ten columns in the 80 characters of the narrowest usual terminal: little padding.
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    result.add_column(COLUMNS[0], style="bold", no_wrap=True, vertical="bottom")
    for name in COLUMNS[1:]:
        result.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    baseline = rows[0].perplexity.value
    for row in rows:
        value = row.perplexity.value
        result.add_row(
            row.scheme,
            row.groups,
            f"{row.bits:.2f}",
            f"{row.file_bytes / 1e6:.0f}",
            f"{value:,.2f}" if value < 1000 else f"{value:,.0f}",
            "" if row is rows[0] else _change(value / baseline),
            f"{row.per_second:.1f}",
            _seconds(row.quantize_s),
            _seconds(row.save_s),
            _seconds(row.load_s),
        )
    return result


def notes(rows: list[Row], convention: str, kept: str) -> list[str]:
    """The sentences without which the figures mislead.

    Args:
        rows: the table.
        convention: what the perplexity was measured on.
        kept: what stayed float, in words.
    """
    result = [
        f"Perplexity (lower is better): {convention}.",
        "Group: weights that share a scale. Bits per weight count codes, scales and zero points of the quantized "
        f"layers. {kept}",
    ]
    if kernels := _kernels(rows):
        result.append(f"Kernels: {kernels}.")
    if any(row.scheme == "int4" for row in rows):
        result.append(
            "int4: these weights were stored in 4 bits before (Q4_1, groups of 32), so this is a second quantization "
            "of them, and says little about int4 on a model that never was. Groups of 32 would only find the old grid "
            "again and look lossless."
        )
    if any("," in row.groups for row in rows):
        result.append(
            "Two group sizes: where a layer's width (576) isn't a multiple of 128, the group is the largest multiple "
            "of 32 up to 128 that divides it."
        )
    if any(row.scheme == "int2" for row in rows):
        result.append("int2 by rounding alone breaks a model of this size: it shows where plain rounding ends.")
    return result


def write_json(rows: list[Row], path: Path, about: dict[str, Any]) -> None:
    """Writes the figures with the versions and the machine they belong to."""
    path.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n", encoding="utf-8")


def _kernels(rows: list[Row]) -> str:
    """Which kernels ran which schemes."""
    schemes: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.kernels:
            schemes.setdefault(row.kernels, []).append(row.scheme)
    return "; ".join(f"{' and '.join(kernels)} for {', '.join(names)}" for kernels, names in schemes.items())


def _change(ratio: float) -> str:
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"×{ratio:,.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
