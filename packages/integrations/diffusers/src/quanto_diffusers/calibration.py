# SPDX-License-Identifier: Apache-2.0
"""Static activation scales from sample data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

from torch import nn

from quanto import Calibration
from quanto.hosts.calibration import calibrate as run

__all__ = ["calibrate"]


def calibrate(
    model: nn.Module,
    data: Iterable[Any] | Callable[[], Any],
    *,
    momentum: float = 0.9,
    progress: bool | None = None,
) -> Calibration:
    """Gives layers with quantized activations static scales, by running sample data through the model.

    Until then each token (each sample, for convolutions) gets a scale of its own at run time, which costs a pass over
    it and needs no data. The scales are saved with the model.

    Args:
        model: loaded with `QuantoConfig(activations=…)`.
        data: batches: mappings of the model's arguments, tuples of them, or the first one alone. Or a function that
            runs the pipeline that the model is in, as in `calibrate(pipe.transformer, lambda: pipe("a cat"))`.
        momentum: see `quanto.Calibration`.
        progress: whether to show a progress bar; None shows one in a terminal.

    Returns:
        The `quanto.Calibration`, which tells which outputs stay quantized.

    Raises:
        ValueError: if no layer of the model has quantized activations, or no data reached one.
    """
    total = len(data) if isinstance(data, Sized) else None
    return run(model, data, momentum=momentum, progress=progress, total=total)
