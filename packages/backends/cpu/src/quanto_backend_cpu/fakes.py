# SPDX-License-Identifier: Apache-2.0
"""Fake implementations of the operators that know panels: shapes and dtypes, by which they trace and run on meta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quanto.qtypes import get_qtype

__all__ = ["FAKES", "on_one_device"]

_WORD = 4  # bytes of a row that lie side by side


def on_one_device(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake that refuses tensors of several devices.

    torch calls it wherever one of them is on meta: a weight that was left there would otherwise make memory of the
    others' device that nothing is written to.

    Args:
        name: of the operator, for the message.
        schema: its arguments and results.
        fake: its fake implementation.
    """
    names = [argument.name for argument in torch._C.parse_schema(name + schema).arguments]

    def checked(*args: Any) -> Any:
        tensors = [(given, t.device) for given, t in zip(names, args, strict=False) if isinstance(t, Tensor)]
        first, home = tensors[0]
        for other, device in tensors:
            if device != home:
                raise RuntimeError(f"{name}: {first} is on {home}, {other} on {device}")
        return fake(*args)

    return checked


def linear(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    """As core's, but a row of codes may have any number of bytes."""
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def scaled_linear(x_codes: Tensor, x_scale: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    """The same for activations of int8."""
    out_scale, dtype = rest[7:9]  # a nonlinearity behind them is left out where it is none
    return x_codes.new_empty((*x_codes.shape[:-1], codes.shape[0]), dtype=dtype if out_scale is None else torch.int8)


def pack_panels(
    codes: Tensor, scale: Tensor, zero: Tensor | None, qtype: str, block_size: list[int], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of whole words for each group, and scales and zero points of each row."""
    return _made(codes, scale, zero, _panel_bytes(qtype, block_size, size), _groups(block_size, size)[0])


def unpack_panels(
    codes: Tensor, scale: Tensor, zero: Tensor | None, qtype: str, block_size: list[int], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical codes, and still scales and zero points of each row."""
    return _made(codes, scale, zero, -(-size * get_qtype(qtype).bits // 8), _groups(block_size, size)[0])


def _made(codes: Tensor, scale: Tensor, zero: Tensor | None, width: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = codes.shape[0]
    zeros = codes.new_empty((0, groups)) if zero is None else zero.new_empty((rows, groups))
    return codes.new_empty((rows, width), dtype=torch.uint8), scale.new_empty((rows, groups)), zeros


def _groups(block_size: list[int], size: int) -> tuple[int, int]:
    """How many a row has, and the features of each."""
    group = min(block_size[-1], size) if block_size else size
    return (-(-size // group), group) if size else (0, 1)


def _panel_bytes(qtype: str, block_size: list[int], size: int) -> int:
    """Bytes of a row in a panel (csrc/format.h): whole words for each group, and whether float8 holds a NaN."""
    q = get_qtype(qtype)
    words = 3 if q.bits == 3 else 1
    groups, group = _groups(block_size, size)
    units = -(-group // (words * _WORD * 8 // q.bits))
    return groups * units * words * _WORD + (_WORD if q.bits == 8 and not q.is_integer else 0)


FAKES: dict[str, Callable[..., Any]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "pack_panels": pack_panels,
    "unpack_panels": unpack_panels,
}
