# SPDX-License-Identifier: Apache-2.0
"""`History`: quantized keys or values that only grow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quanto.tensor import QTensor, quantize_tensor

from .kv_config import KVCacheConfig

__all__ = ["History"]


class History:
    """Tokens of one attention layer, quantized once.

    Held as one `QTensor`, `[batch, heads, tokens, channels]` with groups of channels, or, per channel,
    `[batch, heads, channels, tokens]` with groups of tokens.

    Args:
        config: qtype and group size.
        per_channel: which of the two.
    """

    def __init__(self, config: KVCacheConfig, per_channel: bool) -> None:
        self.config, self.per_channel = config, per_channel
        self.held: QTensor | None = None

    @property
    def length(self) -> int:
        """Tokens."""
        return 0 if self.held is None else self.held.shape[-1 if self.per_channel else -2]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return 0 if self.held is None else self.held.nbytes

    def append(self, states: Tensor) -> None:
        """Quantizes tokens `[batch, heads, tokens, channels]`, whole groups of them if per channel."""
        rows = states.transpose(-1, -2) if self.per_channel else states
        size = min(self.config.group_size, rows.shape[-1])
        made = quantize_tensor(rows, self.config.weights, block_size=(1, 1, 1, size))
        if self.held is None:
            self.held = made
            return
        joined = torch.cat([self.held, made], dim=-1 if self.per_channel else -2)
        assert isinstance(joined, QTensor)  # whole groups and bytes: nothing is decoded
        self.held = joined

    def join(self, newest: Tensor) -> Tensor:
        """All tokens as floats, followed by these."""
        return newest if self.held is None else torch.cat([self._floats(self.held, newest.dtype), newest], dim=-2)

    def _floats(self, held: QTensor, dtype: torch.dtype | None = None) -> Tensor:
        values = held.dequantize(dtype)
        return values.transpose(-1, -2) if self.per_channel else values

    def pop(self, count: int) -> Tensor:
        """Takes at least `count` of the newest tokens away, in whole groups, and returns them as floats."""
        assert self.held is not None
        size = self.config.group_size if self.per_channel else 1
        taken = min(self.length, -(-count // size) * size)
        dim, kept = -1 if self.per_channel else -2, self.length - taken
        values = self._floats(self.held)[..., kept:, :]
        rest = self.held.narrow(dim, 0, kept) if kept else None
        assert rest is None or isinstance(rest, QTensor)
        self.held = rest
        return values

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies a function of the batch dimension: to codes, scales and zero points alike."""
        if self.held is not None:
            batch = function(self.held.codes).shape[0]
            self.held = self.held.rewrap(function, shape=(batch, *self.held.shape[1:]))

    def clear(self) -> None:
        """Forgets everything."""
        self.held = None
