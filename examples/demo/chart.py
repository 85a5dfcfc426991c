# SPDX-License-Identifier: Apache-2.0
"""The picture: size against perplexity, and tokens per second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .measure import Row

__all__ = ["draw"]

# Okabe and Ito's palette, which people with any colour vision can tell apart; markers say the same once more.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("s", "o", "P", "D", "v", "X", "*")  # not "^", which says off the scale
STYLE = {
    "font.size": 11,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
}
OFF_SCALE = 3.0  # a perplexity this many times that of the float model is drawn at the edge, with an arrow


def draw(rows: list[Row], path: Path, *, title: str, caption: str) -> None:
    """Writes the chart as a PNG of 1650 × 825 pixels.

    Args:
        rows: at least one; the first is the float model, the yardstick of the others.
        path: where the PNG goes.
        title: the heading.
        caption: small print under the panels: the convention, the machine.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.5), width_ratios=(3, 2), layout="constrained")
        _quality(left, rows)
        _speed(right, rows)
        figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left")
        figure.supxlabel(caption, fontsize=8.5, color="#555555", x=0.01, ha="left")
        figure.get_layout_engine().set(h_pad=0.1)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _quality(axes: Axes, rows: list[Row]) -> None:
    megabytes = [row.file_bytes / 1e6 for row in rows]
    values = [row.perplexity.value for row in rows]
    baseline = values[0]
    inside = [value for value in values if value <= OFF_SCALE * baseline]
    span = max(max(inside) - min(inside), 0.1 * baseline)
    top = max(inside) + 0.45 * span
    axes.set_ylim(min(inside) - 0.25 * span, top)
    axes.set_xlim(0, max(megabytes) * 1.12)
    axes.axhline(baseline, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    anchors = [(x, min(y, top - 0.06 * span)) for x, y in zip(megabytes, values, strict=True)]
    for index, (row, (x, y)) in enumerate(zip(rows, anchors, strict=True)):
        off_scale = row.perplexity.value > OFF_SCALE * baseline
        marker = "^" if off_scale else MARKERS[index % len(MARKERS)]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(x, y, marker, color=colour, markersize=11, markeredgecolor="white", clip_on=False, zorder=3)
        label = f"{row.scheme}  {'off the scale: ' if off_scale else ''}{_short(row.perplexity.value)}"
        # Of two points at nearly one place the upper gets its label above; right of the float model runs its line.
        crowd = [i for i, other in enumerate(anchors) if _near(other, (x, y), axes.get_xlim()[1], span)]
        crowd.sort(key=lambda i: -anchors[i][1])
        place = "right" if index and len(crowd) == 1 else ("above", "below")[crowd.index(index) % 2]
        offset, align = {
            "right": ((11, 0), ("left", "center")),
            "above": ((0, 11), ("center", "bottom")),
            "below": ((0, -11), ("center", "top")),
        }[place]
        axes.annotate(
            label, (x, y), xytext=offset, textcoords="offset points", ha=align[0], va=align[1], annotation_clip=False
        )
    axes.set_title("Quality and size: lower left is better")
    axes.set_xlabel("file size in MB")
    axes.set_ylabel("perplexity")
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _speed(axes: Axes, rows: list[Row]) -> None:
    names = [row.scheme for row in rows]
    speeds = [row.per_second for row in rows]
    bars = axes.barh(names, speeds, color=[COLOURS[i % len(COLOURS)] for i in range(len(rows))], height=0.62)
    axes.bar_label(bars, labels=[f"{speed:.1f}" for speed in speeds], padding=5)
    axes.set_xlim(0, max(speeds) * 1.15)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Speed: longer is better")
    axes.set_xlabel("generated tokens per second, one sequence")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _near(one: tuple[float, float], other: tuple[float, float], width: float, height: float) -> bool:
    return abs(one[0] - other[0]) < 0.2 * width and abs(one[1] - other[1]) < 0.12 * height


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
