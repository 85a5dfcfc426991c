# SPDX-License-Identifier: Apache-2.0
"""State dicts of quantized modules: the parts of a frozen weight, by its name."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..tensor.qbits import WeightQBitsTensor
from ..tensor.qbytes import WeightQBytesTensor
from ..tensor.qtensor import QTensor

__all__ = ["load", "save"]


def save(module: Any, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Adds parameters and buffers; a quantized weight as `<prefix>weight._data` and so on."""
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        if value is None or name in module._non_persistent_buffers_set:
            continue
        if isinstance(value, QTensor):
            value.save_to_state_dict(destination, f"{prefix}{name}.", keep_vars)
        else:
            destination[prefix + name] = value if keep_vars else value.detach()


def load(module: Any, state_dict: dict[str, Any], prefix: str, args: tuple[Any, ...]) -> bool:
    """Takes a quantized weight out of a state dict and puts it in the place of the module's weight.

    A float weight meets a frozen module as it met it before: the module is quantized by it anew.

    Returns:
        Whether the weight has been dealt with.
    """
    metadata, _, missing, _, errors = args
    name = f"{prefix}weight"
    if module.weight_qtype is None or module.weight is None:
        return False
    if name in state_dict:
        if module.frozen:
            module.weight = nn.Parameter(state_dict[name].detach().to(module.weight.device).clone())
            module.freeze()
            del state_dict[name]
            return True
        return False
    if not module.frozen and not any(key.startswith(f"{name}.") for key in state_dict):
        return False  # strict loading names the float weight
    weight, lost = module.weight, list[str]()
    size, stride = weight.size(), weight.stride()
    parts = {key: state_dict[key] for key in list(state_dict) if key.startswith(f"{name}.")}
    parts_given = list(parts)
    try:
        if module.weight_qtype.bits == 8:
            made: Any = WeightQBytesTensor.load_from_state_dict(
                parts, f"{name}.", module.weight_qtype, 0, size, stride, module.activation_qtype, lost
            )
        else:
            made = WeightQBitsTensor.load_from_state_dict(
                parts, f"{name}.", module.weight_qtype, 0, module.weight_group_size, size, stride, lost
            )
    except ValueError as error:
        errors.append(str(error))
        return True
    missing += lost
    for key in parts_given:
        del state_dict[key]
    if made is None:
        return True
    assign = metadata.get("assign_to_params_buffers", False)
    if not assign and weight.device.type != "meta":
        made = made.to(weight.device)
    made = made.detach() if assign else made.detach().clone()
    module.weight = nn.Parameter(made.optimize(), requires_grad=False)
    return True
