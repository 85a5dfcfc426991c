# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token to a static cache, without the copies of keys and values that grouped queries cost.

Where a mask is given, as a static cache needs, transformers repeats keys and values for each query of a group before
compiled attention. Here they are broadcast in two sums, in float32, which Inductor fuses: nothing is copied. A backend
that registers `attend` (see `quanto_backend_cuda.ops.attend`) does it in one kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quanto.kernels import kernels

__all__ = ["NAME", "attention", "grouped"]

#: under which transformers knows it.
NAME = "quanto_grouped"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """What `scaled_dot_product_attention` computes; all but one compiled token of grouped queries is left to it.

    Args:
        module: the layer, with `num_key_value_groups`.
        query: `[texts, heads, tokens, features]`.
        key, value: `[texts, heads of keys, length, features]`.
        attention_mask: boolean, true where a token is seen, or added to the scores; `[texts, 1 or heads, tokens,
            length]`.
        dropout, scaling, **given: as transformers gives them; the scale defaults to `features ** -0.5`.

    Returns:
        `[texts, tokens, heads, features of values]`, and None for weights that nobody keeps.
    """
    heads, kept = query.shape[1], key.shape[1]
    known = query.shape[2] == 1 and heads > kept and not dropout and torch.compiler.is_compiling()
    if not known or any(given.get(name) is not None for name in _REFUSED):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
        return found
    texts, size = query.shape[0], query.shape[-1]
    scale = size**-0.5 if scaling is None else scaling
    device = query.device.type
    halves = query.dtype in _HALVES and key.dtype == value.dtype == query.dtype
    if halves and value.shape[-1] == size and _has_attend(device):
        return _attend[device](query, key, value, attention_mask, scale), None
    q = query.reshape(texts, kept, heads // kept, 1, size).float() * scale
    scores = (q * key.unsqueeze(2)).sum(-1)
    if attention_mask is not None:
        mask = attention_mask
        if mask.shape[1] > 1:
            mask = mask.reshape(texts, kept, heads // kept, -1)
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    shares = scores.softmax(-1).unsqueeze(-1)
    out = (shares * value.unsqueeze(2)).sum(-2)
    return out.reshape(texts, 1, heads, value.shape[-1]).to(query.dtype), None


def _has_attend(device: str) -> bool:
    """Whether a backend does it in one kernel, which is then in `_attend`."""
    found = kernels.function("attend", device)
    if found is not None:
        _attend[device] = found
    return found is not None


# Asked while a graph is traced: the answer is a constant of it. Torch 2.11 takes no operator for one.
_has_attend._dynamo_marked_constant = True  # type: ignore[attr-defined]
_attend: dict[str, Any] = {}
_HALVES = (torch.float16, torch.bfloat16)
# Of what transformers gives beside, what its own function knows and this one does not.
_REFUSED = ("position_bias", "cache", "softcap")


@contextlib.contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Within the block the models of a model that use `scaled_dot_product_attention` use `attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _has_attend(model.device.type)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    changed = [c for c in configs.values() if c._attn_implementation_internal == "sdpa"]
    for config in changed:
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation_internal = "sdpa"
