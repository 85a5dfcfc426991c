# SPDX-License-Identifier: Apache-2.0
"""The progress of a pipeline: blocks, loss and remaining time."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from .step import Block

__all__ = ["Progress"]


class Progress:
    """A bar on standard error; silent where rich is not installed.

    Args:
        total: how many blocks there are.
        enabled: None shows the bar if standard error is a terminal.
    """

    def __init__(self, total: int, enabled: bool | None) -> None:
        if enabled is None:
            enabled = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        if not enabled or find_spec("rich") is None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        columns = (
            TextColumn("calibrate {task.fields[block]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Rich(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=total, block="", loss="-")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, block: Block) -> None:
        """Counts a finished block and shows its mean loss."""
        if self._bar is None:
            return
        losses = list(block.losses.values())
        shown = f"{sum(losses) / len(losses):.2e}" if losses else "-"
        self._bar.update(self._task, advance=1, block=block.name, loss=shown)
