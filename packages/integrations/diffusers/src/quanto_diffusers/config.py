# SPDX-License-Identifier: Apache-2.0
"""`QuantoConfig`: what `from_pretrained(quantization_config=…)` takes, and what a saved model's `config.json` holds."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin, QuantizationMethod
from torch import nn

from quanto.hosts.config import FLAGS, SCHEME, ConfigFields, refuse_unknown, weights_of
from quanto.hosts.layers import FORMAT_VERSION, describe

from .saving import BASE

__all__ = ["QuantoConfig"]

_KNOWN = (*SCHEME, *FLAGS, "modules_to_not_convert", "rules", "kv_cache", "weights_dtype")


class _AcceptsStock(type):
    """Instances of the stock class count as ours: pipelines check the configs they are given with `isinstance`."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or _is_stock(instance)


def _is_stock(config: Any) -> bool:
    kind = type(config)
    return kind.__name__ == "QuantoConfig" and kind.__module__.partition(".")[0] == "diffusers"


class QuantoConfig(ConfigFields, QuantizationConfigMixin, metaclass=_AcceptsStock):  # type: ignore[misc]
    """How a model of diffusers is quantized; its fields are those of `quanto_transformers.QuantoConfig`.

    Args:
        weights: qtype of the weights: `"int8"`, `"int4"`, `"float8"`, `"nf4"` or any other of `quanto.qtypes`; None
            where rules say it all. `weights_dtype`, as diffusers' own class calls it, does too.
        activations: qtype of the layers' inputs, `"int8"` or `"float8"`; a scale per token (per sample for
            convolutions) at run time, until `quanto_diffusers.calibrate` gives static ones. None leaves them floating.
        modules_to_not_convert: modules to leave floating: each a path (`"proj_out"`, `"blocks.0"`: itself or any whole
            part of a path, with what is below it), a glob on the whole path (`"*.attn.to_[qk]"`) or a regular
            expression for the whole path (`"re:.*norm.*"`).
        group_size, granularity, block, symmetric, algorithm, scale_dtype, dynamic: see `quanto.Scheme`.
        rules: mixed precision: a mapping, or a sequence of pairs or `quanto.Rule`, of a glob (or `"re:…"`) on the path
            and a scheme (`"int8"`, a mapping, a `quanto.Scheme`), None to leave floating; the first that matches
            decides.
        keep_default_skips: whether to leave what the model wants in float32 floating, unless a rule names it.
        lm_head, embeddings, experts, kv_cache, optimum_map: for text encoders, which quanto-transformers reads;
            a model of diffusers has no such parts.
        qat: quantization-aware training: weights stay trainable floats, rounded on the fly, until
            `quanto.freeze(model)`.
        dequantize: for saved models: load them as floats.
        format_version, modules: of a saved model; not to be given by hand.

    Raises:
        ValueError: for an unknown or unfit field, naming it.
    """

    def __init__(
        self,
        weights: str | None = "int8",
        activations: str | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        *,
        group_size: int | None = None,
        granularity: str | None = None,
        block: Sequence[int] | None = None,
        symmetric: bool | None = None,
        algorithm: str | None = None,
        scale_dtype: str | None = None,
        dynamic: bool | None = None,
        rules: Mapping[str, Any] | Sequence[Any] | None = None,
        keep_default_skips: bool = True,
        lm_head: bool = False,
        embeddings: bool = False,
        experts: bool = True,
        qat: bool = False,
        kv_cache: Mapping[str, Any] | None = None,
        dequantize: bool = False,
        format_version: int = FORMAT_VERSION,
        modules: Sequence[Mapping[str, Any]] | None = None,
        optimum_map: str | None = None,
        quant_method: str = "quanto",
        **unknown: Any,
    ) -> None:
        weights = weights_of(weights, unknown)
        refuse_unknown(unknown, _KNOWN)
        if kv_cache is not None and not isinstance(kv_cache, Mapping):
            raise ValueError(f"kv_cache must be a mapping, got {kv_cache!r}")
        if getattr(quant_method, "value", quant_method) != "quanto":
            raise ValueError(f"quant_method must be 'quanto', got {quant_method!r}")
        second: Any = activations
        if isinstance(second, (list, tuple)):  # the second argument of the stock class
            activations, modules_to_not_convert = None, second
        self.quant_method = QuantizationMethod.QUANTO
        given = locals()
        names = (*SCHEME, *FLAGS, "modules_to_not_convert", "rules", "modules", "format_version")
        self.set_fields({name: given[name] for name in names}, "quanto-diffusers")
        self.kv_cache = None if kv_cache is None else dict(kv_cache)
        self.optimum_map = optimum_map
        self._model: Any = None

    @property
    def weights_dtype(self) -> str | None:
        """`weights` by the name of the stock class."""
        return self.weights

    @classmethod
    def of(cls, config: Any) -> QuantoConfig:
        """A copy, or a config of this class from the stock one, whose other fields have their defaults.

        Raises:
            ValueError: for a config of another library.
        """
        if type(config) is cls:
            return copy.copy(config)
        method = getattr(config, "quant_method", None)
        if getattr(method, "value", method) != "quanto":
            raise ValueError(f"{type(config).__name__} is no config of quanto: use quanto_diffusers.QuantoConfig")
        weights = getattr(config, "weights_dtype", None) or getattr(config, "weights", None)
        return cls(weights, getattr(config, "activations", None), config.modules_to_not_convert)

    def watch(self, model: nn.Module) -> None:
        """From now on `to_dict` describes what is quantized in `model` at the time."""
        self._model = weakref.ref(model)

    @property
    def model(self) -> nn.Module | None:
        """The loaded model that this describes, while there is one."""
        found: nn.Module | None = None if self._model is None else self._model()
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: fields that are not at their default.

        Of a loaded model it says what is quantized in it now, for diffusers writes it before it asks the quantizer
        anything. While adapters are on the model, names are those without them.
        """
        if self.model is not None:
            found = [layers.to_dict() for layers in describe(self.model)]
            self.modules = [{**each, "names": [n.replace(BASE, "") for n in each["names"]]} for each in found]
        return self.fields()

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_dict` as text; it leaves defaults out in any case."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}
