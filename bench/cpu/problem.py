# SPDX-License-Identifier: Apache-2.0
"""One weight for everyone: the same codes and scales go to each library whose format can hold them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import quanto
from quanto import QTensor

__all__ = ["Problem"]


@dataclass
class Problem:
    """A linear layer without bias, `[n, k]`, of normal weights."""

    n: int
    k: int
    values: Tensor = field(init=False, repr=False)
    _made: dict[tuple[str, int | None, bool], QTensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.values = torch.randn(self.n, self.k, generator=torch.Generator().manual_seed(0)) / self.k**0.5

    def quantized(self, qtype: str, group: int | None = None, symmetric: bool = True) -> QTensor:
        """The weight in a format, canonical; made once. `group=None` is what the format takes by itself."""
        key = (qtype, group, symmetric)
        if key not in self._made:
            options = {} if symmetric else {"symmetric": False}
            self._made[key] = quanto.quantize_tensor(self.values, qtype, group_size=group, **options)
        return self._made[key]

    def int8(self) -> tuple[Tensor, Tensor]:
        """int8 codes `[n, k]` and scales `[n]`, one for each row."""
        q = self.quantized("int8")
        return q.weight().codes, q.weight().scale.reshape(self.n).float()

    def int4(self, group: int) -> tuple[Tensor, Tensor]:
        """Codes 0 … 15 `[n, k]` that stand for -8 … 7, uint8, and scales `[n, k / group]`."""
        q = self.quantized("int4", group)
        return quanto.packing.unpack(q.weight().codes, 4, self.k) ^ 8, q.weight().scale.float()

    def x(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """Activations `[tokens, k]`, normal."""
        return torch.randn(tokens, self.k, generator=torch.Generator().manual_seed(1)).to(dtype)
