# SPDX-License-Identifier: Apache-2.0
"""Whether the tensors of a folder are those of a model: by name, dtype and shape, before their data is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..nn.base import QModule
from ..nn.checkpoint import check_parts
from ..nn.slot import PARTS
from .errors import FormatError

__all__ = ["compare"]


def compare(model: nn.Module, tensors: Mapping[str, Tensor], files: Mapping[str, Path], folder: Path) -> None:
    """Compares every tensor with its place; activation scales that the folder does not have are dropped.

    Floating tensors of the model that are not quantized take any floating dtype of the folder.

    Args:
        model: a staged model, quantized as the folder says, its weights trainable or frozen.
        tensors: all of the folder, aliases included.
        files: where each is.
        folder: for messages about tensors that are nowhere.

    Raises:
        FormatError: naming file and tensor.
    """
    done: set[str] = set()
    floats: dict[str, torch.dtype] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QModule):
            dot = f"{prefix}." if prefix else ""
            for name in module._slots:
                _compare_weight(module, name, dot + name, tensors, files, done, floats)
            for name in ("input_scale", "output_scale"):
                _compare_scale(module, name, dot + name, tensors, files)
                done.add(dot + name)
    for name, held in model.state_dict().items():
        if name in done or not isinstance(held, Tensor):
            done.add(name)
            continue
        if name not in tensors:
            raise FormatError(f"{folder}: no shard holds the tensor {name!r} of the model")
        _compare_float(name, held, tensors[name], floats.get(name), files)
        done.add(name)
    for name in tensors:
        if name not in done:
            raise FormatError(f"{files[name]}: the model has no tensor {name!r}")


def _compare_weight(
    module: QModule,
    name: str,
    full: str,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Path],
    done: set[str],
    floats: dict[str, torch.dtype],
) -> None:
    parts = {part: tensors[f"{full}_{part}"] for part in PARTS if f"{full}_{part}" in tensors}
    if "packed" in parts:
        if full in tensors:
            raise FormatError(f"{files[full]}: tensor {full!r} is there as floats and as codes")
        try:
            check_parts(module._slots[name], parts)
        except ValueError as error:
            raise FormatError(f"{files[f'{full}_packed']}: {full}: {error}") from None
        done |= {full, *(f"{full}_{part}" for part in PARTS)}
    elif full in tensors:
        if f"{name}_packed" in module._parameters:
            raise FormatError(
                f"{files[full]}: {full!r} is floating in the file and frozen in the model; call "
                "quanto.dequantize(model) first"
            )
        floats[full] = module._slots[name].dtype


def _compare_scale(
    module: QModule, name: str, full: str, tensors: Mapping[str, Tensor], files: Mapping[str, Path]
) -> None:
    scale = tensors.get(full)
    if scale is None:
        module._buffers[name] = None
    elif scale.ndim or not scale.is_floating_point() or scale.dtype.itemsize == 1:
        got = f"{scale.dtype} {tuple(scale.shape)}"
        raise FormatError(f"{files[full]}: tensor {full!r} must be one floating number, got {got}")


def _compare_float(
    name: str, held: Tensor, given: Tensor, dtype: torch.dtype | None, files: Mapping[str, Path]
) -> None:
    """Compares a tensor that is no part of a frozen weight; `dtype`, if the folder says which it has."""
    if held.shape != given.shape:
        wanted = f"must have shape {tuple(held.shape)}, got {tuple(given.shape)}"
        raise FormatError(f"{files[name]}: tensor {name!r} {wanted}")
    free = dtype is None and all(t.is_floating_point() and t.dtype.itemsize > 1 for t in (held, given))
    if not free and given.dtype != (dtype or held.dtype):
        raise FormatError(f"{files[name]}: tensor {name!r} must be {dtype or held.dtype}, got {given.dtype}")
