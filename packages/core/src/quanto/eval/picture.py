# SPDX-License-Identifier: Apache-2.0
"""Pictures of measurements, by matplotlib where it is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

__all__ = ["bars", "curve"]

_COLORS = ("#2a6f97", "#e07a5f", "#3d405b", "#81b29a", "#b7791f", "#8d5a97", "#6c757d")


def bars(
    names: Sequence[str], values: Sequence[float], kinds: Sequence[str], label: str, path: str | os.PathLike[str]
) -> None:
    """Draws a horizontal bar for each name, coloured by its kind.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    figure = _figure(8, max(2.0, 0.22 * len(names) + 1))
    axes = figure.add_subplot()
    colors = {kind: _COLORS[i % len(_COLORS)] for i, kind in enumerate(dict.fromkeys(kinds))}
    for kind, color in colors.items():
        rows = [i for i, k in enumerate(kinds) if k == kind]
        axes.barh(rows, [values[i] for i in rows], color=color, label=kind)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top, and no empty space
    axes.set_xlabel(label)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def curve(
    x: Sequence[float],
    y: Sequence[float],
    marks: Sequence[tuple[float, float, str]],
    labels: tuple[str, str],
    path: str | os.PathLike[str],
) -> None:
    """Draws a falling curve with named points on it or beside it; the second axis is logarithmic.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    figure = _figure(7, 4.5)
    axes = figure.add_subplot()
    axes.step(x, y, where="post", color=_COLORS[0])
    for i, (a, b, name) in enumerate(marks):
        color = _COLORS[1 + i % (len(_COLORS) - 1)]
        axes.plot([a], [b], "o", color=color)
        axes.annotate(name, (a, b), xytext=(6, 5), textcoords="offset points", color=color, fontsize=9)
    axes.set_yscale("log")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.08)  # room for the names of the outer points
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    if find_spec("matplotlib") is None:
        raise ValueError('a picture needs matplotlib: pip install "quanto-core[eval]"')
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    suffix = os.path.splitext(os.fspath(path))[1][1:].lower()
    kinds = figure.canvas.get_supported_filetypes()
    if suffix not in kinds:
        raise ValueError(f"{os.fspath(path)!r}: the suffix of a picture must be one of {', '.join(sorted(kinds))}")
    figure.savefig(path, dpi=150)
