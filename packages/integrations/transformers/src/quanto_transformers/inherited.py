# SPDX-License-Identifier: Apache-2.0
"""Models that optimum-quanto saved: found by their `quanto_qmap.json`, read here, saved in this package's format.

Such a folder has no `quantization_config`, so that a plain `AutoModel` takes it for a float model and draws random
weights for what it does not find. Of a module `name` it holds

    qint8, qfloat8…   name.weight._data          int8 or float8, the shape of the float weight
    qint4, qint2      name.weight._data._data    uint8; groups are rows [groups, size]; byte row r holds rows r, r + R,
                                                 r + 2R … from its lowest bits, R = ceil(groups / codes per byte)
                      name.weight._shift         [groups, 1]: value = scale * code - shift, or scale * (code - shift)
                                                 where it is an integer; codes count from zero
    all               name.weight._scale         [out, 1, …] or [groups, 1], in the model's dtype
                      name.input_scale           0-d; 1 where it was never calibrated
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from quanto import Scheme, packing
from quanto.nn import QModule
from quanto.nn.slot import Slot

from .adapter import is_sharded, renames_on_load
from .layers import Layers

__all__ = ["MAP", "UNEXPECTED", "fill", "find_map", "group_size", "layers", "parse_map", "read_codes"]

MAP = "quanto_qmap.json"

#: regular expression for the names of tensors that transformers finds no place for.
UNEXPECTED = r"\.weight\._(data|scale|shift)(\._data)?$|\.(input|output)_scale$"

_QTYPES = {
    "qint8": "int8",
    "qint4": "int4",
    "qint2": "int2",
    "qfloat8": "float8_e4m3fn",
    "qfloat8_e4m3fn": "float8_e4m3fn",
    "qfloat8_e4m3fnuz": "float8_e4m3fnuz",
    "qfloat8_e5m2": "float8_e5m2",
}
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def find_map(config: Any) -> str | None:
    """Path of the map beside the config of a model, on disk or on the hub; None if there is none."""
    name = getattr(config, "_name_or_path", "") or ""
    if not name:
        return None
    if os.path.isdir(name):
        path = os.path.join(name, MAP)
        return path if os.path.isfile(path) else None
    revision = getattr(config, "_commit_hash", None)
    if revision is None:  # not from the hub
        return None
    from transformers.utils import cached_file

    with contextlib.suppress(OSError, ValueError):  # once for each revision: that there is none is remembered on disk
        found: str | None = cached_file(
            name,
            MAP,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return found
    return None


def parse_map(path: str) -> dict[str, dict[str, str | None]]:
    """Reads a map without trusting it.

    Returns:
        By module: names of core's qtypes for `"weights"` and `"activations"`, None for what stays floating.

    Raises:
        ValueError: naming the file, and the module and what is wrong with it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} must hold an object, not {type(data).__name__}")
    found: dict[str, dict[str, str | None]] = {}
    for name, entry in data.items():
        if not isinstance(entry, Mapping) or set(entry) != {"weights", "activations"}:
            raise ValueError(f"{path}: {name!r} must be an object with weights and activations, got {entry!r:.80}")
        found[name] = {}
        for field, value in entry.items():
            if value not in ("none", None) and value not in _QTYPES:
                known = ", ".join(_QTYPES)
                raise ValueError(f"{path}: {field} of {name!r} must be none or one of {known}, got {value!r:.80}")
            found[name][field] = _QTYPES.get(value)
    return found


def group_size(width: int) -> int | None:
    """How many weights of a row of `width` share a scale in 2 and 4 bits; None for the whole row."""
    return next((g for g in (128, 96, 64, 32) if width % g == 0), None) if width > 128 else None


def layers(
    model: nn.Module, qmap: Mapping[str, Mapping[str, str | None]], files: Sequence[str]
) -> tuple[list[Layers], dict[str, str]]:
    """What the modules of a float model on meta are in a folder.

    Returns:
        Their layers, and by module the name it has in the folder.

    Raises:
        ValueError: if the folder lacks the tensors of a module, or the model lacks a module.
    """
    held, modules, rename = _held(files), dict(model.named_modules()), renames_on_load(model)
    found, names = [], {}
    for name, entry in qmap.items():
        if entry["weights"] is None:  # a norm: only its output was rounded, and most often was not
            continue
        here = _in_model(rename(f"{name}.weight").removesuffix(".weight"), model, modules)
        if here is None:
            continue
        weight = modules[here]._parameters.get("weight")
        if not isinstance(modules[here], (nn.Linear, nn.Conv2d)) or weight is None:
            raise ValueError(f"{MAP} names {name!r}, which is a {type(modules[here]).__name__} in the model")
        trainable = f"{name}.weight" in held
        scale = f"{name}.weight{'' if trainable else '._scale'}"
        if scale not in held:
            raise ValueError(f"{os.path.dirname(files[0])} lacks {scale!r}: a part of a quantized weight")
        dtype, rest = _dtype(held[scale], scale), _rest(name, entry, held)
        found.append(Layers((here,), _scheme(entry, weight), dtype, trainable=trainable, **rest))
        names[here] = name
    if not found:
        raise ValueError(f"{MAP} names no module of {type(model).__name__}: {', '.join(list(qmap)[:3])} …")
    return found, names


