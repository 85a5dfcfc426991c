# SPDX-License-Identifier: Apache-2.0
"""`Calibration`: scales of activations, from what a model is run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from .nn import QModuleMixin
from .qtype import qtype
from .tensor.activations import absmax_scale
from .tensor.qbytes import ActivationQBytesTensor
from .tensor.qtensor import QTensor

__all__ = ["Calibration"]


class Calibration(TorchFunctionMode):
    """A context: modules run in it find the scales of their inputs and outputs.

    Args:
        momentum: how much of the scale so far each batch keeps.
        streamline: whether outputs that the next operation only dequantizes are floats afterwards.
        debug: accepted.
    """

    def __init__(
        self, *args: Any, momentum: float = 0.9, streamline: bool = True, debug: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.momentum, self.streamline, self.debug = momentum, streamline, debug
        self._lost: dict[int, QModuleMixin] = {}
        self._gained: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Calibration:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._hooks = [
            register_module_forward_pre_hook(self.calibrate_input),
            register_module_forward_hook(self.calibrate_output),
        ]
        QTensor.on_fallback = self._dequantized
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        QTensor.on_fallback = None
        for hook in self._hooks:
            hook.remove()
        for key, module in self._lost.items():
            if self.streamline and key not in self._gained:
                module.disable_output_quantization()

    def _dequantized(self, q: QTensor) -> None:
        if isinstance(q.producer, QModuleMixin):
            self._lost[id(q.producer)] = q.producer

    @torch.no_grad()
    def calibrate_input(self, module: nn.Module, input: Any) -> None:
        """A hook before each module's own."""
        if not isinstance(module, QModuleMixin) or module.activation_qtype is None:
            return
        first = input[0] if input else None
        if isinstance(first, ActivationQBytesTensor):
            self._gained.add(id(first.producer))
            module.input_scale = torch.max(first._scale).detach()
        elif isinstance(first, Tensor) and first.is_floating_point():
            self._update(module, "input_scale", first, module.activation_qtype)

    @torch.no_grad()
    def calibrate_output(self, module: nn.Module, input: Any, output: Any) -> Any:
        """A hook after the forward pass, before each module's own."""
        if not isinstance(module, QModuleMixin) or module.activation_qtype is None:
            return None
        if not isinstance(output, Tensor):
            return None
        floats = output.dequantize() if isinstance(output, QTensor) else output
        self._update(module, "output_scale", floats, module.activation_qtype)
        if "output" not in module._quantize_hooks:
            return None
        made = module.quantize_output(module, input, output)
        made.producer = module  # type: ignore[attr-defined]
        return made

    def _update(self, module: QModuleMixin, name: str, x: Tensor, qtype: qtype) -> None:
        new = absmax_scale(x.detach(), qtype)
        if not bool(torch.isfinite(new)):
            raise ValueError(f"calibration met NaN or infinity in the {name[:-6]} of {type(module).__name__}")
        old = getattr(module, name)
        first = bool(old == 1)
        setattr(module, name, new if first else (self.momentum * old + (1 - self.momentum) * new).to(old.dtype))
