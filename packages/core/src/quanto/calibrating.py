# SPDX-License-Identifier: Apache-2.0
"""Static activation scales from sample batches."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .nn.activations import absmax_scale
from .nn.base import QModule
from .tensor import QTensor, quantize_activation

__all__ = ["Calibration"]

_log = logging.getLogger("quanto")


_running: list[Calibration] = []


def _notify(q: QTensor, operation: str) -> None:
    """Tells every running calibration, whichever of them began first or will end first."""
    for calibration in tuple(_running):
        calibration._on_dequantize(q, operation)


class Calibration:
    """Records activation scales while the model runs on sample data.

    ```python
    with quanto.Calibration():
        for batch in samples:
            model(batch)
    ```

    Every quantized module with activations, but those of `dynamic=True`, gets a static `input_scale`: the moving
    average of the batches' largest magnitudes. Outputs are quantized too, and handed to the next layer as codes,
    where that layer takes them; hand-overs that gain nothing are removed at the end (and counted in `removed`).

    Args:
        momentum: weight of the past in the moving average, 0 to 1; 0 keeps the last batch alone.
        streamline: whether to remove hand-overs that gain nothing.

    Attributes:
        removed: names of the classes of modules whose output is no longer quantized, counted.
        kept: number of hand-overs that stay.
    """

    def __init__(self, momentum: float = 0.9, streamline: bool = True) -> None:
        if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
        self.momentum, self.streamline = momentum, streamline
        self.removed: Counter[str] = Counter()
        self.kept = 0
        self._seen: dict[int, QModule] = {}
        self._gained: set[int] = set()
        self._lost: set[int] = set()
        self._hidden: dict[int, tuple[QModule, Tensor]] = {}
        self._handles: list[Any] = []
        self._met = False

    def __enter__(self) -> Calibration:
        if self._handles:  # its hooks would be forgotten, and every model measured from then on
            raise RuntimeError("this calibration is running already; quanto.Calibration() makes one of its own")
        hooks = nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, with_kwargs=True),
        ]
        _running.append(self)
        QTensor.on_dequantize = _notify
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _running.remove(self)
        if not _running:
            QTensor.on_dequantize = None
        for module, scale in self._hidden.values():  # of modules that an error left half-way
            module.output_scale = scale
        self._hidden.clear()
        if error is None and not self._met:
            warnings.warn(
                "calibration met no quantized module that takes static scales: run the model itself inside the block, "
                "not a compiled one, after quanto.quantize(model, …, activations=…)",
                stacklevel=2,
            )
        if self.streamline and error is None:
            self._streamline()

    def _before(self, module: nn.Module, args: Any) -> None:
        if not isinstance(module, QModule) or not _calibrates(module):
            return
        self._met = True
        if module.output_scale is not None:  # or what is measured would be rounded and clipped by it
            self._hidden[id(module)] = module, module.output_scale
            module.output_scale = None
        if module.quantizes_input and args:
            self._measure(module, args[0])

    def _measure(self, module: QModule, x: Any) -> None:
        if isinstance(x, QTensor):
            if x.qtype.name == module.scheme.activations and not x.block_size:
                if x.producer is not None:
                    self._gained.add(id(x.producer))
                module.input_scale = x.scale.detach().clone()
                return
            if x.producer is not None:
                self._lost.add(id(x.producer))
            x = x.dequantize()
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            assert module.scheme.activations is not None
            self._update(module, "input_scale", x, module.scheme.activations)

    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not isinstance(module, QModule) or not _calibrates(module):
            return None
        if module.quantizes_input and not args and kwargs:  # torch has no global hook that sees them before
            self._measure(module, next(iter(kwargs.values())))
        if not module.quantizes_output:
            return None
        qtype = module.scheme.activations
        assert qtype is not None
        self._seen[id(module)] = module
        if id(module) in self._hidden:
            module.output_scale = self._hidden.pop(id(module))[1]
        if isinstance(output, QTensor) or not isinstance(output, Tensor) or not output.numel():
            return None
        if not output.is_floating_point():
            return None
        self._update(module, "output_scale", output, qtype)
        with torch.no_grad():
            made = quantize_activation(output.detach(), qtype, module.output_scale)
        made.producer = module
        return made

    def _update(self, module: QModule, name: str, x: Tensor, qtype: str) -> None:
        with torch.no_grad():
            new = absmax_scale(x, qtype)
            if not bool(torch.isfinite(new)):
                raise ValueError(f"calibration met NaN or infinity in the {name[:-6]} of {type(module).__name__}")
            old = getattr(module, name)
            setattr(module, name, new if old is None else self.momentum * old + (1 - self.momentum) * new)

    def _on_dequantize(self, q: QTensor, operation: str) -> None:
        if q.producer is not None:
            self._lost.add(id(q.producer))

    def _streamline(self) -> None:
        for key, module in self._seen.items():
            if key in self._gained and key not in self._lost:
                self.kept += 1
            elif module.output_scale is not None:
                module.output_scale = None
                self.removed[type(module).__name__] += 1
        if self.removed:
            text = ", ".join(f"{n} {c}" for c, n in self.removed.items())
            _log.info("calibration: %d quantized hand-overs kept, removed as gaining nothing: %s", self.kept, text)


def _calibrates(module: QModule) -> bool:
    scheme = module.scheme
    return scheme.activations is not None and scheme.dynamic is not True
