# SPDX-License-Identifier: Apache-2.0
"""The speed of a transformer of Flux's real width, with few blocks and random weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

import quanto
from quanto.nn import QModule

__all__ = ["speeds"]

#: by name, the arguments of `quanto.quantize`; None for the float model.
SCHEMES: dict[str, dict[str, Any] | None] = {
    "bfloat16": None,
    "int8": {"weights": "int8"},
    "int8, activations int8": {"weights": "int8", "activations": "int8"},
    "float8": {"weights": "float8"},
    "float8, activations float8": {"weights": "float8", "activations": "float8"},
    "int4 g64": {"weights": "int4", "group_size": 64},
    "nf4 g64": {"weights": "nf4", "group_size": 64},
}


def build(blocks: int, device: torch.device) -> nn.Module:
    """`blocks` double and twice as many single blocks in bfloat16, on a device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = FluxTransformer2DModel(num_layers=blocks, num_single_layers=2 * blocks)
    made: nn.Module = model.to(torch.bfloat16).eval()
    return made


def inputs(pixels: int, device: torch.device) -> dict[str, Any]:
    """Of one picture of `pixels` x `pixels` and 512 tokens of text."""
    side = pixels // 16
    with torch.device(device):
        options = {"dtype": torch.bfloat16}
        return {
            "hidden_states": torch.randn(1, side * side, 64, **options),
            "encoder_hidden_states": torch.randn(1, 512, 4096, **options),
            "pooled_projections": torch.randn(1, 768, **options),
            "timestep": torch.tensor([0.5]),
            "guidance": torch.tensor([3.5]),
            "img_ids": torch.zeros(side * side, 3),
            "txt_ids": torch.zeros(512, 3),
        }


def _milliseconds(model: nn.Module, batch: dict[str, Any], repeats: int) -> float:
    """Of the fastest forward pass."""
    device = batch["timestep"].device
    best = float("inf")
    for _ in range(repeats + 2):
        torch.accelerator.synchronize(device)
        start = time.perf_counter()
        model(**batch, return_dict=False)
        torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best * 1000


@torch.no_grad()
def speeds(device: torch.device, blocks: int = 1, pixels: int = 1024, repeats: int = 10) -> Iterator[dict[str, Any]]:
    """A row for each scheme: bytes, milliseconds of a forward pass, and the relative error of its output.

    Args:
        device: an accelerator.
        blocks: double blocks; each is 340 million weights, and the two single blocks beside it 283 million.
        pixels: of a side of the picture.
        repeats: forward passes, of which the fastest counts.
    """
    batch = inputs(pixels, device)
    exact: torch.Tensor | None = None
    for name, fields in SCHEMES.items():
        torch.compiler.reset()
        model: Any = build(blocks, device)
        if fields is not None:
            quanto.freeze(quanto.quantize(model, **fields, progress=False), progress=False)
        found = model(**batch, return_dict=False)[0].float()
        exact = found if exact is None else exact
        row = {"scheme": name, "bytes": sum(p.nbytes for p in model.parameters())}
        row["relative error"] = float((found - exact).norm() / exact.norm())
        row["ms"] = _milliseconds(model, batch, repeats)
        model.compile_repeated_blocks(fullgraph=True)
        row["ms, blocks compiled"] = _milliseconds(model, batch, repeats)
        kernels = {line.kernel for line in quanto.explain(model).layers if line.kernel} if fields else set()
        yield {**row, "kernels": sorted(kernels), "layers": sum(isinstance(m, QModule) for m in model.modules())}
        del model, found
