# SPDX-License-Identifier: Apache-2.0
"""Loads saved models in a process that has never seen the originals, and compares their logits bit by bit.

`python -m demo.reload MODEL DTYPE THREADS FOLDER…` prints one JSON object per folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["reload_in_fresh_process"]


def reload_in_fresh_process(
    model: Path, folders: list[Path], dtype: str, threads: int
) -> dict[str, tuple[float, bool]]:
    """Starts a process that rebuilds the architecture from `config.json` and loads each folder into it.

    Args:
        model: a folder with the `config.json` of the architecture; nothing else of it is read.
        folders: saved models, each with its expected logits beside it (see `measure.CHECK`).
        dtype: `"bfloat16"` or `"float32"`, as the logits were computed.
        threads: as the logits were computed; the order of a sum depends on it.

    Returns:
        By the name of the folder: seconds to load, and whether `torch.equal` holds for the logits.

    Raises:
        RuntimeError: with the output of the process, if it failed.
    """
    command = [sys.executable, "-m", "demo.reload", str(model), dtype, str(threads), *map(str, folders)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the fresh process failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(each["folder"]).name: (each["seconds"], each["equal"]) for each in found}


def _check(model: Any, folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    import quanto

    from .measure import CHECK

    start = time.perf_counter()
    model = quanto.load(folder, model)
    seconds = time.perf_counter() - start
    expected = load_file(folder.with_name(f"{folder.name}.{CHECK}"))
    with torch.no_grad():
        logits = model(expected["tokens"]).logits
    return {"folder": str(folder), "seconds": seconds, "equal": torch.equal(logits, expected["logits"])}


def main(arguments: list[str]) -> None:
    model, dtype, threads, *folders = arguments

    import torch

    from .model import empty

    torch.set_num_threads(int(threads))
    for folder in folders:
        print(json.dumps(_check(empty(Path(model), getattr(torch, dtype)), Path(folder))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
