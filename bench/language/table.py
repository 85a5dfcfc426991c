# SPDX-License-Identifier: Apache-2.0
"""The rows as a table in Markdown, beside the file of all numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["table", "write"]


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown; recovered is the part of min/max's loss at the same width that is gone."""
    base, whole = result["float"]["loss"], result["float"].get("whole", {})
    lines = [
        f"# {result['model']}",
        "",
        f"Held-out text {result['text']}, {result['tokens']:,} tokens in blocks of {result['block']}; calibration "
        f"{result['calibration'][0]}, {result['samples']} blocks. Float perplexity {math.exp(base):.3f}.",
        "",
    ]
    kinds = ("drawn", "four times", "mixed")
    marked = {kind for label in result["rows"] for kind in kinds if label.endswith(f"{kind})")}
    if "drawn" in marked:
        lines += [f"Rows marked drawn were calibrated on {result['drawn']} blocks that the model drew itself.", ""]
    if "four times" in marked:
        lines += [f"Rows marked four times were calibrated on {4 * result['drawn']} such blocks.", ""]
    if "mixed" in marked:
        texts = ", ".join(result["calibration"])
        lines += [
            f"Rows marked mixed were calibrated on {result['mixed']} blocks: {texts} and drawn ones in turns.",
            "",
        ]
    if whole:
        texts = " and ".join(f"{name} ({exact['tokens']:,} tokens)" for name, exact in whole.items())
        lines += [f"The columns of whole texts are losses on all of {texts}.", ""]
    if result.get("note"):
        lines += [result["note"], ""]
    heads = ["weights", "bits per weight", "perplexity", "times float", "loss (nats)", "recovered"]
    heads += [f"loss, whole {name}" for name in whole] + ["seconds"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for label, row in result["rows"].items():
        if "missing" in row:
            lines.append(f"| {label} | missing |" + " |" * (len(heads) - 2))
            continue
        words = label.split()
        start = " ".join(words[:2] if len(words) > 1 and words[1][:1] == "g" else words[:1])
        plain = result["rows"].get(f"{start} minmax", {}).get("loss")
        # at 8 bits losses are as small as their noise
        comparable = plain and label.startswith("int") and not label.startswith("int8") and " x " not in label
        cells = [label, f"{row['bits']:.2f}", f"{math.exp(base + row['loss']):.2f}", f"{math.exp(row['loss']):.4f}"]
        cells += [f"{row['loss']:.4f}", f"{1 - row['loss'] / plain:.0%}" if comparable else ""]
        cells += [f"{row['whole'][name]:.4f}" if name in row.get("whole", {}) else "" for name in whole]
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        cells.append(seconds + (" on a GPU" if seconds and row.get("device", "cpu") != "cpu" else ""))
        lines.append(f"| {' | '.join(cells)} |")
    missing = {label: row["missing"] for label, row in result["rows"].items() if "missing" in row}
    lines += [""] * bool(missing) + [f"Missing: {label}: {why}" for label, why in missing.items()]
    return "\n".join(lines) + "\n"


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes both files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(result), encoding="utf-8")
