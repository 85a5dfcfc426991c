# SPDX-License-Identifier: Apache-2.0
"""The quantized model before it has values: modules on the meta device whose parameters are codes and scales.

They are ordinary parameters from here on, so that device maps, sharding and offloading see what will be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from quanto import Scheme
from quanto.hosts.layers import Layers, by_name
from quanto.hosts.upstream import CODES, scheme_of
from quanto.model import quantize_module
from quanto.nn import QModule
from quanto.nn.registry import modules

from .selection import Choice

__all__ = ["build", "coded", "hold_back", "inherit", "rebuild"]

Named = list[tuple[str, QModule]]


def build(choices: Iterable[Choice], dtype: torch.dtype, keep: Collection[str], trainable: bool) -> Named:
    """Gives float modules on meta their twins, frozen unless they are to be trained.

    Args:
        choices: the modules and their schemes.
        dtype: what the model is loaded in.
        keep: parts of paths that are loaded in float32.
        trainable: whether weights stay floats.
    """
    made = []
    for choice in choices:
        wanted = torch.float32 if set(keep).intersection(choice.name.split(".")) else dtype
        parameters = None if choice.parameters is None else dict(choice.parameters)
        made.append((choice.name, _convert(choice.name, choice.module, choice.scheme, parameters, wanted, trainable)))
    return made


def _convert(
    name: str,
    module: nn.Module,
    scheme: Scheme,
    parameters: dict[str, str] | None,
    dtype: torch.dtype,
    trainable: bool,
) -> QModule:
    twin, reason = modules.find(module)
    if parameters is None and twin is None:
        raise ValueError(reason)
    leaves = list(parameters or twin.quantized.quantized_parameters)  # type: ignore[union-attr]
    for leaf in leaves:
        parameter = module._parameters.get(leaf)
        if parameter is not None:
            module._parameters[leaf] = nn.Parameter(torch.empty_like(parameter, dtype=dtype), trainable)
    quantize_module(name, module, scheme, parameters)
    made: QModule = module  # type: ignore[assignment]
    if not trainable and made._slots:
        made.freeze()
    return made


def rebuild(model: nn.Module, layers: list[Layers], dtype: torch.dtype) -> Named:
    """Gives the modules of a float model on meta what a saved one says of them.

    Raises:
        ValueError: if a module is not there, has no twin, or not the parameters.
    """
    named = dict(model.named_modules())
    made = []
    for name, group in by_name(layers):
        try:
            if name not in named:
                raise ValueError(f"{type(model).__name__} has no such module")
            module = named[name]
            for leaf, _ in group.parameters:
                if not isinstance(module._parameters.get(leaf), nn.Parameter):
                    raise ValueError(f"{type(module).__name__} has no parameter {leaf!r}")
            parameters = dict(group.parameters) or None
            wanted = dtype if group.trainable else group.torch_dtype
            done = _convert(name, module, group.scheme, parameters, wanted, group.trainable)
        except ValueError as error:
            raise ValueError(f"module {name!r} was quantized when it was saved, but {error}") from None
        for leaf, slot in done._slots.items():
            slot.dtype = dtype
            zero = done._parameters.get(f"{leaf}_zero_point")
            if zero is not None:
                empty = torch.empty_like(zero, dtype=group.zero_point_dtype)
                done._parameters[f"{leaf}_zero_point"] = nn.Parameter(empty, False)
        for scale in group.scales:
            done._buffers[scale] = torch.empty((), dtype=torch.float32, device="meta")
        made.append((name, done))
    return made


def inherit(model: nn.Module, qtype: str, keys: Collection[str], dtype: torch.dtype) -> Named:
    """Gives the modules of a float model on meta what a folder says of them that diffusers wrote with optimum-quanto.

    Args:
        model: the float model.
        qtype: the one name that its config holds.
        keys: names of its tensors.
        dtype: what the model is loaded in.

    Raises:
        ValueError: if the folder has codes of a module that cannot be quantized here.
    """
    named = dict(model.named_modules())
    made = []
    for name in sorted({key.partition(".weight._data")[0] for key in keys if key.endswith(CODES)}):
        module = named.get(name)
        weight = None if module is None else module._parameters.get("weight")
        if module is None or not isinstance(module, (nn.Linear, nn.Conv2d)) or weight is None:
            raise ValueError(f"the folder holds codes for {name!r}, which {type(model).__name__} cannot have")
        made.append((name, _convert(name, module, scheme_of(qtype, weight.shape), None, dtype, False)))
    return made


def coded(keys: Collection[str]) -> set[str]:
    """Names of the modules whose weights are codes in a state dict of quanto's."""
    return {key.removesuffix(".weight_packed") for key in keys if key.endswith(".weight_packed")}


def hold_back(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What stands for quantized weights in a state dict of floats.

    Returns:
        By name of each weight, its codes; and all tensors of quantized weights, by theirs.
    """
    names = {f"{name}.weight": f"{name}.weight_packed" for name in coded(state.keys())}
    names |= {key.partition("._data")[0]: key for key in state if key.endswith(CODES)}
    parts = ("_packed", "_scale", "_zero_point", "_global_scale")
    scales = {name.removesuffix("weight") + scale for name in names for scale in ("input_scale", "output_scale")}
    owned = {f"{name}{part}" for name in names for part in parts} | scales
    held = {k: v for k, v in state.items() if k in owned or k.partition("._")[0] in names}
    return {name: state[key] for name, key in names.items()}, held
