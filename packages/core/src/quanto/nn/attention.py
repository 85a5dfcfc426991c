# SPDX-License-Identifier: Apache-2.0
"""The quantized twin of `nn.MultiheadAttention`: its packed projections are quantized, its attention is torch's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import QModule

__all__ = ["QMultiheadAttention"]


class QMultiheadAttention(QModule, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with quantized projection weights; inputs stay floating.

    The output projection is a module of its own and is quantized as such.
    """

    quantized_parameters: ClassVar[dict[str, str]] = {
        "in_proj_weight": "rows",
        "q_proj_weight": "rows",
        "k_proj_weight": "rows",
        "v_proj_weight": "rows",
    }

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the float module's."""
        batched = query.dim() == 3
        masks = {
            "key_padding_mask": _additive(key_padding_mask, query.dtype),
            "attn_mask": _additive(attn_mask, query.dtype),
        }
        if self.batch_first and batched:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        projection = self.out_proj
        out_weight = projection.effective() if isinstance(projection, QModule) else projection.weight
        weights: dict[str, Any] = {name: self.effective(name, query.dtype) for name in self._slots}
        out, attention = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            weights.pop("in_proj_weight", None),
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            out_weight.to(query.dtype),
            projection.bias,
            training=self.training,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            **masks,
            **weights,
        )
        return (out.transpose(0, 1) if self.batch_first and batched else out), attention


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as numbers to add: minus infinity where True."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
