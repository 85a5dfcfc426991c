# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of loading, on the fly and from saved files.

Of saved files twice: with codes as the file has them, which are mapped from it, and arranged for the fastest kernel,
which takes memory of one's own. Beside each stands what transformers takes to load the same tensors without quanto,
mapped, or copied into memory of one's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from quanto_transformers import QuantoConfig

__all__ = ["loading"]

SHARD = "200MB"
REPEATS = 5  # of what is timed, taking turns; the fastest counts
SCHEMES: dict[str, dict[str, Any]] = {"int8": {"weights": "int8"}, "int4": {"weights": "int4"}}
CANONICAL = {"QUANTO_KERNELS": "cpu.canonical.linear,reference.linear"}
#: what is loaded, how (see `child.py`), its environment, and the row that it is compared with
SAVED: dict[str, tuple[str, dict[str, str], str]] = {
    "same tensors, mapped": ("plain", {}, ""),
    "saved, as in the file": ("quanto", CANONICAL, "same tensors, mapped"),
    "same tensors, copied": ("plain-copied", {}, ""),
    "saved, arranged": ("quanto", {}, "same tensors, copied"),
}


def child(folder: Path, config: dict[str, Any] | None, how: str = "quanto", **env: str) -> dict[str, float]:
    """Peak of private bytes beyond those held before, bytes of the model, and seconds, in a fresh process."""
    command = [sys.executable, "-m", "bench.hf.child", how, str(folder), json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def big_model(folder: Path) -> Path:
    """Writes a Llama of 0.6 billion random weights in bfloat16."""
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=11, vocab_size=8192)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def without_quanto(saved: Path, folder: Path) -> Path:
    """The same files, beside a config that does not say that they are quantized."""
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((saved / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def saved_rows(name: str, saved: Path, bare: Path) -> list[dict[str, Any]]:
    """The four ways of `SAVED`."""
    found: dict[str, list[dict[str, float]]] = {what: [] for what in SAVED}
    for _ in range(REPEATS):
        for what, (how, env, _) in SAVED.items():
            found[what].append(child(saved if how == "quanto" else bare, None, how, **env))
    best = {what: min(rows, key=lambda row: row["seconds"]) for what, rows in found.items()}
    rows = []
    for what, (_, _, beside) in SAVED.items():
        speed = {"speed of same tensors": best[beside]["seconds"] / best[what]["seconds"]} if beside else {}
        rows.append({"what": f"{name}, {what}", **best[what], **speed})
    return rows


def loading(console: Console) -> list[dict[str, Any]]:
    """Measures, prints a table and returns its rows."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = big_model(Path(root, "float"))
        shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
        rows.append({"what": "float", **child(folder, None)})
        for name, config in SCHEMES.items():
            rows.append({"what": f"{name}, on the fly", **child(folder, config)})
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, quantization_config=QuantoConfig(**config)
            )
            saved = Path(root, name)
            model.save_pretrained(saved, max_shard_size=SHARD)
            del model
            rows += saved_rows(name, saved, without_quanto(saved, Path(root, f"{name}-bare")))
    table = Table(title=f"Loading 0.6 billion weights, shards of {SHARD} (largest {shard / 1e6:.0f} MB)")
    for column in ("", "model MB", "peak MB", "peak - model MB", "seconds", "speed of same tensors"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        row["peak beyond model"], row["largest shard"] = row["peak"] - row["model"], shard
        sizes = (f"{row[key] / 1e6:.0f}" for key in ("model", "peak", "peak beyond model"))
        speed = row.get("speed of same tensors")
        table.add_row(row["what"], *sizes, f"{row['seconds']:.3f}", "" if speed is None else f"{speed:.2f} x")
    console.print(table)
    return rows
