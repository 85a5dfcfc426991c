# SPDX-License-Identifier: Apache-2.0
"""What a saved folder holds, read from its files alone: no model is needed."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..eval.picture import bars
from ..eval.signal import decibel
from ..nn.slot import PARTS, Slot
from ..scheme import Scheme
from ..tensor import QTensor
from .errors import FormatError
from .header import DTYPES
from .load import _read
from .manifest import Manifest
from .sources import Source

__all__ = ["Contents", "StoredLayer", "examine"]


@dataclass(frozen=True)
class StoredLayer:
    """A quantized weight in a folder.

    Attributes:
        name: of the parameter.
        scheme: in words.
        shape: of the float weight.
        bits: per weight, scales and zero points included.
        bytes: stored.
        sqnr: decibel against the float model; None where none was given.
    """

    name: str
    scheme: str
    shape: tuple[int, ...]
    bits: float
    bytes: int
    sqnr: float | None


@dataclass(frozen=True)
class Contents:
    """A folder's quantized weights, and the size of the rest."""

    layers: tuple[StoredLayer, ...]
    other_bytes: int
    shards: int

    @property
    def weights(self) -> int:
        """Quantized weights."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def quantized_bytes(self) -> int:
        """Bytes of the quantized weights with scales and zero points."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def bits(self) -> float:
        """Bits per quantized weight."""
        return 8 * self.quantized_bytes / max(self.weights, 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: infinite decibels are None, and `exact` says so."""
        rows = []
        for layer in self.layers:
            row = asdict(layer)
            if layer.sqnr is not None and not math.isfinite(layer.sqnr):
                row |= {"sqnr": None, "exact": True}
            rows.append(row)
        return {
            "layers": rows,
            "weights": self.weights,
            "bits": self.bits,
            "quantized_bytes": self.quantized_bytes,
            "other_bytes": self.other_bytes,
            "shards": self.shards,
        }

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Writes the SQNR of each weight to a picture.

        Raises:
            ValueError: if matplotlib is not installed.
        """
        known = [layer for layer in self.layers if layer.sqnr is not None and math.isfinite(layer.sqnr)]
        values = [layer.sqnr or 0.0 for layer in known]
        bars([layer.name for layer in known], values, [layer.scheme for layer in known], "SQNR (dB)", path)


def examine(folder: str | os.PathLike[str], against: str | os.PathLike[str] | None = None) -> Contents:
    """Reads a folder that `quanto.save` or `quanto quantize` wrote, one weight at a time.

    Args:
        folder: of the quantized model.
        against: of the float model, in safetensors files with the same names.

    Raises:
        FormatError: if a folder is damaged, or the float model lacks a weight or has it in another shape.
    """
    folder = Path(folder)
    manifest, tensors = _read(folder)
    source = None if against is None else Source.open(against)
    layers, counted = [], 0
    for module, entry in manifest.modules.items():
        for parameter, data in (entry["parameters"] or {}).items():
            full = f"{module}.{parameter}" if module else parameter
            parts = {part: _find(manifest, tensors, f"{full}_{part}") for part in PARTS}
            if parts["packed"] is None:
                continue  # trainable: stored as floats
            size = sum(t.nbytes for t in parts.values() if t is not None)
            counted += size
            slot = Slot(
                Scheme.from_dict(entry["scheme"]), tuple(data["shape"]), _dtype(data["dtype"]), data["arrangement"]
            )
            found = None if source is None else _signal(source, full, slot, parts, manifest.aliases)
            weights = math.prod(slot.shape)
            layers.append(StoredLayer(full, str(slot.scheme), slot.shape, 8 * size / max(weights, 1), size, found))
    return Contents(tuple(layers), sum(t.nbytes for t in tensors.values()) - counted, len(manifest.shards))


def _find(manifest: Manifest, tensors: dict[str, Tensor], name: str) -> Tensor | None:
    return tensors.get(manifest.aliases.get(name, name))


def _dtype(name: str) -> Any:
    return next(dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{name}")


def _signal(source: Source, full: str, slot: Slot, parts: dict[str, Tensor | None], aliases: dict[str, str]) -> float:
    name = full if full in source.infos else aliases.get(f"{full}_packed", "").removesuffix("_packed")
    if name not in source.infos:
        raise FormatError(f"{source.folder} has no tensor {full!r}: it is not the float model of this folder")
    if source.infos[name].shape != slot.shape:
        shape = source.infos[name].shape
        raise FormatError(f"{source.files[name]}: {name!r} has shape {shape}, the quantized one {slot.shape}")
    codes, scale, zero, shared = (parts[part] for part in PARTS)
    assert codes is not None
    if scale is None:
        raise FormatError(f"{full}: its scale is missing")
    shape = slot.rows_shape()
    coded = QTensor(
        codes,
        scale,
        zero,
        shared,
        qtype=slot.scheme.qtype,
        block_size=slot.scheme.block_size(shape),
        columns=shape[-1],
        dtype=slot.dtype,
    )
    return decibel(slot.rows(source.read(name)), coded.dequantize())
