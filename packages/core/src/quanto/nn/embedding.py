# SPDX-License-Identifier: Apache-2.0
"""Quantized twins of the embeddings: rows are decoded as they are looked up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .base import QModule

__all__ = ["QEmbedding", "QEmbeddingBag"]


class QEmbedding(QModule, nn.Embedding):  # type: ignore[misc]
    """`nn.Embedding` with a quantized table `[rows, features]`; gives the dtype the float table had."""

    operator = "embedding"

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape to `[*shape, features]`."""
        if self.frozen:
            return ops.embedding(input, self.operand(), self._slots["weight"].dtype)
        return F.embedding(input, self.effective(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)


class QEmbeddingBag(QModule, nn.EmbeddingBag):
    """`nn.EmbeddingBag` with a quantized table: only the rows looked up are decoded."""

    operator = "embedding"

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """As the float module's."""
        local, padding = input, self.padding_idx
        if self.frozen:
            rows = ops.embedding(input.reshape(-1), self.operand(), self._slots["weight"].dtype)
            local = torch.arange(input.numel(), device=input.device).view(input.shape)
            if padding is not None:
                # padded entries point to one extra row, which the bag is told to skip
                local = torch.where(input == padding, input.numel(), local)
                rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
                padding = input.numel()
        else:
            rows = self.effective()
        return F.embedding_bag(
            local,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
