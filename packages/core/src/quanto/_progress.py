# SPDX-License-Identifier: Apache-2.0
"""The progress bar of all long work: rich where it is installed, silence where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(
    iterable: Iterable[T], description: str, total: int | None = None, enabled: bool | None = None
) -> Iterable[T]:
    """Iterates with a progress bar on standard error.

    Args:
        iterable: what to iterate over; it is consumed lazily, one element at a time.
        description: the words left of the bar.
        total: the number of elements; None asks `len(iterable)`, and shows a pulse where that is not known either.
        enabled: True shows the bar (where standard error is no terminal, its final state only), False never does,
            None shows it when standard error is a terminal.

    Returns:
        An iterable of the same elements: `iterable` itself where no bar is shown or rich is not installed.
    """
    if enabled is None:
        enabled = sys.stderr is not None and sys.stderr.isatty()
    if not enabled or find_spec("rich") is None:
        return iterable
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _with_bar(iterable, description, total)


def _with_bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=console.is_interactive) as progress:
        task = progress.add_task(description, total=total)
        for element in iterable:
            yield element
            progress.advance(task)