def _in_model(name: str, model: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    """A module's name in the model, which may be the base model of the one that was saved; None for its head."""
    prefix = getattr(model, "base_model_prefix", "")
    is_base = bool(prefix) and not hasattr(model, prefix)
    spellings = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    found = next((n for n in spellings if n in modules), None)
    if found is None and not (is_base and not name.startswith(f"{prefix}.")):
        raise ValueError(
            f"{MAP} names {name!r}, which {type(model).__name__} does not have; transformers keeps the experts of some "
            "families in one parameter now: such a model must be quantized again"
        )
    return found


def _scheme(entry: Mapping[str, str | None], weight: Tensor) -> Scheme:
    weights, activations = entry["weights"], entry["activations"]
    assert weights is not None
    static = None if activations is None else False
    if weights not in ("int4", "int2"):
        return Scheme(weights, activations, dynamic=static)
    group = group_size(weight.numel() // weight.shape[0])
    granularity = "channel" if group is None else None
    return Scheme(weights, activations, group_size=group, granularity=granularity, symmetric=False, dynamic=static)


def _rest(name: str, entry: Mapping[str, str | None], held: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if entry["weights"] in ("int4", "int2"):
        out["zero_point"] = "float32"  # a quotient of two numbers of the model's dtype
    if entry["activations"] is not None:
        path = held.get(f"{name}.input_scale")
        if path is None:
            raise ValueError(f"{name}.input_scale is missing: the scale of its activations")
        if float(_read(path, f"{name}.input_scale")) == 1:
            raise ValueError(f"{path}: {name}.input_scale is 1: its activations were never calibrated")
        out["scales"] = ("input_scale",)
    return out


def fill(modules: Iterable[tuple[str, QModule]], names: Mapping[str, str], files: Sequence[str]) -> None:
    """Gives frozen modules their codes and scales.

    Args:
        modules: of the model, by name.
        names: theirs in the folder.
        files: of the folder.

    Raises:
        ValueError: naming file and tensor, if one is missing or has another shape than the module's.
    """
    held = _held(files)
    for here, module in modules:
        packed = module._parameters.get("weight_packed")
        if packed is None:
            continue
        if is_sharded(packed) or packed.is_meta:
            raise ValueError(
                "a model that optimum-quanto saved cannot be spread over processes or offloaded to disk while it is "
                "read: load and save it once without that"
            )
        prefix = f"{names[here]}.weight."
        files_of = {key.removeprefix(prefix): path for key, path in held.items() if key.startswith(f"{prefix}_")}
        try:
            found = read_codes({part: _read(path, prefix + part) for part, path in files_of.items()}, module)
        except (KeyError, ValueError) as error:
            path = next(iter(files_of.values()), os.path.dirname(files[0]))
            what = f"{prefix}{error.args[0]} is missing" if isinstance(error, KeyError) else f"{prefix}{error}"
            raise ValueError(f"{path}: {what}") from None
        for part, tensor in found.items():
            module._parameters[f"weight_{part}"] = nn.Parameter(tensor.to(packed.device), requires_grad=False)


def read_codes(parts: Mapping[str, Tensor], module: QModule) -> dict[str, Tensor]:
    """Canonical codes, scale and zero point of a weight, from the tensors of a folder.

    Args:
        parts: `_data`, or `_data._data` and `_shift`, and `_scale`.
        module: the module on meta or with memory; its slot `weight` says what is expected.

    Raises:
        KeyError: with the name of a part that is missing.
        ValueError: if a part has another shape than the module needs.
    """
    slot = module._slots["weight"]
    if slot.scheme.qtype.bits == 8:
        data = slot.rows(_shaped("_data", parts["_data"], slot.shape))
        stored = module.get_parameter("weight_packed").dtype
        return {"packed": data.contiguous().view(stored), "scale": parts["_scale"].reshape(slot.shape[0], -1)}
    bits = slot.scheme.qtype.bits
    rows, width = slot.rows_shape()
    groups = width // slot.block_size[-1]
    codes = _unpack(parts["_data._data"], bits, rows * groups, slot)
    scale = _shaped("_scale", parts["_scale"], (rows * groups, 1)).reshape(rows, groups)
    shift = _shaped("_shift", parts["_shift"], (rows * groups, 1)).reshape(rows, groups)
    zero = shift.float()
    if shift.is_floating_point():
        flat = scale == 0  # all weights of the group are one number
        scale = torch.where(flat, 1, scale)
        codes = codes.view(rows, groups, -1).masked_fill(flat[..., None], 0).view(rows, width)
        zero = zero / scale.float()
    zero = zero + slot.scheme.qtype.qmin  # codes count from the smallest value
    return {"packed": packing.pack(codes.view(rows, width), bits), "scale": scale, "zero_point": zero}


def _unpack(data: Tensor, bits: int, count: int, slot: Slot) -> Tensor:
    each = 8 // bits
    size = slot.block_size[-1]
    data = _shaped("_data._data", data, (-(-count // each), size)).view(torch.uint8)
    rows = torch.cat([data >> (bits * i) & (2**bits - 1) for i in range(each)])
    return rows[:count]


def _shaped(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} where the model needs {tuple(shape)}")
    return tensor


def _held(files: Sequence[str]) -> dict[str, str]:
    """The file of each tensor."""
    out = {}
    for path in files:
        if not path.endswith(".safetensors"):
            raise ValueError(f"{path}: models that optimum-quanto saved are read from safetensors only")
        with safe_open(path, framework="pt") as file:
            out.update(dict.fromkeys(file.keys(), path))
    return out


def _read(path: str, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _dtype(path: str, name: str) -> str:
    with safe_open(path, framework="pt") as file:
        stored = file.get_slice(name).get_dtype()
    if stored not in _DTYPES:
        raise ValueError(f"{path}: {name} has dtype {stored}, which no scale of optimum-quanto has")
    return _DTYPES[stored]
