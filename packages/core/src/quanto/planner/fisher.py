# SPDX-License-Identifier: Apache-2.0
"""What a change of a weight does to a model's predictions, to second order, for all layers in one backward pass.

For a change D of a linear layer's weight, inputs x and gradients g at its outputs, the divergence of the predictions
rises by about `mean((g . D x)²) / 2` per prediction, where g belongs to the negative log-likelihood of targets drawn
from the model's own predictions: that is the quadratic form of the Fisher information, as in Amari's natural gradient
and in Martens, "New insights and perspectives on the natural gradient method" (2020), without the terms between
positions. Drawing targets makes it need no labels, and makes it a divergence rather than a fit to some text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._hooks import first_input
from .._progress import track
from ..eval.running import call, device_of, evaluating, move
from ..tensor import QTensor
from .layers import Layer

__all__ = ["Objective", "drawn_targets", "second_order"]

#: from what the model returns and what it was given to the summed loss, and the number of predictions in it
Objective = Callable[[Any, Any], tuple[Tensor, int]]


def drawn_targets(seed: int = 0) -> Objective:
    """An objective for logits `[…, classes]`, or objects that have them as `.logits`: targets are drawn from them."""
    generator = torch.Generator().manual_seed(seed)

    def objective(output: Any, inputs: Any) -> tuple[Tensor, int]:
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point():
            raise ValueError("the model returns no logits: give an objective(output, inputs) -> (summed loss, count)")
        flat = logits.reshape(-1, logits.shape[-1]).float()
        # By inverse transform: one uniform number per row, drawn on the CPU, whatever the device.
        drawn = torch.rand(len(flat), 1, generator=generator).to(flat.device)
        targets = (flat.detach().softmax(-1).cumsum(-1) < drawn).sum(-1).clamp(max=flat.shape[-1] - 1)
        return nn.functional.cross_entropy(flat, targets, reduction="sum"), len(flat)

    return objective


def second_order(
    model: nn.Module,
    candidates: list[tuple[Layer, list[QTensor]]],
    batches: Iterable[Any],
    objective: Objective,
    progress: bool | None = None,
) -> list[list[float]]:
    """The rise of divergence, in nats per prediction, for each layer under each of its candidates.

    Candidates are held as codes and decoded layer by layer. For layers that are not linear the gradient of a whole
    batch is used, which is right on average and needs more batches. A layer that no gradient reaches, such as an expert
    that the data is never sent to, gets no losses: an empty list.

    Raises:
        ValueError: if there is no batch.
    """
    totals = [_Total(torch.zeros(len(codes), dtype=torch.float64)) for _, codes in candidates]
    handles, before = [], {p: (p.requires_grad, p.grad) for p in model.parameters()}
    count, device = 0, device_of(model)
    try:
        for parameter in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for (layer, codes), total in zip(candidates, totals, strict=True):
            layer.weight.requires_grad_(True)
            handles += _watch(layer, codes, total)
        with evaluating(model), torch.enable_grad():
            for batch in track(batches, "sensitivity", enabled=progress):
                loss, predictions = objective(call(model, move(batch, device)), batch)
                loss.backward()
                count += predictions
    finally:
        for handle in handles:
            handle.remove()
        for parameter, (flag, grad) in before.items():
            parameter.requires_grad_(flag)
            parameter.grad = grad
    if not count:
        raise ValueError("data must hold at least one batch")
    return [(total.sums / 2 / count).tolist() if total.reached else [] for total in totals]


@dataclass
class _Total:
    """What one layer's candidates have lost so far, `[candidates]` float64, and whether a gradient came."""

    sums: Tensor
    reached: bool = False


def _watch(layer: Layer, codes: list[QTensor], total: _Total) -> list[Any]:
    """Adds to `total` whenever a gradient reaches the layer. Gradients of weights are not kept."""
    if not isinstance(layer.module, nn.Linear):

        def weight_gradient(weight: Tensor) -> None:
            assert weight.grad is not None
            rows = layer.rows(weight.grad).double()
            weight.grad = None
            total.reached = True
            for index, coded in enumerate(codes):
                total.sums[index] += (rows * _error(coded, layer, rows.dtype)).sum().square().cpu()

        return [layer.weight.register_post_accumulate_grad_hook(weight_gradient)]

    def forward(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        x = first_input(args, kwargs).detach()
        if output.requires_grad:
            output.register_hook(lambda gradient: backward(x, gradient))

    def backward(x: Tensor, gradient: Tensor) -> None:
        x, gradient = x.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        total.reached = total.reached or x.numel() > 0
        for index, coded in enumerate(codes):
            moved = x @ _error(coded, layer, torch.float32).T
            total.sums[index] += (moved * gradient).sum(-1).double().square().sum().cpu()

    def drop(weight: Tensor) -> None:
        weight.grad = None

    watched = layer.module.register_forward_hook(forward, with_kwargs=True)
    return [watched, layer.weight.register_post_accumulate_grad_hook(drop)]


def _error(coded: QTensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Quantized minus float weight, as rows."""
    rows = layer.rows(layer.weight.detach())
    return coded.dequantize().to(dtype) - rows.to(dtype)
