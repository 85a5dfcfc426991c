# SPDX-License-Identifier: Apache-2.0
"""The subcommands that quanto-core brings, one module each."""

from __future__ import annotations

import typer

from . import info

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds every subcommand of core."""
    app.command("info")(info.info)
