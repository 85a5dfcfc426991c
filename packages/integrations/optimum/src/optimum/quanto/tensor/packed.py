# SPDX-License-Identifier: Apache-2.0
"""Two or four values of 4 or 2 bits in a byte, along the first dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PackedTensor", "pack_weights", "unpack_weights"]


def pack_weights(values: Tensor, bits: int) -> Tensor:
    """Byte row r holds rows r, r + R, r + 2R … from its lowest bits, R = ceil(rows / values per byte).

    Args:
        values: uint8 `[rows, …]`, below `2**bits`.
        bits: 2 or 4.
    """
    each = 8 // bits
    count = -(-values.shape[0] // each)
    packed = values[:count].to(torch.uint8).clone()
    for index in range(1, each):
        rows = values[count * index : count * (index + 1)].to(torch.uint8)
        packed[: rows.shape[0]] |= rows << (bits * index)
    return packed


def unpack_weights(packed: Tensor, bits: int) -> Tensor:
    """The inverse, with the rows that filled the last byte row."""
    mask = 2**bits - 1
    return torch.cat([(packed >> (bits * index)) & mask for index in range(8 // bits)])


class PackedTensor(torch.Tensor):
    """Unsigned values of 2 or 4 bits, held packed; shape and values are those before packing."""

    _data: Tensor
    _bits: int

    @staticmethod
    def __new__(cls, data: Tensor, bits: int, size: Sequence[int], stride: Sequence[int]) -> PackedTensor:
        if data.dtype != torch.uint8:
            raise ValueError(f"data must be uint8, got {data.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls, tuple(size), strides=tuple(stride), dtype=torch.uint8, device=data.device, requires_grad=False
        )
        made._data, made._bits = data, bits
        return made

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return torch.uint8

    @classmethod
    def pack(cls, t: Tensor, bits: int = 4) -> PackedTensor:
        """Packs uint8 values.

        Raises:
            ValueError: for other bits than 2 and 4, or another dtype.
        """
        if bits not in (2, 4) or t.dtype != torch.uint8:
            raise ValueError(f"bits must be 2 or 4 and values uint8, got {bits} and {t.dtype}")
        return cls(pack_weights(t, bits), bits, t.size(), t.stride())

    def unpack(self) -> Tensor:
        """The values, uint8."""
        return unpack_weights(self._data, self._bits)[: self.shape[0]]

    def numpy(self, *, force: bool = False) -> Any:
        return self.unpack().numpy(force=force)

    def save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Adds the bytes as `<prefix>_data`."""
        destination[f"{prefix}_data"] = self._data if keep_vars else self._data.detach()

    @classmethod
    def load_from_state_dict(
        cls,
        state: dict[str, Any],
        prefix: str,
        bits: int,
        size: Sequence[int],
        stride: Sequence[int],
        missing: list[str],
    ) -> PackedTensor | None:
        """Takes the bytes out of a state dict; None, and a name in `missing`, where they are not there."""
        data = state.pop(f"{prefix}_data", None)
        if data is None:
            missing.append(f"{prefix}_data")
            return None
        return cls(data, bits, size, stride)

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        return ["_data"], (self._bits, tuple(self.size()), tuple(self.stride()))

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> PackedTensor:
        return PackedTensor(inner["_data"], *context)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return PackedTensor, (self._data, self._bits, tuple(self.size()), tuple(self.stride()))

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        packet = func.overloadpacket
        if packet in (torch.ops.aten.detach, torch.ops.aten.clone, torch.ops.aten._to_copy):
            t, options = args[0], kwargs or {}
            if options.get("dtype", torch.uint8) == torch.uint8:
                data = func(t._data, *args[1:], **options)
                return cls(data, t._bits, t.size(), t.stride())
        plain = torch.utils._pytree.tree_map_only(PackedTensor, PackedTensor.unpack, (args, kwargs or {}))
        return func(*plain[0], **plain[1])
