# SPDX-License-Identifier: Apache-2.0
"""Loads a model once, in a process of its own: `python -m bench.hf.child HOW FOLDER CONFIG` prints what it took.

HOW is `quanto`, or `plain`: a Llama whose linear layers are nothing but holders of the tensors that the files name, so
that transformers reads the very same tensors of the very same files without quanto; or `plain-copied`, which then
copies each into memory of its own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM

import quanto_transformers
import quanto_transformers.quantizer  # not while the time runs

_DTYPES = {"I8": torch.int8, "U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def private() -> int:
    """Bytes of memory of one's own; pages of mapped files are not counted, for the system may drop them."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def stored(folder: Path) -> dict[str, dict[str, tuple[list[int], torch.dtype]]]:
    """Shape and dtype of each tensor in a folder, by module and by its name there."""
    found: dict[str, dict[str, tuple[list[int], torch.dtype]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                owner, _, leaf = name.rpartition(".")
                piece = file.get_slice(name)
                found.setdefault(owner, {})[leaf] = piece.get_shape(), _DTYPES[piece.get_dtype()]
    return found


def plain(folder: Path) -> type[LlamaForCausalLM]:
    """The class that holds what is stored, and knows nothing of it."""
    tensors = stored(folder)

    class Plain(LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name, module in list(self.named_modules()):
                if isinstance(module, nn.Linear) and "weight" not in tensors[name]:
                    holder = nn.Module()
                    for leaf, (shape, dtype) in tensors[name].items():
                        empty = torch.empty(shape, dtype=dtype)
                        holder.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))
                    self.set_submodule(name, holder)

    return Plain


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    how, folder, config = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    made = None if config is None else quanto_transformers.QuantoConfig(**config)
    cls = LlamaForCausalLM if how == "quanto" else plain(folder)
    done, peaks = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            peaks.append(private())

    for _ in range(2 if config is None else 1):  # the first also imports and starts what loading needs
        before, peaks[:] = private(), [0]
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        model = cls.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=made)
        if how == "plain-copied":
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        done.clear()
        size = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
        peak = max(peaks) - before
        del model
    print(json.dumps({"peak": peak, "seconds": seconds, "model": size}))


if __name__ == "__main__":
    main()
