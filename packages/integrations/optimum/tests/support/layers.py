# SPDX-License-Identifier: Apache-2.0
"""Layers quantized by whichever package brings `optimum.quanto`: `write FILE` with one, `compare FILE` with the other.

Holds the float weight of each layer, its state dict and its dequantized values, as safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimum.quanto import freeze, quantize, requantize

SHAPES = ((48, 256), (33, 200), (16, 192), (1, 64), (8, 4, 3, 3))
QTYPES = ("qint8", "qfloat8", "qfloat8_e5m2", "qint4", "qint2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _layer(weight: Tensor) -> nn.Module:
    if weight.ndim == 4:
        made: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False, dtype=weight.dtype)
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.clone())
    return made


def weights() -> Iterator[tuple[str, Tensor]]:
    """Float weights with one row that needs larger scales than the others."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        for shape in SHAPES:
            weight = torch.randn(shape) * 0.02
            if shape[0] > 1:
                weight[0] = 0.5
            yield f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}", weight.to(dtype)


def quantized(weight: Tensor, qtype: str) -> dict[str, Tensor]:
    """The state dict of a layer with that weight, and its values."""
    model = nn.Sequential(_layer(weight))
    quantize(model, weights=qtype)
    freeze(model)
    values = model[0].weight.dequantize().detach().contiguous()
    return {**model.state_dict(), "values": values}


def write(path: str) -> None:
    """Writes what the installed package makes of each layer."""
    found = {}
    for name, weight in weights():
        found[f"{name}/weight"] = weight.contiguous()
        for qtype in QTYPES:
            made = quantized(weight, qtype)
            found |= {f"{name}/{qtype}/{key}": value.contiguous() for key, value in made.items()}
    save_file(found, path)


def _bits(x: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return x.dtype, tuple(x.shape), x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(weight: Tensor, qtype: str, state: dict[str, Tensor]) -> Tensor:
    """The values of a layer into which the other package's state dict is loaded."""
    model = nn.Sequential(_layer(torch.zeros_like(weight)))
    requantize(model, state, {"0": {"weights": qtype, "activations": "none"}})
    values: Tensor = model[0].weight.dequantize().detach()
    return values


def compare(path: str) -> list[str]:
    """What the installed package writes or reads otherwise, by name."""
    held, wrong, layers = load_file(path), [], 0
    for name in sorted({key.split("/")[0] for key in held}):
        weight = held[f"{name}/weight"]
        for qtype in QTYPES:
            layers += 1
            prefix = f"{name}/{qtype}/"
            theirs = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
            ours = quantized(weight, qtype)
            for key in sorted({*theirs, *ours}):
                if key not in ours or key not in theirs or _bits(ours[key]) != _bits(theirs[key]):
                    wrong.append(prefix + key)
            values = theirs.pop("values")
            if _bits(read(weight, qtype, theirs)) != _bits(values):
                wrong.append(f"{prefix}as read")
    print(f"{layers} layers compared, {len(wrong)} tensors differ")
    return wrong


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    elif different := compare(sys.argv[2]):
        sys.exit("\n".join(different))
