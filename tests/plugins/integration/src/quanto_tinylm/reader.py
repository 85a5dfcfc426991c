# SPDX-License-Identifier: Apache-2.0
"""Reads the folders of `tinylm quantize`: int8 weights `[in, out]` with a scale for each output."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

import quanto

FILE = "tinylm-int8.safetensors"


class Reader:
    """`NAME.weight.int8` and `NAME.weight.scale` for each quantized layer; all else as it is."""

    def detect(self, folder: Path) -> bool:
        return (folder / FILE).is_file()

    def load(self, folder: Path, model: nn.Module) -> nn.Module:
        tensors, layers = load_file(folder / FILE), {}
        for name in [n.removesuffix(".weight.int8") for n in tensors if n.endswith(".weight.int8")]:
            tensors[f"{name}.weight_packed"] = tensors.pop(f"{name}.weight.int8").t().contiguous()
            tensors[f"{name}.weight_scale"] = tensors.pop(f"{name}.weight.scale").unsqueeze(-1)
            layers[name] = {"scheme": {"weights": "int8"}}
        return quanto.requantize(model, tensors, layers)
