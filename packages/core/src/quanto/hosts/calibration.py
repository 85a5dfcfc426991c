# SPDX-License-Identifier: Apache-2.0
"""Calibrating models of other libraries: which layers take part, and how a batch is handed to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import track
from ..calibrating import Calibration
from ..nn import QModule

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate(
    model: nn.Module,
    data: Iterable[Any] | Callable[[], Any],
    *,
    momentum: float,
    progress: bool | None,
    total: int | None = None,
) -> Calibration:
    """Gives layers with quantized activations static scales, by running sample data through the model.

    Args:
        model: quantized.
        data: batches: mappings of the model's arguments, tuples of them, or the first one alone, which are moved to
            the model's device. Or a function that runs it.
        momentum: see `Calibration`.
        progress: whether to show a progress bar; None shows one in a terminal.
        total: how many batches there are, if that is known.

    Returns:
        The calibration.

    Raises:
        ValueError: if no layer of the model has quantized activations, or no data reached one.
    """
    layers = [m for m in model.modules() if isinstance(m, QModule) and m.scheme.activations is not None]
    wanted = [m for m in layers if m.quantizes_input and m.scheme.dynamic is not True]
    if not wanted:
        raise ValueError(
            "no layer has activations to calibrate: load the model with QuantoConfig(activations='int8'), "
            "and without dynamic=True"
        )
    training = model.training
    model.eval()
    try:
        with _only_norms_hand_over(layers), Calibration(momentum) as calibration:
            if callable(data) and not isinstance(data, Iterable):
                data()
            else:
                for batch in track(data, "calibrate", total=total, enabled=progress):
                    _run(model, batch)
    finally:
        model.train(training)
    if all(m.input_scale is None for m in wanted):
        raise ValueError("calibrate was given no data that reached the model")
    return calibration


@contextmanager
def _only_norms_hand_over(layers: list[QModule]) -> Iterator[None]:
    """Within, only norms quantize their outputs.

    A linear layer's output goes to attention, modulation, an activation function or a residual sum, which decode it;
    some models add to it in place, which a quantized tensor refuses.
    """
    others = [m for m in layers if m._slots]
    for module in others:
        module.__dict__["quantizes_output"] = False
    try:
        yield
    finally:
        for module in others:
            del module.__dict__["quantizes_output"]


def _run(model: nn.Module, batch: Any) -> None:
    device = getattr(model, "device", None) or next((p.device for p in model.parameters()), torch.device("cpu"))

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{key: moved(value) for key, value in batch.items()})
    elif isinstance(batch, (tuple, list)):
        model(*map(moved, batch))
    else:
        model(moved(batch))
