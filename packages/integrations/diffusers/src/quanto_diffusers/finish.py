# SPDX-License-Identifier: Apache-2.0
"""After loading: nothing half-loaded leaves `from_pretrained`, and weights are arranged for their kernels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

import quanto
from quanto.hosts.files import where_is
from quanto.model import arrange
from quanto.nn import QModule
from quanto.nn.checkpoint import check_parts
from quanto.nn.slot import PARTS

__all__ = ["dequantize", "finish"]


def finish(model: Any, quantized: Sequence[tuple[str, QModule]], files: Sequence[str], keys: Collection[str]) -> None:
    """Checks every quantized module.

    Args:
        model: loaded.
        quantized: its quantized modules, by name.
        files: of the checkpoint.
        keys: names of its tensors, as they are in the model; empty where they are not known.

    Raises:
        ValueError: naming file and tensor, if a part of a quantized weight is missing or does not fit.
    """
    offloaded = "disk" in set((getattr(model, "hf_device_map", None) or {}).values())
    known = set(keys)
    for name, module in quantized:
        for leaf in module._slots:
            if f"{leaf}_packed" in module._parameters:
                _check(module, f"{name}.{leaf}" if name else leaf, leaf, files, known)
        for leaf in ("input_scale", "output_scale"):
            scale = module._buffers.get(leaf)
            if scale is not None and scale.is_meta and f"{name}.{leaf}" not in known:
                raise ValueError(f"{where_is([], files)} lacks {name}.{leaf!r}: a scale of quantized activations")
    if not offloaded:
        _arrange(model)


def _check(module: QModule, full: str, leaf: str, files: Sequence[str], known: set[str]) -> None:
    held = {part: p for part in PARTS if (p := module._parameters.get(f"{leaf}_{part}")) is not None}
    for part, parameter in held.items():
        parameter.requires_grad_(False)
        if parameter.is_meta and f"{full}_{part}" not in known:
            raise ValueError(f"{where_is([], files)} lacks '{full}_{part}': a part of a quantized weight")
    try:
        check_parts(module._slots[leaf], held)
    except ValueError as error:
        raise ValueError(f"{where_is([f'{full}_{part}' for part in held], files)}: {full}: {error}") from None
    module._rekey(leaf)


def _arrange(model: Any) -> None:
    """Arranges weights where they will compute.

    A model that lies in the memory of a machine with an accelerator is on its way there: it is arranged when it moves,
    and stays as it is where an offloading hook takes its tensors there one by one.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = {p.device.type for p in model.parameters()}
    if accelerator is None or devices - {"cpu"}:
        arrange(model)
        return
    for module in model.modules():
        if isinstance(module, QModule):
            module._arranges = True


def dequantize(model: Any) -> Any:
    """Turns quantized modules back into float ones; the config forgets that they were not."""
    quanto.dequantize(model)
    config = {k: v for k, v in model._internal_dict.items() if k != "quantization_config"}
    model._internal_dict = type(model._internal_dict)(config)
    return model
