# SPDX-License-Identifier: Apache-2.0
"""A sample of the tokens that layers are given, with the sizes of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .statistics import watching
from .step import Block

__all__ = ["SampledInputs", "sample_inputs"]


class SampledInputs(NamedTuple):
    """What a layer is given over all batches.

    Attributes:
        rows: `[tokens, in]` float32, some of the tokens.
        peaks: `[batches, in]` float32, the largest magnitude of each channel in the tokens of a batch.
        squares: `[in]` float32, the mean square of each channel over all tokens.
    """

    rows: Tensor
    peaks: Tensor
    squares: Tensor

    def scaled(self, scale: Tensor) -> SampledInputs:
        """The same with each channel multiplied by a positive number, `[in]`."""
        return SampledInputs(self.rows * scale, self.peaks * scale, self.squares * scale.square())


@torch.no_grad()
def sample_inputs(block: Block, names: Sequence[str], tokens: int = 1024) -> dict[str, SampledInputs]:
    """The inputs of some layers of a block; what was never called is missing.

    Args:
        block: with the layers, still floating.
        names: of the layers.
        tokens: how many to keep of each, at most: of each batch evenly spaced ones, and the one with the largest
            magnitude. With more batches than that, the first ones serve.
    """
    each = max(2, tokens // max(len(block.inputs), 1))
    kept: dict[str, list[Tensor]] = {}
    peaks: dict[str, list[Tensor]] = {}
    sums: dict[str, tuple[Tensor, int]] = {}

    def see(name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        squares, count = sums.get(name, (torch.zeros((), device=rows.device), 0))
        sums[name] = squares + rows.square().sum(0), count + len(rows)
        sizes = rows.abs()
        peaks.setdefault(name, []).append(sizes.amax(0))
        if sum(map(len, kept.setdefault(name, []))) >= tokens:
            return
        places = torch.linspace(0, len(rows) - 1, min(each - 1, len(rows)), device=rows.device).long()
        largest = sizes.amax(1).argmax()[None]
        kept[name].append(rows[torch.cat([places, largest])])

    with watching(block.module, {name: block.module.get_submodule(name) for name in names}, see):
        for index in range(len(block.inputs)):
            block.inputs.run(block.module, index)
    return {
        name: SampledInputs(torch.cat(kept[name]), torch.stack(peaks[name]), squares / count)
        for name, (squares, count) in sums.items()
    }
