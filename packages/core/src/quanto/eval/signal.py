# SPDX-License-Identifier: Apache-2.0
"""Signal to quantization noise, layer by layer: table, JSON and picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.base import QModule
from ..nn.correction import DOWN, UP
from ..tensor import quantize_tensor
from ..weight import CANONICAL
from .picture import bars

__all__ = ["LayerSignal", "SignalReport", "decibel", "sqnr"]


@dataclass(frozen=True)
class LayerSignal:
    """One quantized weight.

    Attributes:
        name: of the parameter.
        scheme: what it is quantized to.
        shape: of the float weight.
        bits: per weight, scales and zero points included.
        sqnr: signal to quantization noise in decibel; infinite where nothing was lost. Six decibel are one bit.
        error: root of noise over signal.
    """

    name: str
    scheme: str
    shape: tuple[int, ...]
    bits: float
    sqnr: float
    error: float


@dataclass(frozen=True)
class SignalReport:
    """The quantized weights of a model; printing it gives a table."""

    layers: tuple[LayerSignal, ...]
    convention: str = "SQNR in dB: 10 log10(sum of w² / sum of (w - quantized w)²) of each weight"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: infinite decibels are None."""
        rows = [asdict(layer) for layer in self.layers]
        for row in rows:
            row["sqnr"] = row["sqnr"] if math.isfinite(row["sqnr"]) else None
        return {"convention": self.convention, "layers": rows}

    def __str__(self) -> str:
        rows = [("weight", "scheme", "shape", "bits", "SQNR")]
        for layer in self.layers:
            shape = "×".join(map(str, layer.shape))
            rows.append((layer.name, layer.scheme, shape, f"{layer.bits:.2f}", f"{layer.sqnr:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.convention])

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Writes a bar for each weight to a picture, of the kind its suffix says.

        Raises:
            ValueError: if matplotlib is not installed (`pip install "quanto-core[eval]"`).
        """
        finite = [layer.sqnr for layer in self.layers if math.isfinite(layer.sqnr)]
        most = max(finite, default=0.0)
        values = [min(layer.sqnr, most) for layer in self.layers]
        schemes = [layer.scheme for layer in self.layers]
        bars([layer.name for layer in self.layers], values, schemes, "signal to quantization noise (dB)", path)


def decibel(original: Tensor, quantized: Tensor) -> float:
    """Signal to noise of a tensor in decibel; infinite for equal ones, and for an original of zeros minus infinity.

    Args:
        original, quantized: floating, of one shape.
    """
    # in pieces: doubles of a whole embedding would be four times a 16-bit model's largest tensor
    signal = noise = 0.0
    for a, b in zip(original.flatten().split(2**22), quantized.flatten().split(2**22), strict=True):
        a, b = a.double(), b.double()
        signal += a.square().sum().item()
        noise += (a - b).square().sum().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@torch.no_grad()
def sqnr(model: nn.Module, reference: nn.Module) -> SignalReport:
    """Compares each quantized weight with the float one.

    Args:
        model: quantized, frozen or trainable; by modules of the same names as the reference's.
        reference: the float model.

    Raises:
        ValueError: if nothing is quantized, or the reference lacks a weight or has it in another shape.
    """
    floats = dict(reference.named_parameters(remove_duplicate=False))
    layers = []
    for full, module, name in _weights(model):
        original = floats.get(full)
        if original is None:
            raise ValueError(f"the reference has no parameter {full!r}: give the model as it was before quantizing")
        value = module.effective(name)
        if original.shape != value.shape:
            raise ValueError(f"{full} has shape {tuple(value.shape)}, in the reference {tuple(original.shape)}")
        found = decibel(original.detach().cpu(), value.cpu())
        bits = 8 * _stored(module, name) / max(original.numel(), 1)
        scheme = str(module._slots[name].scheme)
        layers.append(LayerSignal(full, scheme, tuple(original.shape), bits, found, 10 ** (-found / 20)))
    if not layers:
        raise ValueError("the model has no quantized weight; call quanto.quantize(model, …) first")
    return SignalReport(tuple(layers))


def _weights(model: nn.Module) -> Iterator[tuple[str, QModule, str]]:
    for prefix, module in model.named_modules():
        if isinstance(module, QModule):
            for name in module._slots:
                yield (f"{prefix}.{name}" if prefix else name), module, name


def _stored(module: QModule, name: str) -> int:
    """Bytes of codes, scales, zero points and a correction in a file."""
    slot = module._slots[name]
    beside = sum(p.nbytes for n in (DOWN, UP) if (p := module._parameters.get(n)) is not None)
    if f"{name}_packed" in module._parameters and slot.layout == CANONICAL:
        return beside + sum(part.nbytes for part in module.operand(name)[:4] if part is not None)
    return quantize_tensor(torch.empty(slot.rows_shape(), dtype=slot.dtype, device="meta"), slot.scheme).nbytes + beside
