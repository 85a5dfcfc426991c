# SPDX-License-Identifier: Apache-2.0
"""Real models of other kinds than language: quantized while they load, saved, loaded again, and judged.

The models and what they are judged by are those of `bench/modalities.py`, which compares algorithms; here it is the
way through transformers, whose reloaded models must equal the quantized ones to the bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from quanto_transformers import QuantoConfig

from ..sources.dinov2 import Dinov2
from ..sources.minilm import Encoder
from ..sources.packages import Missing
from ..sources.whisper import Speech

__all__ = ["real"]

SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "int8, activations int8": {"weights": "int8", "activations": "int8"},
    "int4 g32 mse": {"weights": "int4", "group_size": 32, "algorithm": "mse"},
}
PAIRS, PROMPTS, IMAGES = 200, 20, 200


def tasks() -> dict[str, Callable[[], Any]]:
    """What makes each model with its data, by name."""
    return {
        "Whisper tiny.en": lambda: Speech(PROMPTS),
        "all-MiniLM-L6-v2": lambda: Encoder(_text(), PAIRS),
        "DINOv2-S, linear probe": lambda: Dinov2(test=IMAGES),
    }


def _text() -> Path:
    """The prose of the demo as a file."""
    from demo.text import prose

    path = Path(tempfile.mkdtemp(), "prose.txt")
    path.write_text(prose(), encoding="utf-8")
    return path


def rows(task: Any) -> list[dict[str, Any]]:
    """The float model and each scheme."""
    model = task.load()
    cls, reference, size = type(model), task.outputs(model), model.get_memory_footprint()
    found = [{"model": task.name, "scheme": "float", "MB": size / 1e6, **task.compare(reference, reference)}]
    with tempfile.TemporaryDirectory() as root:
        model.save_pretrained(Path(root, "float"))
        for name, config in SCHEMES.items():
            made = cls.from_pretrained(Path(root, "float"), quantization_config=QuantoConfig(**config))
            made.save_pretrained(Path(root, name))
            again = cls.from_pretrained(Path(root, name))
            states = [model.state_dict() for model in (made, again)]
            same = states[0].keys() == states[1].keys()
            same = same and all(torch.equal(value, states[1][key]) for key, value in states[0].items())
            row = {"model": task.name, "scheme": name, "MB": again.get_memory_footprint() / 1e6, "bit-equal": same}
            found.append({**row, **task.compare(task.outputs(again), reference)})
    return found


def real(console: Console) -> list[dict[str, Any]]:
    """Measures, prints a table for each model and returns all rows; a model whose packages are missing is left out."""
    found: list[dict[str, Any]] = []
    for name, make in tasks().items():
        try:
            task = make()
            mine = rows(task)
        except (Missing, ImportError) as error:
            console.print(f"{name} is left out: {error}")
            continue
        columns = [key for key in mine[-1] if key != "model"]
        table = Table(*columns, title=name)
        for row in mine:
            table.add_row(*(f"{v:.4g}" if isinstance(v := row.get(key, ""), float) else str(v) for key in columns))
        console.print(table)
        found += mine
    return found
