# SPDX-License-Identifier: Apache-2.0
"""The subcommands that quanto-core brings, one module each."""

from __future__ import annotations

import typer

from . import bench, evaluate, info, inspect, planning, quantize

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds every subcommand of core."""
    app.command("quantize")(quantize.quantize)
    app.command("inspect")(inspect.inspect)
    app.command("eval")(evaluate.evaluate)
    app.command("plan")(planning.plan)
    app.command("bench")(bench.bench)
    app.command("info")(info.info)
