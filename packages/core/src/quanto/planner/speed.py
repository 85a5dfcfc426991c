# SPDX-License-Identifier: Apache-2.0
"""How long a layer takes under a scheme, by the registry's own kernels on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from ..model import freeze, quantize
from ..scheme import Scheme
from .layers import Layer

__all__ = ["layer_seconds", "time_layer"]


def layer_seconds(layers: Sequence[Layer], schemes: Sequence[Scheme], tokens: int = 1) -> list[list[float]]:
    """Seconds of each layer under each scheme for so many rows of input; equal shapes are timed once.

    Raises:
        ValueError: if a layer is not linear.
    """
    timed: dict[tuple[object, ...], float] = {}
    out = []
    for layer in layers:
        if not isinstance(layer.module, nn.Linear):
            raise ValueError(f"{layer.name}: only linear layers can be timed, got {type(layer.module).__name__}")
        row = []
        for scheme in schemes:
            weight = layer.weight
            key = tuple(weight.shape), weight.dtype, weight.device, scheme
            if key not in timed:
                timed[key] = time_layer(tuple(weight.shape), scheme, weight.dtype, weight.device, tokens)
            row.append(timed[key])
        out.append(row)
    return out


@torch.no_grad()
def time_layer(
    shape: tuple[int, ...],
    scheme: Scheme | None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    tokens: int = 1,
    seconds: float = 0.05,
) -> float:
    """Median seconds of a linear layer.

    Args:
        shape: of the weight, `(out, in)`.
        scheme: None for a floating one.
        dtype: of activations.
        device: where.
        tokens: rows of input.
        seconds: how long to measure.
    """
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, device=device)
    if scheme is not None:
        made = freeze(quantize(layer, scheme=scheme, progress=False), progress=False)
        if scheme.dynamic is False:  # any scale is as fast
            made.input_scale = torch.ones((), dtype=torch.float32, device=device)
    x = torch.randn(tokens, shape[1], dtype=dtype, device=device)
    device = torch.device(device)
    for _ in range(3):
        layer(x)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        layer(x)
        _wait(device)
        found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
