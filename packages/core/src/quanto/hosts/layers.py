# SPDX-License-Identifier: Apache-2.0
"""Which modules of a saved model are quantized and how: the key `modules` of its `quantization_config`.

The list is what was decided when the model was quantized, so that another version of the library, whose defaults
differ, loads the same model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..nn import QModule, QParameters
from ..nn.slot import ARRANGEMENTS
from ..scheme import Scheme

__all__ = ["FORMAT_VERSION", "Layers", "describe", "parse_layers"]

#: rises when a reader of the old one would misunderstand a file.
FORMAT_VERSION = 1

_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_ZERO_POINTS = {"int8": torch.int8, **_DTYPES}
_SCALES = ("input_scale", "output_scale")


@dataclass(frozen=True)
class Layers:
    """Modules that are quantized alike.

    Attributes:
        names: of the modules.
        scheme: what they got.
        dtype: of the float weights they stand for, which decides the dtype of their scales.
        parameters: arrangement by name of raw parameters (see `quanto.nn.slot.Slot`), for modules without a twin.
        zero_point: dtype of their zero points, where they have some.
        scales: the activation scales they have, of `"input_scale"` and `"output_scale"`.
        trainable: whether their weights are still floats.
    """

    names: tuple[str, ...]
    scheme: Scheme
    dtype: str
    parameters: tuple[tuple[str, str], ...] = ()
    zero_point: str = "int8"
    scales: tuple[str, ...] = ()
    trainable: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is at its default is left out."""
        out: dict[str, Any] = {"names": list(self.names), "scheme": self.scheme.to_dict(), "dtype": self.dtype}
        if self.parameters:
            out["parameters"] = dict(self.parameters)
        if self.zero_point != "int8":
            out["zero_point"] = self.zero_point
        if self.scales:
            out["scales"] = list(self.scales)
        return {**out, "trainable": True} if self.trainable else out

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return _DTYPES[self.dtype]

    @property
    def zero_point_dtype(self) -> torch.dtype:
        """`zero_point` as torch's."""
        return _ZERO_POINTS[self.zero_point]


def describe(model: torch.nn.Module) -> list[Layers]:
    """What is quantized in a model, modules that are quantized alike together, in the model's order."""
    groups: dict[Layers, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QModule):
            groups.setdefault(_describe(module), []).append(name)
    return [replace(key, names=tuple(names)) for key, names in groups.items()]


def _describe(module: QModule) -> Layers:
    slots = module._slots
    dtype = next((slot.dtype for slot in slots.values()), torch.float32)
    raw = isinstance(module, QParameters)
    zeros = {str(z.dtype) for n in slots if (z := module._parameters.get(f"{n}_zero_point")) is not None}
    return Layers(
        names=(),
        scheme=module.scheme,
        dtype=str(dtype).removeprefix("torch."),
        parameters=tuple((n, slot.arrangement) for n, slot in slots.items()) if raw else (),
        zero_point=next(iter(zeros), "torch.int8").removeprefix("torch."),
        scales=tuple(n for n in _SCALES if getattr(module, n) is not None),
        trainable=bool(slots) and not module.frozen,
    )


def parse_layers(data: Sequence[Mapping[str, Any]]) -> list[Layers]:
    """Reads the list without trusting it.

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    if isinstance(data, (str, Mapping)) or not isinstance(data, Sequence):
        raise ValueError(f"quantization_config.modules must be a list, got {type(data).__name__}")
    found = []
    for index, entry in enumerate(data):
        try:
            found.append(entry if isinstance(entry, Layers) else _parse(entry))
        except (TypeError, ValueError) as error:
            raise ValueError(f"quantization_config.modules[{index}]: {error}") from None
    seen: set[str] = set()
    for name in (name for layers in found for name in layers.names):
        if name in seen:
            raise ValueError(f"quantization_config.modules names {name!r} twice")
        seen.add(name)
    return found


def _parse(entry: Any) -> Layers:
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be an object, got {type(entry).__name__}")
    known = {"names", "scheme", "dtype", "parameters", "zero_point", "scales", "trainable"}
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"has unknown fields {', '.join(map(repr, unknown))}")
    if not isinstance(entry.get("scheme"), Mapping):
        raise ValueError("scheme must be an object")
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise ValueError("parameters must be an object")
    for value in parameters.values():
        _one_of("an arrangement", value, ARRANGEMENTS)
    return Layers(
        names=_texts("names", entry.get("names")),
        scheme=Scheme.from_dict(entry["scheme"]),
        dtype=_one_of("dtype", entry.get("dtype"), _DTYPES),
        parameters=tuple(parameters.items()),
        zero_point=_one_of("zero_point", entry.get("zero_point", "int8"), _ZERO_POINTS),
        scales=tuple(_one_of("scales", scale, _SCALES) for scale in _texts("scales", entry.get("scales", []))),
        trainable=bool(_one_of("trainable", entry.get("trainable", False), (True, False))),
    )


def _texts(field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{field} must be a list of strings, got {value!r:.80}")
    return tuple(value)


def _one_of(field: str, value: Any, known: Any) -> Any:
    if not isinstance(value, (str, bool)) or value not in known:
        raise ValueError(f"{field} must be one of {', '.join(map(str, known))}, got {value!r:.80}")
    return value


def by_name(found: Sequence[Layers]) -> Iterator[tuple[str, Layers]]:
    """Each module with the group it is in."""
    for layers in found:
        for name in layers.names:
            yield name, layers
