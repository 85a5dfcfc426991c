# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: moves the outliers of activations into the weights."""

from __future__ import annotations

import torch

from .absorb import find_absorber, scale_inputs
from .statistics import input_groups, watch_inputs
from .step import Block, Step, as_float

__all__ = ["SmoothQuant"]


class SmoothQuant(Step):
    """Per-channel smoothing for quantized activations (Xiao et al., 2022, arXiv:2211.10438).

    Inputs are divided by `max|x| ** strength / max|w| ** (1 - strength)` per channel, weights multiplied by it; the
    inverse goes into the norm or layer before (see `find_absorber`).

    Args:
        strength: 0 leaves activations as they are, 1 gives all their channels one range.
    """

    name = "smooth"

    def __init__(self, strength: float = 0.5) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        self.strength = strength

    def apply(self, block: Block) -> None:
        """Smooths the inputs of every layer whose inputs something can absorb."""
        layers = block.layers()
        for group in input_groups(block):
            absorber = find_absorber(block, group)
            if absorber is None:
                block.skipped.append(f"{', '.join(group)}: nothing before can take the inverse of the scales")
                continue
            peaks = self._peaks(block, group[0])
            if peaks is None:
                continue
            members = [layers[name] for name in group]
            weights = torch.stack([m._parameters["weight"].detach().abs().amax(0) for m in members])  # type: ignore[union-attr]
            largest = weights.float().amax(0).clamp(min=1e-8)
            scale = largest ** (1 - self.strength) / peaks.clamp(min=1e-8) ** self.strength
            # `scale_inputs` multiplies columns of weights: the inverse of what divides the activations
            scale = (1 / scale).clamp(1e-4, 1e4)
            scale_inputs(absorber, members, absorber.expand(absorber.reduce(scale)))

    @staticmethod
    def _peaks(block: Block, name: str) -> torch.Tensor | None:
        """The largest magnitude of each input channel, `[in]` float32."""
        found: list[torch.Tensor] = []

        def see(_: str, x: torch.Tensor) -> None:
            peak = x.reshape(-1, x.shape[-1]).abs().amax(0).float()
            found[:] = [peak if not found else torch.maximum(found[0], peak)]

        handles = watch_inputs({name: block.layers()[name]}, see)
        try:
            with as_float(block.module):
                for index in range(len(block.inputs)):
                    block.inputs.run(block.module, index)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None
