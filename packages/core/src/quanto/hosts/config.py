# SPDX-License-Identifier: Apache-2.0
"""`ConfigFields`: the fields of a `QuantoConfig`, whichever library it is for."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..scheme import Scheme
from .layers import FORMAT_VERSION, Layers, parse_layers
from .rules import parse_rules

__all__ = ["FLAGS", "SCHEME", "ConfigFields", "fields_of", "refuse_unknown", "weights_of"]

#: fields that are fields of `quanto.Scheme` too.
SCHEME = (
    "weights",
    "activations",
    "group_size",
    "granularity",
    "block",
    "symmetric",
    "algorithm",
    "scale_dtype",
    "dynamic",
)
#: fields that are True or False, and what they are unless said.
FLAGS = {"keep_default_skips": True, "lm_head": False, "embeddings": False, "experts": True, "qat": False}
FLAGS["dequantize"] = False


class ConfigFields:
    """Mixin of config classes: checks the fields, gives the scheme, and writes what is not at its default."""

    weights: str | None
    rules: list[dict[str, Any]]
    modules: list[dict[str, Any]] | None
    modules_to_not_convert: list[str] | None
    format_version: int

    def set_fields(self, fields: Mapping[str, Any], package: str) -> None:
        """Checks and keeps the fields.

        Args:
            fields: all of `SCHEME` and `FLAGS`, `modules_to_not_convert`, `rules`, `modules`, `format_version`.
            package: the distribution, for messages.

        Raises:
            ValueError: naming the field that does not fit.
        """
        version = fields["format_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version must be a positive integer, got {version!r}")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"the model was saved in format version {version}; this {package} reads up to {FORMAT_VERSION}: "
                "upgrade it"
            )
        for name in FLAGS:
            if type(fields[name]) is not bool:
                raise ValueError(f"{name} must be True or False, got {fields[name]!r}")
            setattr(self, name, fields[name])
        for name in SCHEME:
            setattr(self, name, fields[name])
        block, modules = fields["block"], fields["modules"]
        self.__dict__["block"] = None if block is None else list(block)
        self.rules = [rule.to_dict() for rule in parse_rules(fields["rules"])]
        self.modules_to_not_convert = _names(fields["modules_to_not_convert"])
        self.modules = None if modules is None else [layer.to_dict() for layer in parse_layers(modules)]
        self.format_version = version
        self.check_scheme()

    def check_scheme(self) -> None:
        """Checks the scheme, and gives its names their plain form."""
        if self.weights is None:
            given = [name for name in SCHEME if getattr(self, name) is not None]
            if given or not (self.rules or self.modules):
                raise ValueError(f"weights=None needs rules, and nothing else about schemes; got {given or 'no rules'}")
            return
        scheme = self.scheme
        assert scheme is not None
        for name in ("weights", "activations", "scale_dtype"):
            setattr(self, name, getattr(scheme, name))

    @property
    def scheme(self) -> Scheme | None:
        """What modules get that no rule names; None for nothing."""
        if self.weights is None:
            return None
        return Scheme(**{name: getattr(self, name) for name in SCHEME})

    def fields(self) -> dict[str, Any]:
        """JSON-ready: fields that are not at their default.

        qtypes are written as `"qint8"`: optimum-quanto's readers, which know `"int8"`, then refuse the file instead of
        misreading it.
        """
        out: dict[str, Any] = {"quant_method": "quanto", "format_version": self.format_version}
        for name in (*SCHEME, "modules_to_not_convert", *FLAGS, "rules", "modules"):
            value = getattr(self, name)
            if value is not None and value != [] and value != FLAGS.get(name):
                out[name] = f"q{value}" if name in ("weights", "activations") else copy.deepcopy(value)
        out.setdefault("weights", self.weights)
        return out


def fields_of(found: Sequence[Layers]) -> dict[str, Any]:
    """The fields of a config for a model that was quantized without one.

    Args:
        found: what `quanto.hosts.layers.describe` says of the model; not empty.

    Returns:
        The scheme that most modules have, and all of them by name.
    """
    most = max(found, key=lambda layers: len(layers.names)).scheme.to_dict()
    return {
        **{name: value for name, value in most.items() if name in SCHEME},
        "qat": any(layers.trainable for layers in found),
        "modules": [layers.to_dict() for layers in found],
    }


def refuse_unknown(unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    """Complains of fields that there are not.

    Raises:
        ValueError: with the nearest name that there is.
    """
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"QuantoConfig has no field {name!r}; {hint}")


def weights_of(weights: str | None, more: dict[str, Any]) -> str | None:
    """`weights`, or `weights_dtype` as diffusers' own class calls it, which is taken out of `more`.

    Raises:
        ValueError: if both are given and differ.
    """
    alias: str | None = more.pop("weights_dtype", None)
    if alias is None:
        return weights
    if weights not in ("int8", alias):  # int8 is what it is unless said
        raise ValueError(f"weights_dtype is another name of weights; got {alias!r} and {weights!r}")
    return alias


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"modules_to_not_convert must be a list of strings, got {value!r}")
    return list(value)
