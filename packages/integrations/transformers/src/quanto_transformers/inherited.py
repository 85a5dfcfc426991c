# SPDX-License-Identifier: Apache-2.0
"""Models that optimum-quanto saved: found by their `quanto_qmap.json`, read here, saved in this package's format.

Such a folder has no `quantization_config`, so that a plain `AutoModel` takes it for a float model and draws random
weights for what it does not find. What it holds of a weight is in `quanto.hosts.upstream`; beside it lie
`name.input_scale` and `name.output_scale`, 0-d, 1 where they were never calibrated.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from quanto import Scheme
from quanto.hosts.layers import Layers
from quanto.hosts.upstream import QTYPES, read_codes, scheme_of
from quanto.nn import QModule

from .adapter import is_sharded, renames_on_load

__all__ = ["MAP", "UNEXPECTED", "fill", "find_map", "layers", "parse_map"]

MAP = "quanto_qmap.json"

#: regular expression for the names of tensors that transformers finds no place for.
UNEXPECTED = r"\.weight\._(data|scale|shift)(\._data)?$|\.(input|output)_scale$"

_QTYPES = {f"q{name}": here for name, here in QTYPES.items()}
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
    return replace(scheme_of(weights, weight.shape), activations=activations, dynamic=static)


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
            parts = {part: _read(path, prefix + part) for part, path in files_of.items()}
            found = read_codes(parts, module._slots["weight"], packed.dtype)
        except (KeyError, ValueError) as error:
            path = next(iter(files_of.values()), os.path.dirname(files[0]))
            what = f"{prefix}{error.args[0]} is missing" if isinstance(error, KeyError) else f"{prefix}{error}"
            raise ValueError(f"{path}: {what}") from None
        for part, tensor in found.items():
            module._parameters[f"weight_{part}"] = nn.Parameter(tensor.to(packed.device), requires_grad=False)


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
