# SPDX-License-Identifier: Apache-2.0
"""optimum-quanto: scales, and shifts below 8 bits, counted as the 16 bits that they have in a 16-bit model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .weights import HEAD, Peer, count

__all__ = ["OPTIMUM"]


def _quantizer(name: str, bits: int, extra: float, group: int | None, activations: str | None = None) -> Peer:
    def run(model: Any, batches: list[Tensor]) -> float:
        from optimum import quanto as peer

        stored = count(model, bits, extra, group)
        inputs = None if activations is None else getattr(peer, activations)
        peer.quantize(model, weights=getattr(peer, name), activations=inputs, exclude=[HEAD])
        if inputs is not None:
            with torch.no_grad(), peer.Calibration():
                for batch in batches:
                    model(batch)
        peer.freeze(model)
        return stored

    return run


OPTIMUM: dict[str, Peer] = {
    "optimum-quanto int8": _quantizer("qint8", 8, 16, None),
    "optimum-quanto int4": _quantizer("qint4", 4, 32, 128),
    "optimum-quanto int2": _quantizer("qint2", 2, 32, 128),
    "optimum-quanto int8, int8 activations": _quantizer("qint8", 8, 16, None, "qint8"),
}
