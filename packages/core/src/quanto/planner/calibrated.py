# SPDX-License-Identifier: Apache-2.0
"""Candidates as calibrated rounding makes them, so that a plan for GPTQ is judged by GPTQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._hooks import first_input
from .._progress import track
from ..algorithms.convolutions import Convolution, rows_of
from ..algorithms.gptq import GPTQ
from ..algorithms.statistics import Moments
from ..eval.running import call, device_of, evaluating, move
from ..scheme import Scheme
from ..tensor import QTensor
from .layers import Layer, encode

__all__ = ["calibrated_codes"]

_RUNS = (nn.Linear, *Convolution)
_BYTES = 2**30  # of moments at a time; more layers take more passes over the data


@torch.no_grad()
def calibrated_codes(
    model: nn.Module,
    layers: Sequence[Layer],
    schemes: Sequence[Scheme],
    batches: Sequence[Any],
    progress: bool | None = None,
    step: GPTQ | None = None,
) -> list[tuple[Layer, list[QTensor]]]:
    """Each layer's weight under each scheme, rounded by GPTQ on the inputs that it has in the float model.

    Layers that are neither linear nor convolutions, and schemes of qtypes with two levels of scales, are rounded by the
    scheme's algorithm.

    Args:
        model: floating.
        layers: to be rounded.
        schemes: of each.
        batches: what the model is called with.
        progress: whether to show a progress bar; None shows one in a terminal.
        step: default: `GPTQ(sweeps=0)`, which is fast and ranks schemes as the others do.
    """
    step = step or GPTQ(sweeps=0, correct=0)
    found = []
    bar = iter(track(layers, "calibrate", enabled=progress))
    for part in _parts(layers):
        moments = _moments(model, part, batches)
        for layer in part:
            next(bar)
            found.append((layer, [_rounded(layer, s, moments.get(layer.name), step) for s in schemes]))
    next(bar, None)  # ends the bar
    return found


def _parts(layers: Sequence[Layer]) -> list[list[Layer]]:
    parts: list[list[Layer]] = []
    room = 0
    for layer in layers:
        groups = getattr(layer.module, "groups", 1)
        size = 4 * groups * layer.rows(layer.weight).shape[-1] ** 2 if isinstance(layer.module, _RUNS) else 0
        if not parts or size > room:
            parts.append([])
            room = _BYTES
        parts[-1].append(layer)
        room -= size
    return parts


def _moments(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]) -> dict[str, Moments]:
    found = {layer.name: Moments() for layer in layers if isinstance(layer.module, _RUNS)}

    def hook(moments: Moments) -> Any:
        def see(module: nn.Module, args: Any, kwargs: Any) -> None:
            for rows in rows_of(module, first_input(args, kwargs).detach()):
                moments.add(rows)

        return see

    handles = [
        layer.module.register_forward_pre_hook(hook(found[layer.name]), with_kwargs=True)
        for layer in layers
        if layer.name in found
    ]
    try:
        with evaluating(model):
            for batch in batches if handles else ():
                call(model, move(batch, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: moments.finish() for name, moments in found.items()}


def _rounded(layer: Layer, scheme: Scheme, moments: Moments | None, step: GPTQ) -> QTensor:
    if moments is None or scheme.qtype.two_level:
        return encode(layer, scheme)
    slot = layer.slot(scheme)
    rows: Tensor = slot.rows(layer.weight.detach())
    made = step.solve(rows, slot, moments)
    return QTensor(
        made.codes,
        *made.parameters,
        qtype=slot.scheme.qtype,
        block_size=slot.scheme.block_size(tuple(rows.shape)),
        columns=rows.shape[-1],
        dtype=rows.dtype,
    )
