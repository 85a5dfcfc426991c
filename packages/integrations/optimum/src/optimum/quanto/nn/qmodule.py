# SPDX-License-Identifier: Apache-2.0
"""`QModuleMixin`: what every quantized module is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quanto.hosts.upstream import group_size

from ..qtype import find, qint2, qint4, qtype
from ..tensor.activations import quantize_activation
from ..tensor.optimizers import AbsmaxOptimizer, MaxOptimizer, Optimizer, SymmetricOptimizer
from ..tensor.qbytes import ActivationQBytesTensor
from ..tensor.qtensor import QTensor
from ..tensor.weights import quantize_weight
from . import state

__all__ = ["QModuleMixin"]


class QModuleMixin(nn.Module):
    """Comes first among the bases, before the module it quantizes.

    Attributes:
        weight_qtype, activation_qtype: None where not quantized.
        weight_group_size: of 2 and 4 bits, found from the width of the weight; None for whole rows.
        optimizer: finds the scales of the weight.
        input_scale, output_scale: one element, 1 until calibrated.
    """

    input_scale: Tensor
    output_scale: Tensor
    weight: Any

    def __init__(
        self,
        *args: Any,
        weights: qtype | str | None = None,
        activations: qtype | str | None = None,
        optimizer: Optimizer | None = None,
        quantize_input: bool = False,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        bases = type(self).__mro__
        if nn.Module not in bases[bases.index(QModuleMixin) + 2 :]:
            raise TypeError(f"{type(self).__name__} must name QModuleMixin before the module that it quantizes")
        super().__init__(*args, device=device, **kwargs)
        self.weight_qtype = find(weights, "weights")
        self.activation_qtype = find(activations, "activations")
        self.weight_group_size = None
        if self.weight_qtype in (qint2, qint4):
            self.weight_group_size = group_size(self.weight.numel() // self.weight.shape[0])
        self._quantize_hooks: dict[str, Any] = {}
        if self.activation_qtype is not None:
            if quantize_input:
                self._quantize_hooks["input"] = self.register_forward_pre_hook(self.quantize_input)
            self._quantize_hooks["output"] = self.register_forward_hook(self.quantize_output)
        if optimizer is None and self.weight_qtype is not None:
            optimizer = AbsmaxOptimizer() if self.weight_qtype.bits == 8 else MaxOptimizer()
        self.optimizer = optimizer
        dtype = self.weight.dtype if getattr(self, "weight", None) is not None else None
        for name in ("input_scale", "output_scale"):
            self.register_buffer(name, torch.ones((), dtype=dtype, device=device))

    # -- making one --------------------------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        weights: qtype | str | None = None,
        activations: qtype | str | None = None,
        optimizer: Optimizer | None = None,
    ) -> Any:
        """The quantized twin of a module, with the same parameters; None where there is nothing to quantize."""
        made = cls.qcreate(module, weights, activations, optimizer, device="meta")
        if made is None:
            return None
        parameter = next(module.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        for name, value in module.named_parameters(recurse=False):
            setattr(made, name, value)
        for name in ("input_scale", "output_scale"):
            dtype = None if parameter is None else parameter.dtype
            setattr(made, name, torch.ones((), dtype=dtype, device=device))
        made.train(module.training)
        return made

    @classmethod
    def qcreate(
        cls,
        module: nn.Module,
        weights: qtype | str | None,
        activations: qtype | str | None = None,
        optimizer: Optimizer | None = None,
        device: Any = None,
    ) -> Any:
        """A quantized module of the same shape, without its values."""
        raise NotImplementedError(f"{cls.__name__} must implement qcreate")

    # -- weights -----------------------------------------------------------------------------------------------

    @property
    def qweight(self) -> Any:
        """The quantized weight; differentiable, straight-through, until it is frozen. None if it stays float."""
        if self.weight_qtype is None:
            return None
        if isinstance(self.weight, QTensor):
            return self.weight
        shift = None
        if isinstance(self.optimizer, SymmetricOptimizer):
            scale = self.optimizer(self.weight, qtype=self.weight_qtype, axis=0)
        elif self.optimizer is not None:
            scale, shift = self.optimizer(
                self.weight, qtype=self.weight_qtype, axis=0, group_size=self.weight_group_size
            )
        else:
            raise ValueError(f"{type(self).__name__} has no optimizer to find the scales of its weight")
        return quantize_weight(
            self.weight, self.weight_qtype, 0, scale, shift, self.weight_group_size, self.activation_qtype
        )

    def freeze(self) -> None:
        """Puts the quantized weight in the place of the float one."""
        made = self.qweight
        if made is not None and not self.frozen:
            self.weight = nn.Parameter(made.detach().optimize(), requires_grad=False)

    @property
    def frozen(self) -> bool:
        """Whether the weight is stored quantized."""
        return isinstance(self.weight, QTensor)

    # -- activations -------------------------------------------------------------------------------------------

    def quantize_input(self, module: nn.Module, input: Any) -> Any:
        """A hook: the first argument, quantized."""
        first = input[0]
        assert self.activation_qtype is not None
        if not isinstance(first, ActivationQBytesTensor):
            return (quantize_activation(first, self.activation_qtype, self.input_scale), *input[1:])
        if first.qtype != self.activation_qtype:
            return (quantize_activation(first.dequantize(), self.activation_qtype, self.input_scale), *input[1:])
        return input

    def quantize_output(self, module: nn.Module, input: Any, output: Tensor) -> Tensor:
        """A hook: the output, quantized."""
        assert self.activation_qtype is not None
        if isinstance(output, ActivationQBytesTensor) and output.qtype == self.activation_qtype:
            return output
        if isinstance(output, QTensor):
            output = output.dequantize()
        return quantize_activation(output, self.activation_qtype, self.output_scale)

    def disable_output_quantization(self) -> None:
        """Outputs are floats from now on."""
        hook = self._quantize_hooks.pop("output", None)
        if hook is not None:
            hook.remove()

    # -- state -------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state.save(self, destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        dealt_with = state.load(self, state_dict, prefix, args)
        super()._load_from_state_dict(state_dict, prefix, *args)
        missing = args[2]
        if dealt_with and f"{prefix}weight" in missing:
            missing.remove(f"{prefix}weight")
