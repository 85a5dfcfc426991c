# SPDX-License-Identifier: Apache-2.0
"""`quanto inspect`: what a quantized folder holds, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import print_json
from .table import Table, show

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="A folder that quanto wrote.")],
    against: Annotated[Path | None, typer.Option(help="The float model, to measure what was lost.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    chart: Annotated[Path | None, typer.Option(help="Write the SQNR of each weight to this picture.")] = None,
) -> None:
    """Show the scheme and size of each layer, and its signal to noise against the float model."""
    from ..serialization.examine import examine
    from ..serialization.foreign import fetch

    report = examine(folder, None if against is None else fetch(against))
    if chart is not None:
        if against is None:
            raise ValueError("--chart shows SQNR: it needs --against")
        report.draw(chart)
    if as_json:
        print_json(report.to_dict())
    else:
        show(lambda width: [_layers(report), _whole(report)])


def _layers(report: Any) -> Table:
    rows = []
    plain = all(layer.name.endswith(".weight") for layer in report.layers)  # as nearly always
    for layer in report.layers:
        sqnr = "" if layer.sqnr is None else f"{layer.sqnr:.1f}" if math.isfinite(layer.sqnr) else "exact"
        shape = "×".join(map(str, layer.shape))
        name = layer.name.removesuffix(".weight") if plain else layer.name
        rows.append((name, layer.scheme, shape, f"{layer.bits:.2f}", f"{layer.bytes:,}", sqnr))
    heads = ("layer" if plain else "weight", "scheme", "shape", "bits", "bytes", "SQNR dB")
    return Table("layers", heads, tuple(rows), (1, 2, 3, 4, 5))  # a name may be wrapped, a number not


def _whole(report: Any) -> Table:
    rows = (
        ("quantized weights", f"{report.weights:,}, {report.bits:.3f} bits each"),
        ("their bytes", f"{report.quantized_bytes:,}"),
        ("other tensors' bytes", f"{report.other_bytes:,}"),
        ("shards", f"{report.shards}"),
    )
    return Table("whole", ("", ""), rows)
