# SPDX-License-Identifier: Apache-2.0
"""Bits per weight against loss, quanto's algorithms beside other libraries, one panel for each model.

`python -m bench.language.picture` reads `bench/results/accuracy-*.json` and writes `docs/images/accuracy.png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import figure

from ..peers import PEERS

ROOT = Path(__file__).parents[2]
#: label of a curve -> how its rows end, its colour
CURVES = {
    "quanto, min/max": (" minmax", "#9aa5b1"),
    "quanto, hqq: no data": (" hqq", "#2a6f97"),
    "quanto, gptq: text that the model draws": (" gptq (drawn)", "#e07a5f"),
    "quanto, gptq: sample text": (" gptq", "#81b29a"),
    "quanto, best: text that the model draws": (" best (drawn)", "#9b2226"),
}
#: start of a peer's rows -> its colour and marker
OTHERS = {
    "optimum-quanto": ("#3d405b", "s"),
    "torchao": ("#8d5a97", "^"),
    "bitsandbytes": ("#b7791f", "D"),
    "hqq": ("#c44569", "v"),
    "ggml": ("#444444", "P"),
    "llm-compressor": ("#1b998b", "X"),
}
LARGEST = 1.0  # nats; beyond, nothing is usable


def panel(axes: Any, result: dict[str, Any]) -> None:
    """Draws one model: curves through a method's widths, and points of peers."""
    found = {label: row for label, row in result["rows"].items() if "loss" in row and row["bits"] < 6}
    for name, (end, color) in CURVES.items():
        rows = sorted(
            (r["bits"], r["loss"]) for label, r in found.items() if label[:3] == "int" and label.endswith(end)
        )
        rows = [row for row in rows if row[1] < LARGEST]
        axes.plot([b for b, _ in rows], [v for _, v in rows], "o-", color=color, label=name, zorder=3)
    for start, (color, marker) in OTHERS.items():
        rows = [(r["bits"], r["loss"]) for label, r in found.items() if label in PEERS and label.startswith(start)]
        rows = [row for row in rows if row[1] < LARGEST]
        axes.plot([b for b, _ in rows], [v for _, v in rows], marker, color=color, label=start, ms=6, alpha=0.75)
    axes.set_yscale("log")
    axes.set_title(result["model"], fontsize=10)
    axes.set_xlabel("bits per weight, scales and zero points included")
    axes.grid(alpha=0.3, which="both")


def main() -> None:
    """Draws every model that has results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["llama-28m", "llama-7m"])
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "accuracy.png")
    options = parser.parse_args()
    canvas = figure.Figure(figsize=(5 * len(options.models), 4.6), layout="constrained")
    for axes, model in zip(canvas.subplots(1, len(options.models), squeeze=False)[0], options.models, strict=True):
        panel(axes, json.loads((options.results / f"accuracy-{model}.json").read_text(encoding="utf-8")))
    axes.figure.axes[0].set_ylabel("loss: rise of log-perplexity over float, nats")
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    canvas.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
