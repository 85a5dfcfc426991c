# SPDX-License-Identifier: Apache-2.0
"""After loading: nothing half-loaded leaves `from_pretrained`, and weights are arranged for their kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import quanto
from quanto.hosts.files import where_is
from quanto.hosts.layers import describe
from quanto.model import arrange
from quanto.nn import QModule
from quanto.nn.checkpoint import check_parts
from quanto.nn.slot import PARTS

from . import conversions, inherited, parallel, skeleton
from .adapter import is_sharded
from .kv_config import KVCacheConfig
from .quantize_op import quantize_weight

if TYPE_CHECKING:
    from .quantizer import QuantoHfQuantizer

__all__ = ["dequantize", "finish", "missing"]


def finish(model: Any, quantizer: QuantoHfQuantizer) -> None:
    """Checks every quantized module, and completes the model and its config.

    Raises:
        ValueError: naming file and tensor, if a part of a quantized weight is missing or does not fit.
    """
    stand_ins = quantizer.stand_ins
    assert stand_ins is not None
    stand_ins.resume(quantize_weight)
    stand_ins.remove()
    quantizer.stand_ins = None
    skeleton.share_tied(model, float_names=False)
    if quantizer.inherited is not None:
        inherited.fill(quantizer.quantized, quantizer.inherited, quantizer.checkpoint_files)
    for name, module in quantizer.quantized:
        for leaf in module._slots:
            if f"{leaf}_packed" in module._parameters:
                _check(module, f"{name}.{leaf}" if name else leaf, leaf, quantizer.checkpoint_files)
    if quantizer.pre_quantized and quantizer.quantization_config.dequantize:
        dequantize(model, None)
        return
    if any(is_sharded(p) for p in model.parameters()):
        for _, module in quantizer.quantized:
            parallel.localize(module)
    elif not _is_offloaded(model):
        arrange(model)
    model._weight_conversions = conversions.for_saving(
        getattr(model, "_weight_conversions", None) or [], model, quantizer.quantized
    )
    _set_cache(model, quantizer.quantization_config.kv_cache)
    quantizer.quantization_config.modules = [layers.to_dict() for layers in describe(model)]


def _set_cache(model: Any, kv_cache: dict[str, Any] | None) -> None:
    """Lets `generate` use the quantized cache of the config, unless it is told otherwise."""
    generation = getattr(model, "generation_config", None)
    if kv_cache is not None and generation is not None:
        generation.cache_implementation = "quantized"
        generation.cache_config = KVCacheConfig.parse(kv_cache).to_cache_config()


def _is_offloaded(model: Any) -> bool:
    return "disk" in set((getattr(model, "hf_device_map", None) or {}).values())


def _check(module: QModule, full: str, leaf: str, files: list[str]) -> None:
    """Whether the parts of a frozen weight are those of its scheme; they need no gradient."""
    held = {part: p for part in PARTS if (p := module._parameters.get(f"{leaf}_{part}")) is not None}
    for parameter in held.values():
        parameter.requires_grad_(False)
    try:
        check_parts(module._slots[leaf], held)
    except ValueError as error:
        raise ValueError(f"{where_is([f'{full}_{part}' for part in held], files)}: {full}: {error}") from None
    module._rekey(leaf)


def missing(names: set[str], model: Any, quantizer: QuantoHfQuantizer) -> None:
    """What becomes of tensors that the checkpoint lacks.

    Float weights of a float checkpoint, such as a head that was not trained yet, get the values a float model would
    have been given.

    Raises:
        ValueError: naming the tensors and the folder, if a part of a saved quantized weight is missing; naming file and
            tensor, if a float weight could not be quantized.
    """
    stand_ins = quantizer.stand_ins
    assert stand_ins is not None
    for name, wrong in stand_ins.failed.items():
        raise ValueError(f"{where_is([name], quantizer.checkpoint_files)}: {wrong}")
    if quantizer.inherited is not None:
        return  # `finish` reads them
    if not quantizer.pre_quantized:
        stand_ins.release(name for name in list(stand_ins.waiting) if name in names)
        return
    known = {
        f"{name}.{tensor}"
        for name, module in quantizer.quantized
        for tensor in (
            *(f"{leaf}_{part}" for leaf in module._slots for part in PARTS),
            *(n for n, b in module._buffers.items() if b is not None),
        )
    }
    lacking = sorted(names & known)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        folder = where_is([], quantizer.checkpoint_files)
        raise ValueError(f"{folder} lacks {', '.join(map(repr, lacking[:3]))}{more}: parts of quantized weights")


def dequantize(model: Any, dtype: torch.dtype | str | None) -> Any:
    """Turns quantized modules back into float ones of `dtype`, or of the model's; tied weights stay tied."""
    quanto.dequantize(model)
    skeleton.untie_names(model)
    model.__dict__.pop("_weight_conversions", None)  # those of codes; transformers finds those of floats by itself
    if isinstance(dtype, str):  # a config that was saved holds its dtype as text
        dtype = getattr(torch, dtype)
    return model if dtype is None else model.to(dtype)
