# SPDX-License-Identifier: Apache-2.0
"""Scales, zero points and norms learned end to end, for codes that are chosen."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._progress import track
from .movable import Movable, movable_layers
from .step import Step, as_float, computing, first_tensor, relative_error
from .stream import call

__all__ = ["Tune"]


class Tune(Step):
    """The end-to-end phase of EfficientQAT (Chen et al., 2024, arXiv:2407.11062), by distillation.

    When every layer is frozen, the scales and floating zero points of the linear layers, and the norms' weights and
    other parameters of one dimension, are moved by gradients until the model's predictions are near to those of the
    float model; codes stay what they are, so that the file's size does too. Of eight batches and more one in eight is
    held back, of fewer all are for both; what the epoch with the least loss on those had is kept: nothing if none was
    better.

    Takes the memory of the float model and of one training step beside the quantized model's.

    Args:
        epochs: over the data.
        rate: of Adam, relative to the scale (or to one step of the grid, for zero points); falls to zero by a cosine.
        norms: whether floating parameters of one dimension are learned too.
        loss: `"divergence"`, for models that return logits, or objects that have them as `.logits`; `"square"`, of the
            output relative to the float model's, for others.
        seed: of the order of the data.
    """

    name = "tune"

    def __init__(
        self, epochs: int = 8, rate: float = 1e-3, norms: bool = True, loss: str = "divergence", seed: int = 0
    ) -> None:
        if epochs < 1 or rate <= 0:
            raise ValueError(f"epochs must be at least 1 and rate positive, got {epochs} and {rate}")
        if loss not in ("divergence", "square"):
            raise ValueError(f"loss must be 'divergence' or 'square', got {loss!r}")
        self.epochs, self.rate, self.norms, self.loss, self.seed = epochs, rate, norms, loss, seed
        self._teacher: nn.Module | None = None

    def prepare(self, model: nn.Module) -> None:
        """Copies the float model."""
        self._teacher = copy.deepcopy(model)

    def conclude(self, model: nn.Module, samples: Sequence[Any], progress: bool | None = None) -> None:
        """Learns; see the class."""
        layers = movable_layers(model)
        teacher, self._teacher = self._teacher, None
        if teacher is None or not layers:
            return
        with torch.enable_grad(), ExitStack() as stack:
            norms = stack.enter_context(_trainable(model)) if self.norms else []
            stack.enter_context(computing((layer.layer, layer.forward) for layer in layers))
            self._learn(model, teacher, samples, layers, norms, progress)
        for layer in layers:
            layer.freeze()

    def _learn(
        self,
        model: nn.Module,
        teacher: nn.Module,
        samples: Sequence[Any],
        layers: list[Movable],
        norms: list[nn.Parameter],
        progress: bool | None,
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": [p for layer in layers for p in layer.parameters()]}]
        groups += [{"params": norms, "lr": self.rate / 2}] if norms else []
        learned = [p for group in groups for p in group["params"]]
        held = samples[::8] if len(samples) >= 8 else samples
        used = [s for i, s in enumerate(samples) if i % 8] if len(samples) >= 8 else samples
        optimizer = torch.optim.Adam(groups, lr=self.rate, betas=(0.9, 0.95))
        total = self.epochs * len(used)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total))
        )
        generator = torch.Generator().manual_seed(self.seed)
        least, best = self._held(model, teacher, held), [p.detach().clone() for p in learned]
        order: list[int] = []
        for _ in track(range(total), "tune", enabled=progress):
            order = order or torch.randperm(len(used), generator=generator).tolist()
            optimizer.zero_grad(set_to_none=True)
            self._loss(model, teacher, used[order.pop()]).backward()
            optimizer.step()
            schedule.step()
            if not order and (found := self._held(model, teacher, held)) < least:
                least, best = found, [p.detach().clone() for p in learned]
        for parameter, value in zip(learned, best, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None

    @torch.no_grad()
    def _held(self, model: nn.Module, teacher: nn.Module, samples: Sequence[Any]) -> float:
        return sum(float(self._loss(model, teacher, batch)) for batch in samples) / len(samples)

    def _loss(self, model: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), as_float(teacher):
            wanted = self._output(teacher, batch)
        found = self._output(model, batch)
        if self.loss == "square":
            return relative_error(found, wanted)
        wanted, found = (t.flatten(0, -2).log_softmax(-1) for t in (wanted, found))
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean")

    @staticmethod
    def _output(model: nn.Module, batch: Any) -> Tensor:
        output = call(model, batch)
        return first_tensor(output).float()


@contextmanager
def _trainable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The floating parameters of one dimension that no quantized weight is made of, trainable meanwhile."""
    found = {
        id(p): p
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None and p.ndim == 1 and p.is_floating_point() and not name.endswith(("_scale", "_zero_point"))
    }
    before = {key: p.requires_grad for key, p in found.items()}
    try:
        for p in found.values():
            p.requires_grad_(True)
        yield list(found.values())
    finally:
        for key, p in found.items():
            p.requires_grad_(before[key])
