# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a classifier, and how often it decides as the float one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .._progress import track
from .running import call, device_of, evaluating, move

__all__ = ["Accuracy", "accuracy", "agreement"]


@dataclass(frozen=True)
class Accuracy:
    """A share of right decisions.

    Attributes:
        value: from 0 to 1.
        correct: how many were right.
        total: of how many.
        convention: what counted as right.
    """

    value: float
    correct: int
    total: int
    convention: str

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.convention}, {self.correct:,} of {self.total:,})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@torch.no_grad()
def accuracy(
    model: Callable[..., Any], batches: Iterable[tuple[Any, Tensor]], *, top: int = 1, progress: bool | None = None
) -> Accuracy:
    """Measures how often a classifier has the label among its `top` highest logits.

    Args:
        model: returns logits `[n, classes]`, or an object that has them as `.logits`.
        batches: pairs of inputs (a tensor, a tuple of arguments or a mapping of named ones) and labels, integer `[n]`.
        top: how many of the highest logits may hold the label.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if there is no batch, or labels and logits do not fit.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    correct = total = 0
    device = device_of(model)
    with evaluating(model):
        for inputs, labels in track(batches, "accuracy", enabled=progress):
            logits = _logits(model, inputs, device)
            if labels.shape != logits.shape[:1]:
                raise ValueError(f"labels must have shape [{len(logits)}], got {list(labels.shape)}")
            if not len(labels):
                continue
            if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
                raise ValueError(f"labels must be from 0 to {logits.shape[-1] - 1}")
            best = logits.topk(min(top, logits.shape[-1]), -1).indices
            correct += int((best == labels.to(best.device).unsqueeze(-1)).any(-1).sum())
            total += len(labels)
    return _result(correct, total, f"label among the {top} highest logits" if top > 1 else "label is the highest logit")


@torch.no_grad()
def agreement(
    model: Callable[..., Any], reference: Callable[..., Any], inputs: Iterable[Any], *, progress: bool | None = None
) -> Accuracy:
    """Measures how often two classifiers find the same class most likely; needs no labels.

    Args:
        model, reference: see `accuracy`.
        inputs: batches without labels, each a tensor, a tuple of arguments or a mapping of named ones.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if there is no batch, or the logits differ in shape.
    """
    same = total = 0
    here, there = device_of(model), device_of(reference)
    with evaluating(model, reference):
        for batch in track(inputs, "agreement", enabled=progress):
            one, other = _logits(model, batch, here), _logits(reference, batch, there)
            if one.shape != other.shape:
                raise ValueError(
                    f"logits of model and reference differ in shape: {list(one.shape)}, {list(other.shape)}"
                )
            same += int((one.argmax(-1).cpu() == other.argmax(-1).cpu()).sum())
            total += len(one)
    return _result(same, total, "same highest logit as the reference")


def _logits(model: Callable[..., Any], inputs: Any, device: torch.device) -> Tensor:
    output = call(model, move(inputs, device))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        got = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"a classifier must give floating logits [n, classes], got {got}")
    if logits.isnan().any():
        raise ValueError("the logits hold NaN")
    return logits


def _result(correct: int, total: int, convention: str) -> Accuracy:
    if not total:
        raise ValueError("there is no batch to measure on")
    return Accuracy(correct / total, correct, total, convention)
