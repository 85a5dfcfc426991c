# SPDX-License-Identifier: Apache-2.0
"""`QuantoCacheLayer`: keys and values of one attention layer, all but the newest quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from .history import History
from .kv_config import KVCacheConfig

__all__ = ["QuantoCacheLayer"]


class QuantoCacheLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of `transformers.QuantizedCache` with the backend "quanto".

    `keys` and `values` hold the newest tokens, as they are. When `residual_length` have come together, whole groups of
    them are quantized and appended to what was quantized before, which is never touched again: time and rounding do
    not grow with the length of the text.

    Args:
        nbits: 2, 3, 4, 8, or the name of a qtype such as `"float8"`.
        axis_key: -1: a scale for each channel and group of tokens; 0: for each token and group of channels.
        axis_value: the same for values.
        q_group_size: elements that share a scale.
        residual_length: see above.
    """

    keys: Any
    values: Any
    is_initialized: bool

    def __init__(
        self,
        nbits: int | str = 4,
        axis_key: int = -1,
        axis_value: int = 0,
        q_group_size: int = 64,
        residual_length: int = 128,
    ) -> None:
        super().__init__()
        self.config = KVCacheConfig.parse(
            {
                "nbits": nbits,
                "axis_key": axis_key,
                "axis_value": axis_value,
                "q_group_size": q_group_size,
                "residual_length": residual_length,
            }
        )
        self.old_keys = History(self.config, self.config.per_channel_keys)
        self.old_values = History(self.config, self.config.per_channel_values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds tokens.

        Args:
            key_states: `[batch, heads, tokens, channels]`.
            value_states: the same.
            *args, **kwargs: of other kinds of layers.

        Returns:
            All keys and all values; those that this very call quantizes are still exact.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = _join(self.keys, key_states)
        self.values = _join(self.values, value_states)
        found = self.old_keys.join(self.keys), self.old_values.join(self.values)
        count = self._due()
        if count:
            self.old_keys.append(self.keys[..., :count, :])
            self.old_values.append(self.values[..., :count, :])
            self.keys, self.values = (t[..., count:, :].clone() for t in (self.keys, self.values))
        return found

    def _due(self) -> int:
        """How many of the newest tokens are to be quantized now: whole groups."""
        size, held = self.config.group_size, self.keys.shape[-2]
        return held // size * size if held >= max(size, self.config.residual_length) else 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.old_keys.length + (self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        newest = 0 if not self.is_initialized else self.keys.nbytes + self.values.nbytes
        return self.old_keys.nbytes + self.old_values.nbytes + newest

    def reset(self) -> None:
        """Forgets everything."""
        self.keys = self.values = None
        self.is_initialized = False
        for history in (self.old_keys, self.old_values):
            history.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest tokens; a positive number is how many to keep, as transformers once had it."""
        length = self.get_seq_length()
        count = length - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if count <= 0 or not self.is_initialized:
            return
        short = min(count, length) - self.keys.shape[-2]
        if short > 0:  # whole groups become floats again
            self.keys = _join(self.old_keys.pop(short), self.keys)
            self.values = _join(self.old_values.pop(short), self.values)
        kept = self.keys.shape[-2] - min(count, length)
        self.keys, self.values = self.keys[..., :kept, :], self.values[..., :kept, :]

    def _change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies a function of the batch dimension to all that is held."""
        if self.is_initialized and self.get_seq_length():
            self.keys, self.values = function(self.keys), function(self.values)
            for history in (self.old_keys, self.old_values):
                history.change(function)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts other samples into the rows of the batch, for beam search."""
        self._change(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows of the batch."""
        self._change(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch."""
        self._change(lambda t: t.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Moves everything to the CPU."""
        self._change(lambda t: t.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Moves everything back."""
        self._change(lambda t: t.to(self.device, non_blocking=True))


def _join(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], dim=-2) if a.numel() else b
